"""Give an error of another library, or of the user's network, as one line."""

from __future__ import annotations

import struct

__all__ = ["READ_ERRORS", "first_line"]

READ_ERRORS = (
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    MemoryError,
    EOFError,
    OSError,
    struct.error,
)
"""Errors that PyTorch's reader raises on a damaged or forged file, which it hardly checks."""

_MAX_CHARACTERS = 300


def first_line(error: BaseException) -> str:
    """Give what an error says first; the name of its class where it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:_MAX_CHARACTERS]
