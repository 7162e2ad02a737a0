"""Model in, artifact out: load, probe, trace, verify, measure, write; each step in its order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fcn_deploy.artifact.folder import ArtifactWriter
from fcn_deploy.artifact.manifest import ClassInfo, Manifest, Variant
from fcn_deploy.artifact.output_meaning import OutputMeaning
from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.backends import get_backend
from fcn_deploy.errors import BudgetError, ManifestError, ParityError
from fcn_deploy.graph.analyse import GraphAnalysis, analyse
from fcn_deploy.graph.scan import scan_onnx
from fcn_deploy.names import Precision
from fcn_deploy.opening.choose import graph_precision
from fcn_export.check.measure import MIN_SOUND_AGREEMENT, Measured, measure, runners
from fcn_export.check.reference import meaning_of
from fcn_export.check.sample_frames import natural_frame
from fcn_export.check.verify import (
    MAX_RELATIVE_SCORE_ERROR,
    ParityRow,
    unseen_shapes,
    verify,
)
from fcn_export.graph_spec import GraphSpec
from fcn_export.load.class_names import default_classes, read_classes
from fcn_export.onnx_file import OnnxFile
from fcn_export.plans import PlanFile, PlanSetup, build_plans, set_up_plans
from fcn_export.precision.calibration_images import check_source
from fcn_export.precision.variants import make_variants
from fcn_export.report import ExportReport, GraphFile
from fcn_export.request import ExportRequest
from fcn_export.requirements import library_versions, require_libraries
from fcn_export.samples import Samples, choose_samples
from fcn_export.staged import GraphVariant, Staged, VariantInputs
from fcn_export.steps import OnStep, Steps
from fcn_export.trace.stage_module import stage_module
from fcn_models.labelled_images import EvalItem, EvalSet

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "MAX_MIOU_DROP",
    "REPORT_NAME",
    "ExportReport",
    "ExportRequest",
    "default_output",
    "export_model",
]

REPORT_NAME = "report.json"
MAX_MIOU_DROP = "max_miou_drop"
"""Where the manifest's provenance says the allowed loss of mean IoU, in points, if measured."""

_SYNTHETIC_FRAMES = 2
_SYNTHETIC_SIDE_PX = 768  # at most: they only show the range of values, and are no real images
_SEED = 40


def default_output(model: Path) -> Path:
    """Give where an artifact goes unless told: ``<stem>.fcn`` beside the model."""
    return model.with_name(f"{model.stem}.fcn")


def export_model(
    model: str | os.PathLike[str] | nn.Module,
    output: str | os.PathLike[str],
    *,
    request: ExportRequest | None = None,
    on_step: OnStep | None = None,
) -> ExportReport:
    """Export a segmentation network, verify the result, and write an artifact.

    A module that is handed over comes back as it was: tensors, modes, hooks, random state.

    Args:
        model: a module, or a file: state dict, safetensors, TorchScript, .pt2 or ONNX.
        output: folder of the artifact; it appears when everything has passed, or not at all.
        request: all options; None means the defaults.
        on_step: told what is being done, see `StepEvent`.

    Raises:
        OutputExistsError, ArtifactBusyError: before any work is done.
        ArtifactMissingError, UntrustedArtifactError: the model's file.
        SourceOpenError: there are no images to calibrate or to measure on.
        NonFiniteWeightsError: a weight is NaN or infinite.
        UnsupportedModelError: no exporter takes the model, or it is bound to one size.
        ParityError: the graph does not compute what the model computes, or a variant keeps so few
            labels that it is broken, unless `allow_broken`.
        BudgetError: a variant loses more mean IoU than allowed.
        ManifestError: the class names do not fit the network.
        BackendUnavailableError: a library is missing.
        BuildError: a plan that `engine` names cannot be built as asked.
    """
    require_libraries()
    request = request or ExportRequest()
    named = None if request.classes_file is None else read_classes(request.classes_file)
    labelled = None if request.eval_folders is None else EvalSet.find(*request.eval_folders)
    for source in (request.calibrate, request.samples):
        if source is not None:
            check_source(source)
    setup = set_up_plans(request)
    steps = Steps(on_step)
    with ArtifactWriter(output, force=request.force) as writer, ExitStack() as stack:
        staged = _stage(model, writer.folder, request, steps, stack)
        classes = _fit_classes(named or staged.classes, staged.spec)
        parity = _verify(staged, request, steps)
        inputs = VariantInputs(
            staged=staged,
            artifact=writer.path,
            classes=classes,
            calibrate=request.calibrate,
            max_miou_drop=request.max_miou_drop,
            items=_reader(staged, labelled),
            has_labels=labelled is not None,
            steps=steps,
        )
        variants = make_variants(inputs, request.wanted_precisions())
        samples = choose_samples(request, labelled, staged.spec, staged.shapes)
        own, measured = _measure(inputs, variants, samples)
        report = _report(writer.path, staged, classes, parity, variants, own, measured, samples)
        _check_budget(report, request)
        if not request.allow_broken:
            _check_broken(report)
        plans = build_plans(setup, request, staged, variants, writer=writer, steps=steps)
        report = _with_plans(report, setup, plans)
        with steps.step("write"):
            report = replace(report, timings_seconds=dict(steps.seconds))
            writer.add(REPORT_NAME, report.to_bytes())
            writer.commit(_manifest(report, staged, inputs, variants))
            steps.tell(str(writer.path))
    return replace(report, timings_seconds=dict(steps.seconds))


