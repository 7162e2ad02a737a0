"""Small ONNX models that the tests build, attack and load."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = 5


def ints(name: str, values: Sequence[int]) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    *,
    inputs: Sequence[onnx.ValueInfoProto] = (),
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Sequence[TensorProto] = (),
    opset: int = 21,
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10, producer_name="tests"
    )


def segmenter_model(
    tail: Sequence[onnx.NodeProto] | None = None,
    *,
    output_dtype: int = TensorProto.UINT8,
    output_dims: Sequence[int | str | None] = ("n", "h", "w"),
    extra_initializers: Sequence[TensorProto] = (),
    opset: int = 21,
) -> onnx.ModelProto:
    """uint8 [n, h, w, 3] -> two convolutions at half size -> Resize `full` -> tail -> `labels`."""
    rng = np.random.default_rng(7)

    def weights(name: str, shape: tuple[int, ...]) -> TensorProto:
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32) * 0.1, name)

    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT, name="to_float"),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node(
            "Conv", ["nchw", "w1", "b1"], ["c1"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4
        ),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["network_scores"], kernel_shape=[1, 1]),
        helper.make_node("Shape", ["network_scores"], ["nc"], start=0, end=2),
        helper.make_node("Shape", ["nchw"], ["hw"], start=2, end=4),
        helper.make_node("Concat", ["nc", "hw"], ["full_size"], axis=0),
        helper.make_node(
            "Resize",
            ["network_scores", "", "", "full_size"],
            ["full"],
            mode="linear",
            coordinate_transformation_mode="half_pixel",
            name="upsample",
        ),
    ]
    if tail is None:
        tail = (
            helper.make_node("ArgMax", ["full"], ["ids"], axis=1, keepdims=0, name="argmax"),
            helper.make_node("Cast", ["ids"], ["labels"], to=TensorProto.UINT8),
        )
    return model_of(
        [*nodes, *tail],
        inputs=[helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", "h", "w", 3])],
        outputs=[helper.make_tensor_value_info("labels", output_dtype, list(output_dims))],
        initializers=[
            weights("w1", (8, 3, 3, 3)),
            weights("b1", (8,)),
            weights("w2", (CLASSES, 8, 1, 1)),
            *extra_initializers,
        ],
        opset=opset,
    )


def segmenter_bytes() -> bytes:
    return bytes(segmenter_model().SerializeToString())


def external_tensor(
    name: str, dims: Sequence[int], entries: Sequence[tuple[str, str]]
) -> TensorProto:
    """Give a float32 tensor whose bytes are elsewhere, described by exactly these entries."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries:
        tensor.external_data.add(key=key, value=value)
    return tensor


def with_external_weight(
    entries: Sequence[tuple[str, str]], *, dims: Sequence[int] = (8,), constant_node: bool = False
) -> bytes:
    """x [8] + weight -> y, the weight as an initializer or in a Constant node's attribute."""
    weight = external_tensor("weight", dims, entries)
    nodes = [helper.make_node("Add", ["x", "weight"], ["y"])]
    if constant_node:
        nodes.insert(0, helper.make_node("Constant", [], ["weight"], name="holder", value=weight))
    model = model_of(
        nodes,
        inputs=[helper.make_tensor_value_info("x", TensorProto.FLOAT, [8])],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, [8])],
        initializers=[] if constant_node else [weight],
    )
    return bytes(model.SerializeToString())


X = helper.make_tensor_value_info("x", TensorProto.FLOAT, [8])
Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [8])
RELU = helper.make_node("Relu", ["x"], ["y"])


def one_node(node: onnx.NodeProto, *initializers: TensorProto) -> bytes:
    """x [8] -> node -> y [8]."""
    model = model_of([node], inputs=[X], outputs=[Y], initializers=initializers)
    return bytes(model.SerializeToString())


def with_weight(weight: TensorProto) -> bytes:
    """x [8] + weight -> y [8]."""
    return one_node(helper.make_node("Add", ["x", "weight"], ["y"]), weight)
