"""A graph in the staging folder, made from a PyTorch module, with what it is to be held against."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fcn_deploy.artifact.manifest import Source
from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.errors import UnsupportedModelError
from fcn_deploy.graph.meaning import asked_meaning, check_values, find_meaning
from fcn_deploy.graph.scan import scan_onnx
from fcn_export.check.reference import TorchReference
from fcn_export.check.sample_frames import tried_batches
from fcn_export.graph_spec import (
    LOW_RESOLUTION_SCORES,
    SCORES,
    GraphSpec,
    check_head,
    decided,
)
from fcn_export.onnx_file import OnnxFile, write_onnx
from fcn_export.release_memory import release_freed_memory
from fcn_export.request import ExportRequest
from fcn_export.staged import GRAPH_NAME, Staged
from fcn_export.steps import Steps

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from fcn_export.load.torch_model import LoadedModel
    from fcn_export.trace.to_onnx import TracedGraph

__all__ = ["stage_module"]


def stage_module(
    model: str | os.PathLike[str] | nn.Module,
    folder: Path,
    request: ExportRequest,
    steps: Steps,
    stack: ExitStack,
) -> Staged:
    """Load, probe and trace a PyTorch model.

    Args:
        folder: to write the graph to.
        stack: keeps the module borrowed; closing it gives the module back as it was.

    Raises:
        ExportError, ArtifactError: as `export_model` says.
    """
    from fcn_export.load.torch_model import check_finite_weights
    from fcn_export.trace.borrow import borrowed
    from fcn_export.trace.probing import specify_graph
    from fcn_export.trace.to_onnx import example_size, trace

    with steps.step("load"):
        loaded = _load(model, request)
        steps.tell(_describe(loaded))
    info = loaded.info
    request = request.completed(None if info is None else info.preprocess)
    module = stack.enter_context(borrowed(loaded.module))
    with steps.step("check weights"):
        check_finite_weights(module)
        steps.tell("all finite")
    with steps.step("try sizes"):
        spec, shapes = specify_graph(module, loaded, request)
        if spec.activation == "ids":
            check_head(spec.head)
        steps.tell(_describe_sizes(spec, shapes))
    with steps.step("trace"):
        graph = trace(module, spec, on_attempt=steps.tell)
        if graph.fixed and shapes.min[1:] == shapes.max[1:]:  # one size is all that is asked for
            spec = replace(spec, multiple_of=1, fixed=(None, *shapes.opt[1:]))
            shapes = replace(shapes, multiple_of=1)
            graph = trace(module, spec, on_attempt=steps.tell)
        size = example_size(spec)
        if graph.fixed:
            raise _bound_to_size(module, spec, size, graph)
        file = write_onnx(graph.model, folder / GRAPH_NAME)
        known = _with_meaning(module, spec, shapes, file, request)
        if _ends_otherwise(known, spec):
            graph = trace(module, known)
            file = write_onnx(graph.model, folder / GRAPH_NAME)
        spec = known
        reference = TorchReference(module, spec)
        exporter, opset, note = graph.exporter, graph.opset, graph.note
        del graph
        release_freed_memory()
        steps.tell(f"{exporter}, opset {opset}, {file.size_bytes / 1e6:.1f} MB")
    single = spec.fixed[1] is not None
    return Staged(
        file,
        spec,
        shapes,
        reference,
        _source(loaded, spec),
        exporter,
        opset,
        (*loaded.notes, *_notes(request, spec, shapes, exporter, opset, note)),
        None if single else size,
        lambda: None if single else _find_baked(module, spec, size, file, exporter),
        None if info is None else info.classes,
    )


def _load(model: str | os.PathLike[str] | nn.Module, request: ExportRequest) -> LoadedModel:
    from fcn_export.load.torch_model import LoadedModel, load_model

    if not isinstance(model, str | os.PathLike):
        return LoadedModel.from_module(model, arch=request.arch, output_key=request.output_key)
    return load_model(
        model,
        arch=request.arch,
        arch_args=request.arch_args,
        output_key=request.output_key,
        trust_code=request.trust_code,
    )


def _describe(loaded: LoadedModel) -> str:
    count = sum(parameter.numel() for parameter in loaded.module.parameters())
    return f"{loaded.arch}, {count / 1e6:.2f} M parameters"


def _describe_sizes(spec: GraphSpec, shapes: ShapeRange) -> str:
    rule = "any size" if shapes.multiple_of == 1 else f"multiples of {shapes.multiple_of} px"
    if spec.fixed[1] is not None:
        rule = f"{shapes.opt[1]}x{shapes.opt[2]} px only"
    where = "in the graph" if spec.upsample else "by the network"
    return f"{spec.num_classes} classes, {rule}, full size {where}"


def _with_meaning(
    module: nn.Module, spec: GraphSpec, shapes: ShapeRange, file: OnnxFile, request: ExportRequest
) -> GraphSpec:
    """Find what the network's output is in the traced graph, and hold it against its values."""
    graph = scan_onnx(file.data, folder=file.path.parent)
    low = spec.upsample and graph.producer(LOW_RESOLUTION_SCORES) is not None
    scores = LOW_RESOLUTION_SCORES if low else SCORES
    found = find_meaning(graph, output="labels" if spec.activation == "ids" else scores)
    error = UnsupportedModelError
    found = asked_meaning(
        replace(found, output=spec.output_key or "output"),
        activation=request.activation,
        threshold=request.threshold,
        error=error,
    )
    reference = TorchReference(module, spec)
    outputs = [reference.raw(batch) for batch in tried_batches(spec, shapes)]
    found = check_values(found, outputs, error=error)
    if found.class_axis == 3:
        raise error(
            f"the network gives {list(outputs[0].shape)}, its classes last; expected "
            "[N, classes, height, width].",
            hint="Wrap it in a module whose forward permutes them, and name that with --arch.",
        )
    return decided(spec, found, outputs)


