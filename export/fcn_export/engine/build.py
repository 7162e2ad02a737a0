"""Build a plan from an ONNX graph: check the graph, build, and prove the plan's arithmetic."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from fcn_deploy.artifact.plain_files import read_plain_file
from fcn_deploy.backends.tensorrt.api import TensorRT, load_tensorrt
from fcn_deploy.backends.tensorrt.messages import Message, Severity
from fcn_deploy.backends.tensorrt.surface import (
    Builder,
    BuilderConfig,
    LibraryName,
    Network,
    RtxBuilderConfig,
)
from fcn_deploy.errors import (
    BuildCancelledError,
    BuildError,
    ProfileError,
)
from fcn_deploy.graph.scan import scan_onnx
from fcn_deploy.names import Precision, TensorSpec
from fcn_export.engine.build_progress import BuildMonitor, OnProgress, signals_deferred
from fcn_export.engine.config import COMPUTE_CAPABILITIES, BuildConfig
from fcn_export.engine.gpu import gpu_compute_capability
from fcn_export.engine.graph_check import check_graph
from fcn_export.engine.profiles import EngineProfile, check_profiles, graph_inputs, graph_outputs
from fcn_export.engine.proof import (
    asked_layer_types,
    check_layer_types,
    inspector_layer_types,
    layer_name,
    plan_text_layer_types,
)
from fcn_export.engine.refusals import build_failure, parse_failure
from fcn_export.engine.timing_cache import load_timing_cache, save_timing_cache

if TYPE_CHECKING:
    import onnx

__all__ = ["BuiltPlan", "build_engine"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltPlan:
    """A finished plan, and all that must be known of it without opening it.

    Attributes:
        plan: the file's content, as the library wrote it.
        library, release: what built it; its runtime must be of the same release.
        precision: of the graph it was built from.
        compute_capabilities: GPUs that it runs on; ``"8.0+"`` means that one and newer ones.
        onnx_sha256: of the graph's file.
        layer_shares: share of layers with weights by the type that they multiply in; empty where
            the plan does not tell, see `fcn_export.engine.proof`.
        float_layers: layers that were quantised but run in floating point.
        warnings: what the library said while it built, each once.
        seconds: that the build took.
    """

    plan: bytes = field(repr=False)
    library: LibraryName
    release: str
    precision: Precision
    compute_capabilities: tuple[str, ...]
    profiles: tuple[EngineProfile, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    onnx_sha256: str
    layer_shares: Mapping[str, float]
    float_layers: tuple[str, ...]
    warnings: tuple[str, ...]
    seconds: float


def build_engine(
    onnx_path: str | Path,
    config: BuildConfig,
    *,
    on_progress: OnProgress | None = None,
    tensorrt: TensorRT | None = None,
) -> BuiltPlan:
    """Build a plan from an ONNX file. Nothing is written but the timing cache.

    SIGINT and SIGTERM end the build at its next step and are raised again afterwards.

    Args:
        on_progress: told how far the build is; what it raises ends the build and is raised here.
        tensorrt: the library, where it is loaded already; it must be `config.library`.

    Raises:
        ArtifactError: the file is missing, damaged, or unsafe to parse.
        ProfileError: the profiles do not fit the graph.
        UnsupportedOpError: TensorRT cannot run a node of the graph, or would take it for another;
            it is named.
        BuildCancelledError: `on_progress` returned False.
        BackendUnavailableError: the library is missing, or needs a GPU that is not here.
        BuildError: an option that the library does not take; a build that failed, with its last
            messages; a plan that is not what was asked for.
    """
    path = Path(onnx_path)
    model, digest = _load(path)
    inputs = graph_inputs(model)
    check_profiles(inputs, config.profiles)
    check_graph(model, config.targets, name=path.name)
    library = tensorrt or load_tensorrt(config.library)
    config.check_against(library)

    started = time.monotonic()
    plan, messages = _build(path, config, library, on_progress)
    seconds = time.monotonic() - started

    asked = asked_layer_types(model)
    found = (
        plan_text_layer_types(plan)
        if library.capabilities.compute_capabilities
        else inspector_layer_types(_inspect(library, plan, config))
    )
    op_types = {layer_name(node.name, node.output[0]): node.op_type for node in model.graph.node}
    shares, float_layers = check_layer_types(asked, found, op_types)
    if asked and not shares:
        _LOG.warning("%s does not tell in which types the layers of its plan compute", library)
    return BuiltPlan(
        plan=plan,
        library=library.library,
        release=library.release,
        precision=config.precision,
        compute_capabilities=_capabilities_of(config),
        profiles=tuple(config.profiles),
        inputs=inputs,
        outputs=graph_outputs(model),
        onnx_sha256=digest,
        layer_shares=shares,
        float_layers=float_layers,
        warnings=_once(messages),
        seconds=seconds,
    )


def _load(path: Path) -> tuple[onnx.ModelProto, str]:
    """Read a graph that is safe to parse, with its weights, and the file's SHA-256."""
    import onnx

    data = read_plain_file(path)
    graph = scan_onnx(data, name=f"'{path}'", folder=path.parent)
    if not graph.outputs:
        # TensorRT takes an empty file for an empty network, and fails at the end of the build
        raise BuildError(f"'{path}' holds no graph: it has no outputs.")
    # the scan has checked where weights beside the file lie
    model = onnx.load_model(path) if graph.external_files else onnx.load_model_from_string(data)
    return model, hashlib.sha256(data).hexdigest()


