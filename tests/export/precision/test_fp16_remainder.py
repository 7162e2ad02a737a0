"""The float16 rest of an int8 graph: scales typed as TensorRT wants them, right in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from fcn_deploy.backends import get_backend
from fcn_deploy.backends.base import ModelSource
from fcn_deploy.errors import UnsupportedModelError
from fcn_deploy.names import Array, Precision
from fcn_export.check.sample_frames import natural_frame
from fcn_export.precision.passes.lint import lint
from fcn_export.precision.passes.to_half import fp16_remainder
from tests.export.precision.test_precision_lint import graph

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT

TWO_LAYERS = """
    <ir_version: 10, opset_import: ["" : 21]>
    frame_to_labels (uint8[N, H, W, 3] image) => (uint8[N, H, W] labels)
    {
        values = Cast <to = 1> (image)
        planes = Transpose <perm = [0, 3, 1, 2]> (values)
        scaled = Mul (planes, factor)
        q = QuantizeLinear (scaled, scale, zero)
        dq = DequantizeLinear (q, scale, zero)
        weights = DequantizeLinear <axis = 0> (w, w_scale, w_zero)
        features = Conv (dq, weights, bias)
        active = Relu (features)
        q2 = QuantizeLinear (active, scale2, zero)
        dq2 = DequantizeLinear (q2, scale2, zero)
        weights2 = DequantizeLinear <axis = 0> (w2, w2_scale, w_zero)
        network_scores = Conv (dq2, weights2, bias)
        ids = ArgMax <axis = 1, keepdims = 0> (network_scores)
        labels = Cast <to = 2> (ids)
    }
"""


def int8_graph(text: str = TWO_LAYERS, **weights: Any) -> onnx.ModelProto:
    rng = np.random.default_rng(7)
    return graph(
        text,
        **{
            "factor": np.float32(1 / 255),
            "scale": np.float32(0.008),
            "scale2": np.float32(0.01),
            "w_zero": np.zeros(4, np.int8),
            "w2": rng.integers(-127, 128, (4, 4, 1, 1)).astype(np.int8),
            "w_scale": np.full(4, 8e-4, np.float32),
            "w2_scale": np.full(4, 5e-4, np.float32),
            "bias": np.array([0.3, -0.6, 0.9, 0.1], np.float32),
            **weights,
        },
    )


def types(model: onnx.ModelProto) -> dict[str, int]:
    values = (*model.graph.value_info, *model.graph.output)
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    return {**{t.name: t.data_type for t in model.graph.initializer}, **found}


def test_q_and_dq_sit_between_the_types_without_a_cast_at_a_layer() -> None:
    model = int8_graph()

    changes = fp16_remainder(model)

    onnx.checker.check_model(model, full_check=True)
    found = types(model)
    assert [found[name] for name in ("q", "q2", "w", "w2")] == [TensorProto.INT8] * 4
    assert [found[name] for name in ("dq", "weights", "features", "active", "dq2")] == [HALF] * 5
    assert [found[name] for name in ("w_scale", "w2_scale", "scale2", "bias")] == [HALF] * 4
    # the first Q reads the float32 frame, its DQ feeds a float16 layer: one scale in two types
    assert (found["scale"], found["scale__fp16"]) == (FLOAT, HALF)
    # a cast between DQ and layer would keep TensorRT from int8: there is only the one at the head
    assert changes.casts == 1
    assert lint(model) == ()


def test_a_layer_whose_scale_float16_cannot_hold_stays_float32() -> None:
    model = int8_graph(w2_scale=np.array([5e-4, 3e-6, 5e-4, 5e-4], np.float32))

    changes = fp16_remainder(model)

    onnx.checker.check_model(model, full_check=True)
    found = types(model)
    assert changes.float_nodes == ("node_network_scores",)
    assert [found[name] for name in ("w2_scale", "weights2", "dq2")] == [FLOAT] * 3
    assert found["active"] == HALF
    assert lint(model) == ()


def test_a_graph_without_quantised_layers_or_of_an_old_opset_is_refused() -> None:
    plain = int8_graph()
    for node in list(plain.graph.node):
        if node.op_type.endswith("Linear"):
            plain.graph.node.remove(node)
    old = int8_graph()
    old.opset_import[0].version = 18

    with pytest.raises(UnsupportedModelError, match="no quantised layers"):
        fp16_remainder(plain)
    with pytest.raises(UnsupportedModelError, match="opset 18; float16 scales need 19"):
        fp16_remainder(old)


def scores(data: bytes, *, optimised: bool, disabled: tuple[str, ...] = ()) -> Array:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(data, options, disabled_optimizers=list(disabled))
    found: Array = session.run(["network_scores"], {"image": natural_frame(16, 16, 0)[None]})[0]
    return found


def remainder_with_scores(*, half: bool) -> bytes:
    # a layer right before a Q, as before a shortcut: only such a bias is spoiled
    model = int8_graph(TWO_LAYERS.replace("Relu (features)", "Identity (features)"))
    if half:
        fp16_remainder(model)
    value = onnx.helper.make_tensor_value_info("network_scores", FLOAT, ["N", 4, "H", "W"])
    model.graph.output.append(value)
    kept = [v for v in model.graph.value_info if v.name != "network_scores"]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    return bytes(model.SerializeToString())


def test_onnx_runtime_needs_the_guard_and_the_guard_works() -> None:
    data = remainder_with_scores(half=True)
    right = scores(data, optimised=False)

    # the day this fails, ONNX Runtime is repaired, and the guard of its backend may go
    assert not np.allclose(scores(data, optimised=True), right, atol=0.02)

    context = get_backend("onnxruntime").open(
        ModelSource(Path("model.onnx"), data), precision=Precision.INT8
    )
    found = context.execute({"image": natural_frame(16, 16, 0)[None]})["network_scores"]
    context.close()
    np.testing.assert_allclose(found, right, atol=0.02)  # float16 rounds, and Q with it


def test_the_float32_graph_keeps_every_optimisation_and_is_right() -> None:
    data = remainder_with_scores(half=False)

    np.testing.assert_allclose(
        scores(data, optimised=True), scores(data, optimised=False), atol=0.02
    )


def test_the_float16_rest_changes_scores_by_its_rounding_only() -> None:
    whole = scores(remainder_with_scores(half=False), optimised=False)
    rest = scores(remainder_with_scores(half=True), optimised=False)

    # half a step of the second quantisation may be crossed: its scale times a weight
    step = 0.01 * 127 * 5e-4 * 4
    assert np.abs(whole - rest).max() < step + 4 * 2**-11 * np.abs(whole).max()
