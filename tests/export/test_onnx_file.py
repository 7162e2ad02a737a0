"""Writing ONNX: one file, or one more for the weights; either runs in every backend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fcn_deploy.errors import UnsupportedModelError
from fcn_export.onnx_file import write_onnx


def model_with_weights() -> onnx.ModelProto:
    weights = np.random.default_rng(0).normal(size=(3, 400)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "weights"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["best"], axis=3, keepdims=0),
        helper.make_node("Cast", ["best"], ["labels"], to=TensorProto.INT32),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])],
        [helper.make_tensor_value_info("labels", TensorProto.INT32, ["N", "H", "W"])],
        [numpy_helper.from_array(weights, "weights")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_a_small_model_is_one_file(tmp_path: Path) -> None:
    file = write_onnx(model_with_weights(), tmp_path / "model.onnx")

    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert file.path.read_bytes() == file.data
    assert file.size_bytes == len(file.data)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_large_weights_go_to_a_plain_file_beside_the_model(tmp_path: Path, backend: str) -> None:
    image = np.random.default_rng(1).integers(0, 255, (1, 5, 6, 3), np.uint8)
    whole = write_onnx(model_with_weights(), tmp_path / "whole.onnx")

    file = write_onnx(model_with_weights(), tmp_path / "model.onnx", max_single_file_bytes=1000)

    assert file.weights == tmp_path / "model.onnx.data"
    assert file.weights.stat().st_nlink == 1
    assert len(file.data) < 1000
    assert file.size_bytes > 4800
    with whole.opened(backend) as context:
        expected = context.execute({"image": image})["labels"]
    with file.opened(backend, inner=("scores",)) as context:
        found = context.execute({"image": image})
    assert np.array_equal(found["labels"], expected)
    assert found["scores"].shape == (1, 5, 6, 400)
    assert {path.name for path in tmp_path.iterdir()} == {
        "whole.onnx", "model.onnx", "model.onnx.data",
    }  # fmt: skip


def test_an_invalid_model_is_refused_with_the_checkers_words(tmp_path: Path) -> None:
    model = model_with_weights()
    model.graph.node[1].op_type = "NoSuchOperator"

    with pytest.raises(UnsupportedModelError, match="NoSuchOperator"):
        write_onnx(model, tmp_path / "model.onnx")