def _build(
    path: Path, config: BuildConfig, library: TensorRT, on_progress: OnProgress | None
) -> tuple[bytes, list[Message]]:
    monitor = BuildMonitor(on_progress)
    with library.capture(Severity.WARNING) as messages:
        builder = library.builder()
        network = library.network(builder)
        _parse(library, network, path)
        options = _options(library, builder, config)
        progress_monitor = library.progress_monitor(monitor)
        options.progress_monitor = progress_monitor
        with signals_deferred(monitor):
            memory = builder.build_serialized_network(network, options)
        if monitor.error is not None:
            raise monitor.error
        if monitor.cancelled:
            raise BuildCancelledError(f"the build of '{path.name}' was cancelled.")
        if memory is None:
            raise build_failure(library, path.name, messages)
        if config.timing_cache is not None:
            save_timing_cache(options, config.timing_cache)
        return bytes(memory), messages


def _parse(library: TensorRT, network: Network, path: Path) -> None:
    parser = library.parser(network)
    # by path: from bytes, weights beside the file are not found
    if parser.parse_from_file(str(path.absolute())):
        return
    raise parse_failure(library, path.name, parser)


def _options(library: TensorRT, builder: Builder, config: BuildConfig) -> BuilderConfig:
    options = builder.create_builder_config()
    for profile in config.profiles:
        entry = builder.create_optimization_profile()
        for name, shapes in profile.items():
            entry.set_shape(name, shapes.min, shapes.opt, shapes.max)
        if options.add_optimization_profile(entry) < 0:
            raise ProfileError(f"{library} refuses the profile {dict(profile)}.")
    if config.workspace_bytes is not None:
        pool = library.member("MemoryPoolType", "WORKSPACE")
        options.set_memory_pool_limit(pool, config.workspace_bytes)
    if config.optimization_level is not None:
        options.builder_optimization_level = config.optimization_level
    if not config.tf32:
        options.clear_flag(library.member("BuilderFlag", "TF32"))
    if config.hardware_compatible:
        level = library.member("HardwareCompatibilityLevel", "AMPERE_PLUS")
        options.hardware_compatibility_level = level
    if config.version_compatible:
        options.set_flag(library.member("BuilderFlag", "VERSION_COMPATIBLE"))
    if config.timing_cache is not None:
        load_timing_cache(options, config.timing_cache)
    if library.capabilities.compute_capabilities:
        _set_targets(library, options, config.targets)
    else:
        # else the inspector tells names only, and the precision could not be proven
        options.profiling_verbosity = library.member("ProfilingVerbosity", "DETAILED")
    return options


def _set_targets(library: TensorRT, options: BuilderConfig, targets: Sequence[str]) -> None:
    rtx = cast(RtxBuilderConfig, options)
    rtx.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        member = library.member("ComputeCapability", COMPUTE_CAPABILITIES[target])
        if not rtx.set_compute_capability(member, index):
            raise BuildError(f"{library} does not build for compute capability {target}.")


def _inspect(library: TensorRT, plan: bytes, config: BuildConfig) -> str:
    runtime = library.runtime()
    if config.version_compatible:
        runtime.engine_host_code_allowed = True  # such a plan holds code, and it is our own
    with library.capture() as messages:
        engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        said = " | ".join(message.text for message in messages)
        raise BuildError(f"{library} cannot open the plan that it built: {said}")
    layout = library.member("LayerInformationFormat", "JSON")
    return engine.create_engine_inspector().get_engine_information(layout)


def _capabilities_of(config: BuildConfig) -> tuple[str, ...]:
    if config.targets:
        return config.targets
    # hardware compatible: for Ampere, 8.0, and everything after it
    return ("8.0+",) if config.hardware_compatible else (gpu_compute_capability(),)


def _once(messages: Sequence[Message]) -> tuple[str, ...]:
    counted = Counter(message.text.strip() for message in messages)
    return tuple(
        f"{text} ({count} times)" if count > 1 else text for text, count in counted.items()
    )
