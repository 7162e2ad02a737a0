"""Build the plans of an artifact, one for each precision, or note why one cannot be built.

What a user named must be built, or the export fails. What `auto` tries and cannot build is noted,
for the artifact is of use without it.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcn_deploy.artifact.manifest import Variant
from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.backends.tensorrt.api import TensorRT, capabilities_of, installed, load_tensorrt
from fcn_deploy.backends.tensorrt.surface import LibraryName
from fcn_deploy.errors import (
    BackendUnavailableError,
    BuildCancelledError,
    BuildError,
    ExportError,
)
from fcn_deploy.machine import nvidia_gpus
from fcn_deploy.names import Precision, TensorSpec
from fcn_export.engine.build import BuiltPlan, build_engine
from fcn_export.engine.build_progress import BuildProgress
from fcn_export.engine.config import BuildConfig
from fcn_export.engine.gpu import gpu_compute_capability
from fcn_export.engine.profiles import image_profile
from fcn_export.engine.proposals import ProfileProposal, propose_profiles, sizes_in
from fcn_export.onnx_file import write_onnx

if TYPE_CHECKING:
    from fcn_deploy.artifact.folder import ArtifactWriter
    from fcn_export.request import ExportRequest
    from fcn_export.staged import GraphVariant, Staged
    from fcn_export.steps import Steps

__all__ = ["PlanFile", "PlanSetup", "build_plans", "find_library", "set_up_plans"]

_INSTALL = (
    "No engine was built, and CPU backends need none: pip install 'fcn-deploy[rtx]' builds plans "
    "for NVIDIA GPUs on any machine, 'fcn-deploy[gpu]' on one that has such a GPU."
)


@dataclass(frozen=True, slots=True)
class PlanSetup:
    """How plans will be built, decided before the export begins.

    Attributes:
        library: None where none will be built.
        note: why none will be built, one sentence; None where that needs no word.
        required: a plan that cannot be built fails the export.
        sizes: of the images that profiles are proposed from; None for one profile of the whole
            range.
    """

    library: TensorRT | None
    note: str | None = None
    required: bool = False
    sizes: Mapping[tuple[int, int], int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFile:
    """One plan of the artifact, or one that could not be built.

    Attributes:
        graph: file that it was built from; `graph_sha256` is that file's.
        profiles: what each is for is in `proposals`, where they were proposed.
        failure: why there is no file; None where there is.
    """

    name: str
    precision: Precision
    library: LibraryName
    release: str
    graph: str
    graph_sha256: str
    profiles: tuple[ShapeRange, ...]
    proposals: tuple[ProfileProposal, ...] = ()
    compute_capabilities: tuple[str, ...] = ()
    version_compatible: bool = False
    size_bytes: int = 0
    seconds: float = 0.0
    layer_shares: Mapping[str, float] | None = None
    float_layers: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    failure: str | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of it, one sentence each."""
        if self.failure is not None:
            return (f"'{self.name}' was not built: {self.failure}",)
        notes = []
        if self.float_layers:
            notes.append(
                f"'{self.name}': {len(self.float_layers)} quantised layers run in floating point, "
                f"'{self.float_layers[0]}' first: {self.library} has no INT8 kernel for them."
            )
        if not self.layer_shares:
            notes.append(f"'{self.name}' does not tell in which types its layers compute.")
        return tuple(notes)

    def variant(self) -> Variant:
        """Give its entry in the manifest."""
        return Variant(
            file=self.name,
            precision=self.precision,
            backend=self.library,
            compute_capabilities=self.compute_capabilities,
            profiles=self.profiles,
            library_version=self.release,
            version_compatible=self.version_compatible,
            graph=self.graph,
            graph_sha256=self.graph_sha256,
        )

    def to_json(self) -> dict[str, Any]:
        """Give its entry in `report.json`."""
        return {
            **asdict(self),
            "precision": str(self.precision),
            "layer_shares": dict(self.layer_shares or {}),
            "profiles": [asdict(profile) for profile in self.profiles],
            "proposals": [asdict(entry) for entry in self.proposals],
        }


def set_up_plans(request: ExportRequest) -> PlanSetup:
    """Decide what builds the plans, and refuse options that it would ignore.

    Raises:
        BackendUnavailableError: the named library is not installed, or builds on GPUs only and
            there is none.
        BuildError: an option that it does not take.
        SourceError, ProfileError: there is no image to propose profiles from.
    """
    if request.engine == "none":
        return PlanSetup(None)
    names: tuple[LibraryName, ...] = ("tensorrt", "tensorrt-rtx")
    named = next((name for name in names if name == request.engine), None)
    if named is not None and not capabilities_of(named).builds_without_gpu:
        gpu_compute_capability()  # raises now, and not after minutes
    chosen = named or find_library()
    if chosen is None:
        return PlanSetup(None, _INSTALL)
    sizes = None if request.profiles is None else sizes_in(request.profiles)
    try:
        library = load_tensorrt(chosen)
    except BackendUnavailableError as error:
        if named is not None:
            raise
        return PlanSetup(None, f"No engine was built: {error}")
    _config(request, library, Precision.FP32).check_against(library)
    return PlanSetup(library, None, named is not None, sizes)


