"""Which device a training gets, and whether this machine has a GPU at all, asked of the driver itself."""

import ctypes
import functools
from collections.abc import Callable

from modelyard.components.errors import InvalidInput, NotAvailable

DEVICES = ("auto", "cpu", "cuda")


def device_for(asked: str, why_no_cuda: Callable[[], str]) -> str:
    """``cpu`` or ``cuda``: what was asked for, or for ``auto`` the GPU if there is one that can be used.

    Args:
        asked: one of ``DEVICES``.
        why_no_cuda: says why CUDA cannot be used and what to do, empty if it can; called only where that matters.

    Raises:
        InvalidInput: ``asked`` is something else.
        NotAvailable: ``cuda`` was asked for and cannot be used.
    """
    if asked not in DEVICES:
        raise InvalidInput("device", asked, f"give {', '.join(DEVICES[:-1])} or {DEVICES[-1]}")
    if asked == "cpu":
        return "cpu"
    reason = why_no_cuda()
    if not reason:
        return "cuda"
    if asked == "auto":
        return "cpu"
    raise NotAvailable(f"device = 'cuda': {reason}, or set device to cpu")


@functools.cache
def cuda_devices() -> int:
    """Number of CUDA devices that the NVIDIA driver shows this process; it heeds ``CUDA_VISIBLE_DEVICES``."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
