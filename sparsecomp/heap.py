"""The process's heap."""

from __future__ import annotations

import ctypes
import gc
import sys


def trim() -> None:
    """Give the memory that compiling took and freed back to the system, where the C library can (glibc)."""
    gc.collect()
    if sys.platform != "linux":
        return
    release = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if release is not None:
        release(0)
