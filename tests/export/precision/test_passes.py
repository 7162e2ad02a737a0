"""Each pass says whether it changed anything, and leaves what is not its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fcn_deploy.errors import UnsupportedModelError
from fcn_export.check.sample_frames import natural_frame
from fcn_export.onnx_file import write_onnx
from fcn_export.onnx_values import standard_opset, take_proto
from fcn_export.precision.passes.element_types import InferTypes
from fcn_export.precision.passes.inner_outputs import ExtentOutputs
from fcn_export.precision.passes.insert_qdq import InsertQdq
from fcn_export.precision.passes.name_nodes import NameNodes
from fcn_export.precision.passes.ranges import largest_values
from fcn_export.precision.passes.to_half import ToHalf
from tests.export.qdq_graphs import FrameGraph


def _residual(rng: np.random.Generator) -> ir.Model:
    return ir.from_proto(FrameGraph(rng).residual())


def test_nodes_without_a_name_and_of_equal_names_get_one_of_their_own(
    rng: np.random.Generator,
) -> None:
    model = FrameGraph(rng).residual()
    model.graph.node[0].name = ""
    model.graph.node[2].name = model.graph.node[1].name
    changed = ir.from_proto(model)

    result = NameNodes()(changed)

    names = [node.name for node in changed.graph]
    assert names[:3] == ["Cast_frame", "planes", "planes_2"]
    assert len(set(names)) == len(names)
    assert result.modified
    assert not NameNodes()(changed).modified


def test_describing_tensors_keeps_weights_and_inputs_as_they_were(
    rng: np.random.Generator,
) -> None:
    model = _residual(rng)
    before = ir.to_proto(model)

    result = InferTypes()(model)

    after = ir.to_proto(model)
    assert result.modified
    assert after.graph.initializer == before.graph.initializer
    assert after.graph.input == before.graph.input
    assert {value.dtype for node in model.graph for value in node.outputs} == {
        *(ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.UINT8),
    }
    assert not InferTypes()(model).modified


def test_graph_that_onnx_cannot_type_is_an_error_and_keeps_its_weights(
    rng: np.random.Generator,
) -> None:
    model = _residual(rng)
    weights = list(model.graph.initializers)
    next(node for node in model.graph if node.name == "start").domain = "com.example"

    with pytest.raises(UnsupportedModelError, match=r"types do not fit together: .*com\.example"):
        InferTypes()(model)

    assert list(model.graph.initializers) == weights
    assert [value.name for value in model.graph.inputs] == ["image"]


def test_passes_with_nothing_to_do_say_so(rng: np.random.Generator) -> None:
    model = _residual(rng)
    before = ir.to_proto(model)

    for nothing in (NameNodes(), ExtentOutputs([]), InsertQdq({}, thresholds={}, weights={})):
        assert not nothing(model).modified

    assert ir.to_proto(model) == before


def test_float16_pass_counts_what_it_did(rng: np.random.Generator) -> None:
    to_half = ToHalf()

    result = to_half(_residual(rng))

    assert result.modified
    assert "classifier" in to_half.changes.half_nodes
    assert to_half.changes.casts == 2


def test_weights_are_let_go_when_a_graph_becomes_protobuf(rng: np.random.Generator) -> None:
    proto = FrameGraph(rng).residual()
    model = ir.from_proto(proto)

    taken = take_proto(model)

    assert taken.graph.initializer == proto.graph.initializer
    assert [value.const_value for value in model.graph.initializers.values()] == [None] * len(
        proto.graph.initializer
    )


def test_opset_is_found_under_both_names_of_the_domain(rng: np.random.Generator) -> None:
    proto = FrameGraph(rng, opset=19).residual()
    proto.opset_import[0].domain = "ai.onnx"

    assert standard_opset(ir.from_proto(proto)) == 19


def test_ranges_of_a_graph_with_weights_in_a_file_of_their_own(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    graph = FrameGraph(rng)
    graph.conv("input", (3, 32), out="stem")
    # as wide as an enlargement of 32 classes is; which nodes are the head is seen by its weights
    taps = np.array([0.25, 0.75, 0.75, 0.25], np.float32)
    graph.constant("up.weight", np.tile(np.outer(taps, taps), (32, 1, 1, 1)))
    graph.op("ConvTranspose", "stem", "up.weight", out="scores", strides=[2, 2], group=32)
    model = graph.model("scores")
    frame = natural_frame(40, 56, seed=4)[None]
    whole = write_onnx(model, tmp_path / "whole.onnx")
    parted = write_onnx(model, tmp_path / "parted.onnx", max_single_file_bytes=1000)
    assert parted.weights is not None

    found = largest_values(parted, [frame])

    assert found == largest_values(whole, [frame])
    assert set(found) == {"stem"}
