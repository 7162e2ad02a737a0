"""Give the frames to time on: the user's, resized to each size, or seeded synthetic ones."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from fcn_deploy.errors import BenchmarkError, SourceError, SourceOpenError
from fcn_deploy.names import Array
from fcn_deploy.video.capture import fps_hint, open_capture
from fcn_deploy.video.files import read_image

if TYPE_CHECKING:
    import cv2

__all__ = ["FRAMES_AT_MOST", "read_frames", "synthetic_frames", "video_rate_fps"]

FRAMES_AT_MOST = 8
"""Frames that one row works on in turn; of longer inputs, so many at even distances."""

T = TypeVar("T")

_SYNTHETIC_FRAMES = 3
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


def synthetic_frames(height: int, width: int, *, batch: int) -> Array:
    """Make frames for one size: uint8 [count, height, width, 3], BGR; whole batches."""
    from fcn_export.check.sample_frames import natural_frame

    frames = [natural_frame(height, width, seed) for seed in range(_SYNTHETIC_FRAMES)]
    return _whole_batches(frames, batch)


def read_frames(path: str | os.PathLike[str], height: int, width: int, *, batch: int) -> Array:
    """Read an images folder, an image or a video, and resize its frames.

    Returns:
        uint8 [count, height, width, 3], BGR; whole batches of at most 8 different frames.

    Raises:
        BenchmarkError: nothing is there, or nothing in it can be read.
    """
    import cv2

    place = Path(path)
    if place.is_dir():
        frames = _read_images(_images_in(place))
    elif place.suffix.lower() in _IMAGE_SUFFIXES:
        frames = _read_images([place])
    elif place.is_file():
        frames = _read_video(place)
    else:
        raise BenchmarkError(
            f"there is no input '{place}'.", hint="Give an images folder, an image or a video."
        )
    resized = [
        frame
        if frame.shape[:2] == (height, width)
        else cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
        for frame in frames
    ]
    return _whole_batches(resized, batch)


def video_rate_fps(path: str | os.PathLike[str]) -> float | None:
    """Give the frame rate that a video announces; None for images and where it says none."""
    place = Path(path)
    if not place.is_file() or place.suffix.lower() in _IMAGE_SUFFIXES:
        return None
    capture = _open_video(place)
    try:
        return fps_hint(capture)
    finally:
        capture.release()


def _images_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise BenchmarkError(f"there is no folder '{folder}'.")
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in _IMAGE_SUFFIXES)
    if not found:
        raise BenchmarkError(
            f"'{folder}' holds no images ({', '.join(_IMAGE_SUFFIXES)}).",
        )
    return found


def _read_images(paths: Sequence[Path]) -> list[Array]:
    try:
        return [read_image(path) for path in _spread(paths)]
    except SourceError as error:
        raise BenchmarkError(error.message, hint=error.hint) from error


def _read_video(path: Path) -> list[Array]:
    import cv2

    capture = _open_video(path)
    try:
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        wanted = set(_spread(range(count))) if count > 0 else set(range(FRAMES_AT_MOST))
        frames: list[Array] = []
        index = 0
        while len(frames) < len(wanted):
            read, frame = capture.read()
            if not read:
                break
            if index in wanted:
                frames.append(frame)
            index += 1
    finally:
        capture.release()
    if not frames:
        raise BenchmarkError(f"'{path}' is no video that OpenCV can read.")
    return frames


def _open_video(path: Path) -> cv2.VideoCapture:
    try:
        return open_capture(path)
    except SourceOpenError as error:
        raise BenchmarkError(error.message, hint=error.hint) from error


def _spread(items: Sequence[T]) -> list[T]:
    """Take at most `FRAMES_AT_MOST` at even distances."""
    if len(items) <= FRAMES_AT_MOST:
        return list(items)
    places = np.linspace(0, len(items) - 1, FRAMES_AT_MOST).round().astype(int)
    return [items[place] for place in places]


def _whole_batches(frames: Sequence[Array], batch: int) -> Array:
    """Repeat frames until they fill whole batches; every one of them is in at least one."""
    count = -(-len(frames) // batch) * batch
    return np.stack([frames[index % len(frames)] for index in range(count)])
