"""The fp16 pass: what becomes float16, what stays, what is counted, and that the labels stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, parser
from torch import nn
from torchvision.models import segmentation

from fcn_deploy.errors import UnsupportedModelError
from fcn_deploy.graph.scan import with_extra_outputs
from fcn_deploy.names import Array, Precision
from fcn_deploy.preprocess import default_preprocess
from fcn_deploy.segmenter import Segmenter
from fcn_export.check.sample_frames import natural_frame
from fcn_export.export import ExportRequest, export_model
from fcn_export.graph_spec import GraphSpec
from fcn_export.onnx_file import OnnxFile, write_onnx
from fcn_export.precision.passes.fold_batch_norm import FoldBatchNorm
from fcn_export.precision.passes.ranges import largest_values, nodes_beyond
from fcn_export.precision.passes.to_half import Fp16Changes, convert_to_fp16
from fcn_export.trace.to_onnx import trace
from tests.export.tiny_networks import HalfResolution, UNet, seeded

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT

FCN = """
    <ir_version: 10, opset_import: ["" : 21]>
    frame_to_labels (uint8[N, H, W, 3] image) => (uint8[N, H, W] labels)
    {
        cast = Cast <to = 1> (image)
        scaled = Mul (cast, factor)
        planes = Transpose <perm = [0, 3, 1, 2]> (scaled)
        features = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (planes, w1, b1)
        active = Relu (features)
        network_scores = Conv (active, w2)
        size = Shape <start = 1, end = 3> (cast)
        scores = Resize <axes = [2, 3], mode = "linear"> (network_scores, , , size)
        ids = ArgMax <axis = 1, keepdims = 0> (scores)
        labels = Cast <to = 2> (ids)
    }
"""


def fcn(text: str = FCN, **weights: Any) -> onnx.ModelProto:
    """Parse a graph and give it weights; node names are their first outputs'."""
    rng = np.random.default_rng(1)
    values = {
        "factor": np.full((1, 1, 1, 1), 1 / 255),
        "w1": rng.standard_normal((6, 3, 3, 3)) / 3,
        "b1": rng.standard_normal(6) / 3,
        "w2": rng.standard_normal((4, 6, 1, 1)),
        **weights,
    }
    model = parser.parse_model(text)
    for node in model.graph.node:
        node.name = node.output[0]
    used = {name for node in model.graph.node for name in node.input}
    for name, value in values.items():
        if name in used:
            kept = np.asarray(value, None if isinstance(value, np.ndarray) else np.float32)
            if kept.dtype == np.float64:
                kept = kept.astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(kept, name))
    return model


def run(model: onnx.ModelProto, *outputs: str, size: tuple[int, int] = (40, 56)) -> list[Array]:
    """Run in ONNX Runtime on a natural frame; inner tensors are given out too."""
    inner = [name for name in outputs if name not in {v.name for v in model.graph.output}]
    data = with_extra_outputs(model.SerializeToString(), inner)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options)
    frame = natural_frame(*size, seed=4)[None]
    found: list[Array] = session.run(list(outputs) or None, {"image": frame})
    return found


def types(model: onnx.ModelProto) -> Mapping[str, int]:
    """Give the element type of every tensor, as the rewritten model says it."""
    graph = model.graph
    values = (*graph.input, *graph.value_info, *graph.output)
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    return {**{tensor.name: tensor.data_type for tensor in graph.initializer}, **found}


def converted(model: onnx.ModelProto, **options: Any) -> Fp16Changes:
    changes = convert_to_fp16(model, **options)
    onnx.checker.check_model(model, full_check=True)  # types, and that nodes are sorted
    return changes


def test_layers_become_float16_between_a_float32_frame_and_head() -> None:
    model = fcn()

    changes = converted(model)

    found = types(model)
    assert (found["image"], found["labels"]) == (TensorProto.UINT8, TensorProto.UINT8)
    assert [found[name] for name in ("cast", "scaled", "planes", "factor")] == [FLOAT] * 4
    assert [found[name] for name in ("features", "active", "w1", "b1", "w2")] == [HALF] * 5
    assert [found[name] for name in ("network_scores", "scores")] == [FLOAT] * 2
    assert changes.half_nodes == ("features", "active", "network_scores")
    assert changes.casts == 2
    assert model.graph.node[0].op_type == "Cast"
    assert model.graph.node[-1].op_type == "Cast"


