"""Small videos and images that tell which frame they are, and a network that needs no file."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Event

import cv2
import numpy as np

from fcn_deploy.names import Array
from fcn_deploy.testing import FakeSegmenter
from fcn_deploy.video.frames import VideoFrame

GREY_STEP = 20  # codecs change levels by a few


def numbered_frame(index: int, *, height: int = 48, width: int = 64) -> Array:
    """A frame whose first two quarters' grey levels are its number's digits; the rest is white."""
    frame = np.full((height, width, 3), 255, np.uint8)
    for place, digit in enumerate((index // 10, index % 10)):
        frame[:, place * width // 4 : (place + 1) * width // 4] = GREY_STEP * (digit + 1)
    return frame


def frame_number(frame: Array) -> int:
    """The number that a decoded frame was made with."""
    width = frame.shape[1]
    tens, ones = (
        round(float(frame[8:-8, place * width // 4 + 4 : (place + 1) * width // 4 - 4].mean()))
        for place in range(2)
    )
    return 10 * round(tens / GREY_STEP - 1) + round(ones / GREY_STEP - 1)


def write_clip(
    path: Path, *, frames: int = 30, codec: str = "MJPG", fps: float = 25.0, height: int = 48
) -> Path:
    """Write numbered frames with OpenCV."""
    writer = cv2.VideoWriter(
        str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), fps, (64, height)
    )
    assert writer.isOpened()
    for index in range(frames):
        writer.write(numbered_frame(index, height=height))
    writer.release()
    return path


def write_image(path: Path, frame: Array) -> Path:
    assert cv2.imwrite(str(path), frame)
    return path


def read_png(path: Path) -> Array:
    """An image as it is in the file: its own channels and depth."""
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image


def decode_all(path: Path) -> list[Array]:
    """Every frame of a video, read without this project's code."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    frames = []
    while True:
        ok, frame = capture.read()
        if not ok:
            break
        frames.append(frame)
    capture.release()
    return frames


def is_bright(frame_bgr: Array) -> Array:
    """The rule of the tests' networks: label 1 where the frame is bright."""
    return frame_bgr[..., 0] > 250


threshold_segmenter = FakeSegmenter(is_bright)


class FakeSource:
    """Numbered frames from memory; may fail, and may block until it is interrupted."""

    live = False
    fps: float | None = 25.0

    def __init__(
        self, frames: int, *, error: Exception | None = None, block_at: int | None = None
    ) -> None:
        self.name = "fake"
        self.frame_count = frames
        self.notices: tuple[str, ...] = ()
        self.closed = 0
        self.exhausted = Event()
        self._error, self._block_at = error, block_at
        self._interrupted = Event()
        self._next = 0

    def open(self) -> None:
        pass

    def read(self) -> VideoFrame | None:
        if self._next == self._block_at:
            self._interrupted.wait(20)
            return None
        if self._next == self.frame_count:
            self.exhausted.set()
            if self._error is not None:
                raise self._error
            return None
        self._next += 1
        index = self._next - 1
        return VideoFrame(numbered_frame(index % 60), index, index / 25)

    def interrupt(self) -> None:
        self._interrupted.set()

    def close(self) -> None:
        self.closed += 1


def wait_until(condition: object, *, seconds: float = 10.0) -> None:
    """Wait for something that must come true; the time is a limit, not a measurement."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this never came true"
        time.sleep(0.005)
