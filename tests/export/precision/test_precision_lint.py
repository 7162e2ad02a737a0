"""Each fault of types is found with its node, and a sound graph has none."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from fcn_deploy.errors import UnsupportedModelError
from fcn_export.precision.passes.lint import check_types, lint

QUANTISED = """
    <ir_version: 10, opset_import: ["" : 21]>
    frame_to_labels (uint8[N, H, W, 3] image) => (uint8[N, H, W] labels)
    {
        values = Cast <to = 1> (image)
        planes = Transpose <perm = [0, 3, 1, 2]> (values)
        q = QuantizeLinear (planes, scale, zero)
        dq = DequantizeLinear (q, scale, zero)
        weights = DequantizeLinear <axis = 0> (w, w_scale)
        network_scores = Conv (dq, weights, bias)
        size = Shape <start = 1, end = 3> (values)
        scores = Resize <axes = [2, 3], mode = "linear"> (network_scores, , , size)
        ids = ArgMax <axis = 1, keepdims = 0> (scores)
        labels = Cast <to = 2> (ids)
    }
"""


def graph(text: str = QUANTISED, **weights: Any) -> onnx.ModelProto:
    rng = np.random.default_rng(5)
    values = {
        "scale": np.float32(1.5),
        "zero": np.int8(0),
        "w": rng.integers(-127, 128, (4, 3, 1, 1)).astype(np.int8),
        "w_scale": np.full(4, 0.01, np.float32),
        "bias": np.zeros(4, np.float32),
        **weights,
    }
    model = parser.parse_model(text)
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    for name, value in values.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return model


def test_a_signed_symmetric_graph_has_no_faults() -> None:
    assert lint(graph()) == ()
    assert check_types(graph(), name="model.int8.onnx") == ()


@pytest.mark.parametrize(
    ("rule", "node", "message", "model"),
    [
        (
            "unsigned",
            "node_q",
            r"node 'node_q' quantises to UINT8 \(TensorRT would read it as INT8 and clip at 127\)",
            graph(zero=np.uint8(0)),
        ),
        ("zero-point", "node_q", "non-zero zero point 12 in 'node_q'", graph(zero=np.int8(12))),
        (
            "int32-bias",
            "node_b",
            "INT32 bias DequantizeLinear 'node_b': quantise with QuantizeBias=False",
            graph(
                QUANTISED.replace(
                    "network_scores = Conv (dq, weights, bias)",
                    "b = DequantizeLinear <axis = 0> (b32, w_scale)\n"
                    "network_scores = Conv (dq, weights, b)",
                ),
                b32=np.ones(4, np.int32),
            ),
        ),
        (
            "subnormal-scale",
            "node_weights",
            "FP16 Q/DQ scale 3e-06 in 'node_weights' is subnormal",
            graph(
                QUANTISED.replace("Conv (dq, weights, bias)", "Conv (dq, wide, bias)").replace(
                    "network_scores =", "wide = Cast <to = 1> (weights)\nnetwork_scores ="
                ),
                w_scale=np.array([0.01, 3e-6, 0.01, 0.01], np.float16),
            ),
        ),
        (
            "inner-uint8",
            "node_planes",
            "uint8 tensor 'image' goes into Transpose 'node_planes'; Cast it first",
            graph(
                QUANTISED.replace("values = Cast <to = 1> (image)", "")
                .replace("(values)", "(image)")
                .replace("QuantizeLinear (planes", "QuantizeLinear (values")
                .replace("q = Quant", "values = Cast <to = 1> (planes)\nq = Quant")
                .replace("size = Shape <start = 1, end = 3> (image)", "")
                .replace("(network_scores, , , size)", "(network_scores, , , sides)"),
                sides=np.array([8, 8], np.int64),
            ),
        ),
        (
            "inner-uint8",
            "node_small",
            r"uint8 tensor 'small' inside the graph at 'node_small' \(Cast\); Cast to uint8 last",
            graph(
                QUANTISED.replace(
                    "labels = Cast <to = 2> (ids)",
                    "small = Cast <to = 2> (ids)\nlabels = Identity (small)",
                )
            ),
        ),
    ],
)
def test_a_fault_is_named_with_its_node(
    rule: str, node: str, message: str, model: onnx.ModelProto
) -> None:
    found = lint(model)

    assert (rule, node) in [(finding.rule, finding.node) for finding in found]
    with pytest.raises(UnsupportedModelError, match=rf"'m\.onnx' is not written: {message}"):
        check_types(model, name="m.onnx")


def test_what_only_tensorrt_refuses_is_a_note() -> None:
    model = graph(QUANTISED.replace('mode = "linear">', 'mode = "linear", antialias = 1>'))

    assert check_types(model, name="model.onnx") == (
        "TensorRT cannot build 'model.onnx': Resize 'node_scores' has antialias=1.",
    )


def test_a_transposed_convolution_in_bfloat16_is_found() -> None:
    model = graph(
        QUANTISED.replace(
            "network_scores = Conv (dq, weights, bias)",
            "half = Cast <to = 16> (dq)\n kernel = Cast <to = 16> (float_kernel)\n"
            "big = ConvTranspose (half, kernel)\n network_scores = Cast <to = 1> (big)",
        ),
        float_kernel=np.ones((3, 4, 1, 1), np.float32),
    )

    assert [(f.rule, f.node, f.severity) for f in lint(model)] == [
        ("bf16-conv-transpose", "node_big", "tensorrt")
    ]
