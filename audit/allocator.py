"""The C library's memory allocator: by default it hands large freed blocks back at once, and asks for them again.

Patching allocates and frees the same large tensors thousands of times. Keeping them costs no more than the peak.
"""

from __future__ import annotations

import ctypes
import sys

# From glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_KEEP = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**28))


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory for the next tensor; return whether it was told.

    Elsewhere than on Linux with glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return all(mallopt(option, value) == 1 for option, value in _KEEP)
