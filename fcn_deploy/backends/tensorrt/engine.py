"""Load a plan on a GPU: its tensors, its optimization profiles, and sessions that run it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar, cast

from fcn_deploy.artifact.folder import Artifact, is_artifact
from fcn_deploy.artifact.plain_files import read_plain_file
from fcn_deploy.backends.base import ContextManaged
from fcn_deploy.backends.tensorrt.api import TensorRT, load_tensorrt
from fcn_deploy.backends.tensorrt.device import DeviceBackend, open_device, out_of_memory
from fcn_deploy.backends.tensorrt.plan_check import PlanRecord, check_plan
from fcn_deploy.backends.tensorrt.select_profile import EngineProfile, select_profile
from fcn_deploy.backends.tensorrt.surface import (
    Engine,
    ExecutionContext,
    LibraryName,
    RtxRuntime,
    RtxRuntimeConfig,
    Runtime,
)
from fcn_deploy.errors import ArtifactError, EngineMismatchError, UntrustedArtifactError
from fcn_deploy.names import TensorSpec

__all__ = ["TrtEngine"]

S = TypeVar("S", bound=ContextManaged)

# TensorRT's names of NumPy's types; NumPy has no BF16, FP8, INT4 and FP4
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}

_MALFORMED = 32  # the bit of TensorRT-RTX's diagnostics that a damaged plan sets (1.7.1, measured)


class TrtEngine(ContextManaged):
    """A plan on a GPU. Threads may share it; each takes a session, or several share one.

    Attributes:
        name: of the plan, for messages.
        inputs, outputs: tensors; None in a shape where any size within the profiles is taken.
        profiles: at least one.
    """

    def __init__(
        self,
        plan: bytes,
        *,
        library: TensorRT,
        device: DeviceBackend,
        name: str,
        record: PlanRecord | None = None,
    ) -> None:
        """Deserialise a plan. The engine closes the device with itself.

        Raises:
            EngineMismatchError: it was built for another library, release or GPU.
            ArtifactError: it is damaged, or has tensors that NumPy cannot hold.
        """
        super().__init__()
        self.name = name
        self.library = library
        self.device = device
        self._lock = threading.Lock()  # taken before a session's own
        self._sessions: list[ContextManaged] = []
        self._engine: Engine | None = None
        self._runtime: Runtime | None = None
        try:
            if record is not None:
                check_plan(record, library, device.info, name=name)
            with device.current():
                self._runtime = library.runtime()
                if record is not None and record.version_compatible:
                    # such a plan brings a runtime of its own; its digest was checked
                    self._runtime.engine_host_code_allowed = True
                self._engine = self._deserialise(self._runtime, plan)
                self.inputs, self.outputs = _specs(self._engine, name)
                self.profiles = _profiles(self._engine, self.inputs)
        except BaseException:
            self.close()
            raise

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        library: LibraryName = "tensorrt",
        device: str = "auto",
        ordinal: int = 0,
        trust_code: bool = False,
    ) -> TrtEngine:
        """Read and deserialise a plan of an artifact, or one that the caller vouches for.

        Args:
            device: driver library, as `open_device` takes it.
            ordinal: number of the GPU.
            trust_code: take a plan that is in no artifact: a plan holds code that is run.

        Raises:
            ArtifactMissingError, DigestMismatchError: it is not there, or not what was exported.
            UntrustedArtifactError: it is outside an artifact, and it is not trusted.
            BackendUnavailableError: the library, the driver or the GPU is missing.
            EngineMismatchError: it was built for another library, release or GPU.
        """
        place = Path(path)
        record = None
        if is_artifact(place.parent) and not trust_code:
            artifact = Artifact.open(place.parent)
            plan = artifact.read(place.name)
            for variant in artifact.manifest.variants:
                if variant.file == place.name:
                    record = PlanRecord.of(variant, artifact.manifest)
        elif trust_code:
            plan = read_plain_file(place)
        else:
            raise UntrustedArtifactError(
                f"'{place}' is a plan outside of an artifact: it holds code that is run.",
                hint="Run it with --trust-code if you trust where it comes from.",
            )
        loaded = load_tensorrt(library)
        opened = open_device(device, ordinal=ordinal)
        return cls(plan, library=loaded, device=opened, name=place.name, record=record)

    def __repr__(self) -> str:
        return f"TrtEngine('{self.name}', {self.library}, {self.device.info})"

    def select_profile(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Give the number of the smallest profile that takes these shapes of the inputs.

        Raises:
            ShapeError: none does; the message lists them all.
        """
        return select_profile(self.profiles, shapes, name=self.name)

    def keep(self, make: Callable[[], S], /) -> S:
        """Make a session, and close it with the engine."""
        with self._lock:  # no session is made of an engine that is being closed
            self._require_usable(f"the engine '{self.name}'")
            session = make()
            self._sessions.append(session)
        return session

    def new_context(self, native_graphs: bool, /) -> ExecutionContext:
        """Make an execution context; wants the device current.

        Args:
            native_graphs: let the library record and replay CUDA graphs itself.

        Raises:
            DeviceMemoryError: the GPU has no room for its working memory.
        """
        engine = self._opened()
        config = engine.create_runtime_config()
        if native_graphs:
            strategy = self.library.member("CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE")
            cast(RtxRuntimeConfig, config).cuda_graph_strategy = strategy
        with self.library.capture() as messages:
            context = engine.create_execution_context(config)
        if context is None:
            free, total = self.device.memory_info()
            what = f"the working memory of '{self.name}'"
            raise out_of_memory(
                int(engine.device_memory_size_v2), free, total, what=what
            ) from RuntimeError(" ".join(message.text for message in messages))
        return context

    def forget(self, session: ContextManaged) -> None:
        """Drop a session that was closed."""
        if session in self._sessions:
            self._sessions.remove(session)

    def close(self) -> None:
        """Free sessions, engine, runtime and device, in this order. May be called twice."""
        with self._lock:
            if self._closed:
                return
            for session in list(self._sessions):
                session.close()
            super().close()
            with self.device.current():
                self._engine = None
                self._runtime = None
            self.device.close()

    def _opened(self) -> Engine:
        if self._engine is None:
            self._require_usable(f"the engine '{self.name}'")
            raise RuntimeError("the engine is used while it is made")
        return self._engine

    def _deserialise(self, runtime: Runtime, plan: bytes) -> Engine:
        if self.library.capabilities.engine_validity:
            _, diagnostics = cast(RtxRuntime, runtime).get_engine_validity(plan)
            if int(diagnostics) & _MALFORMED:
                raise ArtifactError(
                    f"'{self.name}' is no plan of {self.library.title}, or a damaged one.",
                    hint="Export the model again.",
                )
        with self.library.capture() as messages:
            engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            said = " ".join(message.text for message in messages) or "it gave no reason"
            raise EngineMismatchError(
                f"{self.library} on {self.device.info} refused '{self.name}': {said[:500]}",
                hint="Export the model again on this machine.",
            )
        return engine


