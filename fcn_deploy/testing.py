"""Stand-ins for a network, for tests: no file, no inference library, and labels by a rule.

A `FakeSegmenter` goes wherever a `Segmenter` is called: into a `VideoPipeline`, a service, code of
your own. A `FakeBackend` stands one step lower, where an inference library would::

    import numpy as np
    from fcn_deploy import VideoPipeline
    from fcn_deploy.testing import FakeSegmenter

    def test_my_loop_counts_bright_frames():
        segmenter = FakeSegmenter(lambda frame: frame[..., 0] > 200)

        with VideoPipeline(segmenter, "clip.mp4") as frames:
            bright = sum(item.labels.any() for item in frames)

        assert (segmenter.calls, bright) == (25, 3)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from fcn_deploy.artifact.manifest import ClassInfo, Manifest
from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.backends.base import ContextManaged, ModelSource, check_feeds
from fcn_deploy.errors import BackendUnavailableError, ExecutionError, ShapeError
from fcn_deploy.names import Array, Precision, TensorSpec
from fcn_deploy.preprocess import check_frame
from fcn_deploy.segmentation import Segmentation

__all__ = ["TWO_CLASSES", "FakeBackend", "FakeContext", "FakeSegmenter"]

TWO_CLASSES = (ClassInfo("dark", (0, 0, 0)), ClassInfo("bright", (0, 255, 0)))
"""Of a `FakeSegmenter` that is given none."""

_LONGEST_WAIT_S = 60.0
"""For a gate that nobody opens: the test then fails, and does not hang."""


class _Calls:
    """Counts calls, lets them wait at a gate, and makes one fail. Threads may share it."""

    def __init__(
        self, *, gate: threading.Event | None, error: BaseException | None, fail_at: int
    ) -> None:
        self.count = self.running = self.most = 0
        self._gate, self._error, self._fail_at = gate, error, fail_at
        self._lock = threading.Lock()

    @contextmanager
    def one(self) -> Iterator[None]:
        with self._lock:
            number, self.count = self.count, self.count + 1
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            if self._gate is not None and not self._gate.wait(_LONGEST_WAIT_S):
                raise TimeoutError(f"the gate was not opened within {_LONGEST_WAIT_S:g} s")
            if self._error is not None and number >= self._fail_at:
                raise self._error
            yield
        finally:
            with self._lock:
                self.running -= 1


class FakeSegmenter(ContextManaged):
    """Labels frames by a rule, as a `Segmenter` does by a network.

    It refuses what is no frame, and use after `close`, with a `Segmenter`'s errors. Several
    threads may call it at once, if the rule allows it.

    Args:
        labels: class ids, integers or booleans [H, W], for every frame, or a rule that makes them
            of a frame, uint8 [H, W, 3]. What the rule raises is raised as it is.
        classes: name and colour of each class id.
        shapes: what `shapes` gives; frames of every size are taken.
        num_streams: what `num_streams` gives: how many threads a pipeline calls it from.
        gate: calls wait until it is set.
        error: is raised by the call number `fail_at`, from 0, and by all after it.
    """

    backend = "fake"
    precision = Precision.FP32
    reason = "a fake, for tests"
    head = "none: labels come from a rule"
    manifest: Manifest | None = None

    def __init__(
        self,
        labels: Array | Callable[[Array], Array],
        *,
        classes: Sequence[ClassInfo] = TWO_CLASSES,
        shapes: ShapeRange | None = None,
        num_streams: int = 1,
        gate: threading.Event | None = None,
        error: BaseException | None = None,
        fail_at: int = 0,
    ) -> None:
        super().__init__()
        self._labels = labels
        self.classes = tuple(classes)
        self.shapes = shapes
        self.num_streams = num_streams
        self._calls = _Calls(gate=gate, error=error, fail_at=fail_at)

    def __repr__(self) -> str:
        return f"FakeSegmenter({len(self.classes)} classes, {self.calls} calls)"

    @property
    def calls(self) -> int:
        """Frames that were given so far, failed ones too."""
        return self._calls.count

    @property
    def most_at_once(self) -> int:
        """The most calls that were under way at the same time."""
        return self._calls.most

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def __call__(self, frame_bgr: Array) -> Segmentation:
        """Label one frame.

        Args:
            frame_bgr: uint8 [H, W, 3]; not modified.

        Returns:
            Labels [H, W], uint8, or uint16 where there are more than 256 classes; owned by the
            caller.

        Raises:
            InputError: it is no frame.
            ShapeError: the labels are not of the frame's size.
            ClosedError: after close().
        """
        self._require_usable(repr(self))
        check_frame(frame_bgr)
        with self._calls.one():
            made = self._labels(frame_bgr) if callable(self._labels) else self._labels
        if made.shape != frame_bgr.shape[:2]:
            raise ShapeError(
                f"the labels are {list(made.shape)}; the frame is {list(frame_bgr.shape)}.",
                hint="Give a rule that makes labels of the frame's height and width.",
            )
        dtype = np.uint8 if len(self.classes) <= 256 else np.uint16
        return Segmentation(np.array(made, dtype), self.classes, frame_bgr=frame_bgr)

    def batch(self, frames_bgr: Iterable[Array]) -> list[Segmentation]:
        """Label several frames, uint8 [H, W, 3] each; one call is counted for each of them."""
        return [self(frame) for frame in frames_bgr]


class FakeContext(ContextManaged):
    """What a `FakeBackend` opens; see there."""

    def __init__(
        self,
        function: Callable[[Mapping[str, Array]], Mapping[str, Array]],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        name: str,
        calls: _Calls,
    ) -> None:
        super().__init__()
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self._function = function
        self._name = name
        self._calls = calls

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def execute(
        self, feeds: Mapping[str, Array], /, *, outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        self._require_usable(f"the network '{self._name}'")
        check_feeds(self.inputs, feeds)
        with self._calls.one():
            found = self._function({name: _read_only(array) for name, array in feeds.items()})
        wanted = [spec.name for spec in self.outputs] if outputs is None else outputs
        for spec in self.outputs:
            if spec.name in wanted and found[spec.name].dtype != spec.dtype:
                raise ExecutionError(
                    f"'{self._name}' gave '{spec.name}' as {found[spec.name].dtype}; expected"
                    f" {spec}."
                )
        return {name: np.array(found[name]) for name in wanted}


class FakeBackend:
    """A plain function in the place of an inference library, by the protocols of `backends.base`.

    Whatever model it is given, it runs the function. Threads may share what it opens, if the
    function allows it::

        def brighter(feeds):
            return {"labels": (feeds["image"].mean(-1) > 127).astype("uint8")}

        image = TensorSpec("image", "uint8", (None, None, None, 3))
        labels = TensorSpec("labels", "uint8", (None, None, None))
        backend = FakeBackend(brighter, inputs=[image], outputs=[labels])

    Args:
        function: makes outputs of inputs, arrays by name; those it is given are read-only. What it
            raises is raised as it is.
        inputs, outputs: what the network says of itself; `outputs` are given where nothing else is
            asked for.
        inner: tensors that the function gives, too, for a `ModelSource` that names them.
        precisions: that it opens in.
        suffixes: endings of the files that it takes.
        gate: runs wait until it is set.
        error: is raised by the run number `fail_at`, from 0, and by all after it.

    Attributes:
        opened: every context that `open` gave, in their order.
    """

    name = "fake"

    def __init__(
        self,
        function: Callable[[Mapping[str, Array]], Mapping[str, Array]],
        *,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        inner: Sequence[TensorSpec] = (),
        precisions: Sequence[Precision] = (Precision.FP32,),
        suffixes: Sequence[str] = (".onnx",),
        gate: threading.Event | None = None,
        error: BaseException | None = None,
        fail_at: int = 0,
    ) -> None:
        self.suffixes = tuple(suffixes)
        self.opened: list[FakeContext] = []
        self._function = function
        self._inputs, self._outputs = tuple(inputs), tuple(outputs)
        self._known = {spec.name: spec for spec in (*outputs, *inner)}
        self._precisions = tuple(precisions)
        self._calls = _Calls(gate=gate, error=error, fail_at=fail_at)

    @property
    def calls(self) -> int:
        """Runs so far, of all that was opened, failed ones too."""
        return self._calls.count

    @property
    def most_at_once(self) -> int:
        """The most runs that were under way at the same time."""
        return self._calls.most

    def available(self) -> bool:
        return True

    def version(self) -> str:
        return "0"

    def precisions(self) -> tuple[Precision, ...]:
        return self._precisions

    def arithmetic(self, precision: Precision) -> str:
        return f"a function, whatever the file's precision ({precision})"

    def open(
        self,
        source: ModelSource,
        /,
        *,
        precision: Precision = Precision.FP32,
        num_threads: int | None = None,
        num_streams: int = 1,
    ) -> FakeContext:
        if precision not in self._precisions:
            raise BackendUnavailableError(
                f"fake cannot compute in {precision}; it can in {', '.join(self._precisions)}.",
                hint="Choose one of these.",
            )
        outputs = self._outputs
        if source.outputs is not None:
            outputs = tuple(self._known[name] for name in source.outputs)
        context = FakeContext(
            self._function, self._inputs, outputs, name=source.path.name, calls=self._calls
        )
        self.opened.append(context)
        return context


def _read_only(array: Array) -> Array:
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view
