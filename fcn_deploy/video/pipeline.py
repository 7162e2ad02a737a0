"""Overlap capture, inference and the consumer's own work by two bounded queues."""

from __future__ import annotations

import logging
import time
import weakref
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, RLock, Thread, current_thread
from types import MappingProxyType, TracebackType
from typing import Literal, Self, get_args

from fcn_deploy.errors import ClosedError, FrameDropError
from fcn_deploy.video.channel import Channel, ChannelClosedError, Producing
from fcn_deploy.video.frame_counts import LATENCIES_KEPT, PipelineStats
from fcn_deploy.video.frames import FrameSegmenter, FrameSource, SegmentedFrame, VideoFrame
from fcn_deploy.video.sources import open_source
from fcn_deploy.video.turns import Turns

__all__ = ["POLICIES", "Policy", "VideoPipeline"]

Policy = Literal["every", "latest"]
"""``every`` frame in order, the source waits; or the ``latest``, older waiting ones are dropped."""

POLICIES: tuple[Policy, ...] = get_args(Policy)

_JOIN_S = 10.0
_EXIT_JOIN_S = 2.0

_LOGGER = logging.getLogger(__name__)


class VideoPipeline:
    """Segment a source frame by frame: an iterator of `SegmentedFrame`, and a context manager.

    One thread captures and others run the network, while the consumer works on what came before;
    frames are delivered in their order. An error in any is raised to the consumer, once, after
    every good frame before it. Leaving the `with`, dropping the pipeline, and the end of the
    interpreter all end the threads.

    Args:
        segmenter: a `Segmenter`, or anything that takes a BGR frame and gives a `Segmentation`;
            it is called from `workers` threads and not closed.
        source: an address as `open_source` takes it, or a source; it is closed with the pipeline.
        policy: what happens when the network is slower than the source; None means ``every`` for
            files and ``latest`` for live sources.
        queue_size: frames that may wait between two threads; ``latest`` keeps one at most.
        max_frames: stop the capture after so many frames; None means at the source's end.
        workers: frames that are segmented at once; None means one, or as many as the segmenter
            has streams (`Segmenter.open(..., num_streams=n)`) where every frame is wanted: that
            gives more frames a second, each of them later.
        max_wait_s: how long a live source under ``every`` may wait for a free place in the queue.
            It loses frames meanwhile, so a longer wait is an error. The first frame may take
            longer: networks are compiled then.
    """

    def __init__(
        self,
        segmenter: FrameSegmenter,
        source: FrameSource | str | Path | int,
        *,
        policy: Policy | None = None,
        queue_size: int = 8,
        max_frames: int | None = None,
        workers: int | None = None,
        max_wait_s: float = 10.0,
    ) -> None:
        if policy is not None and policy not in POLICIES:
            raise ValueError(f"policy is {policy!r}; expected one of {', '.join(POLICIES)}")
        if max_frames is not None and max_frames < 1:
            raise ValueError(f"max_frames is {max_frames}; it must be 1 or more, or None")
        if workers is not None and workers < 1:
            raise ValueError(f"workers is {workers}; it must be 1 or more, or None")
        if max_wait_s <= 0:
            raise ValueError(f"max_wait_s is {max_wait_s}; it must be above 0")
        if isinstance(source, (str, Path, int)):
            source = open_source(source)
        if policy is None:
            policy = "latest" if source.live else "every"
        if workers is None:
            workers = getattr(segmenter, "num_streams", 1) if policy == "every" else 1
        self._running = _PipelineThreads(
            segmenter,
            source,
            policy=policy,
            queue_size=queue_size,
            max_frames=max_frames,
            workers=workers,
            max_wait_s=max_wait_s,
        )
        # the threads do not know the pipeline, so a dropped pipeline can be collected
        self._finalizer = weakref.finalize(self, self._running.stop, _EXIT_JOIN_S)

    def __repr__(self) -> str:
        stats = self.stats
        return f"VideoPipeline({self.source!r}, {stats.delivered} of {stats.captured} delivered)"

    @property
    def source(self) -> FrameSource:
        """The source that is read."""
        return self._running.source

    @property
    def stats(self) -> PipelineStats:
        """What became of the frames so far."""
        return self._running.stats()

    def open(self) -> None:
        """Open the source and start the threads; `with` and iteration do it too.

        Raises:
            SourceError: the source cannot be opened.
            ClosedError: after close().
        """
        self._running.start()

    def close(self) -> None:
        """End the threads and release the source, from any thread. May be called twice."""
        self._finalizer.detach()
        for name in self._running.stop(_JOIN_S):
            _LOGGER.warning("%s still works after %g s and is left behind", name, _JOIN_S)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> SegmentedFrame:
        """Wait for the next frame.

        Raises:
            SourceError: frames could not be read.
            FrameDropError: a live source, every frame of which is wanted, had to wait too long.
            FcnDeployError: the network could not run; whatever the segmenter raised.
            ClosedError: the pipeline was closed before the first frame was asked for.
        """
        self._running.start()
        item = self._running.deliver()
        if item is None:
            raise StopIteration
        return item


