"""How much memory this process may still take: the machine's, or less if its container is limited."""

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def available_bytes() -> int:
    """Bytes that can be had without swapping, as the kernel and the container's limit (cgroup v2 or v1) tell.

    Where the kernel does not tell (macOS), all of the machine's.
    """
    if _MEMINFO.is_file():
        lines = (line.split() for line in _MEMINFO.read_text().splitlines())
        free = next(int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:")
    else:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        if (_CGROUP / limit).is_file() and (_CGROUP / used).is_file():
            text = (_CGROUP / limit).read_text().strip()
            if text.isdigit():
                free = min(free, max(int(text) - int((_CGROUP / used).read_text()), 0))
    return free
