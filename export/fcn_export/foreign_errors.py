"""What an error of another library, or of the user's network, says in one line."""

from __future__ import annotations

__all__ = ["first_line"]

_MAX_CHARACTERS = 300


def first_line(error: BaseException) -> str:
    """Give what an error says first; the name of its class where it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:_MAX_CHARACTERS]
