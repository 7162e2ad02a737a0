"""Define what flows through a pipeline, and the protocol of every source of frames."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fcn_deploy.names import Array

if TYPE_CHECKING:
    from fcn_deploy.segmentation import Segmentation

__all__ = ["MAX_PIXELS", "FrameSegmenter", "FrameSource", "SegmentedFrame", "VideoFrame"]

MAX_PIXELS = 64_000_000
"""Largest frame that a source decodes unless told otherwise, in pixels (192 MB as BGR)."""


@dataclass(frozen=True, slots=True)
class VideoFrame:
    """One decoded frame.

    Attributes:
        frame: BGR uint8 [H, W, 3], owned by whoever holds it.
        index: position in the source, from 0, without gaps.
        pts_seconds: presentation time from the file's own clock; None where it is unknown.
        origin: the image file it was read from; None for video.
        captured_at_seconds: `time.monotonic` at the end of its decoding.
    """

    frame: Array = field(repr=False)
    index: int
    pts_seconds: float | None = None
    origin: Path | None = None
    captured_at_seconds: float = field(default_factory=time.monotonic, repr=False)


@dataclass(frozen=True, slots=True)
class SegmentedFrame:
    """One frame with what the network says of it: what iterating a `VideoPipeline` gives.

    Attributes:
        frame: BGR uint8 [H, W, 3].
        index: position in the source, from 0; dropped frames leave gaps.
        pts_seconds: presentation time from the file's own clock; None where it is unknown.
        origin: the image file it was read from; None for video.
        segmentation: the network's result.
    """

    frame: Array = field(repr=False)
    index: int
    pts_seconds: float | None
    origin: Path | None
    segmentation: Segmentation = field(repr=False)

    @property
    def labels(self) -> Array:
        """Class ids, uint8 or uint16 [H, W], in the frame's own coordinates."""
        return self.segmentation.labels


class FrameSegmenter(Protocol):
    """What a pipeline needs of a network: a frame in, a `Segmentation` out."""

    def __call__(self, frame_bgr: Array, /) -> Segmentation: ...


class FrameSource(Protocol):
    """Gives frames in order. One thread opens, reads and closes; any thread may interrupt.

    Attributes:
        name: the address as it may be printed, without secrets.
        live: frames come when they come: a slow reader loses them, and an end is a loss.
        fps: frames a second, as the source announces it; None where it says nothing usable. A
            hint: never the clock.
        frame_count: frames in all, as announced; None where unknown. A hint: files under-count
            and over-count.
        notices: remarks for the user, such as a file that ended early.
    """

    @property
    def name(self) -> str: ...

    @property
    def live(self) -> bool: ...

    @property
    def fps(self) -> float | None: ...

    @property
    def frame_count(self) -> int | None: ...

    @property
    def notices(self) -> tuple[str, ...]: ...

    def open(self) -> None:
        """Open the source, in bounded time. Does nothing where it is open.

        Raises:
            SourceOpenError: it is not there, or it is not what it should be.
            SourceTimeoutError: it did not answer in time.
            FrameTooLargeError: its frames are larger than allowed.
        """
        ...

    def read(self) -> VideoFrame | None:
        """Give the next frame, or None after the last one, in bounded time.

        Raises:
            SourceError: a frame could not be read.
            SourceTimeoutError: a live source stalled.
            SourceLostError: a live source went away.
            FrameTooLargeError: the frame is larger than allowed; it was not decoded.
        """
        ...

    def interrupt(self) -> None:
        """Make an `open` or `read` that waits in another thread return soon."""
        ...

    def close(self) -> None:
        """Release the source. May be called twice, and on a source that was never opened."""
        ...
