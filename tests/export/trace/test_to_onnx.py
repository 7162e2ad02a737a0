"""Tracing: one graph with dynamic sizes, our names, and uint8 at its two ends only."""

from __future__ import annotations

import collections
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from fcn_deploy.errors import UnsupportedModelError
from fcn_deploy.preprocess import default_preprocess
from fcn_export.check.reference import TorchReference, labels_of
from fcn_export.check.sample_frames import natural_batch
from fcn_export.graph_spec import GraphSpec
from fcn_export.trace.argmax_head import FrameNetwork
from fcn_export.trace.baked import find_baked_nodes
from fcn_export.trace.borrow import borrowed
from fcn_export.trace.finish import check_uint8_use
from fcn_export.trace.to_onnx import TracedGraph, example_size, trace
from tests.export.tiny_networks import (
    BakedHeight,
    BranchOnData,
    HalfResolution,
    UNet,
    seeded,
)


def traced(network: nn.Module, classes: int = 5, *, color: Any = "rgb", **options: Any) -> Any:
    """Trace a network; gives the graph and its specification."""
    spec = GraphSpec(default_preprocess(color), classes, **options)
    with borrowed(network):
        return trace(network, spec), spec


@pytest.fixture(scope="module")
def plain() -> TracedGraph:
    """The usual case: five classes at half resolution."""
    graph, _ = traced(seeded(HalfResolution))
    assert isinstance(graph, TracedGraph)
    return graph


def run(graph: TracedGraph, images: Any) -> list[Any]:
    session = onnxruntime.InferenceSession(
        graph.model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, {"image": images}))


def operators(graph: TracedGraph) -> list[str]:
    return [node.op_type for node in graph.model.graph.node]


def dims(values: Any) -> list[list[str | int]]:
    return [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values]


def test_the_graph_begins_and_ends_with_a_cast_and_has_named_dynamic_sizes(
    plain: TracedGraph,
) -> None:
    graph = plain.model.graph

    assert (plain.exporter, plain.note, plain.opset) == ("dynamo", None, 21)
    assert operators(plain)[0] == "Cast"
    assert operators(plain)[-3:] == ["Resize", "ArgMax", "Cast"]
    assert dims(graph.input) == [["N", "H", "W", 3]]
    assert dims(graph.output) == [["N", "H", "W"]]
    check_uint8_use(ir.from_proto(plain.model).graph)


def test_batch_norm_is_folded_and_normalisation_is_one_mul_and_add(plain: TracedGraph) -> None:
    counts = collections.Counter(operators(plain))

    assert counts["Mul"] == counts["Add"] == counts["Gather"] == 1
    assert counts["BatchNormalization"] == 0


def test_nothing_of_this_machine_is_in_the_graph(plain: TracedGraph) -> None:
    content = plain.model.SerializeToString()

    assert str(Path(__file__).parent).encode() not in content
    assert b"site-packages" not in content
    assert not any(node.metadata_props for node in plain.model.graph.node)


def test_scores_have_names_before_and_after_upsampling(plain: TracedGraph) -> None:
    resize = next(node for node in plain.model.graph.node if node.op_type == "Resize")

    assert resize.input[0] == "network_scores"
    assert list(resize.output) == ["scores"]


def test_a_network_of_full_resolution_has_no_network_scores() -> None:
    graph, _ = traced(seeded(UNet), 4, upsample=False, multiple_of=8)

    names = {name for node in graph.model.graph.node for name in node.output}

    assert "scores" in names
    assert "network_scores" not in names
    assert operators(graph)[-3:] == ["Conv", "ArgMax", "Cast"]


@pytest.mark.parametrize(("head", "classes"), [
    ("labels", 5), ("scores", 5), ("confidence", 5), ("confidence", 1),
])  # fmt: skip
def test_every_head_gives_what_the_network_says(head: Any, classes: int) -> None:
    network = seeded(HalfResolution, classes)
    graph, spec = traced(network, classes, head=head)
    images = natural_batch(3, 37, 53, seed=1)
    with borrowed(network):
        expected = TorchReference(network, spec).scores(images)

    found = dict(zip([o.name for o in graph.model.graph.output], run(graph, images), strict=True))

    assert [(o.name, o.dtype) for o in spec.outputs] == [(k, v.dtype) for k, v in found.items()]
    if head == "scores":
        np.testing.assert_allclose(found["scores"], expected, atol=1e-5)
        return
    assert np.array_equal(found["labels"], labels_of(expected, spec))
    if head == "confidence":
        wide = torch.from_numpy(expected).double()
        top = torch.sigmoid(wide.abs())[:, 0] if classes == 1 else torch.softmax(wide, 1).amax(1)
        np.testing.assert_allclose(found["confidence"], top.numpy(), atol=1e-5)


@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
@pytest.mark.parametrize("input_color", ["bgr", "rgb"])
def test_colours_are_converted_as_numpy_does(color: Any, input_color: Any) -> None:
    network = seeded(HalfResolution, channels=1 if color == "gray" else 3).eval()
    spec = GraphSpec(default_preprocess(color), 5, input_color=input_color, head="scores")
    images = natural_batch(1, 41, 32, seed=2)

    with torch.no_grad():
        found = FrameNetwork(network, spec).eval()(torch.from_numpy(images))

    expected = TorchReference(network, spec).scores(images)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_a_gray_graph_sums_the_weighted_channels() -> None:
    graph, spec = traced(seeded(HalfResolution, channels=1), color="gray")

    assert "ReduceSum" in operators(graph)
    assert run(graph, natural_batch(1, 41, 32, seed=2))[0].shape == (1, 41, 32)
    assert len(spec.preprocess.mean) == 1


