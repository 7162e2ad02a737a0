"""Small ONNX graphs from uint8 frames to labels, each with one trait that Q/DQ has to cope with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fcn_deploy.artifact.manifest import Preprocess
from fcn_deploy.names import Array
from fcn_export.graph_spec import GraphSpec

__all__ = ["SPEC", "FrameGraph"]

SPEC = GraphSpec(Preprocess((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "rgb"), num_classes=4)


class FrameGraph:
    """Builds a graph node by node; every node is named after the tensor that it makes."""

    def __init__(self, rng: np.random.Generator, *, opset: int = 21) -> None:
        self._rng = rng
        self._opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.op("Cast", "image", to=TensorProto.FLOAT, out="frame")
        self.op("Transpose", "frame", perm=[0, 3, 1, 2], out="planes")
        self.op("Mul", "planes", self.constant("scale", np.float32(1 / 255)), out="input")

    def op(self, kind: str, *inputs: str, out: str, **attributes: Any) -> str:
        """Add a node; gives its output."""
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=out, **attributes))
        return out

    def constant(self, name: str, value: Any) -> str:
        """Add an initialiser; gives its name."""
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def conv(
        self,
        source: str,
        channels: tuple[int, int],
        *,
        out: str,
        kernel: int = 3,
        scale: Array | float = 1.0,
        **attributes: Any,
    ) -> str:
        """Add a convolution with random weights and bias from C_in to C_out channels."""
        inside, outside = channels
        weight = self._rng.normal(
            0, (2 / (inside * kernel**2)) ** 0.5, (outside, inside) + (kernel,) * 2
        )
        bias = self._rng.normal(0, 0.1, outside)
        names = [
            self.constant(f"{out}.weight", (weight * scale).astype(np.float32)),
            self.constant(f"{out}.bias", bias.astype(np.float32)),
        ]
        pads = attributes.pop("pads", [kernel // 2] * 4)
        return self.op("Conv", source, *names, out=out, pads=pads, **attributes)

    def model(self, scores: str) -> onnx.ModelProto:
        """End the graph in ArgMax and Cast."""
        self.op("ArgMax", scores, out="best", axis=1, keepdims=0)
        self.op("Cast", "best", to=TensorProto.UINT8, out="labels")
        image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])
        labels = helper.make_tensor_value_info("labels", TensorProto.UINT8, ["N", "H", "W"])
        graph = helper.make_graph(self.nodes, "test", [image], [labels], self.initializers)
        opsets = [helper.make_opsetid("", self._opset)]
        model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return model

    def residual(self, *, shortcut_first: bool = False, projected: bool = False) -> onnx.ModelProto:
        """Build a residual block: two convolutions beside nothing, or beside one."""
        self.conv("input", (3, 8), out="stem")
        self.op("Relu", "stem", out="start")
        self.conv("start", (8, 8), out="first")
        self.op("Relu", "first", out="middle")
        self.conv("middle", (8, 8), out="second")
        beside = self.conv("start", (8, 8), out="projection", kernel=1) if projected else "start"
        inputs: Sequence[str] = (beside, "second") if shortcut_first else ("second", beside)
        self.op("Add", *inputs, out="sum")
        self.op("Relu", "sum", out="end")
        return self.model(self.conv("end", (8, 4), out="classifier", kernel=1))
