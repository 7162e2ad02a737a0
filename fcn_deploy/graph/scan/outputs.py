"""Which tensors a model gives out, changed without a parser: inner ones added, or nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set

from fcn_deploy.graph.scan.limits import ScanLimits
from fcn_deploy.graph.scan.onnx_graph import OnnxGraph, StoredTensor
from fcn_deploy.graph.scan.parse import make_reader, parse_model
from fcn_deploy.graph.scan.schema import ELEMENT_TYPES, GRAPH, MODEL, VALUE_INFO
from fcn_deploy.graph.scan.wire import encode_delimited, encode_int, encode_key

__all__ = ["with_extra_outputs", "with_outputs", "without_weights"]

# field numbers of onnx.proto
_MODEL_IR_VERSION, _MODEL_GRAPH, _MODEL_OPSET_IMPORT = 1, 7, 8
_GRAPH_NODE, _GRAPH_NAME, _GRAPH_INITIALIZER = 1, 2, 5
_GRAPH_INPUT, _GRAPH_OUTPUT = 11, 12
_NODE_DOMAIN = 7
_VALUE_INFO_NAME, _VALUE_INFO_TYPE = 1, 2
_TYPE_TENSOR = 1
_TENSOR_ELEM_TYPE, _TENSOR_SHAPE = 1, 2
_SHAPE_DIM, _DIM_VALUE = 1, 1


def with_extra_outputs(data: bytes, names: Sequence[str]) -> bytes:
    """Let a model give out inner tensors as well.

    Their element type is the one that the model says; where it says none it is left open, as
    their shape is: libraries find out both. Protobuf merges what is appended, so the model itself
    is not rewritten.

    Args:
        data: a model that has been scanned.
        names: tensors that nodes make; they become outputs after those that are there.

    Returns:
        The model's bytes, followed by a fragment that declares the outputs.

    Raises:
        ValueError: no node makes the tensor, or it is an output already, or is named twice.
        ArtifactError, UnsupportedOpError: as scan_onnx.
    """
    graph = parse_model(data, name="the model", limits=ScanLimits())
    outputs = {tensor.name for tensor in graph.outputs}
    fragment = b""
    for name in names:
        if name in outputs:
            raise ValueError(f"the tensor {name!r} is an output already")
        outputs.add(name)
        fragment += _declared_output(graph, name)
    return data + encode_delimited(_MODEL_GRAPH, fragment) if fragment else data


def with_outputs(data: bytes, names: Sequence[str]) -> bytes:
    """Cut a model down to what computes some of its tensors.

    Nodes and weights that nothing asks for any more are left out, so that no library spends time
    or memory on them. Everything that stays is copied as it is.

    Args:
        data: a model that has been scanned.
        names: tensors that nodes make, inner ones or outputs; they become the only outputs.

    Returns:
        A model of its own.

    Raises:
        ValueError: no node makes the tensor, or it is named twice.
        ArtifactError, UnsupportedOpError: as scan_onnx.
    """
    if len(set(names)) != len(names):
        raise ValueError(f"{list(names)} names a tensor twice")
    graph = parse_model(data, name="the model", limits=ScanLimits())
    nodes, tensors = _needed(graph, names)
    return _rebuilt(data, graph, nodes, tensors, [_declared_output(graph, name) for name in names])


def without_weights(data: bytes | memoryview, graph: OnnxGraph) -> bytes:
    """Give the operators of a scanned model, with inputs in place of its large constants.

    It has no outputs: what it says of them binds nobody.
    """
    large = {name: tensor for name, tensor in graph.initializers.items() if tensor.value is None}
    nodes = set(range(len(graph.nodes)))
    for position, node in enumerate(graph.nodes):
        held = node.attributes.get("value")
        if node.op_type == "Constant" and isinstance(held, StoredTensor) and held.value is None:
            nodes.remove(position)
            large[node.outputs[0]] = held
    tensors = graph.initializers.keys() - large.keys()
    inputs = [
        encode_delimited(_GRAPH_INPUT, _value_info(name, tensor.dtype, tensor.dims))
        for name, tensor in large.items()
    ]
    return _rebuilt(
        data, graph, nodes, tensors, inputs, node_end=encode_delimited(_NODE_DOMAIN, b"")
    )


def _rebuilt(
    data: bytes | memoryview,
    graph: OnnxGraph,
    nodes: Set[int],
    tensors: Set[str],
    more: Sequence[bytes],
    *,
    node_end: bytes = b"",
) -> bytes:
    """Copy a model's inputs, these nodes and these initializers; add further fields.

    What stands at a message's end replaces what the message said before.
    """
    reader = make_reader(data, name="the model", limits=ScanLimits())
    imports: list[bytes] = []
    spans = []
    for field, value in reader.fields(MODEL, ((0, len(data)),)):
        if field == "graph":
            spans.append(value)
        elif field == "opset_import":
            imports.append(encode_delimited(_MODEL_OPSET_IMPORT, bytes(data[value[0] : value[1]])))
    body: list[bytes | memoryview] = [encode_delimited(_GRAPH_NAME, b"cut")]
    stored = iter(graph.initializers)
    position = 0
    for field, value in reader.fields(GRAPH, spans):
        end = b""
        if field == "node":
            number, wanted, end = _GRAPH_NODE, position in nodes, node_end
            position += 1
        elif field == "initializer":
            number, wanted = _GRAPH_INITIALIZER, next(stored) in tensors
        elif field == "input":
            # old files list initializers as inputs too: without its value one would have to be fed
            name = dict(reader.fields(VALUE_INFO, (value,)))["name"]
            fed = name not in graph.initializers
            number, wanted = _GRAPH_INPUT, fed or name in tensors
        else:
            continue
        if wanted:
            content = reader.data[value[0] : value[1]]
            body += [encode_key(number, len(content) + len(end)), content, end]
    body += more
    size = sum(len(part) for part in body)
    # by number: OpenVINO takes a file for no model if a field comes twice before the graph does
    head = [encode_int(_MODEL_IR_VERSION, graph.ir_version), encode_key(_MODEL_GRAPH, size)]
    return b"".join([*head, *body, *imports])


def _needed(graph: OnnxGraph, names: Iterable[str]) -> tuple[frozenset[int], frozenset[str]]:
    """Give the positions of the nodes, and the names of the tensors, that make these tensors."""
    tensors = set(names)
    nodes = set()
    for position in range(len(graph.nodes) - 1, -1, -1):  # nodes stand in an order that can run
        node = graph.nodes[position]
        if tensors.intersection(node.outputs):
            nodes.add(position)
            tensors.update(filter(None, node.inputs))
    return frozenset(nodes), frozenset(tensors)


def _declared_output(graph: OnnxGraph, name: str) -> bytes:
    if graph.producer(name) is None:
        raise ValueError(f"no node makes the tensor {name!r}")
    described = graph.tensor(name)
    dtype = described.dtype if described is not None else None
    return encode_delimited(_GRAPH_OUTPUT, _value_info(name, dtype, None))


def _value_info(name: str, dtype: str | None, dims: Sequence[int] | None) -> bytes:
    value_info = encode_delimited(_VALUE_INFO_NAME, name.encode())
    if dtype is not None:
        codes = {kind.name: code for code, kind in ELEMENT_TYPES.items()}
        tensor_type = encode_int(_TENSOR_ELEM_TYPE, codes[dtype])
        if dims is not None:
            sizes = [encode_delimited(_SHAPE_DIM, encode_int(_DIM_VALUE, size)) for size in dims]
            tensor_type += encode_delimited(_TENSOR_SHAPE, b"".join(sizes))
        value_info += encode_delimited(
            _VALUE_INFO_TYPE, encode_delimited(_TYPE_TENSOR, tensor_type)
        )
    return value_info
