"""The runtime half of TensorRT's Python API over a simulated driver; ONNX Runtime computes.

A plan is a header and the ONNX graph. Contexts obey TensorRT's rules: setters return False where
they refuse, a change of profile forgets the shapes, work is put off until the first run of a
shape, and nothing is computed before the stream gets there. `tests/deploy/backends/tensorrt/
test_simulation.py` compares every name here with snapshots of the real libraries.
"""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from fcn_deploy.names import Array
from tests.deploy.backends.tensorrt.simulated_driver import Access, device_range

MAGIC = b"SIMPLAN\0"

Profile = Mapping[str, tuple[Sequence[int], Sequence[int], Sequence[int]]]


class Driver(Protocol):
    """What the simulation needs of a simulated driver."""

    compute_capability: tuple[int, int]

    @property
    def free_bytes(self) -> int: ...

    def enqueue(
        self, handle: int, name: str, run: Callable[[], None], *accesses: Access
    ) -> None: ...

    def view(self, address: int, num_bytes: int) -> Array: ...

    def is_capturing(self, handle: int) -> bool: ...


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    BF16 = 7
    INT64 = 8


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(enum.Enum):
    DEVICE = 0
    HOST = 1


class EngineValidity(enum.Enum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class CudaGraphStrategy(enum.Enum):
    DISABLED = 0
    WHOLE_GRAPH_CAPTURE = 1


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity = Severity

    def log(self, severity: enum.Enum, msg: str) -> None:
        raise NotImplementedError


class IProfiler:
    def report_layer_time(self, layer_name: str, ms: float) -> None:
        raise NotImplementedError


_ONNX_TYPES = {
    "tensor(float)": (DataType.FLOAT, np.float32),
    "tensor(float16)": (DataType.HALF, np.float16),
    "tensor(uint8)": (DataType.UINT8, np.uint8),
    "tensor(int32)": (DataType.INT32, np.int32),
    "tensor(int64)": (DataType.INT64, np.int64),
    # ONNX Runtime has no bfloat16 for NumPy; a plan's tensors may be of it
    "tensor(bfloat16)": (DataType.BF16, np.uint16),
}


def make_plan(
    onnx: bytes,
    profiles: Sequence[Profile],
    *,
    library: str = "tensorrt",
    version: str = "11.4.0",
    version_compatible: bool = False,
    capabilities: Sequence[str] = ("8.6",),
    memory: int = 1 << 16,
) -> bytes:
    """Make what `Runtime.deserialize_cuda_engine` of the simulation takes."""
    header = json.dumps(
        {
            "library": library,
            "version": version,
            "version_compatible": version_compatible,
            "capabilities": list(capabilities),
            "memory": memory,
            "profiles": [{n: [list(s) for s in ends] for n, ends in p.items()} for p in profiles],
        }
    ).encode()
    return MAGIC + len(header).to_bytes(4, "little") + header + onnx


class Dims(tuple[int, ...]):
    """Shapes come as TensorRT's own class, which is a sequence of ints."""

    __slots__ = ()


class Runtime:
    driver: Driver
    module: ModuleType

    def __init__(self, logger: ILogger) -> None:
        self._logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        if not serialized_engine.startswith(MAGIC):
            self._logger.log(Severity.ERROR, "Magic tag does not match")
            return None
        size = int.from_bytes(serialized_engine[8:12], "little")
        header = json.loads(serialized_engine[12 : 12 + size])
        here = ".".join(map(str, self.driver.compute_capability))
        own_runtime = header["version_compatible"] and self.engine_host_code_allowed
        same = header["version"] == self.module.__version__ or own_runtime
        if not same or here not in header["capabilities"]:
            self._logger.log(
                Severity.ERROR,
                f"expecting library version {header['version']} for {header['capabilities']}, "
                f"got {self.module.__version__} on {here}",
            )
            return None
        plan = Plan(header, serialized_engine[12 + size :], self._logger, self.driver)
        return ICudaEngine(plan)


class RtxRuntime(Runtime):
    def get_engine_validity(self, buffer: bytes) -> tuple[EngineValidity, int]:
        if buffer.startswith(MAGIC):
            return EngineValidity.VALID, 0
        return EngineValidity.INVALID, 32


class IRuntimeConfig:
    pass


class RtxIRuntimeConfig(IRuntimeConfig):
    def __init__(self) -> None:
        self.cuda_graph_strategy = CudaGraphStrategy.DISABLED


class Plan:
    """What a plan holds, on a driver: what an engine and its contexts share."""

    def __init__(
        self, header: dict[str, Any], onnx: bytes, logger: ILogger, driver: Driver
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(
            onnx, options, providers=["CPUExecutionProvider"]
        )
        self.header = header
        self.logger = logger
        self.driver = driver
        self.inputs = {node.name: node for node in self.session.get_inputs()}
        self.outputs = {node.name: node for node in self.session.get_outputs()}
        self._output_shapes: dict[Any, dict[str, Dims]] = {}

    def node(self, name: str) -> Any:
        return self.inputs.get(name) or self.outputs[name]

    def dtype(self, name: str) -> Any:
        return np.dtype(_ONNX_TYPES[self.node(name).type][1])

    def profile(self, index: int, name: str) -> list[Dims]:
        return [Dims(shape) for shape in self.header["profiles"][index][name]]

    def output_shapes(self, inputs: Mapping[str, tuple[int, ...]]) -> dict[str, Dims]:
        """Tell the outputs' shapes by running the network on zeros."""
        key = tuple(sorted(inputs.items()))
        if key not in self._output_shapes:
            zeros = {name: np.zeros(shape, self.dtype(name)) for name, shape in inputs.items()}
            values = self.session.run(list(self.outputs), zeros)
            self._output_shapes[key] = {
                name: Dims(value.shape) for name, value in zip(self.outputs, values, strict=True)
            }
        return self._output_shapes[key]


class ICudaEngine:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.num_io_tensors = len(plan.inputs) + len(plan.outputs)
        self.num_optimization_profiles = len(plan.header["profiles"])
        self.device_memory_size_v2 = plan.header["memory"]

    def get_tensor_name(self, index: int) -> str:
        return str([*self._plan.inputs, *self._plan.outputs][index])

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._plan.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return _ONNX_TYPES[self._plan.node(name).type][0]

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.DEVICE

    def get_tensor_shape(self, name: str) -> Dims:
        return Dims(d if isinstance(d, int) else -1 for d in self._plan.node(name).shape)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        return self._plan.profile(profile_index, name)

    def create_runtime_config(self) -> IRuntimeConfig:
        rtx = self._plan.header["library"] == "tensorrt-rtx"
        return RtxIRuntimeConfig() if rtx else IRuntimeConfig()

    def create_execution_context(
        self, runtime_config: IRuntimeConfig | None = None
    ) -> IExecutionContext | None:
        if self.device_memory_size_v2 > self._plan.driver.free_bytes:
            self._plan.logger.log(Severity.ERROR, "OutOfMemory (no kernel image)")
            return None
        return IExecutionContext(self._plan)


class IExecutionContext:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._put_off = True
        self.profiler: Any = None

    @property
    def active_optimization_profile(self) -> int:
        return self._profile

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if not 0 <= profile_index < len(self._plan.header["profiles"]):
            return self._refuse(f"profile index {profile_index} is out of range")
        self._plan.driver.enqueue(stream_handle, "change of profile", lambda: None)
        self._profile, self._shapes, self._put_off = profile_index, {}, True
        self._addresses = {}  # the documentation does not promise that they are kept
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._plan.profile(self._profile, name)
        if len(shape) != len(low) or any(
            not a <= b <= c for a, b, c in zip(low, shape, high, strict=True)
        ):
            return self._refuse(f"Set dimension {list(shape)} for tensor {name} is out of range")
        if self._shapes.get(name) != shape:
            self._shapes[name], self._put_off = tuple(shape), True
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self._plan.inputs if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> Dims:
        if name in self._shapes:
            return Dims(self._shapes[name])
        return self._plan.output_shapes(self._shapes)[name]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if memory % 256:
            return self._refuse(f"address {memory:#x} of {name} is not aligned")
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        plan = self._plan
        names = [*plan.inputs, *plan.outputs]
        if self.infer_shapes() or any(name not in self._addresses for name in names):
            return self._refuse("a shape or an address is not set")
        capturing = plan.driver.is_capturing(stream_handle)
        if capturing and self._put_off:
            return self._refuse("a captured run of a shape that was not run before")
        self._put_off = False
        shapes = {**self._shapes, **plan.output_shapes(self._shapes)}
        places = {
            name: (self._addresses[name], int(np.prod(shapes[name])) * plan.dtype(name).itemsize)
            for name in names
        }
        driver, inputs = plan.driver, dict(self._shapes)

        def run() -> None:
            feeds = {
                name: driver.view(*places[name]).view(plan.dtype(name)).reshape(shape).copy()
                for name, shape in inputs.items()
            }
            values = plan.session.run(list(plan.outputs), feeds)
            for name, value in zip(plan.outputs, values, strict=True):
                driver.view(*places[name])[:] = (
                    np.ascontiguousarray(value).reshape(-1).view(np.uint8)
                )

        accesses = [device_range(*places[name], writes=name in plan.outputs) for name in names]
        driver.enqueue(stream_handle, "execution", run, *accesses)
        if self.profiler is not None:
            for index, layer in enumerate(("backbone", "head")):
                self.profiler.report_layer_time(layer, 1.0 + index)
        return True

    def _refuse(self, reason: str) -> bool:
        self._plan.logger.log(Severity.ERROR, reason)
        return False


_COMMON = (DataType, TensorIOMode, TensorLocation, ILogger, IProfiler, ICudaEngine)
_MODULES: dict[str, tuple[str, type[Runtime], tuple[Any, ...]]] = {
    "tensorrt": ("11.4.0", Runtime, ()),
    "tensorrt_rtx": ("1.7.1", RtxRuntime, (EngineValidity, CudaGraphStrategy)),
}


def simulated_module(name: str, driver: Driver) -> ModuleType:
    """Make a stand-in for `tensorrt` or `tensorrt_rtx` on a simulated driver."""
    version, runtime, more = _MODULES[name]
    module: Any = ModuleType(f"simulated_{name}")  # not to share a logger with the real one
    module.__spec__ = ModuleSpec(name, None)
    module.__version__ = version
    for each in (*_COMMON, *more, IExecutionContext):
        setattr(module, each.__name__, each)
    module.IRuntimeConfig = RtxIRuntimeConfig if more else IRuntimeConfig
    module.Runtime = type("Runtime", (runtime,), {"driver": driver, "module": module})
    return module  # type: ignore[no-any-return]  # Any, as modules take any attribute


def install(driver: Driver) -> None:
    """Put both libraries' stand-ins where `import` finds them, for the life of the process."""
    for name in _MODULES:
        sys.modules[name] = simulated_module(name, driver)
