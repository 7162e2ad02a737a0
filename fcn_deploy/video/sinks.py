"""Write segmented frames: videos and image files that appear under their name when complete."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from fcn_deploy.artifact.partial_files import partial_name, write_whole
from fcn_deploy.draw import side_by_side
from fcn_deploy.errors import ClosedError, DiskFullError, SinkError, SinkFormatError
from fcn_deploy.names import Array
from fcn_deploy.video.disk_space import translate_os_error
from fcn_deploy.video.frames import SegmentedFrame
from fcn_deploy.video.writers import (
    VIDEO_SUFFIXES,
    WRITERS,
    FrameWriter,
    WriterName,
    open_writer,
)

__all__ = ["VIEWS", "ImageSink", "VideoSink", "View", "render"]

View = Literal["overlay", "labels", "color", "side-by-side"]
"""How a frame is drawn; ``labels`` are the class ids themselves."""

VIEWS: tuple[View, ...] = get_args(View)


def render(item: SegmentedFrame, view: View, *, alpha: float = 0.5) -> Array:
    """Draw one frame.

    Args:
        view: ``overlay`` blends the class colours over the frame, ``color`` paints them alone,
            ``side-by-side`` puts the frame left of its overlay, ``labels`` gives the class ids.
        alpha: share of the class colours in the overlay, 0 to 1.

    Returns:
        BGR uint8 [H, W, 3], twice as wide for ``side-by-side``; for ``labels`` uint8 or uint16
        [H, W].
    """
    if view == "labels":
        return item.labels
    if view == "color":
        return item.segmentation.colorize()
    overlay = item.segmentation.overlay(item.frame, alpha=alpha)
    return side_by_side(item.frame, overlay) if view == "side-by-side" else overlay


class VideoSink:
    """A video file. It is written as ``<stem>.*.partial<suffix>`` and renamed when it is complete.

    The size of the first frame holds for all; an odd height or width is made even by repeating
    the last row or column, as the codecs need it. Frames are equally spaced in time.

    Args:
        path: the file to make; one that is there is replaced at the end.
        fps: frames a second.
        writer: ``opencv`` (always there; a file whose writing was killed may not play), or
            ``pyav`` from the extra ``video`` (plays after a kill, smaller files, reports a full
            disk at once). Never chosen by what is installed, so that a run gives the same file
            everywhere; and one process loads two FFmpegs only where that is asked for.

    Attributes:
        path: the file's final name.
        partial_path: its name until it is complete.
        frames: frames written.
        complete: the file has its final name.

    Raises:
        SinkFormatError: the file's ending, or `fps`, cannot be written.
        SinkError: the folder cannot be made, or `path` is a folder.
    """

    def __init__(self, path: str | Path, *, fps: float, writer: WriterName = "opencv") -> None:
        self.path = Path(path)
        self.partial_path = partial_name(self.path)
        self.frames = 0
        self.complete = False
        if writer not in WRITERS:
            raise ValueError(f"writer is {writer!r}; expected one of {', '.join(WRITERS)}")
        if self.path.suffix.lower() not in VIDEO_SUFFIXES:
            raise SinkFormatError(
                f"{self.path} ends in '{self.path.suffix}'; videos can be written to"
                f" {', '.join(sorted(VIDEO_SUFFIXES))}."
            )
        if not (math.isfinite(fps) and 0 < fps <= 1000):
            raise SinkFormatError(f"fps is {fps}; it must be above 0 and at most 1000.")
        _make_folder(self.path.parent)
        if os.path.isdir(self.path):
            raise SinkError(f"{self.path} is a folder; expected a video file's name.")
        self._name: WriterName = writer
        self._fps = fps
        self._writer: FrameWriter | None = None
        self._size: tuple[int, int] | None = None
        self._failed = self._closed = False

    def __repr__(self) -> str:
        return f"VideoSink({str(self.path)!r}, {self.encoder}, {self.frames} frames)"

    @property
    def encoder(self) -> str:
        """Which library and codec write the file, such as ``opencv/mp4v``."""
        return self._name if self._writer is None else f"{self._name}/{self._writer.codec}"

    def write(self, frame_bgr: Array) -> None:
        """Add one frame.

        Args:
            frame_bgr: BGR uint8 [H, W, 3], as large as the first; not modified.

        Raises:
            SinkFormatError: the frame has another shape or dtype; it is left out of the file.
            DiskFullError: no room is left; the part that was written stays in `partial_path`.
            SinkError: the encoder failed.
            ClosedError: after close().
        """
        if self._closed or self._failed:
            raise ClosedError(f"{self.path} is closed.")
        self._check(frame_bgr)
        height, width = frame_bgr.shape[:2]
        padding = ((0, height % 2), (0, width % 2), (0, 0))
        even = np.pad(frame_bgr, padding, mode="edge") if height % 2 or width % 2 else frame_bgr
        if self._writer is None:
            self._writer = open_writer(
                self._name,
                self.partial_path,
                suffix=self.path.suffix.lower(),
                fps=self._fps,
                size_wh=(even.shape[1], even.shape[0]),
            )
            self._size = (height, width)
        try:
            self._writer.write(np.ascontiguousarray(even))
        except SinkError as exc:
            self._failed = True
            raise self._kept(exc) from exc
        self.frames += 1

    def close(self) -> None:
        """Finish the file and give it its name; without a frame there is no file.

        Raises:
            DiskFullError, SinkError: the file is not whole; it stays in `partial_path`.
        """
        if self._closed:
            return
        self._closed = True
        if self._writer is None:
            return
        if self._failed:
            self._abandon(self._writer)
            return
        try:
            self._writer.close()
            self.partial_path.replace(self.path)
            self.complete = True
        except SinkError as exc:
            raise self._kept(exc) from exc
        except OSError as exc:
            raise translate_os_error(exc, self.path) from exc

    def __enter__(self) -> VideoSink:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _check(self, frame: Array) -> None:
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
            raise SinkFormatError(
                f"a frame for {self.path.name} is {frame.dtype} {list(frame.shape)}; expected BGR"
                " uint8 [H, W, 3]."
            )
        if self._size is not None and frame.shape[:2] != self._size:
            raise SinkFormatError(
                f"frame {self.frames} for {self.path.name} is {frame.shape[0]}x{frame.shape[1]};"
                f" the first was {self._size[0]}x{self._size[1]}.",
                hint="Write frames of one size, or start another file.",
            )

    def _abandon(self, writer: FrameWriter) -> None:
        """Let go of a writer that already failed; its first error was reported."""
        try:
            writer.close()
        except SinkError:
            return

    def _kept(self, error: SinkError) -> SinkError:
        kept = f"The part written so far is {self.partial_path}."
        full = isinstance(error, DiskFullError)
        told = type(error)(
            error.message, hint=f"{kept} {error.hint}" if full and error.hint else kept
        )
        told.errno = error.errno
        return told


class ImageSink:
    """A folder of PNG files, one a frame, each complete or not there at all.

    A frame of an image file keeps its stem; a video's frames are called ``000000.png`` and on.
    Files that are there are replaced, except the image that a frame was read from.

    Args:
        folder: it is made where it is missing.
        view: what to draw; ``labels`` gives single-channel files of class ids, 8 or 16 bits.
        alpha: share of the class colours in an overlay.

    Raises:
        SinkError: the folder cannot be made.
    """

    def __init__(self, folder: str | Path, view: View = "labels", *, alpha: float = 0.5) -> None:
        if view not in VIEWS:
            raise ValueError(f"view is {view!r}; expected one of {', '.join(VIEWS)}")
        self.folder = Path(folder)
        self.view: View = view
        self.frames = 0
        self._alpha = alpha
        _make_folder(self.folder)

    def __repr__(self) -> str:
        return f"ImageSink({str(self.folder)!r}, {self.view!r}, {self.frames} files)"

    def target(self, item: SegmentedFrame) -> Path:
        """Say which file a frame goes to."""
        return self.folder / image_name(item.origin, item.index)

    def write(self, item: SegmentedFrame) -> Path:
        """Draw a frame and write it; return its file.

        Raises:
            SinkError: the file is the frame's own source, or it cannot be written.
            SinkFormatError: the image cannot be encoded.
            DiskFullError: no room is left; nothing of this frame stays.
        """
        import cv2

        target = self.target(item)
        if item.origin is not None and target.exists() and target.samefile(item.origin):
            raise SinkError(
                f"{target} is the image that is being segmented.", hint="Write to another folder."
            )
        ok, data = cv2.imencode(".png", render(item, self.view, alpha=self._alpha))
        if not ok:
            raise SinkFormatError(f"frame {item.index} cannot be encoded as PNG for {target}.")
        try:
            write_whole(target, data.tobytes())
        except OSError as exc:
            raise translate_os_error(exc, target) from exc
        self.frames += 1
        return target


def image_name(origin: Path | None, index: int) -> str:
    """Name the file of one frame: its image's stem, or its number in the video."""
    return f"{origin.stem}.png" if origin is not None else f"{index:06d}.png"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise translate_os_error(exc, folder) from exc
