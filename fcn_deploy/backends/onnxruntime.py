"""Run networks with ONNX Runtime, on the CPU or on the execution providers asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from fcn_deploy.backends.base import ContextManaged, ModelSource, check_feeds
from fcn_deploy.backends.execution_providers import (
    CPU,
    RECORD_PLACEMENT,
    ProviderRequest,
    available_providers,
    check_available,
    check_session,
    configure_plugins,
    provider_needs,
)
from fcn_deploy.errors import ArtifactError, BackendUnavailableError, ExecutionError
from fcn_deploy.graph.scan import scan_onnx
from fcn_deploy.machine import usable_cores
from fcn_deploy.names import Array, Precision, TensorSpec
from fcn_deploy.telemetry import import_onnxruntime

__all__ = ["OnnxRuntimeBackend"]

_CPU_ALONE = (ProviderRequest(CPU),)
_STATE = "onnxruntime.capi.onnxruntime_pybind11_state"
_FATAL = 4  # errors come as exceptions; on stderr they would spoil a command's output

# ONNX Runtime has few fp16 kernels for CPUs: it puts Casts around the other nodes
_ARITHMETIC = {
    Precision.FP32: "fp32",
    Precision.FP16: "fp16 values, fp32 arithmetic inside most nodes",
    # its int8 convolutions take graphs that round their outputs too; TensorRT wants these float
    Precision.INT8: "values rounded to int8, fp32 arithmetic",
}

_DEQUANTIZE = "DequantizeLinear"
_BIAS_QUANTIZATION = "WeightBiasQuantization"

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(uint16)": "uint16",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


class OnnxRuntimeBackend:
    """Runs ONNX files, each in the types that are in its graph."""

    name = "onnxruntime"
    suffixes = (".onnx",)

    def __init__(self, providers: Sequence[ProviderRequest] = _CPU_ALONE) -> None:
        """Choose where to run.

        Args:
            providers: the preferred first. Nothing runs on the CPU but sizes, unless it is among
                them.
        """
        self._providers = tuple(providers)

    def available(self) -> bool:
        return find_spec("onnxruntime") is not None

    def version(self) -> str:
        return str(_library().__version__)

    def providers(self) -> tuple[str, ...]:
        """Give the names of the execution providers that this installation has.

        Raises:
            BackendUnavailableError: the library is not installed.
        """
        return available_providers(_library())

    def precisions(self) -> tuple[Precision, ...]:
        _library()
        return (Precision.FP32, Precision.FP16, Precision.INT8)

    def arithmetic(self, precision: Precision) -> str:
        if self._providers != _CPU_ALONE:
            return f"{precision} as {' and '.join(each.name for each in self._providers)} has it"
        return _ARITHMETIC[precision]

    def open(
        self,
        source: ModelSource,
        /,
        *,
        precision: Precision = Precision.FP32,
        num_threads: int | None = None,
        num_streams: int = 1,
    ) -> OnnxRuntimeContext:
        library = _library()
        if precision not in self.precisions():
            raise BackendUnavailableError(
                f"onnxruntime cannot compute in {precision}; "
                f"it can in {', '.join(self.precisions())}.",
                hint="Use --backend openvino, or --precision fp32.",
            )
        check_available(library, self._providers)
        options = library.SessionOptions()
        # concurrent runs share one pool of threads: a stream's share is its part of all
        options.intra_op_num_threads = max(1, (num_threads or usable_cores()) // num_streams)
        options.inter_op_num_threads = 1
        options.log_severity_level = _FATAL
        if self._providers != _CPU_ALONE:
            options.add_session_config_entry(RECORD_PLACEMENT, "1")
        model = str(source.path) if source.data is None else source.cut_data()
        by_name: Any = [(each.name, dict(each.options)) for each in self._providers]
        try:
            if configure_plugins(library, options, self._providers):
                by_name = None
            session = library.InferenceSession(
                model,
                options,
                providers=by_name,
                disabled_optimizers=_disabled(source),
                enable_fallback=0,  # it would run on the CPU instead, now or after a failed run
            )
        except _errors() as error:
            if self._providers == _CPU_ALONE:
                raise ArtifactError(
                    f"onnxruntime refused '{source.path}': {_text(error)}",
                    hint="Run it with --backend openvino, or export it again.",
                ) from error
            raise BackendUnavailableError(
                f"onnxruntime cannot run '{source.path}' with "
                f"{', '.join(each.name for each in self._providers)}: {_text(error)}",
                hint=provider_needs(self._providers),
            ) from error
        check_session(session, self._providers, name=source.path.name)
        return OnnxRuntimeContext(session, name=source.path.name)


class OnnxRuntimeContext(ContextManaged):
    """An inference session, which several threads may run at once."""

    def __init__(self, session: Any, *, name: str) -> None:
        super().__init__()
        self._session = session
        self._name = name
        self.inputs = tuple(_spec(node) for node in session.get_inputs())
        self.outputs = tuple(_spec(node) for node in session.get_outputs())

    def execute(
        self, feeds: Mapping[str, Array], /, *, outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        self._require_usable(f"the network '{self._name}'")
        check_feeds(self.inputs, feeds)
        session = self._session
        wanted = [spec.name for spec in self.outputs] if outputs is None else list(outputs)
        contiguous = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        try:
            results = session.run(wanted, contiguous)
        except _errors() as error:
            shapes = {name: list(array.shape) for name, array in feeds.items()}
            raise ExecutionError(
                f"onnxruntime failed in '{self._name}' with input {shapes}: {_text(error)}",
                hint="If other sizes work, the network does not take this one.",
            ) from error
        return dict(zip(wanted, results, strict=True))

    def close(self) -> None:
        super().close()
        self._session = None


def _library() -> Any:
    try:
        return import_onnxruntime()
    except ImportError as error:
        raise BackendUnavailableError(
            "the backend 'onnxruntime' is not installed.",
            hint="pip install 'fcn-deploy[onnxruntime]'",
        ) from error


def _disabled(source: ModelSource) -> list[str]:
    """Name the optimisations that would spoil this graph.

    ONNX Runtime 1.31.1 turns the float16 bias of a quantised layer into int32 by dividing it, in
    float16, by the product of two scales: that is infinite where the product is below 2**-16.
    """
    data = source.path.read_bytes() if source.data is None else source.data
    if _DEQUANTIZE.encode() not in data:
        return []
    graph = scan_onnx(data, name=f"'{source.path}'", folder=source.path.parent)
    scales = {node.inputs[1] for node in graph.nodes if node.op_type == _DEQUANTIZE}
    weights = [graph.initializers[name] for name in scales if name in graph.initializers]
    return [_BIAS_QUANTIZATION] if any(scale.dtype == "float16" for scale in weights) else []


def _errors() -> tuple[type[Exception], ...]:
    """Give all that ONNX Runtime raises: its own classes share no base but Exception."""
    state = import_module(_STATE)  # loaded along with the library
    own = [kind for kind in vars(state).values() if isinstance(kind, type)]
    return (
        *(kind for kind in own if issubclass(kind, Exception)),
        RuntimeError,
        ValueError,  # also UnicodeDecodeError, on names that are not UTF-8
    )


def _spec(node: Any) -> TensorSpec:
    if node.type not in _DTYPES:
        raise ArtifactError(f"'{node.name}' is of type {node.type}, which is no dense tensor.")
    shape = tuple(dim if isinstance(dim, int) else None for dim in node.shape)
    return TensorSpec(node.name, _DTYPES[node.type], shape)


def _text(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