def test_more_than_256_classes_give_int32() -> None:
    graph, _ = traced(seeded(HalfResolution, 300), 300)

    (labels,) = run(graph, natural_batch(1, 32, 40, seed=0))

    assert labels.dtype == np.int32


@pytest.mark.parametrize(("form", "key"), [("dict", None), ("dict", "out"), ("tuple", "1")])
def test_an_output_is_chosen_among_several(form: str, key: str | None) -> None:
    network = seeded(HalfResolution, form=form).eval()
    spec = GraphSpec(default_preprocess(), 5, output_key=key)

    labels = FrameNetwork(network, spec)(torch.zeros(1, 32, 40, 3, dtype=torch.uint8))

    assert labels.shape == (1, 32, 40)


def test_where_dynamo_fails_torchscript_is_taken_and_the_reason_said(
    capfd: pytest.CaptureFixture[str],
) -> None:
    names = ("torch", "torch.onnx", "onnxscript")
    before = {name: list(logging.getLogger(name).handlers) for name in names}

    graph, _ = traced(seeded(BranchOnData), 4)

    assert capfd.readouterr() == ("", "")
    assert before == {name: list(logging.getLogger(name).handlers) for name in names}

    assert graph.exporter == "torchscript"
    assert graph.opset == 20
    assert graph.note is not None
    assert "dynamo failed: GuardOnDataDependentSymNode" in graph.note
    assert operators(graph)[0] == "Cast"


def test_sizes_made_int_are_followed_through_the_bytecode() -> None:
    graph, _ = traced(seeded(BakedHeight), 4, upsample=False)

    assert graph.exporter == "dynamo-strict"
    assert graph.note == "dynamo bound the graph to H=107, W=151"
    assert run(graph, natural_batch(1, 33, 70, seed=0))[0].shape == (1, 33, 70)


class RaisesOwnError(nn.Module):
    """Fails in whatever way it is traced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("this network is only for show")


def test_a_model_that_no_exporter_takes_is_refused_with_torchs_words(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(UnsupportedModelError, match="only for show") as caught:
        traced(RaisesOwnError())

    assert caught.value.__cause__ is not None
    assert capfd.readouterr() == ("", "")


def test_equal_constants_are_kept_once() -> None:
    network = seeded(HalfResolution)
    network.classifier = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1))
    network.classifier[2].load_state_dict(network.classifier[0].state_dict())

    graph, _ = traced(network, 8)

    constants = graph.model.graph.initializer
    contents = [(c.data_type, tuple(c.dims), c.raw_data) for c in constants]
    assert len(set(contents)) == len(contents)


@pytest.mark.parametrize("step", [1, 2, 8, 32, 64])
def test_the_traced_size_is_an_unequal_odd_multiple(step: int) -> None:
    spec = GraphSpec(default_preprocess(), 5, multiple_of=step, min_size=(64, 64))

    for variation in (0, 1):
        height, width = example_size(spec, variation=variation)

        assert height != width
        assert height % step == width % step == 0
        assert (height // step) % 2 == (width // step) % 2 == 1
    assert example_size(spec) != example_size(spec, variation=1)


def test_uint8_in_the_middle_is_found() -> None:
    nodes = [
        helper.make_node("Cast", ["image"], ["x"], to=TensorProto.FLOAT, name="first"),
        helper.make_node("Transpose", ["image"], ["y"], name="culprit"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 3])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
    )

    with pytest.raises(UnsupportedModelError, match=r"'culprit' \(Transpose\) uses uint8"):
        check_uint8_use(ir.from_proto(helper.make_model(graph)).graph)


def test_a_size_that_became_a_constant_is_found_by_tracing_twice() -> None:
    def graph(width: int) -> onnx.ModelProto:
        sizes = helper.make_tensor("sizes", TensorProto.INT64, [1], [width])
        nodes = [
            helper.make_node("Shape", ["x"], ["shape"], end=3),
            helper.make_node("Concat", ["shape", "sizes"], ["all"], axis=0, name="join"),
            helper.make_node("Resize", ["x", "", "", "all"], ["y"], name="enlarge"),
        ]
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])
        out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        return helper.make_model(helper.make_graph(nodes, "g", [value], [out], [sizes]))

    (node,) = find_baked_nodes(graph(107), graph(111))

    assert str(node) == "'enlarge' (Resize: [107] or [111])"
    assert find_baked_nodes(graph(107), graph(107)) == ()


def test_each_exporter_is_said_before_it_is_tried() -> None:
    said: list[str] = []
    spec = GraphSpec(default_preprocess(), 4)

    with borrowed(seeded(BranchOnData)) as network:
        graph = trace(network, spec, on_attempt=said.append)

    assert graph.exporter == "torchscript"
    assert said == [f"{name}, at 107x151 px" for name in ("dynamo", "dynamo-strict", "torchscript")]
