"""Frames that arrive at a fixed rate: their timetable, and what a network makes of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fcn_bench.stream import Arrivals, FrameStream
from fcn_deploy.errors import ExecutionError
from fcn_deploy.names import Array

FRAMES = [np.full((8, 12, 3), 10 * (1 + n), np.uint8) for n in range(3)]


class Brightness:
    """A network whose labels are the frame's own values, and which may be slow or fail."""

    num_classes = 256

    def __init__(self, *, seconds: float = 0.0, fails: bool = False) -> None:
        self.seconds = seconds
        self.fails = fails

    def prepare(self, frames_bgr: Sequence[Array]) -> Any:
        return [frame[..., 0] for frame in frames_bgr]

    def compute(self, prepared: Any) -> Any:
        if self.fails:
            raise ExecutionError("the network failed.")
        time.sleep(self.seconds)
        return prepared

    def finish(self, computed: Any, frames_bgr: Sequence[Array]) -> list[Array]:
        return list(computed)

    def labels_and_scores(self, frame_bgr: Array) -> tuple[Array, Array | None]:
        return frame_bgr[..., 0], None

    def close(self) -> None:
        pass


def stream(network: Brightness, folder: Path, *, rate_fps: float) -> FrameStream:
    return FrameStream(network, FRAMES, rate_fps=rate_fps, folder=folder)


def test_timetable_does_not_wait_for_the_reader() -> None:
    encoded = [cv2.imencode(".jpg", frame)[1] for frame in FRAMES]
    arrivals = Arrivals(encoded, rate_fps=50.0, count=2)

    first = arrivals.read()
    arrivals.begin()
    late = [arrivals.due_at(index) - arrivals.begun_at for index in (1, 2, 51)]
    rest = [arrivals.read() for _ in range(3)]

    assert first is not None
    assert late == pytest.approx([0.0, 0.02, 1.0])
    assert [frame and frame.index for frame in rest] == [1, 2, None]


def test_waiting_reader_is_interrupted() -> None:
    arrivals = Arrivals([cv2.imencode(".jpg", FRAMES[0])[1]], rate_fps=0.001, count=5)
    arrivals.read()
    arrivals.begin()
    arrivals.read()

    arrivals.interrupt()

    assert arrivals.read() is None


def test_every_frame_is_decoded_segmented_and_written(tmp_path: Path) -> None:
    part = stream(Brightness(), tmp_path, rate_fps=200.0).measure(seconds=0.02, min_calls=5)

    assert len(part.timings) == 5
    written = [cv2.imread(str(tmp_path / f"{n:06d}.png"), cv2.IMREAD_GRAYSCALE) for n in range(6)]
    # frames in turn, from the one that is not counted; JPEG moves flat grey by a step at most
    assert [int(np.asarray(labels).max()) // 5 * 5 for labels in written] == [10, 20, 30] * 2


def test_latency_counts_from_when_a_frame_was_due(tmp_path: Path) -> None:
    slow = Brightness(seconds=0.03)

    part = stream(slow, tmp_path, rate_fps=1000.0).measure(seconds=0.02, min_calls=3)

    # frames are due each ms and none takes less than 30: the third is written after 90 at least
    assert len(part.timings) == 20
    assert part.timings[0].frame_ms >= 30
    assert part.timings[2].frame_ms >= 90 - 2
    assert part.unwritten > 0
    # those that were not written are as old as the schedule says, not left out
    assert all(timing.frame_ms >= 90 - index for index, timing in enumerate(part.timings[3:], 3))
    assert part.calls_per_second <= 1 / 0.03


def test_one_frame_at_once_warms_up(tmp_path: Path) -> None:
    timing = stream(Brightness(), tmp_path, rate_fps=0.001).once()

    assert timing.frame_ms > 0
    assert (tmp_path / "000000.png").is_file()


def test_networks_error_ends_the_stream(tmp_path: Path) -> None:
    with pytest.raises(ExecutionError, match="the network failed"):
        stream(Brightness(fails=True), tmp_path, rate_fps=50.0).measure(seconds=0.1, min_calls=2)
