"""Segment frames: `Segmenter` takes a frame and gives its labels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby

from fcn_deploy.artifact.manifest import ClassInfo, Manifest
from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.backends.base import ContextManaged, RunTimes, TimedContext
from fcn_deploy.backends.execution_providers import ProviderList
from fcn_deploy.errors import ShapeError
from fcn_deploy.names import Array, NetworkColor
from fcn_deploy.opening.load import OpenedModel, open_model
from fcn_deploy.opening.options import OpenOptions
from fcn_deploy.opening.scores_network import ScoresNetwork
from fcn_deploy.preprocess import check_frame, pad_frame
from fcn_deploy.segmentation import Segmentation
from fcn_deploy.tiling.tiles import Tiling

__all__ = ["Segmentation", "Segmenter"]

_MAX_BATCH = 8
"""Larger groups of frames are run in parts: on a CPU a larger batch gains nothing."""


class Segmenter(ContextManaged):
    """A network that labels every pixel of a frame.

    Several threads may call one Segmenter at once; calls wait for the CPU only. It
    must be opened in the process that uses it: a forked child gets ForkedProcessError.

    Attributes:
        backend: name of the library that runs it.
        precision: arithmetic it computes in.
        num_streams: calls that run at once; more of them wait for one another.
        reason: why this backend and this precision were taken.
        manifest: of the artifact; None for a bare graph.
        tiling: how frames too large for memory are cut, and whether that changes their labels.
    """

    def __init__(self, model: OpenedModel) -> None:
        super().__init__()
        self._model = model
        self._scores_network = ScoresNetwork(model)
        self.path = model.file.path
        self.backend = model.backend.name
        self.precision = model.precision
        self.num_streams = model.options.num_streams
        self.reason = model.reason
        self.manifest: Manifest | None = model.file.manifest
        self._reader = model.reader
        self.tiling = Tiling(model, model.file.shapes, tile_pixels=model.options.tile_pixels)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        backend: str = "auto",
        precision: str = "auto",
        providers: ProviderList | None = None,
        num_threads: int | None = None,
        num_streams: int = 1,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        color: NetworkColor | None = None,
        activation: str = "auto",
        threshold: float | None = None,
        output_key: str | None = None,
        peel: bool = True,
        cache: bool = True,
        tile_pixels: int | None = None,
        trust_code: bool = False,
    ) -> Segmenter:
        """Load an artifact, a file in one, or a bare ``.onnx`` or ``.xml`` of anyone's making.

        Args:
            backend: ``"openvino"``, ``"onnxruntime"``, ``"tensorrt"``, ``"tensorrt-rtx"``, or
                ``"auto"``: a plan of the artifact that runs on the GPU here, else the first of the
                others that is installed.
            precision: ``"fp32"``, ``"bf16"``, ``"fp16"``, ``"int8"``, or ``"auto"``: what
                `fcn-bench --tune` measured to be fastest here; without it bf16, else int8, where
                the CPU has instructions for it and export measured that it keeps 99.9 % of the
                labels; else fp32. A bare graph runs in fp32.
            providers: execution providers of the backend ``"onnxruntime"``, names or (name,
                options) as ONNX Runtime has them, the preferred first, such as
                ``["CUDAExecutionProvider"]``; None: the CPU's. One that cannot be loaded is an
                error, and so are parts of the network that would run on the CPU, unless
                ``"CPUExecutionProvider"`` is in the list.
            num_threads: CPU threads in all; None means the cores that this process may use.
            num_streams: how many calls from different threads, or parts of a batch, run at once,
                sharing the threads: more frames a second, each of them later.
            mean, std: of values in 0..1, by channel as the network takes them, of a bare graph
                with a float input; None: ImageNet's.
            color: channels that a bare graph expects; None: rgb.
            activation: what a bare graph's output is: ``"logits"``, ``"sigmoid"``, ``"softmax"``,
                ``"ids"`` (labels already), or ``"auto"``: found in the graph and held against what
                it gives for a few frames; an error where that does not say it.
            threshold: probability above which a bare graph's single class is there; None: 0.5.
            output_key: name of the output to label by, where a bare graph has several.
            peel: stop the network at its low-resolution scores where the runtime's faster head
                gives the same labels; False runs the whole graph.
            cache: keep the compiled network in the user's cache folder
                (``$XDG_CACHE_HOME/fcn-deploy``), so that it opens sooner the next time.
            tile_pixels: frames of more pixels are segmented in tiles of at most so many; None: of
                more than the network holds in 3 GiB of floats, in tiles of half a GiB.
            trust_code: take a ``.plan`` that is in no artifact: it holds code that is run.

        Raises:
            ArtifactError: it is missing, damaged, unsafe, or no segmentation network, or what its
                output means is not known.
            BackendUnavailableError: the backend, a provider or the precision is not to be had
                here.
            ValueError: an argument is none of its choices.
        """
        options = OpenOptions(
            backend=backend,
            precision=precision,
            providers=providers,
            num_threads=num_threads,
            num_streams=num_streams,
            mean=mean,
            std=std,
            color=color,
            activation=activation,
            threshold=threshold,
            output_key=output_key,
            peel=peel,
            cache=cache,
            tile_pixels=tile_pixels,
            trust_code=trust_code,
        )
        return cls(open_model(path, options))

    def __repr__(self) -> str:
        return f"Segmenter('{self.path}', {self.backend} {self.precision}: {self.reason})"

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """Name and colour of each class id; empty where a bare graph does not say how many."""
        return self._reader.classes

    @property
    def head(self) -> str:
        """Where scores become labels: in the graph, or in the runtime, peeled or added; and why."""
        return self._reader.head

    @property
    def shapes(self) -> ShapeRange | None:
        """Shapes that the artifact was verified for; None for a bare graph."""
        return self._model.file.shapes

    def __call__(self, frame_bgr: Array, *, scores: bool = False) -> Segmentation:
        """Segment one frame.

        Args:
            frame_bgr: uint8 [H, W, 3] in 0..255, of any strides, writable or not; not modified.
            scores: give the class scores as well. Where the graph makes its labels itself, the
                first such call loads the network once more, with the scores as an output.

        Returns:
            Labels in the frame's own coordinates, owned by the caller.

        Raises:
            InputError: the frame is of another kind or size than the network takes.
            ExecutionError: the backend failed, or the network gave NaN.
        """
        return self.batch([frame_bgr], scores=scores)[0]

    def batch(self, frames_bgr: Iterable[Array], *, scores: bool = False) -> list[Segmentation]:
        """Segment several frames, which may differ in size; neighbours of one size run together.

        Args:
            frames_bgr: uint8 [H, W, 3] each, of any strides, writable or not; not modified.
            scores: as for a single frame.

        Returns:
            One result a frame, in their order.

        Raises:
            InputError, ExecutionError: as for a single frame; then there are no results at all.
        """
        self._require_usable(repr(self))
        frames = list(frames_bgr)
        for frame in frames:
            check_frame(frame)
        parts = [
            part
            for _, same_size in groupby(frames, key=lambda frame: frame.shape)
            for part in self._parts(list(same_size))
        ]
        segment = partial(self._segment, scores=scores)
        if self.num_streams == 1 or len(parts) <= 1:
            return [result for part in parts for result in segment(part)]
        with ThreadPoolExecutor(min(self.num_streams, len(parts))) as pool:
            return [result for results in pool.map(segment, parts) for result in results]

    def prepare(self, frames_bgr: Sequence[Array]) -> dict[str, Array]:
        """Make the graph's input of frames of one size: padding, and for bare graphs conversion.

        Args:
            frames_bgr: uint8 [H, W, 3] each.

        Returns:
            What `execute` takes; a single frame that needs no change is not copied.

        Raises:
            ShapeError: the graph does not take this size or batch.
        """
        frames = list(frames_bgr)
        height, width = frames[0].shape[:2]
        if self.shapes is not None:
            size = self.shapes.padded_size(height, width)
            frames = [pad_frame(frame, size) for frame in frames]
        taken = self._model.input_format
        taken.check_size(frames[0].shape[:2], name=self.path.name)
        return {taken.spec.name: taken.convert(frames)}

    def execute(self, feeds: Mapping[str, Array], *, scores: bool = False) -> dict[str, Array]:
        """Run the network alone, on what `prepare` made.

        Args:
            feeds: the graph's inputs by name, in its own shapes and dtypes.
            scores: give out the class scores before upsampling as well.

        Returns:
            The graph's outputs by name, owned by the caller.

        Raises:
            ExecutionError: the backend failed.
        """
        context = self._scores_network.context() if scores else self._model.context
        return context.execute(feeds)

    def execute_timed(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], RunTimes | None]:
        """Run as `execute` does, and say what the run took by the device's own clock.

        Args:
            feeds: the graph's inputs by name, in its own shapes and dtypes.

        Returns:
            The outputs, and the times of a plan on a GPU; None for backends on the CPU.
        """
        context = self._model.context
        return (
            context.execute_timed(feeds)
            if isinstance(context, TimedContext)
            else (context.execute(feeds), None)
        )

    def finish(
        self, outputs: Mapping[str, Array], frames_bgr: Sequence[Array], *, scores: bool = False
    ) -> list[Segmentation]:
        """Turn what `execute` gave into one result a frame, of the frames' own size.

        Args:
            outputs: by name, in the graph's own shapes and dtypes.
            frames_bgr: uint8 [H, W, 3] each, as `prepare` took them.
            scores: give the class scores as well, which the run must have given.
        """
        return self._reader.results(outputs, frames_bgr, scores=scores)

    def scores_of(self, outputs: Mapping[str, Array]) -> Array:
        """Give the scores before upsampling, float32 [N, C, h, w], of a run with ``scores=True``.

        Raises:
            NonFiniteOutputError: a score is NaN or infinite.
        """
        return self._reader.scores_of(outputs)

    def scores_at_pixels(self, scores: Array, size: tuple[int, int]) -> Array:
        """Enlarge a result's scores as its labels were made of them.

        Args:
            scores: float32 [C, h, w], as in `Segmentation.scores`.
            size: (height, width) of the frame in px.

        Returns:
            float32 [C, height, width], owned by the caller.
        """
        return self._reader.scores_at_pixels(scores, size)

    def close(self) -> None:
        """Free the networks. May be called twice."""
        super().close()
        self._model.context.close()
        self._scores_network.close()

    def _segment(self, frames: Sequence[Array], *, scores: bool) -> list[Segmentation]:
        if self.tiling.is_needed(frames[0].shape[:2]):
            return self.tiling.segment(self, frames, scores=scores)
        outputs = self.execute(self.prepare(frames), scores=scores)
        return self.finish(outputs, frames, scores=scores)

    def _parts(self, frames: list[Array]) -> Iterator[list[Array]]:
        step = self._model.input_format.batch_size or self.tiling.batch_size(
            frames[0].shape[:2], most=_MAX_BATCH
        )
        if len(frames) % step and self._model.input_format.batch_size is not None:
            raise ShapeError(
                f"'{self.path.name}' takes exactly {step} frames of one size at once; "
                f"got {len(frames)}.",
                hint="Export it again with fcn-export for any batch.",
            )
        if self._model.input_format.batch_size is None:
            step = min(step, -(-len(frames) // self.num_streams))  # a part for each stream
        for start in range(0, len(frames), step):
            yield frames[start : start + step]
