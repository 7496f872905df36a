"""Keeping the memory that a step frees for the next one.

A training step on CPU frees and takes the same large buffers again and again. GNU's allocator returns
them to the system in between, and the first touch of every page then costs a fault: some 10,000 per step of
a small model, 5 % of its time (docs/log.md). On a GPU PyTorch's own allocator already keeps them.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> None:
    """Ask the C library not to give freed memory back while this process lives; nothing where it cannot."""
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
