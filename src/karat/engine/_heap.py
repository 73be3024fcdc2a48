"""What a forward lets go of stays with the process, for the next one.

glibc gives the end of its heap back as soon as a few megabytes of it are free, and memory that is taken anew comes page
by page, each cleared by the system: a forward that allocates and frees what lies between its layers spends up to a
third of its time there.
"""

import contextlib
import ctypes
import os

_TRIM, _MMAP, _ARENAS = -1, -3, -8  # of malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX
KEPT = 1 << 30  # bytes that may lie free at the heap's end
SINGLE = 64 << 20  # bytes from which memory is taken from the system and given back by itself, as a model's weights are


def keep_freed() -> None:
    """Keep up to a gigabyte of freed memory, in one heap for all threads; not where the environment tunes malloc."""
    tuned = any(name.startswith("MALLOC_") for name in os.environ)
    if tuned or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    with contextlib.suppress(OSError, AttributeError):  # another system, or another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM, KEPT)
        mallopt(_MMAP, SINGLE) or mallopt(_MMAP, SINGLE // 2)  # which older ones take at most
        mallopt(_ARENAS, 1)
