"""Time frames that arrive at a fixed rate, from decoding to written labels.

A frame arrives as a JPEG, as a camera sends it, goes through a `VideoPipeline`, and its labels are
written as a PNG, as `fcn-segment --view labels` does. Its latency counts from when it was due: a
frame that waits because others are late is late itself, and no slow moment goes unseen.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from threading import Event

import numpy as np

from fcn_bench.network import Network, segment
from fcn_bench.timing import Slice, Timing, collector_off
from fcn_deploy.names import Array
from fcn_deploy.segmentation import Segmentation
from fcn_deploy.video.frames import SegmentedFrame, VideoFrame
from fcn_deploy.video.pipeline import VideoPipeline
from fcn_deploy.video.sinks import ImageSink

__all__ = ["Arrivals", "FrameStream"]

_PATIENCE = 2.0
"""A slice whose frames are not written after so many times its length is over."""


class Arrivals:
    """A `FrameSource` whose frames arrive on a timetable.

    The first frame, which is not counted, comes at once; the timetable begins with `begin`.

    Args:
        encoded: JPEG files, taken in turn.
        rate_fps: frames that arrive in a second.
        count: frames on the timetable.
    """

    name = "frames at a fixed rate"
    live = False  # no frame is dropped: one that waits is late
    notices: tuple[str, ...] = ()

    def __init__(self, encoded: Sequence[Array], *, rate_fps: float, count: int) -> None:
        self.fps: float | None = rate_fps
        self.frame_count: int | None = count + 1
        self.begun_at = 0.0  # `time.monotonic`
        self._encoded = encoded
        self._interval = 1 / rate_fps
        self._count = count
        self._next = 0
        self._begun = Event()
        self._interrupted = Event()

    def begin(self) -> None:
        """Let the timetable begin now."""
        self.begun_at = time.monotonic()
        self._begun.set()

    def due_at(self, index: int) -> float:
        """Say when a frame of the timetable (from 1 on) is due, by `time.monotonic`."""
        return self.begun_at + (index - 1) * self._interval

    def open(self) -> None:
        """Do nothing: the frames are in memory."""

    def read(self) -> VideoFrame | None:
        import cv2

        index = self._next
        if index > self._count:
            return None
        if index:
            self._begun.wait()
            self._interrupted.wait(max(0.0, self.due_at(index) - time.monotonic()))
        if self._interrupted.is_set():
            return None
        self._next = index + 1
        data = self._encoded[index % len(self._encoded)]
        return VideoFrame(np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR)), index)

    def interrupt(self) -> None:
        self._interrupted.set()
        self._begun.set()

    def close(self) -> None:
        """Do nothing: the frames are in memory."""


class FrameStream:
    """Runs one network on frames that arrive at a fixed rate.

    Args:
        frames_bgr: uint8 [H, W, 3] each, of one size.
        rate_fps: frames that arrive in a second.
        folder: for the labels; files are replaced.
    """

    def __init__(
        self, network: Network, frames_bgr: Sequence[Array], *, rate_fps: float, folder: Path
    ) -> None:
        import cv2

        self._network = network
        self._encoded = [cv2.imencode(".jpg", frame)[1] for frame in frames_bgr]
        self._rate_fps = rate_fps
        self._sink = ImageSink(folder, "labels")
        self._turn = 0

    def once(self) -> Timing:
        """Do the work of one frame at once, for warming up."""
        import cv2

        start = time.perf_counter_ns()
        data = self._encoded[self._turn % len(self._encoded)]
        frame = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))
        self._sink.write(
            SegmentedFrame(
                frame, index=0, pts_seconds=None, origin=None, segmentation=self._segment(frame)
            )
        )
        self._turn += 1
        duration_ms = (time.perf_counter_ns() - start) / 1e6
        return Timing(duration_ms, duration_ms)

    def measure(self, *, seconds: float, min_calls: int) -> Slice:
        """Let frames arrive for `seconds`, and at least `min_calls` of them.

        Returns:
            The latency of each frame, from when it was due to when its labels were written; of
            frames that were not written in twice the time, their age then, and how many they are.
        """
        count = max(min_calls, round(seconds * self._rate_fps))
        arrivals = Arrivals(self._encoded, rate_fps=self._rate_fps, count=count)
        patience_s = _PATIENCE * count / self._rate_fps
        written_at: list[float] = []
        with collector_off(), VideoPipeline(self._segment, arrivals) as pipeline:
            for item in pipeline:
                self._sink.write(item)
                if not item.index:
                    arrivals.begin()
                    continue
                written_at.append(time.monotonic())
                late = written_at[-1] > arrivals.begun_at + patience_s
                if late and len(written_at) >= min_calls:
                    break
        due_at = [arrivals.due_at(index) for index in range(1, count + 1)]
        unwritten = count - len(written_at)
        ended_at = [*written_at, *[written_at[-1]] * unwritten]
        latencies = [1000 * (end - due) for end, due in zip(ended_at, due_at, strict=True)]
        timings = tuple(Timing(latency_ms, latency_ms) for latency_ms in latencies)
        return Slice(timings, _rate(written_at), unwritten=unwritten)

    def _segment(self, frame_bgr: Array, /) -> Segmentation:
        return Segmentation(segment(self._network, [frame_bgr])[0], ())


def _rate(written_at: Sequence[float]) -> float:
    """Give frames a second between the first and the last that were written."""
    return (len(written_at) - 1) / (written_at[-1] - written_at[0])
