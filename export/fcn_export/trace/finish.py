"""Make a traced graph the artifact's: names, first and last Cast, nothing of this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from fcn_deploy.errors import UnsupportedModelError
from fcn_export.graph_spec import INPUT_NAME, LOW_RESOLUTION_SCORES, SCORES, GraphSpec

if TYPE_CHECKING:
    import onnx

__all__ = ["check_uint8_use", "finish_graph", "fixed_dims"]

_DIM_NAMES = ("N", "H", "W")
_LABEL_PASSES = {"Cast", "Identity", "Squeeze", "Gather", "Slice"}
# "half_pixel" and PyTorch's own differ only where the output has a side of one pixel
_BILINEAR_MODES = {b"half_pixel", b"pytorch_half_pixel"}


def fixed_dims(model: onnx.ModelProto) -> tuple[tuple[str, int], ...]:
    """Give the input's dimensions of batch, height and width that are constants, with values."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    return tuple(
        (name, dim.dim_value)
        for name, dim in zip(_DIM_NAMES, dims, strict=False)
        if dim.HasField("dim_value")
    )


def finish_graph(model: onnx.ModelProto, spec: GraphSpec) -> None:
    """Rewrite `model` in place, without changing what it computes.

    The input's sizes are read after its Cast, the scores get their names, dimensions are called
    N, H and W, equal constants are kept once, and stack traces with the paths of this machine go.

    Raises:
        UnsupportedModelError: uint8 is used elsewhere than at the ends, or onnx's checker
            refuses the graph.
    """
    _read_sizes_after_cast(model.graph)
    _name_scores(model.graph, spec)
    _name_dims(model.graph, spec)
    _share_equal_initializers(model.graph)
    _remove_metadata(model)
    check_uint8_use(model.graph)


def check_uint8_use(graph: onnx.GraphProto) -> None:
    """Check that uint8 is only between the input and a Cast, and between a Cast and the output.

    TensorRT takes uint8 nowhere else.

    Raises:
        UnsupportedModelError: a node of another kind reads or makes uint8; it is named.
    """
    import onnx

    uint8 = onnx.TensorProto.UINT8
    typed = (*graph.input, *graph.value_info, *graph.output)
    names = {value.name for value in typed if value.type.tensor_type.elem_type == uint8}
    names |= {tensor.name for tensor in graph.initializer if tensor.data_type == uint8}
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        reads = names.intersection(node.input)
        makes = names.intersection(node.output)
        if node.op_type == "Cast" and makes <= outputs:
            continue
        if reads or makes:
            raise UnsupportedModelError(
                f"node '{node.name}' ({node.op_type}) uses uint8 in '{(reads or makes).pop()}'; "
                "only a Cast after the input and a Cast before the output may.",
                hint="Let the model compute in float32.",
            )


def _read_sizes_after_cast(graph: onnx.GraphProto) -> None:
    """Let everything but the Cast read its output: torch.export asks the input for its sizes."""
    for identity in _identities_of(graph, INPUT_NAME):
        _replace_reads(graph.node, identity.output[0], INPUT_NAME)
        graph.node.remove(identity)
    casts = [n for n in graph.node if n.op_type == "Cast" and list(n.input) == [INPUT_NAME]]
    if not casts:
        raise UnsupportedModelError(
            "the traced graph does not begin with a Cast of its input.",
            hint="Report this with the model's code: it should not happen.",
        )
    first = type(casts[0]).FromString(casts[0].SerializeToString())
    for cast in casts:
        _replace_reads(graph.node, cast.output[0], first.output[0])
        graph.node.remove(cast)
    _replace_reads(graph.node, INPUT_NAME, first.output[0])
    graph.node.insert(0, first)


def _identities_of(graph: onnx.GraphProto, name: str) -> list[onnx.NodeProto]:
    outputs = {value.name for value in graph.output}
    return [
        n
        for n in graph.node
        if n.op_type == "Identity" and n.input[0] == name and n.output[0] not in outputs
    ]


