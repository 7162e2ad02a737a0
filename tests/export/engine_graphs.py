"""Small graphs for the engine builder: one per precision, and one per mistake."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.names import TensorSpec
from fcn_export.engine.profiles import EngineProfile, image_profile

__all__ = ["IMAGE", "PROFILE", "SHAPES", "network", "single_op", "write"]

IMAGE = TensorSpec("image", "uint8", (None, None, None, 3))
SHAPES = ShapeRange((1, 32, 32), (1, 64, 64), (2, 128, 128))
PROFILE: EngineProfile = image_profile(IMAGE, SHAPES)

_CLASSES = 4


def network(kind: str = "float32", *, transposed: bool = False) -> onnx.ModelProto:
    """Make a network of two layers from uint8 frames to uint8 labels.

    Args:
        kind: type that both layers multiply in: ``"float32"``, ``"float16"`` or ``"int8"``.
        transposed: the second layer is a ConvTranspose.
    """
    rng = np.random.default_rng(7)
    dtype = np.dtype("float16" if kind == "float16" else "float32")
    nodes = [
        helper.make_node(
            "Cast", ["image"], ["x"], name="to_float", to=helper.np_dtype_to_tensor_dtype(dtype)
        ),
        helper.make_node("Transpose", ["x"], ["pixels"], name="to_nchw", perm=[0, 3, 1, 2]),
    ]
    weights: list[TensorProto] = []
    first = (rng.standard_normal((8, 3, 3, 3)) / 9).astype(dtype)
    second_shape = (8, _CLASSES, 2, 2) if transposed else (_CLASSES, 8, 1, 1)
    second = rng.standard_normal(second_shape).astype(dtype)
    nodes += _layer("Conv", "stem", "pixels", "features", first, weights, kind, pads=[1, 1, 1, 1])
    nodes.append(helper.make_node("Relu", ["features"], ["active"], name="relu"))
    op_type = "ConvTranspose" if transposed else "Conv"
    strides: dict[str, Any] = {"strides": [2, 2]} if transposed else {}
    nodes += _layer(op_type, "classifier", "active", "scores", second, weights, kind, **strides)
    nodes += [
        helper.make_node("ArgMax", ["scores"], ["best"], name="argmax", axis=1, keepdims=0),
        helper.make_node("Cast", ["best"], ["labels"], name="to_uint8", to=TensorProto.UINT8),
    ]
    return _model(nodes, weights, ("image", TensorProto.UINT8, ["N", "H", "W", 3]))


def single_op(
    node: onnx.NodeProto,
    weights: Sequence[TensorProto] = (),
    *,
    elem_type: int = TensorProto.FLOAT,
    rank: int = 4,
    check: bool = True,
) -> onnx.ModelProto:
    """Make a graph of one node from ``x`` [N, 3, H, W] to ``labels``.

    Args:
        check: False where the caller adds what is missing.
    """
    source: tuple[str, int, list[str | int]] = ("x", elem_type, ["N", 3, "H", "W"])
    return _model([node], list(weights), source, elem_type, rank, check=check)


def write(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    """Write a model to a folder; gives the file."""
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def _layer(
    op_type: str,
    name: str,
    source: str,
    target: str,
    values: np.ndarray,
    weights: list[TensorProto],
    kind: str,
    **attributes: Any,
) -> list[onnx.NodeProto]:
    if kind != "int8":
        weights.append(numpy_helper.from_array(values, f"{name}.weight"))
        inputs = [source, f"{name}.weight"]
        return [helper.make_node(op_type, inputs, [target], name=name, **attributes)]
    axis = 1 if op_type == "ConvTranspose" else 0
    others = tuple(index for index in range(4) if index != axis)
    scale = (np.abs(values).max(axis=others) / 127).astype(np.float32)
    spread = scale.reshape([-1 if index == axis else 1 for index in range(4)])
    quantised = np.rint(values / spread).astype(np.int8)
    weights += [
        numpy_helper.from_array(quantised, f"{name}.weight"),
        numpy_helper.from_array(scale, f"{name}.weight_scale"),
        numpy_helper.from_array(np.zeros(scale.shape, np.int8), f"{name}.weight_zero"),
        numpy_helper.from_array(np.array(2.0, np.float32), f"{name}.scale"),
        numpy_helper.from_array(np.array(0, np.int8), f"{name}.zero"),
    ]
    data = [f"{name}.scale", f"{name}.zero"]
    filters = [f"{name}.weight", f"{name}.weight_scale", f"{name}.weight_zero"]
    return [
        helper.make_node("QuantizeLinear", [source, *data], [f"{name}.q"], name=f"{name}_q"),
        helper.make_node(
            "DequantizeLinear", [f"{name}.q", *data], [f"{name}.dq"], name=f"{name}_dq"
        ),
        helper.make_node(
            "DequantizeLinear", filters, [f"{name}.w"], name=f"{name}_weight_dq", axis=axis
        ),
        helper.make_node(op_type, [f"{name}.dq", f"{name}.w"], [target], name=name, **attributes),
    ]


def _model(
    nodes: list[onnx.NodeProto],
    weights: list[TensorProto],
    graph_input: tuple[str, int, list[str | int]],
    output_type: int = TensorProto.UINT8,
    rank: int = 3,
    *,
    check: bool = True,
) -> onnx.ModelProto:
    name, elem_type, dims = graph_input
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, elem_type, dims)],
        [helper.make_tensor_value_info("labels", output_type, [None] * rank)],
        weights,
    )
    opset = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    if check:
        onnx.checker.check_model(model)
    return model
