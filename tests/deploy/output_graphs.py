"""Small networks that end in every way that is met in the field, with ONNX Runtime to run them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from fcn_deploy.graph.scan import OnnxGraph, scan_onnx

Array = npt.NDArray[Any]

FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16
SIZES = ((12, 16), (18, 10))
"""Of the frames that are tried: only their height and width vary."""


class Chain:
    """A 1x1 convolution `s` of `x` [n, 3, h, w], and operators one after the other behind it."""

    def __init__(
        self,
        classes: int,
        *,
        seed: int = 3,
        opset: int = 17,
        image_dims: Sequence[int | str] = ("n", 3, "h", "w"),
    ) -> None:
        random = np.random.default_rng(seed)
        self.classes = classes
        self.opset = opset
        self.image_dims = [*image_dims]
        self.weight = random.normal(size=(classes, 3)).astype(np.float32) * 2
        self.nodes = [helper.make_node("Conv", ["x", "w"], ["s"])]
        self.constants: dict[str, Array] = {"w": self.weight[:, :, None, None]}
        self.tensor = "s"

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = np.asarray(value, dtype)
        return name

    def integers(self, value: Any) -> str:
        return self.constant(value, np.int64)

    def then(self, op: str, *more: str, first: bool = True, **attributes: Any) -> Chain:
        """Add an operator on the last tensor, which stays first among its inputs or is left out."""
        inputs = [self.tensor, *more] if first else [*more]
        self.tensor = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [self.tensor], **attributes))
        return self

    def built(
        self, dims: Sequence[int | str | None] | None = None, *, dtype: int = FLOAT
    ) -> tuple[bytes, OnnxGraph]:
        """Give the checked file, with output `y`, and its scan."""
        model = self._model(dims, dtype)
        onnx.checker.check_model(model)
        data = bytes(model.SerializeToString())
        return data, scan_onnx(data)

    def scanned(self) -> OnnxGraph:
        """Give the graph without asking whether it is valid."""
        return scan_onnx(self._model(None, FLOAT).SerializeToString())

    def _model(self, dims: Sequence[int | str | None] | None, dtype: int) -> onnx.ModelProto:
        usual: Sequence[int | str | None] = ("n", self.classes, "oh", "ow")
        nodes = [*self.nodes, helper.make_node("Identity", [self.tensor], ["y"])]
        graph = helper.make_graph(
            nodes,
            "chain",
            [helper.make_tensor_value_info("x", FLOAT, self.image_dims)],
            [helper.make_tensor_value_info("y", dtype, [*(usual if dims is None else dims)])],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9
        )

    def scores(self, image: Array) -> Array:
        """Give the convolution's own [n, C, h, w], in NumPy."""
        found: Array = np.einsum("kc,nchw->nkhw", self.weight, image)
        return found


def images(seed: int = 5) -> list[Array]:
    random = np.random.default_rng(seed)
    return [random.normal(size=(2, 3, *size)).astype(np.float32) for size in SIZES]


def run(data: bytes, inputs: Sequence[Array], output: str = "y") -> list[Array]:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return [session.run([output], {"x": image})[0] for image in inputs]
