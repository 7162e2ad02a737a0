"""Run an engine, one run after the other on the GPU, called from any number of threads."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fcn_deploy.backends.base import ContextManaged, check_feeds
from fcn_deploy.backends.tensorrt.arrays_in_use import ArraysInUse, views_of
from fcn_deploy.backends.tensorrt.device_arrays import DeviceArray, DeviceView, stream_handle
from fcn_deploy.backends.tensorrt.device_labelling import DeviceLabelling
from fcn_deploy.backends.tensorrt.engine import TrtEngine
from fcn_deploy.backends.tensorrt.execution import BoundContext, Shapes
from fcn_deploy.backends.tensorrt.graph_cache import GraphCache
from fcn_deploy.backends.tensorrt.ring import Ring
from fcn_deploy.backends.tensorrt.slots import PendingResult, Slot
from fcn_deploy.backends.tensorrt.surface import ExecutionContext
from fcn_deploy.errors import BackendUnavailableError
from fcn_deploy.names import Array

__all__ = ["InferenceSession", "LayerTime", "PendingResult", "open_session"]


def open_session(
    engine: TrtEngine, *, depth: int = 3, cuda_graphs: bool = False, timing: bool = False
) -> InferenceSession:
    """Make what runs a plan; the engine closes it with itself.

    Args:
        depth: runs that may be under way at once, each with buffers of its own.
        cuda_graphs: replay recorded runs where shapes come again, which spares the CPU.
        timing: measure each run by CUDA events, for `PendingResult.times`.

    Raises:
        DeviceMemoryError: the GPU has no room for the plan's working memory.
        BackendUnavailableError: CUDA graphs were asked for, and cuda.bindings is missing.
        ClosedError: the engine is closed.
    """
    return engine.keep(
        lambda: InferenceSession(engine, depth=depth, cuda_graphs=cuda_graphs, timing=timing)
    )


@dataclass(frozen=True, slots=True)
class LayerTime:
    """A layer of the engine, which may be many of the network's, and its mean time in ms."""

    name: str
    mean_ms: float


