"""Whether this machine has a GPU that CUDA can use, asked of the driver itself: no library is loaded and nothing is guessed."""

import ctypes
import functools


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