def test_scores_stay_as_near_as_float16_is_and_labels_too() -> None:
    before, after = fcn(), fcn()
    converted(after)

    expected, labels = run(before, "network_scores", "labels")
    scores, half_labels = run(after, "network_scores", "labels")

    assert scores.dtype == np.float32
    # three roundings of 2**-11 of values up to the largest score
    assert np.abs(scores - expected).max() <= 3 * 2**-11 * np.abs(expected).max()
    assert np.abs(scores - expected).max() > 0
    assert np.mean(labels == half_labels) > 0.995


def test_a_named_node_or_kind_stays_float32_with_casts_around_it() -> None:
    by_name, by_kind = fcn(), fcn()

    named = converted(by_name, float32_nodes=("active",))
    kind = converted(by_kind, float32_ops=("Relu",))

    assert named.float_nodes == kind.float_nodes == ("active",)
    assert named.casts == 4
    assert types(by_name)["active"] == FLOAT
    assert types(by_name)["features"] == HALF
    assert np.array_equal(run(by_name)[0], run(by_kind)[0])


def test_a_name_that_is_no_node_is_an_error() -> None:
    with pytest.raises(UnsupportedModelError, match="no node of the graph is called 'conv_9'"):
        convert_to_fp16(fcn(), float32_nodes=("active", "conv_9"))


def test_weights_that_do_not_fit_are_clamped_and_counted() -> None:
    large = np.full((4, 6, 1, 1), 0.5)
    large[0, 0], large[1, 0], large[2, 0], large[3, 0] = 1e6, -70000, 3e-6, 1e-9
    model = fcn(w2=large)

    weights = converted(model).weights

    (held,) = [numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "w2"]
    assert held[:, 0, 0, 0].tolist() == [65504, -65504, np.float16(3e-6), 0]
    assert (weights.clamped, weights.clamped_tensors) == (2, ("w2",))
    assert (weights.subnormal, weights.flushed) == (1, 1)
    assert weights.values == 6 * 27 + 6 + 24


def test_an_infinite_weight_stays_infinite_and_is_not_called_clamped() -> None:
    model = fcn(b1=np.array([-np.inf, 0, 0, 0, 0, 0], np.float32))

    weights = converted(model).weights

    (held,) = [numpy_helper.to_array(t) for t in model.graph.initializer if t.name == "b1"]
    assert held[0] == -np.inf
    assert weights.clamped == 0


def test_a_weight_that_both_types_read_is_held_in_both() -> None:
    text = FCN.replace("Mul (cast, factor)", "Mul (cast, shared)").replace(
        "active = Relu (features)", "active = Mul (features, shared)"
    )
    model = fcn(text, shared=np.full((1, 1, 1, 1), 1 / 255))

    converted(model)

    assert {t.name: t.data_type for t in model.graph.initializer if "shared" in t.name} == {
        "shared": FLOAT,
        "shared__fp16": HALF,
    }
    assert np.mean(run(model)[0] == run(fcn(text, shared=np.full((1, 1, 1, 1), 1 / 255)))[0]) > 0.99


def test_constant_nodes_are_weights_too() -> None:
    text = FCN.replace(
        "active = Relu (features)",
        "low = Constant <value_float = 0.1> ()\n active = Max (features, low)",
    )
    model = fcn(text)

    converted(model)

    assert types(model)["low"] == HALF


def test_numbers_made_of_sizes_stay_float32() -> None:
    # as torch writes interpolate(scale_factor=...): 2 * 1025.0 is no float16
    text = FCN.replace(
        "active = Relu (features)",
        """
        inner = Shape (features)
        sides = Cast <to = 1> (inner)
        double = Mul (sides, twice)
        wanted = Cast <to = 7> (double)
        up = Resize <mode = "linear"> (features, roi, factors)
        again = Resize <mode = "nearest"> (up, , , wanted)
        active = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (again)
        """,
    )
    factors = np.array([1, 1, 2, 2], np.float32)
    more = {"twice": np.array([1.0, 1, 2, 2]), "factors": factors, "roi": np.zeros(8)}
    model = fcn(text, **more)

    converted(model)

    found = types(model)
    assert [found[name] for name in ("sides", "double", "twice", "factors", "roi")] == [FLOAT] * 5
    assert [found[name] for name in ("up", "again", "active")] == [HALF] * 3
    assert np.mean(run(model)[0] == run(fcn(text, **more))[0]) > 0.99