def _name_scores(graph: onnx.GraphProto, spec: GraphSpec) -> None:
    """Name the head's input, and what the last bilinear Resize before it reads."""
    producers = {name: node for node in graph.node for name in node.output}
    name = SCORES if spec.head == "scores" else _head_input(graph, producers)
    if name is None:
        return
    last = producers.get(name)
    if spec.head != "scores":
        _rename(graph, name, SCORES)
    if last is None or last.op_type != "Resize" or not _is_bilinear(last):
        return
    low = last.input[0]
    outputs = {value.name for value in graph.output}
    if low in producers and low not in outputs and not _same_size(graph, low, SCORES):
        _rename(graph, low, LOW_RESOLUTION_SCORES)


def _head_input(graph: onnx.GraphProto, producers: dict[str, onnx.NodeProto]) -> str | None:
    """Walk back from the labels, through Cast and the choice of one class, to ArgMax or Greater."""
    node = producers.get(graph.output[0].name)
    while node is not None and node.op_type in _LABEL_PASSES:
        node = producers.get(node.input[0])
    if node is None or node.op_type not in ("ArgMax", "Greater"):
        return None
    return node.input[0] if node.input[0] in producers else None


def _is_bilinear(resize: onnx.NodeProto) -> bool:
    import onnx

    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in resize.attribute}
    return (
        attributes.get("mode") == b"linear"
        and attributes.get("coordinate_transformation_mode", b"half_pixel") in _BILINEAR_MODES
        and not attributes.get("antialias", 0)
    )


def _same_size(graph: onnx.GraphProto, first: str, second: str) -> bool:
    """Say whether two tensors are known to have one height and width."""
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim][2:]
        for value in (*graph.value_info, *graph.output)
        if value.name in (first, second)
    }
    sizes = shapes.get(first)
    return bool(sizes) and all(sizes or ()) and sizes == shapes.get(second)


def _name_dims(graph: onnx.GraphProto, spec: GraphSpec) -> None:
    """Call dimensions N, H, W; inner shapes stay only where they are written in these names."""
    dims = graph.input[0].type.tensor_type.shape.dim
    ours = all(dim.dim_param in (name, "") for dim, name in zip(dims, _DIM_NAMES, strict=False))
    if not ours:
        del graph.value_info[:]
    for value, tensor in (
        (graph.input[0], spec.input),
        *zip(graph.output, spec.outputs, strict=True),
    ):
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for size, letter in zip(tensor.shape, tensor.layout, strict=True):
            dim = shape.dim.add()
            if size is None:
                dim.dim_param = letter
            else:
                dim.dim_value = size


def _share_equal_initializers(graph: onnx.GraphProto) -> None:
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    doubles: dict[str, str] = {}
    for tensor in graph.initializer:
        if not tensor.raw_data:
            continue
        digest = hashlib.sha256(tensor.raw_data).digest()
        kept = first.setdefault((tensor.data_type, tuple(tensor.dims), digest), tensor.name)
        if kept != tensor.name:
            doubles[tensor.name] = kept
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name in doubles:
            del graph.initializer[index]
    for double, kept in doubles.items():
        _replace_reads(graph.node, double, kept)


def _remove_metadata(model: onnx.ModelProto) -> None:
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.value_info)
    for holder in (model, graph, *graph.node, *graph.initializer, *values):
        del holder.metadata_props[:]
        holder.doc_string = ""
    graph.name = "frame_to_labels"


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    if old == new:
        return
    if any(new in node.output for node in graph.node):
        _rename(graph, new, f"{new}_inner")
    for node in graph.node:
        for index, name in enumerate(node.output):
            if name == old:
                node.output[index] = new
    _replace_reads(graph.node, old, new)
    for value in graph.value_info:
        if value.name == old:
            value.name = new


def _replace_reads(nodes: Iterable[onnx.NodeProto], old: str, new: str) -> None:
    for node in nodes:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
        for attribute in node.attribute:  # branches of If and bodies of Loop read outer tensors
            if attribute.HasField("g"):
                _replace_reads(attribute.g.node, old, new)
