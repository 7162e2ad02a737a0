"""Write files as ``*.partial.*``, and give them their name when they are complete."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["partial_name", "partial_of", "write_whole"]

_NAME_MAX_BYTES = 255  # of Linux and macOS
_NOT_UTF8 = re.compile("[\ud800-\udfff]")


def partial_name(path: Path) -> Path:
    """Make an unused name beside `path`: ``<stem>.<8 hex digits>.partial<suffix>``.

    It is UTF-8 where the folder's is, as libraries want it, and no longer than names may be.
    Create it with ``touch(exist_ok=False)`` or mode ``x``, which touch no file that is there.
    """
    stem, suffix = (_NOT_UTF8.sub("_", part) for part in (path.stem, path.suffix))
    ending = f".{secrets.token_hex(4)}.partial{suffix}"
    room = _NAME_MAX_BYTES - len(ending.encode())
    if room < 1:  # the suffix alone is too long
        return path.with_name(ending[1:].removesuffix(suffix))
    while len(stem.encode()) > room:
        stem = stem[:-1]
    return path.with_name(stem + ending)


@contextmanager
def partial_of(path: Path) -> Iterator[Path]:
    """Give a new empty file to write to; it becomes `path` at the end of the block.

    It has the rights that `open` gives. Where the block fails, it is deleted.

    Raises:
        OSError: it cannot be created or renamed.
    """
    partial = partial_name(path)
    partial.touch(exist_ok=False)
    mode = partial.stat().st_mode
    try:
        yield partial
        if partial.stat().st_mode != mode:  # safetensors puts a private file in its place
            partial.chmod(mode)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: bytes, *, sync: bool = False) -> None:
    """Write a file, whole or not at all.

    Args:
        sync: wait until it is on the disk.

    Raises:
        OSError: it cannot be written; what was there before stays.
    """
    with partial_of(path) as partial, partial.open("wb") as file:
        file.write(content)
        if sync:
            file.flush()
            os.fsync(file.fileno())