def _stage(
    model: str | os.PathLike[str] | nn.Module,
    folder: Path,
    request: ExportRequest,
    steps: Steps,
    stack: ExitStack,
) -> Staged:
    if isinstance(model, str | os.PathLike) and Path(model).suffix.lower() == ".onnx":
        from fcn_export.trace.stage_onnx import stage_onnx

        return stage_onnx(Path(model), folder, request, steps, stack)
    return stage_module(model, folder, request, steps, stack)


def _fit_classes(named: tuple[ClassInfo, ...] | None, spec: GraphSpec) -> tuple[ClassInfo, ...]:
    if named is None:
        return default_classes(spec.num_labels)
    if len(named) != spec.num_labels:
        raise ManifestError(
            f"{len(named)} classes are named, but the network tells {spec.num_labels} apart.",
            hint="Name each class once, in the order of the network's outputs"
            + (", background first." if spec.num_classes == 1 else "."),
        )
    return named


def _verify(staged: Staged, request: ExportRequest, steps: Steps) -> tuple[ParityRow, ...]:
    shapes = unseen_shapes(staged.shapes, traced=staged.traced, verify_max=request.verify_max)
    with steps.step("verify"):
        try:
            rows = verify(
                staged.file,
                staged.reference,
                staged.spec,
                shapes,
                on_shape=lambda shape: steps.tell("x".join(str(side) for side in shape)),
            )
        except ParityError as error:
            reason = staged.explain()
            if reason is None:
                raise
            raise ParityError(
                f"{error.message} Likely cause: {reason}.", hint=error.hint
            ) from error
        worst = max(row.max_score_error for row in rows)
        real = max(row.disagreement.real_share for row in rows)
        steps.tell(
            f"{len(rows)} unseen shapes, score error {worst:.1e}, labels that differ {real:.3%}"
        )
    return rows


def _reader(staged: Staged, labelled: EvalSet | None) -> Callable[[], Iterator[EvalItem]]:
    spec = staged.spec
    if labelled is None:
        return lambda: _synthetic_items(staged.shapes)
    return lambda: labelled.items(color=spec.input_color, num_labels=spec.num_labels)


def _measure(
    inputs: VariantInputs, variants: tuple[GraphVariant, ...], samples: Samples
) -> tuple[Measured, tuple[Measured, ...]]:
    staged, steps = inputs.staged, inputs.steps
    graphs = {variant.precision: variant.file for variant in variants}
    candidates = runners(graphs)
    with steps.step("measure"):
        own, measured = measure(
            graphs,
            staged.reference,
            staged.spec,
            staged.shapes,
            samples.items(),
            candidates=candidates,
            has_labels=samples.has_labels,
            on_progress=steps.tell,
        )
        names = ", ".join(str(candidate) for candidate in candidates)
        steps.tell(f"{names} on {samples.what}")
    return own, measured