@dataclass(frozen=True, slots=True)
class _Result:
    item: SegmentedFrame
    captured_at_seconds: float


class _PipelineThreads:
    """The threads of a pipeline, their queues and their counts."""

    def __init__(
        self,
        segmenter: FrameSegmenter,
        source: FrameSource,
        *,
        policy: Policy,
        queue_size: int,
        max_frames: int | None,
        workers: int,
        max_wait_s: float,
    ) -> None:
        self.source = source
        self._segmenter = segmenter
        self._policy = policy
        self._max_frames = max_frames
        self._workers = workers
        self._max_wait_s = max_wait_s
        self._segmented = Event()  # a first frame was
        self._turns = Turns()
        self._opened: Channel[bool] = Channel(1)
        self._frames: Channel[VideoFrame] = Channel(queue_size)
        self._results: Channel[_Result] = Channel(queue_size)
        self._threads: list[Thread] = []
        self._starting = Lock()
        self._stopped = Event()
        self._books = RLock()  # a collected pipeline may be stopped inside any of these lines
        self._captured = self._discarded = 0
        self._dropped: Counter[str] = Counter()
        self._latencies_ms: deque[float] = deque(maxlen=LATENCIES_KEPT)
        self._first_capture_s = self._last_delivery_s = 0.0

    def start(self) -> None:
        with self._starting:
            if self._threads:
                return
            if self._stopped.is_set():
                raise ClosedError(
                    f"the pipeline over {self.source.name} is closed.", hint="Make a new one."
                )
            self._threads = [Thread(target=self._capture, name="fcn-capture", daemon=True)]
            self._threads += [
                Thread(target=self._infer, name=f"fcn-infer-{number}", daemon=True)
                for number in range(self._workers)
            ]
            for thread in self._threads:
                thread.start()
        try:
            self._opened.get()
        except BaseException:  # a failure to open, or Ctrl-C while it waits
            self.stop(_JOIN_S)
            raise

    def stop(self, join_s: float) -> list[str]:
        """End the threads; give the names of those that do not end in time."""
        self._stopped.set()
        self._opened.close()
        self._count(discarded=self._frames.close() + self._results.close())
        self._turns.end()
        self.source.interrupt()
        others = [thread for thread in self._threads if thread is not current_thread()]
        for thread in others:
            if thread.ident is not None:  # else Ctrl-C came before it was started
                thread.join(join_s)
        return [thread.name for thread in others if thread.is_alive()]

    def deliver(self) -> SegmentedFrame | None:
        result = self._results.get()
        if result is None:
            return None
        now = time.monotonic()
        with self._books:
            self._latencies_ms.append(1000 * (now - result.captured_at_seconds))
            self._last_delivery_s = now
        return result.item

    def stats(self) -> PipelineStats:
        with self._books:
            return PipelineStats(
                captured=self._captured,
                delivered=self._results.taken,
                dropped=MappingProxyType(dict(self._dropped)),
                discarded_at_close=self._discarded,
                elapsed_s=max(0.0, self._last_delivery_s - self._first_capture_s),
                latencies_ms=tuple(self._latencies_ms),
                notices=self.source.notices,
            )

    def _capture(self) -> None:
        with Producing(self._frames):
            try:
                try:
                    self.source.open()
                except BaseException as exc:  # whatever it is, `start` waits for it
                    self._opened.finish(exc)
                    raise
                self._opened.finish()
                self._capture_all()
            finally:
                self.source.close()

    def _capture_all(self) -> None:
        if self._policy == "latest":
            self._frames.lose_oldest(1)
        while not self._stopped.is_set() and self._captured != self._max_frames:
            frame = self.source.read()
            if frame is None:
                return
            if not self._captured:
                self._first_capture_s = time.monotonic()
            self._count(captured=1)
            try:
                late = self._put(frame)
            except ChannelClosedError:
                self._count(discarded=1)
                return
            if late:
                self._drop("late", late)

    def _put(self, frame: VideoFrame) -> int:
        """Hand a captured frame on; return how many older ones were dropped for it."""
        # known after open(): an address may turn out to be a file's
        waits_s = self._max_wait_s if self.source.live and self._policy == "every" else None
        while True:
            counts = self._segmented.is_set()
            try:
                return self._frames.put(frame, timeout_s=waits_s)
            except TimeoutError as exc:
                if counts:
                    self._drop("late", 1)
                    raise FrameDropError(
                        f"{self.source.name} is live, and frame {frame.index} waited"
                        f" {self._max_wait_s:g} s for a free place in the queue: frames are lost"
                        " where every one is wanted.",
                        hint="Use --policy latest, smaller frames or a faster network.",
                    ) from exc

    def _infer(self) -> None:
        while self._infer_next():
            pass

    def _infer_next(self) -> bool:
        """Segment one frame and hand it over in its turn; say whether there may be more."""
        number, (frame, error) = self._turns.take(self._next_frame)
        result = None
        if frame is not None:
            try:
                result = self._segment(frame)
            except BaseException as exc:  # noqa: BLE001 - the consumer raises it, in its turn
                error = exc
        with self._turns.turn(number) as mine:
            if mine and result is not None and self._hand_over(result):
                return True
            if frame is not None and (error is None or not mine):
                self._count(discarded=1)
            elif frame is not None:
                self._drop("failed", 1)
            self._turns.end()
        if mine:
            self._results.finish(error)
        # after a failure, captured frames are not taken
        self._count(discarded=self._frames.close())
        self.source.interrupt()
        return False

    def _next_frame(self) -> tuple[VideoFrame | None, BaseException | None]:
        """Wait for a frame; no frame and the capture's error, if it had one, at the end."""
        try:
            return self._frames.get(), None
        except BaseException as exc:  # noqa: BLE001 - raised in its turn, too
            return None, exc

    def _segment(self, frame: VideoFrame) -> _Result:
        segmentation = self._segmenter(frame.frame)
        self._segmented.set()
        item = SegmentedFrame(
            frame=frame.frame,
            index=frame.index,
            pts_seconds=frame.pts_seconds,
            origin=frame.origin,
            segmentation=segmentation,
        )
        return _Result(item, frame.captured_at_seconds)

    def _hand_over(self, result: _Result) -> bool:
        try:
            self._results.put(result)
        except ChannelClosedError:
            return False
        return True

    def _drop(self, cause: str, count: int) -> None:
        with self._books:
            self._dropped[cause] += count

    def _count(self, *, captured: int = 0, discarded: int = 0) -> None:
        with self._books:
            self._captured += captured
            self._discarded += discarded
