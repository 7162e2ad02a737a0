"""Give freed memory back to the system, so that the peaks of two steps do not add up."""

from __future__ import annotations

import ctypes
import gc

__all__ = ["release_freed_memory"]


def release_freed_memory() -> None:
    """Collect garbage, and have glibc give unused pages back to the system.

    Left alone, it keeps hundreds of megabytes after a graph was traced or a session closed. Where
    there is another C library, only the garbage is collected.
    """
    gc.collect()
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return
    trim(ctypes.c_size_t(0))
