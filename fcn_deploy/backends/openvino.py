"""Run networks with OpenVINO on the CPU, the default where there is no NVIDIA GPU."""

from __future__ import annotations

import io
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from fcn_deploy.backends.base import ContextManaged, ModelSource, check_feeds
from fcn_deploy.backends.compiled_cache import CompiledCache
from fcn_deploy.errors import (
    ArtifactError,
    BackendUnavailableError,
    ExecutionError,
)
from fcn_deploy.machine import cpu_identity, usable_cores
from fcn_deploy.names import Array, Precision, TensorSpec
from fcn_deploy.telemetry import import_openvino

__all__ = ["OpenVinoBackend", "openvino_has_bf16"]

_log = logging.getLogger(__name__)

_core_lock = threading.Lock()

# OpenVINO's hint f16 would also lower the layers that an fp16 graph keeps in float32
_ARITHMETIC = {
    Precision.FP32: "fp32",
    Precision.BF16: "bf16",
    Precision.FP16: "fp16 weights, fp32 arithmetic",
    Precision.INT8: "int8 layers, fp32 between them",
}


class OpenVinoBackend:
    """Runs ONNX files and OpenVINO's own ``.xml`` on the CPU."""

    name = "openvino"
    suffixes = (".onnx", ".xml")

    def available(self) -> bool:
        return find_spec("openvino") is not None

    def version(self) -> str:
        return str(_library().__version__).split("-")[0]

    def precisions(self) -> tuple[Precision, ...]:
        bf16 = (Precision.BF16,) if openvino_has_bf16() else ()
        return (Precision.FP32, *bf16, Precision.FP16, Precision.INT8)

    def arithmetic(self, precision: Precision) -> str:
        return _ARITHMETIC[precision]

    def open(
        self,
        source: ModelSource,
        /,
        *,
        precision: Precision = Precision.FP32,
        num_threads: int | None = None,
        num_streams: int = 1,
    ) -> OpenVinoContext:
        library = _library()
        if precision not in self.precisions():
            raise BackendUnavailableError(
                f"openvino cannot compute in {precision} on this CPU; "
                f"it can in {', '.join(self.precisions())}.",
                hint="Choose one of these with --precision.",
            )
        config = {
            # left to itself it takes fp16 or bf16 for every layer, where the CPU has them
            "INFERENCE_PRECISION_HINT": "bf16" if precision is Precision.BF16 else "f32",
            "NUM_STREAMS": num_streams,
            "INFERENCE_NUM_THREADS": num_threads or usable_cores(),
        }
        if source.digest is None:
            compiled = _compile(_core(library), source, config)
        else:
            compiled = _compile_cached(library, source, source.digest, config)
        return OpenVinoContext(compiled, name=source.path.name)