class InferenceSession(ContextManaged):
    """Runs an engine. Threads may share it: they take turns to enqueue, and wait side by side.

    Made by `open_session`. Closing the engine closes it, too.
    """

    def __init__(self, engine: TrtEngine, *, depth: int, cuda_graphs: bool, timing: bool) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth is {depth}; it must be 1 or more")
        self.engine = engine
        self._device = device = engine.device
        self._timing = timing
        self._lock = threading.RLock()  # closing an array that was given out takes it again
        native = cuda_graphs and engine.library.capabilities.native_cuda_graphs
        if cuda_graphs and not native and not device.has_graphs:
            raise BackendUnavailableError(
                f"{device.name} alone records no CUDA graphs.", hint="pip install cuda-bindings"
            )
        with device.current():
            self._context: BoundContext | None = _bind(engine, engine.new_context(native))
            self._graphs = GraphCache(device) if cuda_graphs and not native else None
            self._ring = Ring(device, depth=depth, timing=timing)
        self._stream = self._ring.execute
        self._arrays = ArraysInUse(device, self._stream, free=self._free_array)

    def infer(
        self, feeds: Mapping[str, Array], *, out: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Run once and wait: arrays of the shapes and dtypes of the plan's inputs and outputs.

        See `submit` and `PendingResult.result` for the errors.
        """
        return self.submit(feeds).result(out=out)

    def submit(
        self,
        feeds: Mapping[str, Array],
        *,
        outputs: Sequence[str] | None = None,
        labelling: DeviceLabelling | None = None,
    ) -> PendingResult:
        """Start a run, and wait for none but the one that had its slot, `depth` runs ago.

        Args:
            feeds: an array for each input, of its dtype, in a shape that a profile takes; copied
                before this returns.
            outputs: names to copy back; None means all.
            labelling: labels scores on the GPU; its `labels` are one more output, always copied
                back.

        Raises:
            ShapeError, DTypeError: a feed is missing, unknown or of another kind than any profile
                takes.
            DeviceMemoryError: the GPU has no room for its buffers.
            ExecutionError: TensorRT or the driver failed.
        """
        self._require_usable(f"the session of '{self.engine.name}'")
        check_feeds(self.engine.inputs, feeds)
        shapes = {spec.name: tuple(feeds[spec.name].shape) for spec in self.engine.inputs}
        profile = self.engine.select_profile(shapes)
        wanted = [spec.name for spec in self.engine.outputs] if outputs is None else outputs
        with self._lock, self._device.current():
            context = self._usable_context()
            slot = self._ring.next_slot()
            output_shapes = context.set_shapes(profile, shapes, self._stream)
            known = shapes | output_shapes
            addresses = places = self._addresses(slot, known)
            specs = [spec for spec in self.engine.outputs if spec.name in wanted]
            labels = None if labelling is None else labelling.prepare(known)
            if labels is not None:
                feeds = {**feeds, labels.tables_name: labels.tables}
                known |= labels.shapes
                room = self._ring.addresses(slot, labels.buffers, known)
                places = addresses | labels.places(room)
                specs += labels.outputs
            try:
                self._ring.copy_in(slot, feeds, places)
                self._run(context, (profile, *shapes.items()), addresses)
                if labels is not None:
                    labels.enqueue(places, self._stream)
                parts = self._ring.copy_out(slot, specs, known, places)
            except BaseException:
                self._ring.drain(slot)  # copies that were begun still use its memory
                raise
            slot.pending = PendingResult(
                self._device,
                slot,
                parts,
                timed=self._timing,
                finish=None if labels is None else labels.finish,
            )
            return slot.pending

    def infer_device(
        self,
        inputs: Mapping[str, Any],
        *,
        stream: Any = None,
        out: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Run on arrays that lie on the GPU, without copying or waiting.

        Args:
            inputs: arrays with ``__cuda_array_interface__``, such as PyTorch's on cuda;
                C-contiguous.
            stream: that fills the inputs and will use the outputs: a handle, or PyTorch's, CuPy's
                or PyCUDA's object; None: what an input names, PyTorch's current one for its
                tensors, else the default stream.
            out: arrays to write outputs into, by name; for others memory is allocated, which takes
                time and stops the GPU.

        Returns:
            For each output the array of `out`, or a `DeviceArray` that the caller owns; ready in
            `stream`'s order.

        Raises:
            ShapeError, DTypeError, DeviceMemoryError, ExecutionError: as for `submit`.
            TypeError, ValueError: an array is not on this GPU.
        """
        self._require_usable(f"the session of '{self.engine.name}'")
        views = views_of(inputs, self._device)
        check_feeds(self.engine.inputs, {name: _like(view) for name, view in views.items()})
        shapes = {spec.name: views[spec.name].shape for spec in self.engine.inputs}
        profile = self.engine.select_profile(shapes)
        foreign = stream_handle(stream, inputs.values(), views.values())
        with self._lock, self._device.current():
            context = self._usable_context()
            output_shapes = context.set_shapes(profile, shapes, self._stream)
            given = out or {}
            results, targets = self._arrays.outputs(self.engine.outputs, output_shapes, given)
            addresses = {name: view.address for name, view in views.items()} | targets
            try:
                context.set_addresses(addresses)
                self._device.order(foreign, self._stream)
                context.enqueue(self._stream)
                self._device.order(self._stream, foreign)
                self._arrays.keep_until_executed((dict(inputs), dict(results)))
            except BaseException:
                self._arrays.take_back(results, given)
                raise
            return results

    def profile_layers(self, feeds: Mapping[str, Array], *, runs: int = 10) -> list[LayerTime]:
        """Measure each layer of the engine, in its order, in a context made for that alone.

        TensorRT-RTX makes one layer of a whole network.

        Args:
            feeds: of dtypes and shapes as for `submit`.

        Raises:
            ShapeError, DTypeError, DeviceMemoryError, ExecutionError: as for `submit`.
        """
        check_feeds(self.engine.inputs, feeds)
        shapes = {spec.name: tuple(feeds[spec.name].shape) for spec in self.engine.inputs}
        profile = self.engine.select_profile(shapes)
        totals: dict[str, float] = {}

        def report(layer_name: str, ms: float) -> None:
            totals[layer_name] = totals.get(layer_name, 0.0) + ms

        with self._lock, self._device.current():
            self._usable_context()
            raw = self.engine.new_context(False)
            bound = _bind(self.engine, raw)
            slot = self._ring.next_slot()
            addresses = self._addresses(
                slot, shapes | bound.set_shapes(profile, shapes, self._stream)
            )
            try:
                self._ring.copy_in(slot, feeds, addresses)
                bound.set_addresses(addresses)
                bound.enqueue(self._stream)  # the first run of a shape is slower
                self._ring.drain(slot)
                raw.profiler = profiler = self.engine.library.profiler(report)
                for _ in range(runs):
                    bound.enqueue(self._stream)
                    self._ring.drain(slot)
            except BaseException:
                self._ring.drain(slot)  # as for `submit`
                raise
            del bound, raw, profiler
        return [LayerTime(name, total / runs) for name, total in totals.items()]

    @property
    def device_bytes(self) -> int:
        """Bytes of device memory for inputs and outputs; the engine's own come on top."""
        return self._ring.device_bytes

    def close(self) -> None:
        """Wait for what is under way and free everything. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._ring.finish()
            super().close()
            with self._device.current():
                self._ring.drain_all()  # runs on others' arrays have no slot
                self._arrays.close()
                self._context = None
                if self._graphs is not None:
                    self._graphs.close()
                self._ring.close()
        self.engine.forget(self)

    def _usable_context(self) -> BoundContext:
        if self._context is None:
            self._require_usable(f"the session of '{self.engine.name}'")
            raise RuntimeError("a session without a context is not closed")
        return self._context

    def _addresses(self, slot: Slot, shapes: Shapes) -> dict[str, int]:
        return self._ring.addresses(slot, (*self.engine.inputs, *self.engine.outputs), shapes)

    def _run(
        self, context: BoundContext, shapes: tuple[object, ...], addresses: Mapping[str, int]
    ) -> None:
        key = (shapes, *addresses.items())
        # a graph has none of the work that TensorRT puts off when shapes change: neither is it
        # recorded nor is one of the same shapes launched before these were run once more
        if self._graphs is None or not context.settled:
            context.set_addresses(addresses)
            context.enqueue(self._stream)
            return
        if key not in self._graphs:
            context.set_addresses(addresses)
            self._graphs.record(key, lambda: context.enqueue(self._stream), self._stream)
        self._graphs.launch(key, self._stream)

    def _free_array(self, array: DeviceArray) -> None:
        with self._lock, self._device.current():
            self._arrays.free(array)


def _bind(engine: TrtEngine, context: ExecutionContext) -> BoundContext:
    names = tuple(spec.name for spec in engine.outputs)
    return BoundContext(context, engine.library, outputs=names, name=engine.name)


def _like(view: DeviceView) -> Array:
    """Make an array of a view's shape and dtype, for checks of these alone: it has no memory."""
    return np.broadcast_to(np.zeros((), view.dtype), view.shape)
