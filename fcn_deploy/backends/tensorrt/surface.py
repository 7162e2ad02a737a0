"""Declare the part of TensorRT's API that this project uses, as protocols.

TensorRT ships no usable type information. These protocols give mypy what it needs to refuse any
other name or argument, and `SURFACE` gives the tests what they compare with snapshots of the real
libraries. So a call that one of the supported releases lacks cannot get in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

__all__ = [
    "SURFACE",
    "Builder",
    "BuilderConfig",
    "Engine",
    "EngineInspector",
    "Enumerator",
    "ExecutionContext",
    "HostMemory",
    "LibraryName",
    "Network",
    "OnnxParser",
    "OptimizationProfile",
    "ParserError",
    "ProgressListener",
    "RtxBuilderConfig",
    "RtxExecutionContext",
    "RtxRuntime",
    "RtxRuntimeConfig",
    "Runtime",
    "RuntimeCache",
    "RuntimeConfig",
    "Tensor",
    "TimingCache",
]

LibraryName = Literal["tensorrt", "tensorrt-rtx"]

Buffer = bytes | bytearray | memoryview
Shape = Sequence[int]


class Enumerator(Protocol):
    """A member of one of TensorRT's enums. Numbers differ between releases: look up by name."""

    @property
    def name(self) -> str: ...

    def __int__(self) -> int: ...


class HostMemory(Protocol):
    """A buffer of the library's; `bytes(memory)` copies it."""

    @property
    def nbytes(self) -> int: ...

    def __buffer__(self, flags: int, /) -> memoryview: ...


class Tensor(Protocol):
    """A tensor of a network that is being built; -1 in the shape where any size is taken."""

    name: str

    @property
    def dtype(self) -> Enumerator: ...

    shape: Shape


class Network(Protocol):
    """A graph in the library's own form."""

    @property
    def num_inputs(self) -> int: ...

    @property
    def num_outputs(self) -> int: ...

    @property
    def num_layers(self) -> int: ...

    def get_input(self, index: int) -> Tensor: ...

    def get_output(self, index: int) -> Tensor: ...


class OptimizationProfile(Protocol):
    """Smallest, usual and largest shape of each input."""

    def set_shape(self, input: str, min: Shape, opt: Shape, max: Shape) -> None: ...


class TimingCache(Protocol):
    """Measured kernel times that a later build can use again."""

    def combine(self, input_cache: TimingCache, ignore_mismatch: bool) -> bool: ...

    def serialize(self) -> HostMemory: ...


class BuilderConfig(Protocol):
    """How to build."""

    builder_optimization_level: int
    hardware_compatibility_level: Enumerator
    profiling_verbosity: Enumerator
    progress_monitor: object

    def set_flag(self, flag: Enumerator) -> None: ...

    def clear_flag(self, flag: Enumerator) -> None: ...

    def set_memory_pool_limit(self, pool: Enumerator, pool_size: int) -> None: ...

    def get_memory_pool_limit(self, pool: Enumerator) -> int: ...

    def add_optimization_profile(self, profile: OptimizationProfile) -> int: ...

    def create_timing_cache(self, serialized_timing_cache: Buffer) -> TimingCache | None: ...

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool: ...

    def get_timing_cache(self) -> TimingCache: ...


class RtxBuilderConfig(BuilderConfig, Protocol):
    """How to build with TensorRT-RTX, for GPUs that need not be here."""

    num_compute_capabilities: int

    def set_compute_capability(self, compute_capability: Enumerator, index: int) -> bool: ...


class Builder(Protocol):
    """Makes plans. One thread at a time."""

    def create_network(self, flags: int = 0) -> Network: ...

    def create_builder_config(self) -> BuilderConfig: ...

    def create_optimization_profile(self) -> OptimizationProfile: ...

    def build_serialized_network(
        self, network: Network, config: BuilderConfig
    ) -> HostMemory | None: ...


class ParserError(Protocol):
    """Why the parser refused a node; `node` is -1 where no node is to blame."""

    def code(self) -> Enumerator: ...

    def desc(self) -> str: ...

    def node(self) -> int: ...

    def node_name(self) -> str: ...

    def node_operator(self) -> str: ...


class OnnxParser(Protocol):
    """Reads ONNX into a network."""

    @property
    def num_errors(self) -> int: ...

    def parse_from_file(self, model: str) -> bool: ...

    def get_error(self, index: int) -> ParserError: ...


class ProgressListener(Protocol):
    """Called by a build as it progresses; False from `step_complete` cancels the build."""

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...

    def step_complete(self, phase_name: str, step: int) -> bool: ...

    def phase_finish(self, phase_name: str) -> None: ...


class EngineInspector(Protocol):
    """Tells the layers of an engine; what it tells is JSON whose keys differ by release."""

    def get_engine_information(self, format: Enumerator) -> str: ...


