"""Somebody's ONNX file to the artifact's graph: frames in, labels out, around what is there."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import exp, isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fcn_deploy.artifact.manifest import Source
from fcn_deploy.artifact.plain_files import read_plain_file
from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.errors import UnsupportedModelError
from fcn_deploy.graph.meaning import (
    FoundMeaning,
    asked_meaning,
    check_values,
    find_meaning,
    find_queries,
    require_known,
)
from fcn_deploy.graph.scan import OnnxGraph, scan_onnx
from fcn_deploy.graph.tail import Tail, find_tail
from fcn_deploy.names import TensorSpec
from fcn_export.check.reference import OnnxReference
from fcn_export.check.sample_frames import tried_batches
from fcn_export.graph_spec import GraphSpec, check_head, decided
from fcn_export.onnx_file import OnnxFile, write_onnx
from fcn_export.request import ExportRequest
from fcn_export.staged import GRAPH_NAME, Staged
from fcn_export.steps import Steps
from fcn_export.trace.size_rule import SizeRule, find_size_rule, fit_shapes

if TYPE_CHECKING:
    import onnx

    from fcn_deploy.backends.base import ExecutionContext

__all__ = ["stage_onnx"]

_BACKEND = "onnxruntime"


@dataclass(frozen=True, slots=True)
class _Network:
    """What was found in the file.

    Attributes:
        input: float32 [N, C, H, W], or uint8 [N, H, W, 3] of a graph that is complete already.
        output: that holds scores or labels.
        scores: name of the tensor of scores, before a last activation where there is one; of
            class ids where their scores are not known.
        found: what that tensor means.
    """

    graph: OnnxGraph
    input: TensorSpec
    output: str
    scores: str
    found: FoundMeaning

    @property
    def complete(self) -> bool:
        """The graph takes frames and gives labels, as an artifact's does."""
        return self.input.dtype == "uint8"


def stage_onnx(
    path: Path, folder: Path, request: ExportRequest, steps: Steps, stack: ExitStack
) -> Staged:
    """Scan an ONNX file and put preprocessing and head around its network.

    Args:
        folder: to write the graph to.
        stack: keeps the given network loaded, to compare with.

    Raises:
        ArtifactError, UntrustedArtifactError: the file is damaged, or unsafe to parse.
        UnsupportedModelError: it is no segmentation network with a float [N, C, H, W] input.
    """
    import onnx_ir as ir

    from fcn_export.onnx_values import take_proto
    from fcn_export.trace.finish import FinishGraph
    from fcn_export.trace.onnx_surgery import AdoptGraph, WrapNetwork

    with steps.step("load"):
        data = read_plain_file(path)
        graph = scan_onnx(data, name=f"'{path}'", folder=path.parent, foreign=True)
        network = _find_network(graph, path, request)
        steps.tell(f"opset {graph.opset}, {len(graph.nodes)} nodes, {network.input}")
    weights = path if graph.external_files else None
    given = OnnxFile(path, data, weights)
    context = stack.enter_context(given.opened(_BACKEND, inner=_inner(network)))
    with steps.step("try sizes"):
        spec, shapes = _specify(context, network, request)
        spec = _with_meaning(context, network, spec, shapes)
        steps.tell(f"{spec.num_classes} classes, {shapes.multiple_of} px steps")
    reference = OnnxReference(context, spec, scores=network.scores)
    with steps.step("wrap"):
        proto = _parse(path, data, graph)
        model = ir.from_proto(proto)
        if network.complete:
            AdoptGraph(output=network.output)(model)
        else:
            WrapNetwork(spec, scores=network.scores)(model)
        FinishGraph(spec)(model)
        file = write_onnx(take_proto(model), folder / GRAPH_NAME)
        del model
        steps.tell(f"opset {graph.opset}, {file.size_bytes / 1e6:.1f} MB")
    source = Source(
        path.name,
        hashlib.sha256(data).hexdigest(),
        None,
        str(path.absolute()),
        activation=spec.activation,
        threshold=spec.threshold,
    )
    return Staged(file, spec, shapes, reference, source, "onnx", graph.opset)


def _parse(path: Path, data: bytes, graph: OnnxGraph) -> onnx.ModelProto:
    import onnx

    if graph.external_files:
        return onnx.load_model(path)  # the scan has checked where the weights lie
    return onnx.load_model_from_string(data)


def _find_network(graph: OnnxGraph, path: Path, request: ExportRequest) -> _Network:
    if len(graph.inputs) != 1:
        listed = ", ".join(tensor.name for tensor in graph.inputs)
        raise UnsupportedModelError(f"'{path}' has inputs {listed}; expected one image.")
    spec = graph.inputs[0].spec()
    _check_input(spec, path, request)
    wanted = _choose_output(graph, path, request)
    found = asked_meaning(
        find_meaning(graph, output=wanted),
        activation=request.activation,
        threshold=request.threshold,
        error=UnsupportedModelError,
    )
    require_known(found, error=UnsupportedModelError)
    tail = find_tail(graph, output=wanted)
    if spec.dtype == "uint8" and (found.kind != "labels" or request.head != "labels"):
        raise UnsupportedModelError(
            f"'{path}' takes frames and gives '{wanted}', which cannot be made '{request.head}'.",
            hint="Give the network alone, with a float32 input [N, C, H, W].",
        )
    inner = None if tail is None or found.asked else _before_tail(graph, tail, found)
    if inner is None:
        return _Network(graph, spec, wanted, wanted, found)
    return _Network(graph, spec, wanted, inner.output, inner)


