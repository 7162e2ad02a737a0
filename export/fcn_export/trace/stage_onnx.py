"""Somebody's ONNX file to the artifact's graph: frames in, labels out, around what is there."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass
from math import log as natural_log
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fcn_deploy.artifact.manifest import Source
from fcn_deploy.artifact.plain_files import read_plain_file
from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.errors import UnsupportedModelError
from fcn_deploy.graph.scan import OnnxGraph, scan_onnx
from fcn_deploy.graph.tail import Tail, find_tail
from fcn_deploy.names import TensorSpec
from fcn_export.check.reference import OnnxReference
from fcn_export.graph_spec import GraphSpec
from fcn_export.onnx_file import OnnxFile, write_onnx
from fcn_export.request import ExportRequest
from fcn_export.staged import GRAPH_NAME, Staged
from fcn_export.steps import Steps
from fcn_export.trace.activation import check_activation
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
        scores: name of the tensor [N, classes, h, w] before any activation.
        threshold: of a single class's score.
        threshold_known: it follows from the graph; otherwise scores are taken for logits.
    """

    graph: OnnxGraph
    input: TensorSpec
    output: str
    scores: str
    threshold: float
    threshold_known: bool

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
        spec, shapes = _plan(context, network, request)
        steps.tell(f"{spec.num_classes} classes, {shapes.multiple_of} px steps")
    reference = OnnxReference(context, spec, scores=network.scores, threshold=network.threshold)
    with steps.step("wrap"):
        proto = _parse(path, data, graph)
        check_activation(
            proto.graph,
            reference,
            spec,
            shapes,
            scores=network.scores,
            threshold_known=network.threshold_known,
        )
        model = ir.from_proto(proto)
        if network.complete:
            AdoptGraph(output=network.output)(model)
        else:
            WrapNetwork(spec, scores=network.scores, threshold=network.threshold)(model)
        FinishGraph(spec)(model)
        file = write_onnx(take_proto(model), folder / GRAPH_NAME)
        del model
        steps.tell(f"opset {graph.opset}, {file.size_bytes / 1e6:.1f} MB")
    source = Source(path.name, hashlib.sha256(data).hexdigest(), None, str(path.absolute()))
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
    names = [tensor.name for tensor in graph.outputs]
    if request.output_key is not None and request.output_key not in names:
        raise UnsupportedModelError(
            f"'{path}' has no output '{request.output_key}'; it has {', '.join(names)}."
        )
    tails = {
        name: tail
        for name in names
        if (tail := find_tail(graph, output=name)) is not None and tail.class_axis == 1
    }
    wanted = request.output_key or ("out" if "out" in tails else None)
    if wanted is None and len(tails) == 1:
        wanted = next(iter(tails))
    if wanted not in tails:
        raise UnsupportedModelError(
            f"no single output of '{path}' holds class scores [N, C, h, w] or labels made of "
            f"them; it has {', '.join(names)}.",
            hint="Choose one with --output-key.",
        )
    tail = tails[wanted]
    if spec.dtype == "uint8" and (tail.labels is None or request.head != "labels"):
        raise UnsupportedModelError(
            f"'{path}' takes frames and gives '{wanted}', which cannot be made '{request.head}'.",
            hint="Give the network alone, with a float32 input [N, C, H, W].",
        )
    known = tail.threshold is not None or tail.probabilities or tail.activation is not None
    return _Network(graph, spec, wanted, tail.scores, _threshold(tail), known)


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


def _threshold(tail: Tail) -> float:
    """Give the score above which a pixel is of a single class."""
    if tail.threshold is not None and tail.activation == "sigmoid":
        return natural_log(tail.threshold / (1 - tail.threshold))
    if tail.threshold is not None:
        return tail.threshold
    return 0.5 if tail.probabilities else 0.0


def _inner(network: _Network) -> tuple[str, ...]:
    outputs = {tensor.name for tensor in network.graph.outputs}
    return () if network.scores in outputs else (network.scores,)


def _plan(
    context: ExecutionContext, network: _Network, request: ExportRequest
) -> tuple[GraphSpec, ShapeRange]:
    """Run the network at small sizes and decide its graph; sizes fixed in the file stay so."""
    if network.complete:
        batch, fixed_height, fixed_width, channels = network.input.shape
    else:
        batch, channels, fixed_height, fixed_width = network.input.shape
    channels = channels or len(request.preprocess().mean)
    classes = 0

    def run(height: int, width: int) -> tuple[int, int]:
        nonlocal classes
        shape = (height, width, channels) if network.complete else (channels, height, width)
        image = np.zeros((batch or 1, *shape), network.input.dtype)
        found = context.execute({network.input.name: image}, outputs=[network.scores])
        _, classes, low_height, low_width = found[network.scores].shape
        return low_height, low_width

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
        classes,
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
