"""Q/DQ in the graph: where it stands, what it holds, and that backends compute it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from fcn_deploy.names import Array
from fcn_deploy.telemetry import import_openvino
from fcn_export.precision.passes.fold_batch_norm import FoldBatchNorm
from fcn_export.precision.passes.int8_weights import MIN_SCALE, quantize_weight
from fcn_export.precision.place_qdq import classifier_nodes, place_qdq, quantizable_nodes
from fcn_export.precision.thresholds import METHODS
from fcn_export.precision.to_int8 import Int8Builder, Int8Graph, prepare
from fcn_export.precision.uncalibrated import uniform_table
from tests.export.qdq_graphs import FrameGraph


def _quantized(model: onnx.ModelProto, **thresholds: float) -> Int8Graph:
    """Quantise with these thresholds of tensors, and with one of 4 for the others."""
    prepared = prepare(model)
    table = uniform_table(prepared, threshold=4.0)
    given = {name: dict.fromkeys(METHODS, value) for name, value in thresholds.items()}
    own = replace(table, tensors={**table.tensors, **given})
    return Int8Builder(prepared, own).build(method="minmax")


def _activation_scales(model: onnx.ModelProto) -> dict[str, float]:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return {
        node.input[0]: constants[node.input[1]].item()
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }


def _run(model: onnx.ModelProto, frame: Array, *outputs: str) -> list[Array]:
    """Run in ONNX Runtime without its optimizer: each node computed as ONNX defines it."""
    import onnxruntime

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for name in outputs:
        copy.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        copy.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    results: list[Array] = session.run(list(outputs), {"image": frame})
    return results


def _frame(rng: np.random.Generator, size: int = 32) -> Array:
    return rng.integers(0, 256, (1, size, size, 3), dtype=np.uint8)


def test_residual_add_reads_only_its_shortcut_through_qdq(rng: np.random.Generator) -> None:
    for shortcut_first in (False, True):
        for projected in (False, True):
            model = FrameGraph(rng).residual(shortcut_first=shortcut_first, projected=projected)

            placement = place_qdq(ir.from_proto(model).graph)

            shortcut = "projection" if projected else "start"
            adds = [
                edge for edges in placement.edges.values() for edge in edges if edge[0] == "sum"
            ]
            assert adds == [("sum", 0 if shortcut_first else 1)]
            assert ("sum", adds[0][1]) in placement.edges[shortcut]


def test_add_without_a_convolution_to_fuse_into_stays_float(rng: np.random.Generator) -> None:
    graph = FrameGraph(rng)
    graph.conv("input", (3, 8), out="stem")
    graph.conv("stem", (8, 8), out="deep")
    graph.op("Sigmoid", "deep", out="gate")
    graph.op("Add", "gate", "stem", out="sum")
    model = graph.model(graph.conv("sum", (8, 4), out="classifier", kernel=1))

    placement = place_qdq(ir.from_proto(model).graph)

    assert not [edge for edges in placement.edges.values() for edge in edges if edge[0] == "sum"]


def test_inputs_of_a_concat_share_one_scale(rng: np.random.Generator) -> None:
    graph = FrameGraph(rng)
    graph.conv("input", (3, 8), out="left")
    graph.conv("input", (3, 8), out="right")
    graph.conv("right", (8, 8), out="deep")
    graph.op("Concat", "left", "right", "deep", axis=1, out="joined")
    model = graph.model(graph.conv("joined", (24, 4), out="classifier", kernel=1))

    result = _quantized(model, left=1.0, right=2.0, deep=8.0)

    scales = _activation_scales(result.model)
    assert {scales[name] for name in ("left", "right", "deep", "joined")} == {
        float(np.float32(8 / 127))
    }
    assert scales["input"] == float(np.float32(4 / 127))


def test_concat_that_something_else_reads_stays_float(rng: np.random.Generator) -> None:
    graph = FrameGraph(rng)
    graph.conv("input", (3, 8), out="left")
    graph.op("Concat", "left", "input", axis=1, out="joined")
    graph.op("Sigmoid", "joined", out="gate")
    graph.conv("joined", (11, 11), out="deep")
    graph.op("Mul", "deep", "gate", out="gated")
    model = graph.model(graph.conv("gated", (11, 4), out="classifier", kernel=1))

    placement = place_qdq(ir.from_proto(model).graph)

    readers = {name for edges in placement.edges.values() for name, _ in edges}
    assert readers == {"left", "deep", "classifier"}


def test_nothing_after_the_classifier_is_quantized(rng: np.random.Generator) -> None:
    model = FrameGraph(rng).residual()

    result = _quantized(model)

    assert classifier_nodes(ir.from_proto(model).graph) == ("classifier",)
    readers = [node.op_type for node in result.model.graph.node if "classifier" in node.input]
    assert readers == ["ArgMax"]


def test_layout_is_canonical_for_every_node(rng: np.random.Generator) -> None:
    model = FrameGraph(rng).residual(projected=True)

    result = _quantized(model)

    graph = result.model.graph
    onnx.checker.check_model(result.model, full_check=True)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    qdq = [n for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in qdq:
        scale, zero_point = (constants[name] for name in node.input[1:])
        assert zero_point.dtype == np.int8
        assert not zero_point.any()
        assert scale.dtype == np.float32
        assert (scale >= MIN_SCALE).all()
    for conv in (node for node in graph.node if node.op_type == "Conv"):
        data, weight = makers[conv.input[0]], makers[conv.input[1]]
        assert data.op_type == "DequantizeLinear"
        assert makers[data.input[0]].op_type == "QuantizeLinear"
        assert constants[weight.input[0]].dtype == np.int8
        assert constants[weight.input[1]].shape == (constants[weight.input[0]].shape[0],)
        assert constants[conv.input[2]].dtype == np.float32  # the bias, straight from a constant
    counts = Counter(node.op_type for node in graph.node)
    assert counts["QuantizeLinear"] == 5  # input, start, middle, projection, end
    assert counts["DequantizeLinear"] == 5 + counts["Conv"]
    assert [value.type.tensor_type.elem_type for value in (graph.input[0], graph.output[0])] == [
        onnx.TensorProto.UINT8,
        onnx.TensorProto.UINT8,
    ]


def test_quantized_graph_computes_what_rounding_by_hand_does(rng: np.random.Generator) -> None:
    graph = FrameGraph(rng)
    graph.conv("input", (3, 4), out="only", kernel=1)
    model = graph.model("only")
    frame = _frame(rng, 8)
    weight, bias = (numpy_helper.to_array(t) for t in model.graph.initializer[1:])

    result = _quantized(model, input=0.5)
    (found,) = _run(result.model, frame, "only")

    scale = np.float32(0.5 / 127)
    steps = np.clip(np.rint((frame.astype(np.float32) / 255) / scale), -128, 127)
    kept = quantize_weight(weight, axis=0)
    assert kept is not None
    expected = np.einsum("nhwi,oi->nohw", steps * scale, kept.dequantized()[:, :, 0, 0])
    expected += bias[:, None, None]
    # float32 sums of three products, of values near 1
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_both_backends_compute_the_same_int8_labels(rng: np.random.Generator) -> None:
    from pathlib import Path

    from fcn_deploy.backends import get_backend
    from fcn_deploy.backends.base import ModelSource

    model = _quantized(FrameGraph(rng).residual(projected=True)).model
    source = ModelSource(Path("test.onnx"), model.SerializeToString())
    frame = _frame(rng, 64)

    labels = []
    for name in ("openvino", "onnxruntime"):
        context = get_backend(name).open(source)
        labels.append(context.execute({"image": frame})["labels"])
        context.close()

    # int8 sums are exact; the float remainder may round a value to the next int8 step
    assert np.mean(labels[0] == labels[1]) > 0.99
    assert len(np.unique(labels[0])) > 1


def test_openvino_runs_every_convolution_in_int8(rng: np.random.Generator) -> None:
    openvino = import_openvino()
    model = _quantized(FrameGraph(rng).residual(projected=True)).model
    core = openvino.Core()
    config = {"INFERENCE_PRECISION_HINT": "f32"}

    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", config)

    runtime = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    kinds = [
        str(info["runtimePrecision"].astype(str))
        for info in runtime
        if "layerType" in info and info["layerType"].astype(str) == "Convolution"
    ]
    assert len(kinds) == 5
    assert set(kinds) <= {"i8", "u8"}


def test_weights_of_a_channel_do_not_saturate_pairs() -> None:
    weight = np.zeros((2, 4, 1, 1), np.float32)
    weight[0, :2] = 1.0  # neighbours of one sign
    weight[1, 0], weight[1, 1] = 1.0, -1.0  # of two signs: their products cancel

    found = quantize_weight(weight, axis=0)

    assert found is not None
    assert found.values[:, :, 0, 0].tolist() == [[64, 64, 0, 0], [127, -127, 0, 0]]
    np.testing.assert_allclose(found.dequantized(), weight, atol=0.01)  # half a step of 1/64


def test_transposed_weights_have_scales_along_their_second_axis(rng: np.random.Generator) -> None:
    weight = rng.normal(size=(6, 5, 2, 2)) * np.array([1, 10, 100, 1, 1]).reshape(1, -1, 1, 1)

    found = quantize_weight(weight.astype(np.float32), axis=1)

    assert found is not None
    assert found.scales.shape == (5,)
    error = np.abs(found.dequantized() - weight).max(axis=(0, 2, 3))
    assert (error <= 0.51 * found.scales).all()  # half a step, and float32


def test_weights_below_fp16_keep_all_their_bits(rng: np.random.Generator) -> None:
    weight = rng.normal(size=(4, 4, 1, 1)) * 1e-4
    weight[1] *= 1e-6  # a dead channel

    found = quantize_weight(weight.astype(np.float32), axis=0)

    assert found is not None
    assert (found.scales < MIN_SCALE).all()
    assert found.scales[1] == pytest.approx(0.01 * found.scales.max())
    error = np.abs(found.dequantized() - weight).max(axis=(1, 2, 3))
    assert (error <= 0.51 * found.scales).all()


def test_weights_beyond_fp16_stay_float(rng: np.random.Generator) -> None:
    weight = (rng.normal(size=(4, 4, 1, 1)) * 1e8).astype(np.float32)

    assert quantize_weight(weight, axis=0) is None


def test_channel_that_needs_little_less_than_the_smallest_scale_takes_it(
    rng: np.random.Generator,
) -> None:
    weight = rng.uniform(-1, 1, size=(4, 1, 3, 3)).astype(np.float32)
    weight *= 0.6 * 127 * MIN_SCALE / np.abs(weight).max(axis=(1, 2, 3), keepdims=True)

    found = quantize_weight(weight, axis=0)

    assert found is not None
    np.testing.assert_array_equal(found.scales, np.float32(MIN_SCALE))
    assert np.abs(found.values).max() == 76  # of 127: between six bits and seven
    error = np.abs(found.dequantized() - weight)
    assert error.max() <= 0.51 * MIN_SCALE  # half a step, and float32


def test_dead_channel_does_not_keep_its_layer_float(rng: np.random.Generator) -> None:
    weight = rng.normal(size=(4, 4, 1, 1)).astype(np.float32)
    weight[2] *= 1e-6

    found = quantize_weight(weight, axis=0)

    assert found is not None
    assert found.scales[2] == np.float32(MIN_SCALE)


def test_layer_that_sees_tiny_values_stays_float_and_says_so(rng: np.random.Generator) -> None:
    model = FrameGraph(rng).residual()

    result = _quantized(model, middle=1e-5)

    assert result.kept == {"second": "its input is within 1e-05, which no FP16 scale spans"}
    assert "second" not in result.quantized
    assert len(result.quantized) == 3


def test_kept_layers_are_the_same_float_convolutions(rng: np.random.Generator) -> None:
    prepared = prepare(FrameGraph(rng).residual())
    builder = Int8Builder(prepared, uniform_table(prepared))

    result = builder.build(method="minmax", keep_float=builder.nodes)

    assert result.quantized == ()
    assert result.model.graph == prepared.graph


def test_unknown_layer_to_keep_is_named(rng: np.random.Generator) -> None:
    prepared = prepare(FrameGraph(rng).residual())

    with pytest.raises(ValueError, match=r"\['nowhere'\] are no convolutions"):
        Int8Builder(prepared, uniform_table(prepared)).build(method="mse", keep_float=["nowhere"])


def _with_norm(graph: FrameGraph, rng: np.random.Generator, kind: str) -> onnx.ModelProto:
    graph.conv("input", (3, 8), out="stem")
    if kind == "ConvTranspose":
        weight = graph.constant("up.weight", rng.normal(size=(8, 4, 2, 2)).astype(np.float32))
        graph.op("ConvTranspose", "stem", weight, out="up", strides=[2, 2], group=2)
    else:
        graph.conv("stem", (8, 8), out="up")
    values = [rng.uniform(0.5, 2, 8), rng.normal(size=8), rng.normal(size=8), rng.uniform(1, 2, 8)]
    names = [graph.constant(f"norm.{i}", v.astype(np.float32)) for i, v in enumerate(values)]
    graph.op("BatchNormalization", "up", *names, out="normal")
    return graph.model(graph.conv("normal", (8, 4), out="classifier", kernel=1))


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_folded_normalisation_computes_the_same(kind: str, rng: np.random.Generator) -> None:
    model = _with_norm(FrameGraph(rng), rng, kind)
    frame = _frame(rng)
    (expected,) = _run(model, frame, "classifier")

    prepared = prepare(model)

    (found,) = _run(prepared, frame, "classifier")
    assert "BatchNormalization" not in {node.op_type for node in prepared.graph.node}
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)  # float32 sums of 72 products


def test_normalisation_of_a_tensor_that_others_read_is_not_folded(rng: np.random.Generator) -> None:
    graph = FrameGraph(rng)
    graph.conv("input", (3, 8), out="stem")
    ones = [graph.constant(f"norm.{i}", np.ones(8, np.float32)) for i in range(4)]
    graph.op("BatchNormalization", "stem", *ones, out="normal")
    graph.op("Add", "stem", "normal", out="sum")
    model = graph.model(graph.conv("sum", (8, 4), out="classifier", kernel=1))
    frame = _frame(rng)
    (expected,) = _run(model, frame, "classifier")

    folded = ir.to_proto(FoldBatchNorm(into_convolutions=True)(ir.from_proto(model)).model)

    assert [node.op_type for node in folded.graph.node] == [n.op_type for n in model.graph.node]
    assert {t.name for t in folded.graph.initializer} >= {"stem.weight", "stem.bias"}
    np.testing.assert_allclose(_run(folded, frame, "classifier")[0], expected, rtol=1e-4, atol=1e-4)


def test_folding_twice_changes_nothing_more(rng: np.random.Generator) -> None:
    model = ir.from_proto(_with_norm(FrameGraph(rng), rng, "Conv"))

    for into_convolutions in (False, True):
        fold = FoldBatchNorm(into_convolutions=into_convolutions)

        assert fold(model).modified
        assert not fold(model).modified


def test_convolution_with_computed_weights_is_left_alone(rng: np.random.Generator) -> None:
    graph = FrameGraph(rng)
    graph.conv("input", (3, 8), out="stem")
    graph.op("Sigmoid", "classifier.weight", out="weight")
    graph.constant("classifier.weight", rng.normal(size=(4, 8, 1, 1)).astype(np.float32))
    model = graph.model(graph.op("Conv", "stem", "weight", out="classifier"))

    assert quantizable_nodes(ir.from_proto(model).graph) == ("stem",)


def test_table_is_plain_json(rng: np.random.Generator) -> None:
    table = uniform_table(FrameGraph(rng).residual(), threshold=4.0)

    document = json.loads(table.to_bytes(method="mse"))

    assert document["tensors"]["start"] == {
        "minmax": 4.0,
        "percentile": 4.0,
        "entropy": 4.0,
        "mse": 4.0,
    }


def test_openvino_adds_int8_products_without_saturation(rng: np.random.Generator) -> None:
    """AVX2 without VNNI would saturate here, were the weights of a pair not limited."""
    openvino = import_openvino()
    graph = FrameGraph(rng)
    graph.op("Conv", "input", "equal", out="wide")
    graph.constant("equal", np.ones((32, 3, 1, 1), np.float32))
    graph.op("Conv", "wide", "ones", out="sums")
    graph.constant("ones", np.ones((4, 32, 3, 3), np.float32))
    model = graph.model("sums")
    result = _quantized(model, input=1.0, wide=3.0)
    frame = np.full((1, 16, 16, 3), 255, np.uint8)
    result.model.graph.output.append(onnx.helper.make_tensor_value_info("sums", 1, None))
    core = openvino.Core()
    config = {"INFERENCE_PRECISION_HINT": "f32"}

    compiled = core.compile_model(core.read_model(result.model.SerializeToString()), "CPU", config)
    found = compiled([frame])[1]

    # 288 inputs of 3: float32 adds them exactly but for the last bits of two scales
    np.testing.assert_allclose(found, 864.0, rtol=1e-2)
