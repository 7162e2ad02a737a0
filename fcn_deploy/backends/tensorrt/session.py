"""Runs of an engine: a ring of slots, so that copies and execution of successive frames overlap.

Three streams, one each for copies to the GPU, for execution and for copies from it, are joined by
events. A slot has buffers and events of its own; a frame takes the slot that was used longest ago,
after the run that had it was finished and its results were copied out.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fcn_deploy.backends.base import ContextManaged, check_feeds
from fcn_deploy.backends.tensorrt.buffers import BufferPool
from fcn_deploy.backends.tensorrt.device import DeviceBackend
from fcn_deploy.backends.tensorrt.device_arrays import (
    DeviceArray,
    DeviceView,
    stream_handle,
    view_of,
)
from fcn_deploy.backends.tensorrt.engine import TrtEngine
from fcn_deploy.backends.tensorrt.execution import BoundContext, Shapes
from fcn_deploy.backends.tensorrt.graph_cache import GraphCache
from fcn_deploy.backends.tensorrt.surface import ExecutionContext
from fcn_deploy.errors import BackendUnavailableError, FcnDeployError, ShapeError
from fcn_deploy.tensors import Array, TensorSpec

__all__ = ["InferenceSession", "LayerTime", "PendingResult", "RunTimes"]


@dataclass(frozen=True, slots=True)
class RunTimes:
    """What one run took on the GPU, in ms, by CUDA events.

    Attributes:
        compute_ms: execution alone, trtexec's "GPU Compute Time".
        transfer_ms: from the first byte copied in to the last copied out.
    """

    compute_ms: float
    transfer_ms: float


@dataclass(frozen=True, slots=True)
class LayerTime:
    """A layer of the engine, which may be many of the network's, and its mean time in ms."""

    name: str
    mean_ms: float


@dataclass(eq=False)
class _Slot:
    """Buffers (by prefix in the pool) and events of one run at a time.

    Attributes:
        begun, started: recorded where runs are timed only.
    """

    prefix: str
    begun: Any
    uploaded: Any
    started: Any
    executed: Any
    downloaded: Any
    pending: PendingResult | None = None

    @property
    def events(self) -> tuple[Any, ...]:
        return self.begun, self.uploaded, self.started, self.executed, self.downloaded

    def drop_events(self) -> None:
        """Let go of the events, though results may hold on to the slot."""
        self.begun = self.uploaded = self.started = self.executed = self.downloaded = None


