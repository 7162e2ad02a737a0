"""Read frames from files: videos, images and folders of images."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fcn_deploy.errors import SourceError, SourceOpenError
from fcn_deploy.names import Array
from fcn_deploy.video.address import IMAGE_SUFFIXES
from fcn_deploy.video.capture import (
    check_size,
    fps_hint,
    frame_count_hint,
    open_capture,
    pts_seconds,
)
from fcn_deploy.video.frames import MAX_PIXELS, VideoFrame
from fcn_deploy.video.image_header import image_size

if TYPE_CHECKING:
    import cv2

__all__ = ["ImageSource", "VideoFileSource", "check_file", "list_images", "read_image"]

_SNIFF_BYTES = 4096
_TEXT = re.compile(rb"[\t\n\r\x1b\x20-\x7e\x80-\xff]*")


def list_images(folder: Path) -> list[Path]:
    """List a folder's images (not its subfolders') in natural order: ``f2`` before ``f10``.

    Raises:
        SourceOpenError: there are none, or the folder cannot be listed.
    """
    try:
        entries = list(folder.iterdir())
    except OSError as exc:
        raise SourceOpenError(f"{folder} cannot be listed: {exc.strerror}.") from exc
    images = [path for path in entries if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    if not images:
        raise SourceOpenError(
            f"{folder} holds {len(entries)} entries, but no image"
            f" ({', '.join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))}).",
            hint="Name the folder that holds the images themselves.",
        )
    return sorted(images, key=lambda path: _natural(path.name))


def read_image(path: Path, *, max_pixels: int = MAX_PIXELS) -> Array:
    """Decode an image file to BGR uint8 [H, W, 3].

    Grey, 16-bit and alpha images are converted; an EXIF orientation is applied.

    Raises:
        SourceOpenError: the file is missing or cannot be read.
        FrameTooLargeError: its header announces more pixels than `max_pixels`.
        SourceError: it is not an image, or it is damaged.
    """
    import cv2
    import numpy as np

    check_file(path, "an image")
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise SourceOpenError(f"{path} cannot be read: {exc.strerror}.") from exc
    size = image_size(data)
    if size is None:
        raise SourceError(
            f"{path} is not a readable image: its first bytes are {data[:8]!r}; expected a PNG,"
            " JPEG, BMP, WebP or TIFF header.",
            hint="Remove the file or convert it to PNG.",
        )
    check_size(str(path), *size, max_pixels=max_pixels)
    try:
        frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as exc:
        raise SourceError(f"{path} cannot be decoded: {exc.err}.") from exc
    if frame is None:
        raise SourceError(
            f"{path} is damaged: its header announces {size[0]}x{size[1]} pixels, but they cannot"
            " be decoded.",
            hint="Copy the file again or remove it.",
        )
    return frame


def check_file(path: Path, what: str) -> None:
    """Say exactly why a file cannot be opened; decoders only say that it cannot.

    Args:
        what: what is expected there, such as ``a video``.

    Raises:
        SourceOpenError: it is missing, a folder, not a regular file, unreadable or empty.
    """
    try:
        status = path.stat()
    except FileNotFoundError as exc:
        raise SourceOpenError(
            f"{path} does not exist; expected {what}.", hint="Check the path."
        ) from exc
    except OSError as exc:
        raise SourceOpenError(f"{path} cannot be opened: {exc.strerror}.") from exc
    if stat.S_ISDIR(status.st_mode):
        raise SourceOpenError(f"{path} is a folder; expected {what}.")
    if not stat.S_ISREG(status.st_mode):
        raise SourceOpenError(f"{path} is not a regular file; expected {what}.")
    if not os.access(path, os.R_OK):
        raise SourceOpenError(
            f"{path} may not be read: permission denied.", hint="Change the file's permissions."
        )
    if status.st_size == 0:
        raise SourceOpenError(f"{path} is empty; expected {what}.")


class ImageSource:
    """A list of image files as a source. Sizes may differ from one to the next.

    Args:
        paths: the files, in the order in which they are given out.
        name: how the list is called in messages; None means the first file.
        max_pixels: a larger image is refused by its header, before it is decoded.
    """

    live = False
    fps = None
    notices: tuple[str, ...] = ()

    def __init__(
        self, paths: Sequence[Path], *, name: str | None = None, max_pixels: int = MAX_PIXELS
    ) -> None:
        if not paths:
            raise ValueError("an ImageSource needs at least one path")
        self.paths = tuple(paths)
        self.name = name if name is not None else str(paths[0])
        self.frame_count = len(paths)
        self._max_pixels = max_pixels
        self._next = 0

    def __repr__(self) -> str:
        return f"ImageSource({self.name!r}, {self.frame_count} images)"

    def open(self) -> None:
        """Do nothing: each file is opened when its turn comes."""

    def read(self) -> VideoFrame | None:
        """Decode the next file; see `FrameSource.read`."""
        if self._next == len(self.paths):
            return None
        index, path = self._next, self.paths[self._next]
        self._next += 1
        return VideoFrame(read_image(path, max_pixels=self._max_pixels), index, origin=path)

    def interrupt(self) -> None:
        """Do nothing: reading a file does not wait."""

    def close(self) -> None:
        """Do nothing: no file stays open."""


class VideoFileSource:
    """A video file, decoded in order by OpenCV's FFmpeg.

    OpenCV's limits hold: frames after a change of size inside the file come out in the first
    size, and damaged data may come out as a frame with wrong pixels. A rotation noted in the file
    is applied.

    Args:
        path: the file.
        max_pixels: a video with larger frames is refused.
    """

    live = False

    def __init__(self, path: str | Path, *, max_pixels: int = MAX_PIXELS) -> None:
        self.path = Path(path)
        self.name = str(path)
        self.fps: float | None = None
        self.frame_count: int | None = None
        self.notices: tuple[str, ...] = ()
        self._max_pixels = max_pixels
        self._capture: cv2.VideoCapture | None = None
        self._next = 0
        self._last_pts: float | None = None

    def __repr__(self) -> str:
        return f"VideoFileSource({self.name!r})"

    def open(self) -> None:
        """Open the file; see `FrameSource.open`."""
        if self._capture is not None:
            return
        check_file(self.path, "a video")
        _refuse_text(self.path)
        self._capture = capture = open_capture(self.path)
        self.fps, self.frame_count = fps_hint(capture), frame_count_hint(capture)
        import cv2

        capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)  # the default differs between releases
        if not capture.get(cv2.CAP_PROP_ORIENTATION_AUTO):
            self.notices += ("a rotation noted in the file is not applied by this OpenCV",)
        height = int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        width = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        check_size(self.name, height, width, max_pixels=self._max_pixels)

    def read(self) -> VideoFrame | None:
        """Decode the next frame; see `FrameSource.read`.

        Raises:
            SourceError: the source is not open.
        """
        if self._capture is None:
            raise SourceError(f"{self.name} is not open.", hint="Call open() first.")
        ok, frame = self._capture.read()
        if not ok:
            self._note_early_end()
            return None
        index = self._next
        self._next += 1
        pts = pts_seconds(self._capture)
        if pts is not None and self._last_pts is not None and pts <= self._last_pts:
            self._note("its presentation times do not always increase")
            pts = None if pts == 0 else pts  # containers without times say 0 for every frame
        self._last_pts = pts if pts is not None else self._last_pts
        return VideoFrame(frame, index, pts)

    def interrupt(self) -> None:
        """Do nothing: reading a file does not wait."""

    def close(self) -> None:
        """Release the file. May be called twice; never while another thread reads."""
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def _note_early_end(self) -> None:
        expected = self.frame_count
        if expected is not None and self._next + max(2, expected // 50) < expected:
            self._note(f"ended early: {self._next} of about {expected} frames could be decoded")

    def _note(self, notice: str) -> None:
        if notice not in self.notices:
            self.notices += (notice,)


def _refuse_text(path: Path) -> None:
    """Refuse text: FFmpeg would draw it as ANSI art, or follow it as a playlist to other files."""
    with path.open("rb") as file:
        head = file.read(_SNIFF_BYTES)
    if _TEXT.fullmatch(head):
        raise SourceOpenError(f"{path} is a text file; expected a video.")


def _natural(name: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part.lower()) for part in parts]