def openvino_has_bf16() -> bool:
    """Say whether OpenVINO computes in bf16 on this CPU.

    Where it does not, it silently takes fp32. So its own word counts, not the CPU's instructions:
    the two differ on ARM, and where ``ONEDNN_MAX_CPU_ISA`` holds OpenVINO back.

    Raises:
        BackendUnavailableError: it is not installed.
    """
    return "BF16" in _core(_library()).get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoContext(ContextManaged):
    """A compiled network. Each thread that executes takes an infer request of its own."""

    def __init__(self, compiled: Any, *, name: str) -> None:
        super().__init__()
        self._compiled = compiled
        self._name = name
        self._idle: list[Any] = []
        self._lock = threading.Lock()
        self.inputs = tuple(_spec(port, i) for i, port in enumerate(compiled.inputs))
        self.outputs = tuple(_spec(port, i) for i, port in enumerate(compiled.outputs))
        self._output_index = {spec.name: i for i, spec in enumerate(self.outputs)}

    def execute(
        self, feeds: Mapping[str, Array], /, *, outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        self._require_usable(f"the network '{self._name}'")
        check_feeds(self.inputs, feeds)
        wanted = [spec.name for spec in self.outputs] if outputs is None else outputs
        request = self._take_request()
        # held until the run ends: a tensor that shares memory does not keep its array alive
        arrays = [np.ascontiguousarray(feeds[spec.name]) for spec in self.inputs]
        try:
            for index, array in enumerate(arrays):
                request.set_input_tensor(index, _shared_tensor(array))
            request.infer()
            # copied: the request's own buffers are overwritten by its next run
            return {
                name: np.array(request.get_output_tensor(self._output_index[name]).data)
                for name in wanted
            }
        except RuntimeError as error:
            shapes = {name: list(array.shape) for name, array in feeds.items()}
            raise _execution_error(self._name, shapes, error) from error
        finally:
            with self._lock:
                self._idle.append(request)

    def close(self) -> None:
        super().close()
        with self._lock:
            self._idle.clear()
            self._compiled = None

    def _take_request(self) -> Any:
        with self._lock:
            if self._idle:
                return self._idle.pop()
            self._require_usable(f"the network '{self._name}'")
            return self._compiled.create_infer_request()


def _library() -> Any:
    try:
        return import_openvino()
    except ImportError as error:
        raise BackendUnavailableError(
            "the backend 'openvino' is not installed.", hint="pip install 'fcn-deploy[cpu]'"
        ) from error


def _core(library: Any) -> Any:
    """Give the only Core of a process, which lives as long as it does; threads may share it.

    OpenVINO (2026.4.1) gives the thread that first uses a Core's CPU plugin a stack for signals,
    and takes it away with the Core. Of two Cores that end in the order in which they began, the
    second puts the stack of the first back, which is gone by then: the next signal that Python
    handles, Ctrl-C for one, ends the process by SIGSEGV.
    """
    with _core_lock:  # of two threads that come first, each would make one
        return _made_core(library, os.getpid())


@cache
def _made_core(library: Any, process: int) -> Any:
    del process  # a forked child has a Core of its own
    return library.Core()


def _compile(core: Any, source: ModelSource, config: Mapping[str, Any]) -> Any:
    try:
        model = str(source.path) if source.data is None else source.cut_data()
        return core.compile_model(core.read_model(model), "CPU", config)
    except (RuntimeError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"openvino refused '{source.path}': {_telling_line(error)}",
            hint="Run it with --backend onnxruntime, or export it again.",
        ) from error


def _compile_cached(
    library: Any, source: ModelSource, digest: str, config: Mapping[str, Any]
) -> Any:
    """Take the compiled network from the user's cache, or compile it and keep it there."""
    core = _core(library)
    settings = ";".join(f"{name}={value}" for name, value in sorted(config.items()))
    outputs = "" if source.outputs is None else repr(source.outputs)
    key = ("openvino", str(library.__version__), cpu_identity(), settings, digest, outputs)
    cache = CompiledCache()
    kept = cache.load(key)
    if kept is not None:
        try:
            return core.import_model(io.BytesIO(kept), "CPU", config)
        except RuntimeError as error:  # compiled afresh, and kept anew
            _log.warning("openvino refused what it compiled before: %s", _telling_line(error))
    compiled = _compile(core, source, config)
    cache.store(key, compiled.export_model().getvalue())
    return compiled


def _shared_tensor(array: Array) -> Any:
    """Give a tensor of an array's own memory; the array must be C-contiguous and outlive it."""
    if not array.flags.writeable:
        array = np.asarray(_Writable(array))
    return _library().Tensor(array, shared_memory=True)


class _Writable:
    """Read-only memory as OpenVINO takes it: it shares no other, and writes into no input.

    Frames from bytes, from Pillow and from mapped files are read-only.
    """

    def __init__(self, array: Array) -> None:
        self._array = array  # holding this object's memory keeps the array's alive
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}


def _spec(port: Any, index: int) -> TensorSpec:
    shape = tuple(None if dim.is_dynamic else dim.get_length() for dim in port.partial_shape)
    return TensorSpec(
        name=_declared_name(port) or f"tensor_{index}",
        dtype=np.dtype(port.element_type.to_dtype()).name,
        shape=shape,
    )


def _declared_name(port: Any) -> str:
    """Give the name that the file declares: compiling adds the names of tensors it merged."""
    declared, _, _ = str(port.node.friendly_name).rpartition("/sink_port_")
    return declared if declared in port.names else min(port.names, default="")


def _execution_error(
    name: str, shapes: Mapping[str, list[int]], error: RuntimeError
) -> ExecutionError:
    return ExecutionError(
        f"openvino failed in '{name}' with input {shapes}: {_telling_line(error)}",
        hint="If other sizes work, the network does not take this one.",
    )


def _telling_line(error: BaseException) -> str:
    """Give the line of OpenVINO's many that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (telling or lines or [type(error).__name__])[0][:300]
