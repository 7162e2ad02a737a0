"""Small ONNX graphs made by hand, for tests of the runtime: no PyTorch, no exporter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Dims = Sequence[int | str]


def segmentation_graph(
    *,
    classes: int = 3,
    stride: int = 2,
    seed: int = 0,
    input_type: int = TensorProto.UINT8,
    layout: str = "NHWC",
    head: str = "labels",
    size: tuple[int | str, int | str] = ("H", "W"),
    batch: int | str = "N",
    poison: float = 0.0,
) -> bytes:
    """Make a two-convolution network: input `image`, scores `network_scores` at 1/stride.

    Args:
        head: ``labels`` (Resize, ArgMax or Greater, Cast to uint8), ``scores`` (float32 at
            1/stride as the output), ``sigmoid`` (the same, activated).
        poison: added to the weights of the last layer.
    """
    random = np.random.default_rng(seed)
    weights: dict[str, npt.NDArray[Any]] = {
        "w1": random.standard_normal((6, 3, 3, 3), np.float32) / 3,
        "w2": random.standard_normal((classes, 6, 1, 1), np.float32) + np.float32(poison),
        "scale": np.full((1, 1, 1, 1), 1 / 255, np.float32),
    }
    nodes: list[Any] = []
    current = "image"

    def add(op: str, *more: str, output: str = "", **attributes: Any) -> str:
        nonlocal current
        output = output or f"t{len(nodes)}"
        nodes.append(helper.make_node(op, [current, *more], [output], **attributes))
        current = output
        return output

    if input_type == TensorProto.UINT8:
        add("Cast", to=TensorProto.FLOAT)
        add("Mul", "scale")
    if layout == "NHWC":
        add("Transpose", perm=[0, 3, 1, 2])
    whole = current
    add("Conv", "w1", strides=[stride, stride], pads=[1, 1, 1, 1])
    add("Relu")
    add("Conv", "w2", output="network_scores")
    result = helper.make_tensor_value_info("labels", TensorProto.UINT8, [batch, *size])
    if head == "labels":
        _add_labels(nodes, add, weights, whole, classes)
    else:
        add("Sigmoid" if head == "sigmoid" else "Identity", output="out")
        result = helper.make_tensor_value_info("out", TensorProto.FLOAT, [batch, classes, "h", "w"])
    shape: Dims = [batch, *size, 3] if layout == "NHWC" else [batch, 3, *size]
    image = helper.make_tensor_value_info("image", input_type, shape)
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "test", [image], [result], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def _add_labels(
    nodes: list[Any], add: Any, weights: dict[str, npt.NDArray[Any]], whole: str, classes: int
) -> None:
    weights["first_two"] = np.array([0, 1], np.int64)
    weights["last_two"] = np.array([2, 3], np.int64)
    weights["zero"] = np.zeros((), np.float32)
    weights["one"] = np.ones(1, np.int64)
    nodes.append(helper.make_node("Shape", [whole], ["whole_shape"]))
    nodes.append(helper.make_node("Shape", ["network_scores"], ["scores_shape"]))
    nodes.append(helper.make_node("Gather", ["whole_shape", "last_two"], ["target"]))
    nodes.append(helper.make_node("Gather", ["scores_shape", "first_two"], ["kept"]))
    nodes.append(helper.make_node("Concat", ["kept", "target"], ["sizes"], axis=0))
    add("Resize", "", "", "sizes", mode="linear")
    if classes == 1:
        add("Squeeze", "one")
        add("Greater", "zero")
    else:
        add("ArgMax", axis=1, keepdims=0)
    add("Cast", to=TensorProto.UINT8, output="labels")