class RuntimeConfig(Protocol):
    """How to run an engine."""

    def set_execution_context_allocation_strategy(self, strategy: Enumerator) -> None: ...


class RuntimeCache(Protocol):
    """Kernels that TensorRT-RTX compiled for this GPU, to be kept between processes."""

    def deserialize(self, blob: Buffer) -> bool: ...

    def serialize(self) -> HostMemory: ...


class RtxRuntimeConfig(RuntimeConfig, Protocol):
    """How to run an engine of TensorRT-RTX."""

    cuda_graph_strategy: Enumerator
    dynamic_shapes_kernel_specialization_strategy: Enumerator

    def create_runtime_cache(self) -> RuntimeCache: ...

    def set_runtime_cache(self, cache: RuntimeCache | None = None) -> bool: ...


class ExecutionContext(Protocol):
    """One execution of an engine at a time. Addresses are of device memory."""

    profiler: object
    enqueue_emits_profile: bool

    @property
    def active_optimization_profile(self) -> int: ...

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool: ...

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool: ...

    def infer_shapes(self) -> list[str]: ...

    def get_tensor_shape(self, name: str) -> Shape: ...

    def get_max_output_size(self, name: str) -> int: ...

    def set_tensor_address(self, name: str, memory: int) -> bool: ...

    def set_input_consumed_event(self, event: int) -> bool: ...

    def set_device_memory(self, memory: int, size: int) -> None: ...

    def execute_async_v3(self, stream_handle: int) -> bool: ...

    def report_to_profiler(self) -> bool: ...


class RtxExecutionContext(ExecutionContext, Protocol):
    """One execution of an engine of TensorRT-RTX at a time."""

    def is_stream_capturable(self, stream: int) -> bool: ...


class Engine(Protocol):
    """A deserialised plan."""

    @property
    def num_io_tensors(self) -> int: ...

    @property
    def num_optimization_profiles(self) -> int: ...

    @property
    def device_memory_size_v2(self) -> int: ...

    def get_tensor_name(self, index: int) -> str: ...

    def get_tensor_mode(self, name: str) -> Enumerator: ...

    def get_tensor_dtype(self, name: str) -> Enumerator: ...

    def get_tensor_shape(self, name: str) -> Shape: ...

    def get_tensor_location(self, name: str) -> Enumerator: ...

    def get_tensor_format_desc(self, name: str) -> str: ...

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Shape]: ...

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int: ...

    def create_runtime_config(self) -> RuntimeConfig: ...

    def create_execution_context(
        self, runtime_config: RuntimeConfig | None = None
    ) -> ExecutionContext | None: ...

    def create_engine_inspector(self) -> EngineInspector: ...


class Runtime(Protocol):
    """Opens plans."""

    engine_host_code_allowed: bool

    def deserialize_cuda_engine(self, serialized_engine: Buffer) -> Engine | None: ...


class RtxRuntime(Runtime, Protocol):
    """Opens plans of TensorRT-RTX."""

    @property
    def engine_header_size(self) -> int: ...

    def get_engine_validity(self, buffer: Buffer) -> tuple[Any, ...]: ...


_BOTH: tuple[LibraryName, ...] = ("tensorrt", "tensorrt-rtx")
_RTX: tuple[LibraryName, ...] = ("tensorrt-rtx",)

# protocol -> TensorRT's class, and the libraries that have it
SURFACE: dict[type, tuple[str, tuple[LibraryName, ...]]] = {
    HostMemory: ("IHostMemory", _BOTH),
    Tensor: ("ITensor", _BOTH),
    Network: ("INetworkDefinition", _BOTH),
    OptimizationProfile: ("IOptimizationProfile", _BOTH),
    TimingCache: ("ITimingCache", _BOTH),
    BuilderConfig: ("IBuilderConfig", _BOTH),
    RtxBuilderConfig: ("IBuilderConfig", _RTX),
    Builder: ("Builder", _BOTH),
    ParserError: ("ParserError", _BOTH),
    OnnxParser: ("OnnxParser", _BOTH),
    ProgressListener: ("IProgressMonitor", _BOTH),
    EngineInspector: ("EngineInspector", _BOTH),
    RuntimeConfig: ("IRuntimeConfig", _BOTH),
    RuntimeCache: ("IRuntimeCache", _RTX),
    RtxRuntimeConfig: ("IRuntimeConfig", _RTX),
    ExecutionContext: ("IExecutionContext", _BOTH),
    RtxExecutionContext: ("IExecutionContext", _RTX),
    Engine: ("ICudaEngine", _BOTH),
    Runtime: ("Runtime", _BOTH),
    RtxRuntime: ("Runtime", _RTX),
}