def find_library() -> LibraryName | None:
    """Choose TensorRT where there is a GPU to build on; else what needs none; None: neither."""
    if installed("tensorrt") and nvidia_gpus():
        return "tensorrt"
    return "tensorrt-rtx" if installed("tensorrt-rtx") else None


def build_plans(
    setup: PlanSetup,
    request: ExportRequest,
    staged: Staged,
    variants: Sequence[GraphVariant],
    *,
    writer: ArtifactWriter,
    steps: Steps,
) -> tuple[PlanFile, ...]:
    """Build a plan of each graph that was asked for, and add it to the artifact.

    Raises:
        BuildError: a plan that is required could not be built.
        ProfileError: an image that profiles are proposed from is outside the verified sizes.
    """
    library = setup.library
    if library is None:
        return ()
    shapes = staged.shapes
    proposals = () if setup.sizes is None else propose_profiles(setup.sizes, shapes)
    wanted = request.wanted_precisions()
    plans = []
    for variant in variants:
        if variant.precision in wanted:
            with steps.step(f"plan {variant.precision}"):
                described = _unbuilt(
                    library, request=request, staged=staged, variant=variant, proposals=proposals
                )
                plan = _build(
                    described,
                    library=library,
                    setup=setup,
                    request=request,
                    staged=staged,
                    variant=variant,
                    writer=writer,
                    steps=steps,
                )
                steps.tell(_describe(plan))
            plans.append(plan)
    return tuple(plans)


def _config(request: ExportRequest, library: TensorRT, precision: Precision) -> BuildConfig:
    workspace_mb = request.workspace_mb
    return BuildConfig(
        library=library.library,
        precision=precision,
        compute_capabilities=request.compute_capabilities,
        workspace_bytes=None if workspace_mb is None else workspace_mb << 20,
        optimization_level=request.optimization_level,
        tf32=request.tf32,
        timing_cache=request.timing_cache,
        hardware_compatible=request.hardware_compatible,
        version_compatible=request.version_compatible,
    )


def _unbuilt(
    library: TensorRT,
    request: ExportRequest,
    staged: Staged,
    variant: GraphVariant,
    proposals: tuple[ProfileProposal, ...],
) -> PlanFile:
    """Describe a plan that is still to be built."""
    return PlanFile(
        name=f"model.{variant.precision}.{library.library}.plan",
        precision=variant.precision,
        library=library.library,
        release=library.release,
        graph=variant.file.path.name,
        graph_sha256=hashlib.sha256(variant.file.data).hexdigest(),
        profiles=tuple(entry.shapes for entry in proposals) or (staged.shapes,),
        proposals=proposals,
        version_compatible=request.version_compatible,
    )


def _build(
    plan: PlanFile,
    library: TensorRT,
    setup: PlanSetup,
    request: ExportRequest,
    staged: Staged,
    variant: GraphVariant,
    writer: ArtifactWriter,
    steps: Steps,
) -> PlanFile:
    def tell(progress: BuildProgress) -> None:
        steps.tell(f"{plan.name} {progress.fraction:4.0%}  {progress.phase}")

    image = staged.spec.input
    spec = TensorSpec(image.name, image.dtype, image.shape)
    config = replace(
        _config(request, library, variant.precision),
        profiles=tuple(image_profile(spec, shapes) for shapes in plan.profiles),
    )
    try:
        with _graph_to_build(variant) as path:
            built = build_engine(path, config, on_progress=tell, tensorrt=library)
    except BuildCancelledError:
        raise
    except (BuildError, BackendUnavailableError, ExportError) as error:
        if setup.required:
            raise
        return replace(plan, failure=str(error))
    writer.add(plan.name, built.plan)
    return _complete(plan, built)


@contextmanager
def _graph_to_build(variant: GraphVariant) -> Iterator[Path]:
    """Give the file to build from: of an INT8 graph a copy whose other layers are in FP16.

    TensorRT computes in the types that a graph names, and would run them in FP32. CPUs are faster
    with the graph as it is.
    """
    if variant.precision is not Precision.INT8:
        yield variant.file.path
        return
    from fcn_export.precision.passes.to_half import fp16_remainder

    model = variant.file.load()
    fp16_remainder(model)
    with tempfile.TemporaryDirectory(prefix="fcn-export-") as folder:
        yield write_onnx(model, Path(folder) / variant.file.path.name).path


def _complete(plan: PlanFile, built: BuiltPlan) -> PlanFile:
    return replace(
        plan,
        compute_capabilities=built.compute_capabilities,
        size_bytes=len(built.plan),
        seconds=round(built.seconds, 3),
        layer_shares=built.layer_shares,
        float_layers=built.float_layers,
        warnings=built.warnings,
    )


def _describe(plan: PlanFile) -> str:
    if plan.failure is not None:
        return f"not built: {plan.failure}"
    shares = ", ".join(f"{share:.0%} {kind}" for kind, share in (plan.layer_shares or {}).items())
    targets = ", ".join(plan.compute_capabilities)
    count = len(plan.profiles)
    profiles = f"{count} profile{'s' if count > 1 else ''}"
    return (
        f"{plan.name}, {plan.size_bytes / 1e6:.1f} MB, for {targets}, {profiles}, "
        f"layers {shares or 'unknown'}"
    )
