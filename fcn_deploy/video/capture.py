"""Open OpenCV's capture, and give only those facts about a video that can be true."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from fcn_deploy.errors import FrameTooLargeError, SourceOpenError
from fcn_deploy.video.opencv_name import opencv_name

if TYPE_CHECKING:
    import cv2

__all__ = ["check_size", "fps_hint", "frame_count_hint", "open_capture", "pts_seconds"]


def open_capture(path: Path) -> cv2.VideoCapture:
    """Open a video file with OpenCV's FFmpeg, and with nothing else.

    Raises:
        SourceOpenError: FFmpeg cannot open it.
    """
    import cv2

    try:
        with opencv_name(path) as name:
            capture = cv2.VideoCapture(name, cv2.CAP_FFMPEG)
    except OSError as exc:
        raise SourceOpenError(f"{path} cannot be opened: {exc.strerror}.") from exc
    if not capture.isOpened():
        capture.release()
        raise SourceOpenError(
            f"{path} is not a video that FFmpeg can open: unknown format, or damaged (an MP4 cut"
            " off before its end cannot be read).",
            hint="Try to play it with ffplay, or convert it with ffmpeg.",
        )
    return capture


def fps_hint(capture: cv2.VideoCapture) -> float | None:
    """Frames a second as the container says, or None where that cannot be true."""
    import cv2

    fps = float(capture.get(cv2.CAP_PROP_FPS))
    return fps if math.isfinite(fps) and 0 < fps <= 1000 else None


def frame_count_hint(capture: cv2.VideoCapture) -> int | None:
    """Number of frames as the container says, or None (streams report -9.2e18)."""
    import cv2

    count = float(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    return int(count) if 0 < count < 2**40 else None


def pts_seconds(capture: cv2.VideoCapture) -> float | None:
    """Presentation time of the frame just read, or None where there is none."""
    import cv2

    milliseconds = float(capture.get(cv2.CAP_PROP_POS_MSEC))
    return milliseconds / 1000 if math.isfinite(milliseconds) and milliseconds >= 0 else None


def check_size(name: str, height: int, width: int, *, max_pixels: int) -> None:
    """Refuse a frame that is larger than allowed.

    Raises:
        FrameTooLargeError: height x width exceeds `max_pixels`.
    """
    if height * width > max_pixels:
        raise FrameTooLargeError(
            f"{name} has {height}x{width} = {height * width:,} pixels; at most {max_pixels:,} are"
            " decoded.",
            hint="Make it smaller, or raise max_pixels.",
        )