def _choose_output(graph: OnnxGraph, path: Path, request: ExportRequest) -> str:
    """Take the output asked for, ``out``, or the only one that scores or labels are known of."""
    names = [tensor.name for tensor in graph.outputs]
    key = request.output_key
    if key is not None and key not in names:
        raise UnsupportedModelError(f"'{path}' has no output '{key}'; it has {', '.join(names)}.")
    queries = find_queries(graph)
    if queries is not None and key in (None, queries.output, queries.class_output):
        require_known(queries, error=UnsupportedModelError)
    if key is not None or len(names) == 1:
        return key or names[0]
    known = [name for name in names if find_meaning(graph, output=name).activation != "unknown"]
    if "out" in known or len(known) == 1:
        return "out" if "out" in known else known[0]
    raise UnsupportedModelError(
        f"no single output of '{path}' holds class scores [N, C, h, w] or labels made of "
        f"them; it has {', '.join(names)}.",
        hint="Choose one with --output-key.",
    )


def _before_tail(graph: OnnxGraph, tail: Tail, found: FoundMeaning) -> FoundMeaning | None:
    """Say what the scores before a graph's own labels or last activation are.

    Returns:
        None where that is not known: then the output itself is taken.
    """
    labels = tail.labels is not None
    # a tail of scores is looked for with the classes second
    if tail.class_axis != 1 or labels != (found.kind == "labels"):
        return None
    if not labels and (found.class_axis != 1 or tail.activation is None):
        return None
    inner = find_meaning(graph, output=tail.scores)
    if inner.kind != "scores" or inner.activation == "unknown":
        return None
    if not labels:
        return replace(inner, threshold=found.threshold and inner.threshold and found.threshold)
    if tail.threshold is None:
        return inner
    probability = tail.threshold
    if not isfinite(probability):
        return None
    if tail.activation is None and inner.activation == "logits":
        probability = 1 / (1 + exp(-max(-700.0, probability)))
    return replace(inner, threshold=probability) if 0 < probability < 1 else None


def _check_input(spec: TensorSpec, path: Path, request: ExportRequest) -> None:
    channels = len(request.preprocess().mean)
    network = spec.dtype == "float32" and len(spec.shape) == 4 and spec.shape[1] in (channels, None)
    frames = spec.dtype == "uint8" and len(spec.shape) == 4 and spec.shape[3] == 3
    if not (network or frames):
        raise UnsupportedModelError(
            f"'{path}' takes {spec}; a network of colour '{request.preprocess().color}' takes "
            f"float32 [N, {channels}, H, W], and a complete graph uint8 [N, H, W, 3].",
            hint="Say what the network expects with --color.",
        )


def _inner(network: _Network) -> tuple[str, ...]:
    outputs = {tensor.name for tensor in network.graph.outputs}
    return () if network.scores in outputs else (network.scores,)


def _specify(
    context: ExecutionContext, network: _Network, request: ExportRequest
) -> tuple[GraphSpec, ShapeRange]:
    """Run the network at small sizes and decide its graph; sizes fixed in the file stay so."""
    if network.complete:
        batch, fixed_height, fixed_width, channels = network.input.shape
    else:
        batch, channels, fixed_height, fixed_width = network.input.shape
    channels = channels or len(request.preprocess().mean)
    found = network.found
    if found.activation == "ids":
        check_head(request.head)
    axis = (1 if found.class_axis is None else found.class_axis) if found.rank != 3 else None

    def run(height: int, width: int) -> tuple[int, int]:
        shape = (height, width, channels) if network.complete else (channels, height, width)
        image = np.zeros((batch or 1, *shape), network.input.dtype)
        given = context.execute({network.input.name: image}, outputs=[network.scores])
        sides = [size for at, size in enumerate(given[network.scores].shape) if at not in (0, axis)]
        return sides[0], sides[1]

    asked = request.shapes()
    if fixed_height is not None and fixed_width is not None:
        size = (fixed_height, fixed_width)
        rule = SizeRule(1, size, run(*size) == size)
        only = (batch or 1, *size)
        shapes = ShapeRange(only, only, only)
    else:
        rule = find_size_rule(
            run, min_size=asked.min[1:], max_size=asked.max[1:], size=asked.opt[1:]
        )
        shapes = fit_shapes(asked, rule)
    spec = GraphSpec(
        request.preprocess(),
        found.num_classes or 1,  # until its values are seen
        input_color=request.input_color,
        head=request.head,
        output_key=None,
        upsample=not rule.full_resolution,
        multiple_of=rule.multiple_of,
        min_size=rule.min_size,
        opset=network.graph.opset,
        fixed=(batch, fixed_height, fixed_width),
    )
    return spec, shapes


def _with_meaning(
    context: ExecutionContext, network: _Network, spec: GraphSpec, shapes: ShapeRange
) -> GraphSpec:
    """Hold what the graph says of its scores against their values for varied frames."""
    reference = OnnxReference(context, spec, scores=network.scores)
    outputs = [reference.raw(batch) for batch in tried_batches(spec, shapes)]
    found = check_values(network.found, outputs, error=UnsupportedModelError)
    if network.found.class_axis is None and found.class_axis not in (None, 1):
        raise UnsupportedModelError(
            f"'{network.scores}' is {list(outputs[0].shape)}, its classes last, which its graph "
            "does not say; expected [N, classes, height, width].",
            hint="Write the number of classes into the output's shape.",
        )
    return decided(spec, found, outputs)
