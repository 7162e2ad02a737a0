"""Frames to time on: the user's, resized to each size, or seeded ones much like photographs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from fcn_deploy.errors import BenchmarkError
from fcn_deploy.names import Array
from fcn_deploy.video.capture import fps_hint

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
    import cv2

    place = Path(path)
    if not place.is_file() or place.suffix.lower() in _IMAGE_SUFFIXES:
        return None
    capture = cv2.VideoCapture(str(place))
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
    import cv2

    frames: list[Array] = []
    for path in _spread(paths):
        frame = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if frame is None:
            raise BenchmarkError(f"'{path}' is no image that OpenCV can read.")
        frames.append(frame)
    return frames


def _read_video(path: Path) -> list[Array]:
    import cv2

    capture = cv2.VideoCapture(str(path))
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
