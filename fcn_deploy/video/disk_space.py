"""Detect a full disk while a video is written, which OpenCV's writer does not report."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from fcn_deploy.artifact.partial_files import partial_name
from fcn_deploy.errors import DiskFullError, SinkError

if TYPE_CHECKING:
    import av

__all__ = ["DiskWatch", "translate_os_error"]

_CHECK_EVERY = 25  # frames between two looks at the disk
_MIN_FREE_BYTES = 1 << 16  # FFmpeg writes blocks of half of this
_PROBE_BYTES = 1 << 18
_HINT = "Free some room, or write to another disk."


def translate_os_error(error: OSError | av.FFmpegError, path: Path) -> SinkError:
    """Make a sink's error of the system's: `DiskFullError` where there is no room."""
    reason = error.strerror or str(error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    kind = DiskFullError if full else SinkError
    translated = kind(f"{path} cannot be written: {reason}.", hint=_HINT if full else None)
    translated.errno = error.errno
    return translated


class DiskWatch:
    """Looks now and then whether a file that another library writes can still grow."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last_bytes = 0  # size at the last look

    def after_frame(self, frames: int) -> None:
        """Look at the disk after every few frames.

        Args:
            frames: written so far.

        Raises:
            DiskFullError: there is no room left.
            SinkError: nothing can be written any more.
        """
        if frames % _CHECK_EVERY:
            return
        size_bytes = self.check_room(frames)
        if size_bytes == self._last_bytes:
            self._probe()
        self._last_bytes = size_bytes

    def check_room(self, frames: int) -> int:
        """Give the file's size in bytes where it can still grow.

        Raises:
            DiskFullError: there is no room left.
        """
        size_bytes = self._path.stat().st_size
        room = shutil.disk_usage(self._path.parent).free
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if limit != resource.RLIM_INFINITY:
            room = min(room, limit - size_bytes)
        if room < _MIN_FREE_BYTES:
            raise DiskFullError(
                f"{self._path} stopped growing at {size_bytes:,} bytes, within the last"
                f" {_CHECK_EVERY} of {frames} frames.",
                hint=_HINT,
            )
        return size_bytes

    def _probe(self) -> None:
        """Write beside the file: it may not have grown because quiet frames are small."""
        probe = partial_name(self._path)
        try:
            with probe.open("xb") as file:
                file.write(bytes(_PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        except OSError as exc:
            raise translate_os_error(exc, self._path) from exc
        finally:
            probe.unlink(missing_ok=True)