def _specs(engine: Engine, name: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    found: dict[str, list[TensorSpec]] = {"INPUT": [], "OUTPUT": []}
    for index in range(engine.num_io_tensors):
        tensor = engine.get_tensor_name(index)
        dtype = engine.get_tensor_dtype(tensor).name
        if dtype not in _DTYPES or engine.get_tensor_location(tensor).name != "DEVICE":
            place = engine.get_tensor_location(tensor).name.lower()
            raise ArtifactError(
                f"'{name}' has the tensor '{tensor}' of {dtype} in {place} memory; expected one of "
                f"{', '.join(_DTYPES)} in device memory.",
                hint="Export the network with uint8 or float32 inputs and outputs.",
            )
        shape = tuple(int(d) if d >= 0 else None for d in engine.get_tensor_shape(tensor))
        found[engine.get_tensor_mode(tensor).name].append(TensorSpec(tensor, _DTYPES[dtype], shape))
    return tuple(found["INPUT"]), tuple(found["OUTPUT"])


def _profiles(engine: Engine, inputs: tuple[TensorSpec, ...]) -> tuple[EngineProfile, ...]:
    profiles = []
    for index in range(engine.num_optimization_profiles):
        ends: tuple[dict[str, tuple[int, ...]], ...] = ({}, {}, {})
        for spec in inputs:
            shapes = engine.get_tensor_profile_shape(spec.name, index)
            for end, shape in zip(ends, shapes, strict=True):
                end[spec.name] = tuple(int(size) for size in shape)
        profiles.append(EngineProfile(index, *ends))
    return tuple(profiles)
