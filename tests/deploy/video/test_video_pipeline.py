from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest

from fcn_deploy import Segmenter
from fcn_deploy.backends import backend_names
from fcn_deploy.errors import (
    ClosedError,
    ExecutionError,
    FrameDropError,
    SourceLostError,
    SourceOpenError,
)
from fcn_deploy.names import Array
from fcn_deploy.testing import FakeSegmenter
from fcn_deploy.video.frame_counts import PipelineStats, combine
from fcn_deploy.video.frames import FrameSegmenter, VideoFrame
from fcn_deploy.video.pipeline import VideoPipeline
from tests.deploy.artifacts import write_artifact
from tests.deploy.clips import (
    FakeSource,
    frame_number,
    is_bright,
    threshold_segmenter,
    wait_until,
    write_clip,
)
from tests.deploy.layouts import of_bytes


def is_balanced(stats: PipelineStats) -> bool:
    lost = sum(stats.dropped.values()) + stats.discarded_at_close
    return stats.captured == stats.delivered + lost


def pipeline_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fcn-")]


def test_frames_come_in_order_with_their_labels(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.avi", frames=40)

    with VideoPipeline(threshold_segmenter, clip) as frames:
        items = list(frames)

    assert [item.index for item in items] == list(range(40))
    assert [frame_number(item.frame) for item in items] == list(range(40))
    assert [item.pts_seconds for item in items] == pytest.approx([n / 25 for n in range(40)])
    assert all(item.labels.shape == (48, 64) for item in items)
    assert all(item.labels[:, 40:].all() and not item.labels[:, :24].any() for item in items)
    assert pipeline_threads() == []


def test_every_frame_is_captured_once_and_delivered_once() -> None:
    source = FakeSource(500)

    with VideoPipeline(threshold_segmenter, source, policy="every", queue_size=3) as frames:
        indices = [item.index for item in frames]

    stats = frames.stats
    assert indices == list(range(500))
    assert (stats.captured, stats.delivered, dict(stats.dropped)) == (500, 500, {})
    assert stats.discarded_at_close == 0
    assert stats.latency_ms["n"] == 500
    assert 0 <= stats.latency_ms["p50"] <= stats.latency_ms["p99"] <= stats.latency_ms["max"]
    assert stats.fps > 0
    assert source.closed == 1


class ReadOnlySource(FakeSource):
    """Frames as they come from bytes, upside down every second one."""

    def read(self) -> VideoFrame | None:
        item = super().read()
        if item is None:
            return None
        return replace(item, frame=of_bytes(item.frame)[:: -1 if item.index % 2 else 1])


@pytest.mark.parametrize("backend", backend_names())
def test_frames_that_are_read_only_or_upside_down_are_segmented(
    tmp_path: Path, backend: str
) -> None:
    segmenter = Segmenter.open(write_artifact(tmp_path), backend=backend)

    with VideoPipeline(segmenter, ReadOnlySource(6)) as frames:
        items = list(frames)

    assert [item.index for item in items] == list(range(6))
    for item in items:
        assert not item.frame.flags.writeable
        np.testing.assert_array_equal(item.labels, segmenter(item.frame.copy()).labels)


def uneven_segmenter(*, fail_at: int | None = None) -> FakeSegmenter:
    """Takes longer for some frames than for others; fails at one, if told to."""

    def label(frame_bgr: Array) -> Array:
        number = frame_number(frame_bgr)
        time.sleep(0.002 * (number * 7 % 5))
        if number == fail_at:
            raise ExecutionError(f"frame {number} is bad")
        return is_bright(frame_bgr)

    return FakeSegmenter(label, num_streams=4)


def test_frames_that_are_segmented_at_once_come_in_order() -> None:
    segmenter = uneven_segmenter()

    with VideoPipeline(segmenter, FakeSource(60), queue_size=2) as frames:
        indices = [item.index for item in frames]

    assert indices == list(range(60))
    assert segmenter.most_at_once == 4
    assert is_balanced(frames.stats)
    assert pipeline_threads() == []


def test_failure_comes_after_every_frame_before_it_whoever_is_faster() -> None:
    indices: list[int] = []

    with (
        VideoPipeline(uneven_segmenter(fail_at=23), FakeSource(60)) as frames,
        pytest.raises(ExecutionError, match="frame 23 is bad"),
    ):
        indices.extend(item.index for item in frames)

    assert indices == list(range(23))
    assert frames.stats.dropped == {"failed": 1}
    assert is_balanced(frames.stats)
    assert pipeline_threads() == []


def test_source_that_breaks_is_told_after_the_frames_that_others_work_on() -> None:
    source = FakeSource(9, error=SourceLostError("gone"))
    indices: list[int] = []

    with (
        VideoPipeline(uneven_segmenter(), source) as frames,
        pytest.raises(SourceLostError, match="gone"),
    ):
        indices.extend(item.index for item in frames)

    assert indices == list(range(9))


def test_pipeline_of_many_workers_closes_in_the_midst_of_its_work() -> None:
    with VideoPipeline(uneven_segmenter(), FakeSource(60), workers=3) as frames:
        first = next(frames)

    assert first.index == 0
    assert is_balanced(frames.stats)
    assert pipeline_threads() == []


def test_only_the_latest_frame_is_worked_on_alone() -> None:
    segmenter = uneven_segmenter()

    with VideoPipeline(segmenter, FakeSource(40), policy="latest") as frames:
        indices = [item.index for item in frames]

    assert indices == sorted(indices)
    assert segmenter.most_at_once == 1


def test_no_workers_are_refused() -> None:
    with pytest.raises(ValueError, match="workers is 0; it must be 1 or more"):
        VideoPipeline(threshold_segmenter, FakeSource(1), workers=0)


def test_policy_latest_drops_the_oldest_and_counts_them() -> None:
    source, gate = FakeSource(100), Event()
    segmenter = FakeSegmenter(is_bright, gate=gate)

    with VideoPipeline(segmenter, source, policy="latest") as frames:
        assert source.exhausted.wait(10)  # the whole source went by while one frame was worked on
        gate.set()
        indices = [item.index for item in frames]

    stats = frames.stats
    assert indices[-1] == 99
    assert 1 <= len(indices) <= 2  # the one being worked on when the rest went by, and the newest
    assert stats.dropped == {"late": 100 - len(indices)}
    assert is_balanced(stats)


def test_policy_every_makes_the_source_wait() -> None:
    source, gate = FakeSource(100), Event()
    segmenter = FakeSegmenter(is_bright, gate=gate)

    with VideoPipeline(segmenter, source, policy="every", queue_size=2) as frames:
        # one in the network, two in the queue, one in the capture thread's hand
        wait_until(lambda: frames.stats.captured == 4)
        assert not source.exhausted.wait(0.05)
        gate.set()
        assert len(list(frames)) == 100

    assert is_balanced(frames.stats)


def test_live_source_that_waits_too_long_where_every_frame_is_wanted_is_an_error() -> None:
    source, gate = FakeSource(100), Event()
    source.live = True

    def label(frame_bgr: Array) -> Array:
        assert frame_number(frame_bgr) == 0 or gate.wait(20)
        return is_bright(frame_bgr)

    seen: list[int] = []
    pipeline = VideoPipeline(
        FakeSegmenter(label), source, policy="every", queue_size=2, max_wait_s=0.05
    )

    with pipeline as frames:
        # one delivered, one in the network, two in the queue, and one that finds no place
        wait_until(lambda: frames.stats.dropped == {"late": 1})
        gate.set()
        with pytest.raises(
            FrameDropError, match=r"fake is live, and frame 4 waited 0\.05 s .* --policy latest"
        ):
            seen.extend(item.index for item in frames)

    assert seen == [0, 1, 2, 3]
    assert is_balanced(frames.stats)
    assert pipeline_threads() == []


@pytest.mark.parametrize("live", [True, False])
def test_first_frame_may_take_long_and_a_file_waits_for_every_frame(live: bool) -> None:
    source, gate = FakeSource(4), Event()
    source.live = live
    segmenter = FakeSegmenter(is_bright, gate=gate)

    with VideoPipeline(
        segmenter, source, policy="every", queue_size=2, max_wait_s=0.5 if live else 1e-6
    ) as frames:
        wait_until(lambda: frames.stats.captured == 4)
        assert not source.exhausted.wait(0.7)
        gate.set()
        indices = [item.index for item in frames]

    assert indices == [0, 1, 2, 3]
    assert frames.stats.dropped == {}


def test_an_unnamed_policy_follows_from_the_source() -> None:
    live = FakeSource(100)
    live.live = True
    gate = Event()
    segmenter = FakeSegmenter(is_bright, gate=gate)

    with VideoPipeline(segmenter, live) as frames:
        assert live.exhausted.wait(10)
        gate.set()
        list(frames)

    assert frames.stats.dropped["late"] > 90


def test_a_source_that_breaks_delivers_its_good_frames_first_and_its_error_once() -> None:
    source = FakeSource(20, error=SourceLostError("the cable is out"))
    seen: list[int] = []

    with VideoPipeline(threshold_segmenter, source) as frames:
        with pytest.raises(SourceLostError, match="the cable is out"):
            seen.extend(item.index for item in frames)
        again = list(frames)

    assert (seen, again) == (list(range(20)), [])
    assert is_balanced(frames.stats)
    assert pipeline_threads() == []


def test_a_network_that_fails_delivers_the_good_frames_first() -> None:
    source = FakeSource(50)
    segmenter = FakeSegmenter(is_bright, error=ValueError("no such shape"), fail_at=10)
    seen: list[int] = []

    with (
        VideoPipeline(segmenter, source) as frames,
        pytest.raises(ValueError, match="no such shape"),
    ):
        seen.extend(item.index for item in frames)

    stats = frames.stats
    assert seen == list(range(10))
    assert stats.dropped == {"failed": 1}
    assert is_balanced(stats)
    assert pipeline_threads() == []


def test_a_consumer_that_fails_ends_the_threads() -> None:
    frames = VideoPipeline(threshold_segmenter, FakeSource(500))

    def consume() -> None:
        with frames:
            for item in frames:
                if item.index == 5:
                    raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        consume()

    assert frames.stats.delivered == 6
    assert frames.stats.discarded_at_close > 0
    assert is_balanced(frames.stats)
    assert pipeline_threads() == []


def test_an_abandoned_pipeline_ends_its_threads() -> None:
    for item in VideoPipeline(threshold_segmenter, FakeSource(500)):
        if item.index == 3:
            break

    gc.collect()
    wait_until(lambda: pipeline_threads() == [])


def test_a_pipeline_that_was_never_started_has_no_threads() -> None:
    source = FakeSource(3)
    pipeline = VideoPipeline(threshold_segmenter, source)

    pipeline.close()
    pipeline.close()

    with pytest.raises(ClosedError, match="the pipeline over fake is closed"):
        next(pipeline)


def test_a_source_that_cannot_be_opened_fails_at_the_start(tmp_path: Path) -> None:
    pipeline = VideoPipeline(threshold_segmenter, tmp_path / "missing.mp4")

    with pytest.raises(SourceOpenError, match=r"missing\.mp4 does not exist"), pipeline:
        pass

    assert pipeline_threads() == []
    assert list(pipeline) == []


def test_closing_from_another_thread_ends_a_waiting_consumer() -> None:
    source = FakeSource(100, block_at=5)
    pipeline = VideoPipeline(threshold_segmenter, source)
    seen: list[int] = []
    consumer = Thread(target=lambda: seen.extend(item.index for item in pipeline))
    consumer.start()
    wait_until(lambda: len(seen) == 5 or pipeline.stats.delivered == 5)

    pipeline.close()

    consumer.join(10)
    assert not consumer.is_alive()
    assert is_balanced(pipeline.stats)
    assert pipeline_threads() == []


def test_closing_during_reads_of_a_real_file_never_crashes(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.avi", frames=60)

    for rounds in range(60):
        pipeline = VideoPipeline(threshold_segmenter, clip, queue_size=1)
        pipeline.open()
        for _ in range(rounds % 4):
            next(pipeline)
        pipeline.close()
        assert is_balanced(pipeline.stats)

    assert pipeline_threads() == []


def test_a_limit_of_frames_stops_the_capture() -> None:
    with VideoPipeline(threshold_segmenter, FakeSource(100), max_frames=7) as frames:
        assert len(list(frames)) == 7

    assert frames.stats.captured == 7


def test_a_shortened_file_is_noted_in_the_stats(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.avi", frames=60)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])

    with VideoPipeline(threshold_segmenter, clip) as frames:
        delivered = len(list(frames))

    assert delivered > 10
    assert frames.stats.notices == (
        f"ended early: {delivered} of about 60 frames could be decoded",
    )


def test_wrong_arguments_are_refused_at_once() -> None:
    def pipeline(segmenter: FrameSegmenter = threshold_segmenter, **options: object) -> None:
        VideoPipeline(segmenter, FakeSource(1), **options)  # type: ignore[arg-type]  # on purpose

    with pytest.raises(ValueError, match="policy is 'some'; expected one of every, latest"):
        pipeline(policy="some")
    with pytest.raises(ValueError, match="max_frames is 0; it must be 1 or more"):
        pipeline(max_frames=0)
    with pytest.raises(ValueError, match="max_wait_s is 0; it must be above 0"):
        pipeline(max_wait_s=0)
    with pytest.raises(ValueError, match="capacity is 0"):
        pipeline(queue_size=0)


def test_the_books_of_several_runs_add_up() -> None:
    first = PipelineStats(10, 8, {"late": 2}, 0, 2.0, (1.0, 3.0), ("a",))
    second = PipelineStats(5, 3, {"late": 1}, 1, 1.0, (2.0,), ("b",))

    total = combine([first, second])

    assert (total.captured, total.delivered, dict(total.dropped)) == (15, 11, {"late": 3})
    assert total.fps == pytest.approx(11 / 3)
    assert total.latency_ms["p50"] == 2.0
    assert total.notices == ("a", "b")
    assert PipelineStats().latency_ms == {}


CHILD = """
import sys
sys.path.insert(0, {root!r})
from fcn_deploy.video.pipeline import VideoPipeline
from tests.deploy.clips import threshold_segmenter
pipeline = VideoPipeline(threshold_segmenter, {clip!r}, queue_size=2)
for item in pipeline:
    if item.index == 3:
        break
"""


def test_the_interpreter_exits_cleanly_with_a_pipeline_at_work(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.avi", frames=60)
    root = str(Path(__file__).parents[3])
    code = CHILD.format(root=root, clip=str(clip))

    for _ in range(5):
        child = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, timeout=60, check=False
        )
        assert (child.returncode, child.stderr) == (0, b"")
