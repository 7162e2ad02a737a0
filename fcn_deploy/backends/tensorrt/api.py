"""The adapter to TensorRT 10.13+, 11.x and TensorRT-RTX: the only importer of either.

The three differ in names of the builder's flags and in what they can do, so enums are looked up by
name and abilities stand in a table. Nothing here chooses between the libraries: who loads says
which.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, cast

from fcn_deploy.backends.tensorrt.messages import Message, MessageHub, Severity
from fcn_deploy.backends.tensorrt.surface import (
    Builder,
    Enumerator,
    LibraryName,
    Network,
    OnnxParser,
    ProgressListener,
    Runtime,
)
from fcn_deploy.errors import BackendUnavailableError, BuildError
from fcn_deploy.machine import version_numbers

__all__ = [
    "LIBRARY_NAMES",
    "Capabilities",
    "TensorRT",
    "capabilities_of",
    "installed",
    "load_tensorrt",
]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a library can do. A test compares this with snapshots of the real APIs.

    Attributes:
        builds_without_gpu: plans can be built on a machine that has no GPU.
        compute_capabilities: a build names the GPUs that its plan is for.
        timing_cache: kernel timings can be kept for later builds.
        hardware_compatibility: one plan can serve several GPUs of one generation on.
        version_compatibility: a plan can serve later releases of the library.
        runtime_cache: kernels compiled at run time can be kept.
        engine_validity: a plan can be checked before it is opened.
        native_cuda_graphs: the library captures CUDA graphs by itself.
    """

    builds_without_gpu: bool
    compute_capabilities: bool
    timing_cache: bool
    hardware_compatibility: bool
    version_compatibility: bool
    runtime_cache: bool
    engine_validity: bool
    native_cuda_graphs: bool


@dataclass(frozen=True, slots=True)
class _Library:
    module: str
    title: str
    extra: str
    floor: str
    capabilities: Capabilities


_LIBRARIES: dict[LibraryName, _Library] = {
    "tensorrt": _Library(
        module="tensorrt",
        title="TensorRT",
        extra="gpu",
        floor="10.13",  # the oldest whose API was compared with the code
        capabilities=Capabilities(
            builds_without_gpu=False,
            compute_capabilities=False,
            timing_cache=True,
            hardware_compatibility=True,
            version_compatibility=True,
            runtime_cache=False,
            engine_validity=False,
            native_cuda_graphs=False,
        ),
    ),
    "tensorrt-rtx": _Library(
        module="tensorrt_rtx",
        title="TensorRT-RTX",
        extra="rtx",
        floor="1.7",  # the oldest whose API was compared with the code
        capabilities=Capabilities(
            builds_without_gpu=True,
            compute_capabilities=True,
            # what follows False is in its API: the cache is ignored with a DeprecationWarning,
            # the level with "setHardwareCompatibilityLevel() is unsupported in TensorRT-RTX", and
            # the flag fails the build for want of libnvinfer_lean (all seen in 1.7.1.116)
            timing_cache=False,
            hardware_compatibility=False,
            version_compatibility=False,
            runtime_cache=True,
            engine_validity=True,
            native_cuda_graphs=True,
        ),
    ),
}

LIBRARY_NAMES: tuple[LibraryName, ...] = tuple(_LIBRARIES)


