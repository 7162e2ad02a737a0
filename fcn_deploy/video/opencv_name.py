"""Check names before OpenCV gets them: one that is not UTF-8 would end the process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fcn_deploy.artifact.name_text import is_utf8

__all__ = ["opencv_name"]


@contextmanager
def opencv_name(path: Path) -> Iterator[str]:
    """Give a name, good inside the block, under which OpenCV opens a file that is there.

    A name that is not UTF-8 is replaced by that of an open descriptor, of the folder where that
    is enough: FFmpeg goes by a file's ending, too.

    Raises:
        OSError: the file or its folder cannot be opened.
    """
    name = os.path.abspath(path)  # FFmpeg would take "http:x" for a protocol
    if is_utf8(name):
        yield name
        return
    folder, file = os.path.split(name)
    in_folder = is_utf8(file)
    descriptor = os.open(folder if in_folder else name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield f"/dev/fd/{descriptor}/{file}" if in_folder else f"/dev/fd/{descriptor}"
    finally:
        os.close(descriptor)
