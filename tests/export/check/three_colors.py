"""Scores that are three weighted sums of the channels: in NumPy, and as a graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fcn_deploy.names import Array
from fcn_deploy.preprocess import default_preprocess
from fcn_export.graph_spec import GraphSpec
from fcn_export.onnx_file import OnnxFile, write_onnx

__all__ = ["SPEC", "WEIGHTS", "ThreeColors", "graph_of"]

SPEC = GraphSpec(default_preprocess(), 3, upsample=False)
WEIGHTS = np.array([[1.0, -0.5, 0.2], [-0.3, 1.0, 0.1], [0.2, -0.6, 0.9]], np.float32)


class ThreeColors:
    """Scores are three weighted sums of the channels; computed here in NumPy."""

    name = "PyTorch"

    def __init__(self, change: Callable[[Array], Array] = lambda scores: scores) -> None:
        self._change = change

    def scores(self, images: Array) -> Array:
        values = images.astype(np.float32) @ WEIGHTS
        return self._change(np.ascontiguousarray(values.transpose(0, 3, 1, 2)))


def graph_of(path: Path, *, weights: Array = WEIGHTS, fixed_width: int | None = None) -> OnnxFile:
    """The same in ONNX, with named inner scores."""
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "weights"], ["sums"]),
        helper.make_node("Transpose", ["sums"], ["scores"], perm=[0, 3, 1, 2]),
        helper.make_node("ArgMax", ["scores"], ["best"], axis=1, keepdims=0),
        helper.make_node("Cast", ["best"], ["labels"], to=TensorProto.UINT8),
    ]
    constants = [numpy_helper.from_array(weights, "weights")]
    if fixed_width is not None:
        nodes.insert(1, helper.make_node("Slice", ["x", "zero", "end", "axis"], ["cut"]))
        nodes[2].input[0] = "cut"
        for name, value in (("zero", 0), ("end", fixed_width), ("axis", 2)):
            constants.append(numpy_helper.from_array(np.array([value]), name))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])],
        [helper.make_tensor_value_info("labels", TensorProto.UINT8, ["N", "H", "W2"])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return write_onnx(model, path / "model.onnx")
