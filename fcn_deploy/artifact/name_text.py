"""Print file names that are not UTF-8, which not every library and format takes."""

from __future__ import annotations

__all__ = ["is_utf8", "printable"]


def is_utf8(name: str) -> bool:
    """Say whether a name, as Python gives it, is UTF-8 on the disk."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """Give text that is valid Unicode: a byte 0xff that is not UTF-8 becomes ``\\udcff``."""
    return text.encode("utf-8", "backslashreplace").decode()
