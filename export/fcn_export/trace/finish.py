"""Make a traced graph the artifact's: names, first and last Cast, nothing of this machine.

Needs a graph from a uint8 image to the outputs of its `GraphSpec`. What is computed stays. The
input's sizes are read after its Cast, the scores get their names, dimensions are called N, H and W,
equal constants are kept once, and stack traces with the paths of this machine go.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    DeduplicateHashedInitializersPass,
)

from fcn_deploy.errors import UnsupportedModelError
from fcn_export.graph_spec import LOW_RESOLUTION_SCORES, SCORES, GraphSpec
from fcn_export.onnx_values import forget_inner_shapes, input_of, tensors_by_name

__all__ = ["FinishGraph", "check_uint8_use", "fixed_dims"]

_DIM_NAMES = ("N", "H", "W")
_LABEL_PASSES = {"Cast", "Identity", "Squeeze", "Gather", "Slice"}
# "half_pixel" and PyTorch's own differ only where the output has a side of one pixel
_BILINEAR_MODES = {"half_pixel", "pytorch_half_pixel"}


def fixed_dims(model: ir.Model) -> tuple[tuple[str, int], ...]:
    """Give the input's dimensions of batch, height and width that are constants, with values."""
    dims = model.graph.inputs[0].shape or ()
    named = zip(_DIM_NAMES, dims, strict=False)
    return tuple((name, size) for name, size in named if isinstance(size, int))


class FinishGraph(ir.passes.InPlacePass):
    """See the module."""

    def __init__(self, spec: GraphSpec) -> None:
        self._spec = spec

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph.

        Raises:
            UnsupportedModelError: uint8 is used elsewhere than at the ends.
        """
        _read_sizes_after_cast(model.graph)
        _name_scores(model.graph, self._spec)
        _name_dims(model.graph, self._spec)
        DeduplicateHashedInitializersPass()(model)
        _remove_metadata(model)
        check_uint8_use(model.graph)
        return ir.passes.PassResult(model, True)


def check_uint8_use(graph: ir.Graph) -> None:
    """Check that uint8 is only between the input and a Cast, and between a Cast and the output.

    TensorRT takes uint8 nowhere else.

    Raises:
        UnsupportedModelError: a node of another kind reads or makes uint8; it is named.
    """
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        reads, makes = (
            [value for value in values if value.dtype == ir.DataType.UINT8]
            for values in (inputs, node.outputs)
        )
        if node.op_type == "Cast" and all(value.is_graph_output() for value in makes):
            continue
        for value in (*reads, *makes):
            raise UnsupportedModelError(
                f"node '{node.name}' ({node.op_type}) uses uint8 in '{value.name}'; "
                "only a Cast after the input and a Cast before the output may.",
                hint="Let the model compute in float32.",
            )


def _read_sizes_after_cast(graph: ir.Graph) -> None:
    """Let everything but the Cast read its output: torch.export asks the input for its sizes."""
    image = graph.inputs[0]
    for node in image.consumers():
        if node.op_type == "Identity" and not node.outputs[0].is_graph_output():
            node.outputs[0].replace_all_uses_with(image)
            graph.remove(node, safe=True)
    readers = set(image.consumers())
    casts = [node for node in graph if node in readers and node.op_type == "Cast"]
    if not casts:
        raise UnsupportedModelError(
            "the traced graph does not begin with a Cast of its input.",
            hint="Report this with the model's code: it should not happen.",
        )
    first, *others = casts
    values = first.outputs[0]
    for cast in others:
        cast.outputs[0].replace_all_uses_with(values)
        graph.remove(cast, safe=True)
    for node, position in image.uses():
        if node is not first:
            node.replace_input_with(position, values)
    if graph[0] is not first:
        graph.remove(first)
        graph.insert_before(graph[0], first)


def _name_scores(graph: ir.Graph, spec: GraphSpec) -> None:
    """Name the head's input, and what the last bilinear Resize before it reads."""
    scores = tensors_by_name(graph).get(SCORES) if spec.head == "scores" else _head_input(graph)
    if scores is None:
        return
    last = scores.producer()
    if spec.head != "scores":
        _rename(graph, scores, SCORES)
    if last is None or not _is_bilinear(last):
        return
    low = input_of(last, 0)
    named = low.producer() is not None and not low.is_graph_output()
    if named and not _same_size(low, scores):
        _rename(graph, low, LOW_RESOLUTION_SCORES)


def _head_input(graph: ir.Graph) -> ir.Value | None:
    """Walk back from the labels, through Cast and the choice of one class, to ArgMax or Greater."""
    node = graph.outputs[0].producer()
    while node is not None and node.op_type in _LABEL_PASSES:
        node = input_of(node, 0).producer()
    if node is None or node.op_type not in ("ArgMax", "Greater"):
        return None
    value = input_of(node, 0)
    return None if value.producer() is None else value


def _is_bilinear(node: ir.Node) -> bool:
    attributes = node.attributes
    mode = attributes.get_string("coordinate_transformation_mode", "half_pixel")
    return (
        node.op_type == "Resize"
        and attributes.get_string("mode") == "linear"
        and mode in _BILINEAR_MODES
        and not ("antialias" in attributes and attributes.get_int("antialias"))
    )


def _same_size(first: ir.Value, second: ir.Value) -> bool:
    """Say whether two tensors are known to have one height and width."""
    if first.shape is None or second.shape is None:
        return False
    sides = first.shape[2:]
    unknown = any(not isinstance(side, int) and side.value is None for side in sides)
    return bool(sides) and not unknown and sides == second.shape[2:]


def _name_dims(graph: ir.Graph, spec: GraphSpec) -> None:
    """Call dimensions N, H, W; inner shapes stay only where they are written in these names."""
    dims = graph.inputs[0].shape or ()
    named = zip(dims, _DIM_NAMES, strict=False)
    if not all(isinstance(dim, int) or dim.value in (name, None) for dim, name in named):
        forget_inner_shapes(graph)
    specs = (spec.input, *spec.outputs)
    for value, tensor in zip((graph.inputs[0], *graph.outputs), specs, strict=True):
        sizes = zip(tensor.shape, tensor.layout, strict=True)
        value.shape = ir.Shape([letter if size is None else size for size, letter in sizes])


def _remove_metadata(model: ir.Model) -> None:
    graph = model.graph
    ClearMetadataAndDocStringPass()(model)
    for value in tensors_by_name(graph).values():
        value.metadata_props.clear()
        value.doc_string = None
        tensor = value.const_value
        if tensor is not None:
            tensor.metadata_props.clear()
        if isinstance(tensor, ir.serde.TensorProtoTensor):  # is written as it was read
            tensor.raw.ClearField("doc_string")
            tensor.raw.ClearField("metadata_props")
    for holder in (model, graph):
        holder.metadata_props.clear()
        holder.doc_string = None
    graph.name = "frame_to_labels"


def _rename(graph: ir.Graph, value: ir.Value, name: str) -> None:
    """Give a tensor a name; another one that has it gets another."""
    other = tensors_by_name(graph).get(name)
    if other is value:
        return
    if other is not None:
        _rename(graph, other, f"{name}_inner")
    value.name = name
