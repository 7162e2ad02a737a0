"""The element type of every tensor in a graph, found without copying its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fcn_deploy.errors import UnsupportedModelError
from fcn_models.foreign_errors import first_line

if TYPE_CHECKING:
    import onnx

__all__ = ["describe_tensors", "element_types", "standard_opset"]

_SMALL_BYTES = 1024
"""Initialisers up to this size are kept where types are inferred: shapes are computed of them."""

_INVENTED = "unk__"  # names that onnx gives to sizes that it does not know


def standard_opset(model: onnx.ModelProto) -> int:
    """Give the version of ONNX's own operators that the model is written in."""
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    return int(versions[0])


def element_types(model: onnx.ModelProto) -> Mapping[str, int]:
    """Give the `TensorProto.DataType` of every tensor that a node reads or makes.

    Raises:
        UnsupportedModelError: onnx cannot tell a tensor's type; its node is named.
    """
    inferred = _infer(model)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        types[value.name] = value.type.tensor_type.elem_type
    for node in model.graph.node:
        for name in node.output:
            if name and not types.get(name):
                raise UnsupportedModelError(
                    f"the type of '{name}' is unknown, which node '{node.name}' ({node.op_type}) "
                    "makes.",
                    hint="Only ONNX's own operators can be typed.",
                )
    return types


def describe_tensors(model: onnx.ModelProto) -> None:
    """Write types and shapes of all inner tensors into `model`, in place of those it had."""
    inferred = _infer(model, keep_described=False)
    for value in inferred.value_info:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param.startswith(_INVENTED):
                dim.Clear()
    del model.graph.value_info[:]
    model.graph.value_info.extend(inferred.value_info)


def _infer(model: onnx.ModelProto, *, keep_described: bool = True) -> onnx.GraphProto:
    """Infer types and shapes on a copy that declares large weights in place of holding them."""
    import onnx

    skeleton = onnx.ModelProto()
    skeleton.ir_version = model.ir_version
    skeleton.opset_import.extend(model.opset_import)
    graph = model.graph
    skeleton.graph.name = graph.name
    skeleton.graph.node.extend(graph.node)
    skeleton.graph.input.extend(graph.input)
    skeleton.graph.output.extend(graph.output)
    if keep_described:
        skeleton.graph.value_info.extend(graph.value_info)
    declared = {value.name for value in graph.input}
    for tensor in graph.initializer:
        if len(tensor.raw_data) <= _SMALL_BYTES and not tensor.external_data:
            skeleton.graph.initializer.append(tensor)
        elif tensor.name not in declared:
            skeleton.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    try:
        return onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise UnsupportedModelError(
            f"the graph's types do not fit together: {first_line(error)}"
        ) from error