def _ends_otherwise(known: GraphSpec, traced: GraphSpec) -> bool:
    """Say whether the graph's head has to be another than the one that was traced."""
    single = known.num_classes == 1 and known.score_threshold != traced.score_threshold
    shares = known.head == "confidence" and known.activation != traced.activation
    ids = known.activation == "ids"
    return single or shares or (ids and known != traced)


def _source(loaded: LoadedModel, spec: GraphSpec) -> Source:
    path = loaded.path
    return Source(
        file=path.name if path is not None else loaded.arch,
        sha256=loaded.sha256,
        arch=None if loaded.kind in ("torchscript", "exported_program") else loaded.arch,
        path=None if path is None else str(path.absolute()),
        arch_args={key: repr(value) for key, value in loaded.arch_args.items()},
        output_key=loaded.output_key,
        activation=spec.activation,
        threshold=spec.threshold,
    )


def _notes(
    request: ExportRequest,
    spec: GraphSpec,
    shapes: ShapeRange,
    exporter: str,
    opset: int,
    note: str | None,
) -> tuple[str, ...]:
    notes = []
    if note is not None:
        notes.append(f"Exported by {exporter}: {note}.")
    if opset != request.opset:
        notes.append(f"The graph is in opset {opset}: {exporter} does not write {request.opset}.")
    if spec.fixed[1] is not None:
        notes.append(f"The network takes {shapes.opt[1]}x{shapes.opt[2]} px only.")
    if shapes.multiple_of > 1:
        notes.append(
            f"The network takes multiples of {shapes.multiple_of} px only; the runtime pads "
            "frames and crops labels."
        )
    asked = request.shapes()
    if request.min_size is not None and shapes.min[1:] != asked.min[1:]:
        notes.append(f"The smallest size is {shapes.min[1]}x{shapes.min[2]}, not as asked for.")
    return tuple(notes)


def _bound_to_size(
    module: nn.Module, spec: GraphSpec, size: tuple[int, int], graph: TracedGraph
) -> UnsupportedModelError:
    where = ", ".join(f"{name}={value}" for name, value in graph.fixed)
    reason = _compare_traces(module, spec, size, graph.model, graph.exporter)
    return UnsupportedModelError(
        f"the model is bound to the size it was traced at ({where})"
        + (f": {reason}." if reason else "."),
        hint="Let the model take sizes from its tensors, such as "
        "interpolate(y, size=x.shape[-2:]); timm's vision transformers do with --arch-arg "
        "dynamic_img_size=True. Or export it for one size: give --size, --min-size and --max-size "
        "alike.",
    )


def _find_baked(
    module: nn.Module, spec: GraphSpec, size: tuple[int, int], file: OnnxFile, exporter: str
) -> str | None:
    return _compare_traces(module, spec, size, file.load(), exporter)


def _compare_traces(
    module: nn.Module,
    spec: GraphSpec,
    size: tuple[int, int],
    first: onnx.ModelProto,
    exporter: str,
) -> str | None:
    """Trace once more at another size; say which nodes differ, None if none do."""
    from fcn_export.trace.baked import describe_baked, find_baked_nodes
    from fcn_export.trace.to_onnx import example_size, trace

    other = example_size(spec, variation=1)
    second = trace(module, spec, size=other, exporters=(exporter,))
    nodes = find_baked_nodes(first, second.model)
    return describe_baked(nodes, size, other) if nodes else None