def _synthetic_items(shapes: ShapeRange) -> Iterator[EvalItem]:
    height, width = (
        max(min(usual, _SYNTHETIC_SIDE_PX), low)
        for usual, low in zip(shapes.opt[1:], shapes.min[1:], strict=True)
    )
    for seed in range(_SEED, _SEED + _SYNTHETIC_FRAMES):
        frame = natural_frame(height, width, seed)
        yield EvalItem(f"synthetic {seed}", frame, np.zeros((height, width), np.uint8))


def _report(
    path: Path,
    staged: Staged,
    classes: tuple[ClassInfo, ...],
    parity: tuple[ParityRow, ...],
    variants: tuple[GraphVariant, ...],
    own: Measured,
    measured: tuple[Measured, ...],
    samples: Samples,
) -> ExportReport:
    notes = list(staged.notes)
    if staged.file.weights is not None:
        notes.append(f"The weights are in '{staged.file.weights.name}', beside the graph.")
    notes += [note for variant in variants for note in variant.notes]
    notes += [f"{entry.runner} failed: {entry.failure}" for entry in measured if entry.failure]
    notes += [
        f"{runner} was measured with {get_backend(runner.backend).arithmetic(runner.precision)}."
        for entry in measured
        if (runner := entry.runner) is not None and runner.precision is Precision.FP16
    ]
    notes += _evidence_notes(own, measured)
    return ExportReport(
        path=path,
        source=staged.source,
        num_classes=staged.spec.num_classes,
        classes=classes,
        shapes=staged.shapes,
        head=staged.spec.head,
        exporter=staged.exporter,
        opset=staged.opset,
        notes=tuple(notes),
        files=tuple(GraphFile.of(variant) for variant in variants),
        reference=staged.reference.name,
        parity=parity,
        model=own,
        measured=measured,
        images=samples.what,
    )


def _evidence_notes(own: Measured, measured: tuple[Measured, ...]) -> Iterator[str]:
    """Say which backend is not to be trusted, and where measurements show too little."""
    found = [entry.fidelity(own) for entry in measured if entry.failure is None]
    for entry in found:
        if entry.precision is Precision.FP32 and entry.status in ("differs", "broken"):
            yield (
                f"{entry.backend} fp32 is not the model: its scores differ by up to "
                f"{entry.relative_score_error or 0.0:.2%} of the largest, rounding explains "
                f"{MAX_RELATIVE_SCORE_ERROR:.1%}; backend auto takes another."
            )
    if any(entry.status == "no evidence" for entry in found):
        images = max(entry.images for entry in found)
        yield (
            f"{images or 'None'} of the measured images show more than one class, too few to tell "
            "how near reduced precisions come: auto stays at fp32. Name some with --samples PATH."
        )


def _with_plans(
    report: ExportReport, setup: PlanSetup, plans: tuple[PlanFile, ...]
) -> ExportReport:
    """Add the plans, and what is to be said of them, to what was made."""
    notes = [*report.notes, *(note for plan in plans for note in plan.notes)]
    for number, proposal in enumerate(plans[0].proposals if plans else (), 1):
        notes.append(f"Profile {number}: {proposal}.")  # the same in every plan
    if setup.note is not None:
        notes.append(setup.note)
    return replace(report, notes=tuple(notes), plans=plans)


def _check_budget(report: ExportReport, request: ExportRequest) -> None:
    """Hold every variant's loss of mean IoU against what is allowed.

    Raises:
        BudgetError: one loses more.
    """
    for entry in report.measured:
        if entry.failure is not None or entry.runner is None:
            continue
        fidelity = entry.fidelity(report.model)
        drop = fidelity.miou_drop
        # bf16 has no file of its own: the artifact holds nothing that could be left out
        has_file = graph_precision(fidelity.precision) is fidelity.precision
        if drop is None or not has_file or drop <= request.max_miou_drop:
            continue
        raise BudgetError(
            f"{entry.runner} loses {drop:.2f} points of mean IoU; {request.max_miou_drop:g} are "
            "allowed.",
            hint=f"Leave {fidelity.precision} out of --precision, or allow more with "
            "--max-miou-drop.",
        )


