"""Make the int8 variant of an artifact: calibrate, place Q/DQ, choose a method, keep the budget."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from fcn_deploy.backends import backend_names, get_backend
from fcn_deploy.errors import UnsupportedModelError
from fcn_deploy.names import Precision
from fcn_export.name_list import first_names
from fcn_export.onnx_file import write_onnx
from fcn_export.precision.budget import keep_budget
from fcn_export.precision.calibrate import calibrate
from fcn_export.precision.calibration_images import CalibrationImages
from fcn_export.precision.calibration_table import TABLE_NAME
from fcn_export.precision.damage import DamageMeter
from fcn_export.precision.passes.lint import check_types
from fcn_export.precision.place_qdq import classifier_nodes, entry_nodes
from fcn_export.precision.search import Block, SearchResult
from fcn_export.precision.thresholds import METHODS, Method
from fcn_export.precision.to_int8 import Int8Builder, Int8Graph, prepare
from fcn_export.staged import GraphVariant, VariantInputs, variant_name
from fcn_models.labelled_images import EvalItem

if TYPE_CHECKING:
    import onnx

__all__ = ["make_int8"]

_METHOD_IMAGES = 8
_EDGE_SHARE = 0.05
"""Share of the multiply-adds up to which the first and the last convolution stay float. They are
the most sensitive to rounding: one sees the image, the other decides the label."""


def make_int8(inputs: VariantInputs) -> GraphVariant:
    """Make `model.int8.onnx` of the verified graph, and `calibration.json` beside it.

    Raises:
        ValueError: no calibration images are named.
        SourceError: the calibration images cannot be read.
        NonFiniteOutputError: the network makes NaN or infinity of one.
        UnsupportedModelError: there is nothing to quantise.
        BudgetError: with `--eval`: mean IoU drops by more than allowed, whatever is kept in fp32.
        ArtifactError, ExecutionError: a backend does not run the graph.
    """
    staged, tell, path = inputs.staged, inputs.steps.tell, inputs.calibrate
    if path is None:
        raise ValueError("int8 needs calibration images")
    images = CalibrationImages.find(path, size=staged.shapes.opt[1:], hold_out=True)
    model = prepare(staged.file.load())
    table = calibrate(
        model,
        images=images,
        spec=staged.spec,
        shapes=staged.shapes,
        cache=inputs.artifact / TABLE_NAME,
        on_progress=tell,
    )
    builder = Int8Builder(model, table)
    edges = _float_edges(builder)
    method, agreements = _choose_method(inputs, builder, images, edges)

    def build(kept: Collection[str]) -> onnx.ModelProto:
        return builder.build(method=method, keep_float=edges | set(kept)).model

    lowered = builder.build(method=method, keep_float=edges).quantized
    if not lowered:
        raise UnsupportedModelError(
            "no convolution can be quantised: their scales are beyond FP16's range.",
            hint="Leave int8 out of --precision.",
        )
    found = keep_budget(
        inputs,
        precision=Precision.INT8,
        model=model,
        blocks=[Block(name, (name,), builder.work(name)) for name in lowered],
        build=build,
        key=f"{table.key} {method} {sorted(edges)}",
    )
    kept = () if found is None else found.chosen.kept
    graph = builder.build(method=method, keep_float=edges | set(kept))
    folder = staged.file.path.parent
    (folder / TABLE_NAME).write_bytes(table.to_bytes(method=method))
    name = variant_name(Precision.INT8)
    faults = check_types(graph.model, name=name)
    file = write_onnx(graph.model, folder / name)
    tell(
        f"{len(graph.quantized)} convolutions, {len(graph.kept)} more in fp32, ranges by {method} "
        f"of {table.images.used} images, {file.size_bytes / 1e6:.1f} MB"
    )
    notes = (*_image_notes(inputs, builder), *_notes(graph, kept, found), *faults)
    figures = _figures(graph, builder=builder, method=method, agreements=agreements, found=found)
    return GraphVariant(Precision.INT8, file, notes, figures)


def _float_edges(builder: Int8Builder) -> frozenset[str]:
    """Name the first and last convolutions, where they are cheap in float."""
    graph = builder.graph
    edges = {*entry_nodes(graph), *classifier_nodes(graph)}.intersection(builder.nodes)
    whole = sum(builder.work(name) for name in builder.nodes)
    cheap = sum(builder.work(name) for name in edges) <= _EDGE_SHARE * whole
    return frozenset(edges) if cheap and len(edges) < len(builder.nodes) else frozenset()


def _choose_method(
    inputs: VariantInputs, builder: Int8Builder, images: CalibrationImages, edges: frozenset[str]
) -> tuple[Method, dict[Method, float]]:
    """Take the method that changes the fewest labels of some calibration images.

    Not of the labelled images: what is chosen on these would look better than it is.
    """
    staged = inputs.staged
    backend = next(name for name in backend_names() if get_backend(name).available())

    def items() -> Iterator[EvalItem]:
        for index, frame in enumerate(images.frames(color=staged.spec.input_color)):
            yield EvalItem(str(index), frame, frame[:, :, 0])

    inputs.steps.tell("labels of the fp32 graph on calibration images")
    meter = DamageMeter(
        builder.model,
        items=items,
        spec=staged.spec,
        shapes=staged.shapes,
        has_labels=False,
        backends=[backend],
        every=max(1, len(images) // _METHOD_IMAGES),
    )
    disagreements: dict[Method, float] = {}
    for method in METHODS:
        inputs.steps.tell(f"labels with ranges by {method}")
        graph = builder.build(method=method, keep_float=edges)
        disagreements[method] = meter.measure(graph.model, Precision.INT8).disagreement
    best = min(METHODS, key=lambda method: disagreements[method])
    return best, {method: 1.0 - share for method, share in disagreements.items()}


def _image_notes(inputs: VariantInputs, builder: Int8Builder) -> Iterator[str]:
    """Describe the calibration images, and warn where they are unlike what will be served."""
    names = [entry.name for entry in inputs.classes]
    yield f"calibration: {builder.table.images.summary(names)}"
    for warning in builder.table.images.warnings(names):
        yield f"calibration: {warning}"


def _notes(graph: Int8Graph, kept: tuple[str, ...], found: SearchResult | None) -> Iterator[str]:
    if kept and found is not None:
        plain = next(point for point in found.points if not point.kept)
        yield (
            f"int8: {first_names(kept)} stay in fp32; without them "
            f"{plain.damage.miou_drop or 0.0:.2f} points of mean IoU are lost."
        )
    if found is not None and found.unranked:
        yield f"int8: {len(found.unranked)} layers were not judged for want of time."
    unfit = [name for name, reason in graph.kept.items() if reason != graph.asked]
    if unfit:
        yield f"int8: {first_names(unfit)} stay in fp32, as their scales are beyond FP16's range."


def _figures(
    graph: Int8Graph,
    builder: Int8Builder,
    method: Method,
    agreements: dict[Method, float],
    found: SearchResult | None,
) -> dict[str, Any]:
    whole = sum(builder.work(name) for name in builder.nodes)
    lowered = sum(builder.work(name) for name in graph.quantized)
    return {
        "int8_nodes": list(graph.quantized),
        "fp32_nodes": dict(graph.kept),
        "int8_work_share": lowered / whole if whole else 0.0,
        "method": method,
        "method_label_agreement": dict(agreements),
        "calibration": builder.table.images.to_json(),
        "search": None if found is None else found.to_json(),
    }