def test_operators_that_know_no_float16_get_float32() -> None:
    # Range takes no float16, whatever it is made of
    text = FCN.replace(
        "active = Relu (features)",
        """
        first = ReduceMax <keepdims = 0> (features)
        end = Add (first, three)
        line = Range (first, end, step)
        last = ReduceMax <keepdims = 0> (line)
        active = Mul (features, last)
        """,
    )
    more = {"three": np.array(3.0), "step": np.array(1.0)}
    model = fcn(text, **more)

    converted(model)

    assert types(model)["line"] == FLOAT
    assert types(model)["first"] == HALF
    assert np.mean(run(model)[0] == run(fcn(text, **more))[0]) > 0.99


def test_softmax_and_sums_compute_in_float32_by_default() -> None:
    text = FCN.replace(
        "active = Relu (features)",
        "even = Softmax <axis = 1> (features)\n total = ReduceSum <keepdims = 1> (even, axes)\n"
        "active = Div (even, total)",
    )
    model = fcn(text, axes=np.array([2, 3], np.int64))

    changes = converted(model)

    assert changes.float_nodes == ("even", "total")
    assert types(model)["axes"] == TensorProto.INT64


def test_a_weak_channels_variance_does_not_become_zero() -> None:
    text = FCN.replace(
        "active = Relu (features)",
        "active = BatchNormalization <epsilon = 0.0000001> (features, s, b, m, v)",
    )
    more = {"s": np.full(6, 1e-4), "b": np.ones(6), "m": np.full(6, 0.2), "v": np.full(6, 1e-9)}
    before, model = fcn(text, **more), fcn(text, **more)

    changes = converted(model)

    expected, scores = run(before, "network_scores")[0], run(model, "network_scores")[0]
    assert "active" in changes.half_nodes
    assert np.abs(scores - expected).max() < 4 * 2**-11 * np.abs(expected).max()


def test_folding_a_batch_normalisation_changes_nothing() -> None:
    text = FCN.replace("Relu (features)", "BatchNormalization (features, s, b, m, v)")
    rng = np.random.default_rng(2)
    more = {name: rng.uniform(0.1, 1, 6) for name in "sbmv"}
    before, model = fcn(text, **more), fcn(text, **more)

    folded = FoldBatchNorm(into_convolutions=False)(ir.from_proto(model))

    assert folded.modified
    model = ir.to_proto(folded.model)
    assert {"s", "b", "m", "v"}.isdisjoint(t.name for t in model.graph.initializer)
    np.testing.assert_allclose(  # float32 rounds twice here and once there
        run(model, "network_scores")[0], run(before, "network_scores")[0], rtol=1e-5, atol=1e-5
    )


def test_a_node_with_a_graph_of_its_own_is_refused_by_name() -> None:
    model = fcn()
    branch = parser.parse_graph("branch () => (float same) { same = Identity (active) }")
    model.graph.node.append(
        helper.make_node("If", ["yes"], ["dead"], "choice", then_branch=branch, else_branch=branch)
    )

    with pytest.raises(UnsupportedModelError, match=r"'choice' \(If\) holds a graph of its own"):
        convert_to_fp16(model)


def test_an_operator_of_somebody_elses_is_refused_by_name() -> None:
    model = fcn()
    model.graph.node[4].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))

    with pytest.raises(UnsupportedModelError, match=r"'active' is unknown, which node 'active'"):
        convert_to_fp16(model)


def test_weights_in_a_file_of_their_own_are_made_float16_there(tmp_path: Path) -> None:
    wide = np.random.default_rng(0).standard_normal((400, 6, 1, 1)) / 9
    before = write_onnx(fcn(w2=wide), tmp_path / "model.onnx", max_single_file_bytes=1000)
    assert before.weights is not None
    model = before.load()

    converted(model)
    after = write_onnx(model, tmp_path / "model.fp16.onnx", max_single_file_bytes=1000)

    assert after.weights is not None
    assert after.weights.stat().st_size == before.weights.stat().st_size // 2
    found = [labels_of(file) for file in (before, after)]
    assert np.mean(found[0] == found[1]) > 0.98


def labels_of(file: OnnxFile) -> Array:
    with file.opened("onnxruntime") as context:
        found: Array = context.execute({"image": natural_frame(40, 56, 4)[None]})["labels"]
    return found