def _check_broken(report: ExportReport) -> None:
    """Refuse variants that keep too few labels, unless their backend breaks fp32 itself.

    Raises:
        ParityError: one does, or fp32 itself on every backend.
    """
    found = [
        (entry.runner, entry.fidelity(report.model))
        for entry in report.measured
        if entry.failure is None and entry.runner is not None
    ]
    exact = [fidelity for _, fidelity in found if fidelity.precision is Precision.FP32]
    sound = {fidelity.backend for fidelity in exact if fidelity.status != "broken"}
    all_broken = bool(exact) and all(fidelity.status == "broken" for fidelity in exact)
    for runner, fidelity in found:
        # bf16 has no file of its own: the artifact holds nothing that could be left out
        variant = fidelity.precision in (Precision.FP16, Precision.INT8)
        if fidelity.status != "broken":
            continue
        if (variant and fidelity.backend in sound) or (not variant and all_broken):
            worst = fidelity.worst_image
            raise ParityError(
                f"{runner} keeps {fidelity.label_agreement:.2%} of {report.reference}'s labels on "
                f"{report.images}"
                + ("" if worst is None else f", {worst.label_agreement:.2%} of '{worst.name}'")
                + f"; below {MIN_SOUND_AGREEMENT:.0%} a variant is broken.",
                hint=f"Leave {fidelity.precision} out of --precision, name typical images with "
                "--samples, or keep it all the same with --allow-broken.",
            )


def _manifest(
    report: ExportReport,
    staged: Staged,
    inputs: VariantInputs,
    variants: tuple[GraphVariant, ...],
) -> Manifest:
    analysis = _analyse(staged.file)
    seen, output = analysis.receptive_field(), _meaning(analysis, staged.spec)
    meanings = {
        variant.file.path.name: _meaning(_analyse(variant.file), staged.spec)
        for variant in variants
    }
    budget = {MAX_MIOU_DROP: f"{inputs.max_miou_drop:g}"} if inputs.has_labels else {}
    return Manifest(
        inputs=(staged.spec.input,),
        outputs=staged.spec.outputs,
        shapes=report.shapes,
        preprocess=staged.spec.preprocess,
        classes=report.classes,
        variants=(
            *(_variant(report, file, output, meanings[file.name]) for file in report.files),
            *(plan.variant() for plan in report.plans if plan.failure is None),
        ),
        source=report.source,
        provenance={
            **library_versions(),
            **{plan.library: plan.release for plan in report.plans},
            "exporter": report.exporter,
            "opset": str(report.opset),
            **budget,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        },
        receptive_field=None if isinstance(seen, str) else seen,
        output=output,
    )


def _analyse(file: OnnxFile) -> GraphAnalysis:
    return analyse(scan_onnx(file.data, folder=file.path.parent))


def _meaning(analysis: GraphAnalysis, spec: GraphSpec) -> OutputMeaning:
    """Say what a graph of the artifact gives; what its user said goes before what it says."""
    found = replace(meaning_of(spec), output=analysis.output, class_axis=1)
    if spec.head == "scores":
        said = analysis.measured(found if spec.asked else None)
        return replace(said, threshold=spec.threshold)
    said = analysis.measured()
    if spec.asked and spec.activation != "ids":
        said = replace(said, activation=spec.activation, threshold=spec.threshold)
    return said if said.threshold is not None else replace(said, threshold=spec.threshold)


def _variant(
    report: ExportReport, file: GraphFile, usual: OutputMeaning, output: OutputMeaning
) -> Variant:
    """List a graph with what was measured of it, and with its output where that is not as usual."""
    fidelity = tuple(
        entry.fidelity(report.model)
        for entry in report.measured
        if entry.failure is None
        and entry.runner is not None
        and graph_precision(entry.runner.precision) is file.precision
    )
    own = None if output == usual else output
    return Variant(file.name, file.precision, fidelity=fidelity, output=own)