class PendingResult:
    """A run under way. Several threads may ask for its result."""

    def __init__(
        self, device: DeviceBackend, slot: _Slot, parts: Mapping[str, Array], *, timed: bool
    ) -> None:
        self._device = device
        self._slot = slot
        self._parts = parts  # page-locked, until the result is copied out of it
        self._timed = timed
        self._lock = threading.Lock()
        self._arrays: dict[str, Array] = {}
        self._times: RunTimes | None = None
        self._error: FcnDeployError | None = None
        self._finished = False

    def done(self) -> bool:
        """Say whether `result` would not wait."""
        with self._lock:
            if self._finished:
                return True
            with self._device.current():
                return self._device.is_done(self._slot.downloaded)

    def result(self, *, out: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Wait for the run and give its outputs, arrays owned by the caller.

        Args:
            out: C-contiguous arrays to write outputs into, by name, of their shape and dtype.

        Raises:
            ExecutionError: the run failed on the GPU.
            ShapeError: an array of `out` is of another shape or dtype.
        """
        self.settle()
        if self._error is not None:
            raise self._error
        targets = out or {}
        return {
            name: array if name not in targets else _copied(name, array, targets[name])
            for name, array in self._arrays.items()
        }

    def times(self) -> RunTimes | None:
        """Wait for the run and give its times; None where the session does not time."""
        self.settle()
        return self._times

    def settle(self) -> None:
        """Wait, copy the outputs out of the slot and let go of it. Keeps an error for `result`."""
        with self._lock:
            if self._finished:
                return
            slot, device = self._slot, self._device
            try:
                with device.current():
                    device.synchronize(slot.downloaded)
                    if self._timed:
                        self._times = RunTimes(
                            device.elapsed_ms(slot.started, slot.executed),
                            device.elapsed_ms(slot.begun, slot.downloaded),
                        )
                # copied: the slot's memory is overwritten by its next run
                self._arrays = {name: part.copy() for name, part in self._parts.items()}
            except FcnDeployError as error:
                self._error = error
            finally:
                self._parts = {}
                self._finished = True
                slot.pending = None


class InferenceSession(ContextManaged):
    """Runs an engine. Threads may share it: they take turns to enqueue, and wait side by side.

    Made by `TrtEngine.session`. Closing the engine closes it, too.
    """

    def __init__(self, engine: TrtEngine, *, depth: int, cuda_graphs: bool, timing: bool) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth is {depth}; it must be 1 or more")
        self.engine = engine
        self._device = device = engine.device
        self._timing = timing
        self._lock = threading.RLock()  # closing an array that was given out takes it again
        self._turn = 0
        self._kept: deque[tuple[Any, object]] = deque()  # an event, what must live until then
        self._given_out: set[DeviceArray] = set()
        native = cuda_graphs and engine.library.capabilities.native_cuda_graphs
        if cuda_graphs and not native and not device.has_graphs:
            raise BackendUnavailableError(
                f"{device.name} alone records no CUDA graphs.", hint="pip install cuda-bindings"
            )
        with device.current():
            self._context: BoundContext | None = _bind(engine, engine.new_context(native))
            self._pool = BufferPool(device)
            self._graphs = GraphCache(device) if cuda_graphs and not native else None
            self._upload, self._execute, self._download = (device.stream() for _ in range(3))
            self._slots = [
                _Slot(f"{index}/", *(device.event(timing=timing) for _ in range(5)))
                for index in range(depth)
            ]

    def infer(
        self, feeds: Mapping[str, Array], *, out: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        """Run once and wait; see `submit` and `PendingResult.result`."""
        return self.submit(feeds).result(out=out)

    def submit(
        self, feeds: Mapping[str, Array], *, outputs: Sequence[str] | None = None
    ) -> PendingResult:
        """Start a run, and wait for none but the one that had its slot, `depth` runs ago.

        Args:
            feeds: an array for each input; copied before this returns.
            outputs: names to copy back; None means all.

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
            slot = self._next_slot()
            output_shapes = context.set_shapes(profile, shapes, self._execute)
            addresses = self._addresses(slot, shapes, output_shapes)
            try:
                self._copy_in(slot, feeds, addresses)
                self._device.wait(self._execute, slot.uploaded)
                if self._timing:
                    self._device.record(slot.started, self._execute)
                self._run(context, (profile, *shapes.items()), addresses)
                self._device.record(slot.executed, self._execute)
                self._device.wait(self._download, slot.executed)
                parts = self._copy_out(slot, wanted, output_shapes, addresses)
                self._device.record(slot.downloaded, self._download)
            except BaseException:
                self._drain(slot)  # copies that were begun still use its memory
                raise
            slot.pending = PendingResult(self._device, slot, parts, timed=self._timing)
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
        views = self._views(inputs)
        check_feeds(self.engine.inputs, {name: _like(view) for name, view in views.items()})
        shapes = {spec.name: views[spec.name].shape for spec in self.engine.inputs}
        profile = self.engine.select_profile(shapes)
        foreign = stream_handle(stream, inputs.values(), views.values())
        with self._lock, self._device.current():
            context = self._usable_context()
            output_shapes = context.set_shapes(profile, shapes, self._execute)
            results, targets = self._device_outputs(output_shapes, out or {})
            context.set_addresses({name: view.address for name, view in views.items()} | targets)
            self._device.order(foreign, self._execute)
            context.enqueue(self._execute)
            self._device.order(self._execute, foreign)
            self._keep_until_executed((dict(inputs), dict(results)))
            return results

    def profile_layers(self, feeds: Mapping[str, Array], *, runs: int = 10) -> list[LayerTime]:
        """Measure each layer of the engine, in its order, in a context made for that alone.

        TensorRT-RTX makes one layer of a whole network.

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
            slot = self._next_slot()
            addresses = self._addresses(
                slot, shapes, bound.set_shapes(profile, shapes, self._execute)
            )
            self._copy_in(slot, feeds, addresses)
            self._device.wait(self._execute, slot.uploaded)
            bound.set_addresses(addresses)
            bound.enqueue(self._execute)  # the first run of a shape is slower
            self._drain(slot)
            raw.profiler = profiler = self.engine.library.profiler(report)
            for _ in range(runs):
                bound.enqueue(self._execute)
                self._drain(slot)
            del bound, raw, profiler
        return [LayerTime(name, total / runs) for name, total in totals.items()]

    @property
    def device_bytes(self) -> int:
        """Bytes of device memory for inputs and outputs; the engine's own come on top."""
        return self._pool.device_bytes

    def close(self) -> None:
        """Wait for what is under way and free everything. May be called twice."""
        with self._lock:
            if self._closed:
                return
            for slot in self._slots:
                if slot.pending is not None:
                    slot.pending.settle()
            super().close()
            with self._device.current():
                self._drain(self._slots[0])  # runs on others' arrays have no slot
                for array in list(self._given_out):
                    array.close()
                self._context = None
                if self._graphs is not None:
                    self._graphs.close()
                self._pool.close()
                self._device.release(*(event for event, _ in self._kept))
                self._kept.clear()
                for slot in self._slots:
                    self._device.release(*slot.events)
                    slot.drop_events()  # PyCUDA destroys them with the last reference
                self._device.release(self._upload, self._execute, self._download)
        self.engine.forget(self)

    def _usable_context(self) -> BoundContext:
        if self._context is None:
            self._require_usable(f"the session of '{self.engine.name}'")
            raise RuntimeError("a session without a context is not closed")
        return self._context

    def _next_slot(self) -> _Slot:
        slot = self._slots[self._turn % len(self._slots)]
        self._turn += 1
        if slot.pending is not None:
            slot.pending.settle()
        return slot

    def _addresses(self, slot: _Slot, inputs: Shapes, outputs: Shapes) -> dict[str, int]:
        """Find room for every tensor on the device; the slot must be idle."""
        shapes = {**inputs, **outputs}
        return {
            spec.name: self._pool.on_device(slot.prefix + spec.name, _nbytes(spec, shapes))
            for spec in (*self.engine.inputs, *self.engine.outputs)
        }

    def _copy_in(
        self, slot: _Slot, feeds: Mapping[str, Array], addresses: Mapping[str, int]
    ) -> None:
        if self._timing:
            self._device.record(slot.begun, self._upload)
        for spec in self.engine.inputs:
            feed = feeds[spec.name]
            pinned = self._pool.pinned(slot.prefix + spec.name, feed.nbytes)
            # copied: the caller may change its array, and the GPU reads page-locked memory faster
            pinned.view(feed.dtype).reshape(feed.shape)[...] = feed
            self._device.upload(addresses[spec.name], pinned, self._upload)
        self._device.record(slot.uploaded, self._upload)

    def _run(
        self, context: BoundContext, shapes: tuple[object, ...], addresses: Mapping[str, int]
    ) -> None:
        key = (shapes, *addresses.items())
        if self._graphs is not None and key in self._graphs:
            self._graphs.launch(key, self._execute)
            return
        context.set_addresses(addresses)
        if self._graphs is not None and context.settled:
            self._graphs.record(key, lambda: context.enqueue(self._execute), self._execute)
            self._graphs.launch(key, self._execute)
            return
        context.enqueue(self._execute)

    def _copy_out(
        self,
        slot: _Slot,
        wanted: Sequence[str],
        shapes: Shapes,
        addresses: Mapping[str, int],
    ) -> dict[str, Array]:
        parts = {}
        for spec in self.engine.outputs:
            if spec.name in wanted:
                pinned = self._pool.pinned(slot.prefix + spec.name, _nbytes(spec, shapes))
                self._device.download(pinned, addresses[spec.name], self._download)
                parts[spec.name] = pinned.view(spec.dtype).reshape(shapes[spec.name])
        return parts

    def _drain(self, slot: _Slot) -> None:
        """Wait for all that was enqueued; the slot must be idle, its events are used for it."""
        for stream in (self._upload, self._execute, self._download):
            self._device.record(slot.downloaded, stream)
            self._device.synchronize(slot.downloaded)

    def _views(self, arrays: Mapping[str, Any]) -> dict[str, DeviceView]:
        ordinal = self._device.info.ordinal
        return {name: view_of(a, name=name, ordinal=ordinal) for name, a in arrays.items()}

    def _device_outputs(
        self, shapes: Shapes, out: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, int]]:
        views = self._views(out)
        results: dict[str, Any] = {}
        addresses: dict[str, int] = {}
        for spec in self.engine.outputs:
            shape, dtype = shapes[spec.name], np.dtype(spec.dtype)
            if spec.name in out:
                view = views[spec.name]
                if (view.shape, view.dtype) != (shape, dtype):
                    raise ShapeError(_wrong_out(spec.name, view, shape, dtype))
                results[spec.name], addresses[spec.name] = out[spec.name], view.address
            else:
                address = self._device.alloc(_nbytes(spec, shapes))
                array = DeviceArray(address, shape, dtype, self._free_array)
                self._given_out.add(array)
                results[spec.name], addresses[spec.name] = array, address
        return results, addresses

    def _keep_until_executed(self, what: object) -> None:
        """Hold on to others' arrays until the run that uses them is over."""
        while self._kept and self._device.is_done(self._kept[0][0]):
            self._device.release(self._kept.popleft()[0])
        done = self._device.event()
        self._device.record(done, self._execute)
        self._kept.append((done, what))

    def _free_array(self, array: DeviceArray) -> None:
        with self._lock, self._device.current():
            if array in self._given_out:
                self._given_out.discard(array)
                done = self._device.event()
                self._device.record(done, self._execute)
                self._device.synchronize(done)
                self._device.release(done)
                self._device.free(array.address)


def _bind(engine: TrtEngine, context: ExecutionContext) -> BoundContext:
    names = tuple(spec.name for spec in engine.outputs)
    return BoundContext(context, engine.library, outputs=names, name=engine.name)


def _nbytes(spec: TensorSpec, shapes: Shapes) -> int:
    return math.prod(shapes[spec.name]) * np.dtype(spec.dtype).itemsize


def _like(view: DeviceView) -> Array:
    """Make an array of a view's shape and dtype, for checks of these alone: it has no memory."""
    return np.broadcast_to(np.zeros((), view.dtype), view.shape)


def _copied(name: str, array: Array, target: Array) -> Array:
    if (target.shape, target.dtype) != (array.shape, array.dtype):
        raise ShapeError(_wrong_out(name, target, array.shape, array.dtype))
    target[...] = array
    return target


def _wrong_out(
    name: str, found: Array | DeviceView, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> str:
    return f"out['{name}'] is {found.dtype} {list(found.shape)}; expected {dtype} {list(shape)}."
