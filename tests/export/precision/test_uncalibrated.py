"""Variants for plans, made without calibration images, have the types that were asked for."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from fcn_deploy.names import Precision
from fcn_export.precision.place_qdq import place_qdq
from fcn_export.precision.to_int8 import prepare
from fcn_export.precision.uncalibrated import in_precision, uniform_table
from tests.export.qdq_graphs import FrameGraph


@pytest.mark.parametrize(
    ("precision", "weights"),
    [
        (Precision.FP32, TensorProto.FLOAT),
        (Precision.FP16, TensorProto.FLOAT16),
        (Precision.INT8, TensorProto.INT8),
    ],
)
def test_convolutions_have_weights_of_the_precision(
    precision: Precision, weights: int, rng: np.random.Generator
) -> None:
    model = FrameGraph(rng).residual()
    before = model.SerializeToString(deterministic=True)

    made = in_precision(model, precision)

    kinds = {t.data_type for t in made.graph.initializer if len(t.dims) == 4}
    assert kinds == {weights}
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(made)


def test_int8_convolutions_multiply_in_float16_steps(rng: np.random.Generator) -> None:
    made = in_precision(FrameGraph(rng).residual(), Precision.INT8)

    types = {t.name: t.data_type for t in made.graph.initializer}
    scales = {
        node.input[1]
        for node in made.graph.node
        if node.op_type == "DequantizeLinear" and types.get(node.input[0]) == TensorProto.INT8
    }
    assert {types[name] for name in scales} == {TensorProto.FLOAT16}


def test_every_tensor_with_a_scale_has_the_one_threshold(rng: np.random.Generator) -> None:
    model = prepare(FrameGraph(rng).residual())

    table = uniform_table(model, threshold=2.5)

    assert set(table.tensors) >= set(place_qdq(ir.from_proto(model).graph).edges)
    assert {value for entry in table.tensors.values() for value in entry.values()} == {2.5}