@dataclass(frozen=True, slots=True)
class TensorRT:
    """One of the libraries, loaded.

    Attributes:
        library: the backend's name.
        title: as NVIDIA spells it, for messages.
        release: the library's version as it gives it itself, such as ``"11.4.0.106"``.
    """

    library: LibraryName
    title: str
    release: str
    capabilities: Capabilities
    _module: Any = field(repr=False)

    @property
    def version(self) -> tuple[int, int, int]:
        """Major, minor and patch."""
        numbers = (*version_numbers(self.release), 0, 0)
        return numbers[0], numbers[1], numbers[2]

    def __str__(self) -> str:
        return f"{self.title} {self.release}"

    def member(self, enum: str, name: str) -> Enumerator:
        """Look up an enum's member. Its number differs between releases.

        Raises:
            BuildError: this release has no such member.
        """
        found = getattr(getattr(self._module, enum, None), name, None)
        if found is None:
            raise BuildError(f"{self} has no {enum}.{name}.")
        return cast(Enumerator, found)

    def builder(self) -> Builder:
        """Make a builder.

        Raises:
            BackendUnavailableError: the library cannot build here; its own reason is given.
        """
        return cast(Builder, self._make("Builder"))

    def network(self, builder: Builder) -> Network:
        """Make an empty network whose precision is that of its graph, as TensorRT 11 has it."""
        # the flag's number is 1 in TensorRT 10 and 0 from TensorRT 11 on, where it changes nothing
        flag = self.member("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")
        return builder.create_network(1 << int(flag))

    def parser(self, network: Network) -> OnnxParser:
        """Make a parser that reads ONNX into a network."""
        return cast(OnnxParser, self._module.OnnxParser(network, _logger(self._module).logger))

    def runtime(self) -> Runtime:
        """Make what opens plans.

        Raises:
            BackendUnavailableError: the library cannot run here; its own reason is given.
        """
        return cast(Runtime, self._make("Runtime"))

    def capture(self, least: Severity = Severity.WARNING) -> AbstractContextManager[list[Message]]:
        """Collect what the library says to this thread, see `MessageHub.capture`."""
        return _logger(self._module).hub.capture(least)

    def progress_monitor(self, listener: ProgressListener) -> object:
        """Make what a build's `progress_monitor` takes; the caller keeps it until the build ends.

        The listener must not raise: TensorRT prints an exception and goes on as if cancelled.
        """
        methods = {
            name: staticmethod(getattr(listener, name))
            for name in ("phase_start", "step_complete", "phase_finish")
        }
        return _subclass(self._module.IProgressMonitor, methods)

    def profiler(self, report_layer_time: Callable[[str, float], None]) -> object:
        """Make what a context's `profiler` takes: called with each layer's name and time in ms."""
        methods = {"report_layer_time": staticmethod(report_layer_time)}
        return _subclass(self._module.IProfiler, methods)

    def _make(self, name: str) -> object:
        with self.capture() as messages:
            try:
                return cast(object, getattr(self._module, name)(_logger(self._module).logger))
            except (TypeError, RuntimeError) as error:  # pybind11's, where the library gave NULL
                said = " ".join(message.text for message in messages) or str(error)
                raise BackendUnavailableError(
                    f"{self} cannot make its {name.lower()} here: {said}",
                    hint="fcn-doctor says what this machine has; an NVIDIA driver may be missing.",
                ) from error


def installed(library: LibraryName) -> bool:
    """Say whether a library is here, without importing it."""
    name = _LIBRARIES[library].module
    return sys.modules[name] is not None if name in sys.modules else find_spec(name) is not None


def capabilities_of(library: LibraryName) -> Capabilities:
    """Give what a library can do, installed or not."""
    return _LIBRARIES[library].capabilities


def load_tensorrt(library: LibraryName) -> TensorRT:
    """Import one of the libraries.

    Raises:
        BackendUnavailableError: it is not installed, cannot be imported, or is too old.
    """
    known = _LIBRARIES[library]
    hint = f"pip install -U 'fcn-deploy[{known.extra}]'"
    if not installed(library):
        raise BackendUnavailableError(f"{known.title} is not installed.", hint=hint)
    try:
        module = import_module(known.module)
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendUnavailableError(
            f"{known.title} is installed but cannot be imported: {error}.", hint=hint
        ) from error
    release = str(module.__version__)
    if version_numbers(release) < version_numbers(known.floor):
        raise BackendUnavailableError(
            f"{known.title} {release} is installed; {known.floor} or newer is needed.", hint=hint
        )
    return TensorRT(
        library, title=known.title, release=release, capabilities=known.capabilities, _module=module
    )


@dataclass(frozen=True, slots=True)
class _Logger:
    hub: MessageHub
    logger: object


# TensorRT registers the first logger for the life of the process, so ours lives as long
_LOGGERS: dict[str, _Logger] = {}
_LOGGERS_LOCK = threading.Lock()


def _logger(module: ModuleType) -> _Logger:
    with _LOGGERS_LOCK:
        if module.__name__ not in _LOGGERS:
            hub = MessageHub()

            def log(severity: Enumerator, msg: str) -> None:
                hub.publish(Severity[severity.name], msg)

            made = _subclass(module.ILogger, {"log": staticmethod(log)})
            _LOGGERS[module.__name__] = _Logger(hub, made)
        return _LOGGERS[module.__name__]


def _subclass(base: Any, methods: dict[str, Any]) -> object:
    """Make an object of a class that overrides methods of one of the library's."""

    def __init__(self: Any) -> None:
        base.__init__(self)  # pybind11 checks that this very call was made

    return cast(object, type(f"Our{base.__name__}", (base,), {"__init__": __init__, **methods})())