def test_ranges_are_the_largest_values_of_inner_tensors(tmp_path: Path) -> None:
    model = fcn(b1=np.array([0, 0, 0, 0, 0, -5e4], np.float32))
    file = write_onnx(model, tmp_path / "model.onnx")

    largest = largest_values(file, [natural_frame(40, 56, 4)[None]])

    assert largest["features"] == pytest.approx(np.abs(run(model, "features")[0]).max())
    assert set(largest) == {"features", "active", "network_scores"}
    assert nodes_beyond(model.graph, largest, 1e4) == ("features", "active")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_probabilities_are_float32_outputs_made_of_float32_scores() -> None:
    spec = GraphSpec(default_preprocess(), 5, head="confidence")
    model = trace(seeded(HalfResolution).eval(), spec).model

    converted(model)

    found = types(model)
    assert (found["labels"], found["confidence"]) == (TensorProto.UINT8, FLOAT)
    assert [found[name] for name in ("scores", "network_scores")] == [FLOAT] * 2


def small_fcn_resnet() -> nn.Module:
    """torchvision's FCN on a ResNet, as narrow as its Bottleneck allows."""
    from torchvision.models.resnet import Bottleneck, ResNet

    backbone = ResNet(
        Bottleneck,
        [1, 1, 1, 1],
        replace_stride_with_dilation=[False, True, True],
        width_per_group=8,
    )
    features = nn.Sequential(*list(backbone.children())[:-2])
    return nn.Sequential(features, segmentation.fcn.FCNHead(2048, 6))


def small_lraspp() -> nn.Module:
    network = segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=7
    )

    class Out(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(self.network(x)["out"])

    return Out()


@pytest.mark.parametrize(
    ("make", "classes", "upsample"),
    [
        (UNet, 4, False),
        pytest.param(small_lraspp, 7, False, marks=pytest.mark.slow),
        pytest.param(small_fcn_resnet, 6, True, marks=pytest.mark.slow),
    ],
)
def test_real_networks_stay_as_near_as_float16_is(
    make: Callable[[], nn.Module], classes: int, upsample: bool
) -> None:
    network: nn.Module = seeded(make).eval()
    spec = GraphSpec(default_preprocess(), classes, head="scores", upsample=upsample, multiple_of=8)
    model = trace(network, spec).model
    expected = run(model, size=(64, 96))[0]

    changes = converted(model)

    found = run(model, size=(64, 96))[0]
    assert len(changes.half_nodes) > len(changes.float_nodes)
    assert changes.weights.clamped == 0
    # errors of 2**-11 a layer add up like a random walk: well below 1 % of the spread of scores
    assert np.abs(found - expected).max() < 0.01 * np.ptp(expected)
    assert np.abs(found - expected).max() > 0


class HotLayer(nn.Module):
    """A layer whose sums are far beyond float16, made small again by the next."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.hot = nn.Conv2d(6, 6, 1)
        self.classifier = nn.Conv2d(6, 4, 1)
        with torch.no_grad():
            self.hot.weight *= 2e5
            self.classifier.weight /= 2e5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.first(x))
        return torch.as_tensor(self.classifier(torch.tanh(self.hot(features) / 1e5) * 1e5))


@pytest.mark.cpu_abilities
def test_a_layer_beyond_float16_is_found_and_stays_float32(tmp_path: Path) -> None:
    request = ExportRequest(size=(64, 80), min_size=(32, 32), max_size=(96, 96))

    report = export_model(seeded(HotLayer), tmp_path / "m.fcn", request=request)

    figures = next(f.figures for f in report.files if f.precision is Precision.FP16)
    assert figures["largest_value"] > 65504
    assert any("hot" in name or "conv2d_1" in name for name in figures["fp32_nodes"])
    assert any("values above 16376 were seen" in note for note in report.notes)
    for entry in report.measured:
        assert entry.failure is None
        assert entry.disagreement.label_agreement > 0.99


@pytest.mark.cpu_abilities
def test_the_runtime_opens_the_fp16_graph_peeled_and_whole(tmp_path: Path) -> None:
    request = ExportRequest(size=(64, 80), min_size=(32, 32), max_size=(96, 96))
    report = export_model(seeded(HalfResolution), tmp_path / "m.fcn", request=request)
    frame = natural_frame(61, 77, seed=8)

    for backend in ("openvino", "onnxruntime"):
        found = []
        for peel in (True, False):
            with Segmenter.open(
                report.path, backend=backend, precision="fp16", peel=peel
            ) as segmenter:
                result = segmenter(frame, scores=True)
                assert segmenter.path.name == "model.fp16.onnx"
                assert segmenter.head.startswith("in the runtime, peeled" if peel else "in the gr")
                assert "fp32 arithmetic" in segmenter.reason
            assert result.scores is not None
            assert result.scores.dtype == np.float32
            found.append(result.labels)

        # the head computes in float32 on both ways; they differ on exact ties alone
        assert np.mean(found[0] == found[1]) > 0.9995
