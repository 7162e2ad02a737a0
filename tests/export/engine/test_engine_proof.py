"""A plan's layers are read from what TensorRT says of them, and held against the graph's."""

from __future__ import annotations

import json

import numpy as np
import pytest
from onnx import helper, numpy_helper

from fcn_deploy.errors import BuildError
from fcn_export.engine.proof import (
    asked_layer_types,
    check_layer_types,
    inspector_layer_types,
    plan_text_layer_types,
)
from tests.export.engine_graphs import network, single_op

OPS = {"stem": "Conv", "classifier": "Conv"}


@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_graph_says_in_what_its_layers_multiply(kind: str) -> None:
    assert asked_layer_types(network(kind)) == {"stem": kind, "classifier": kind}


def test_layer_with_quantised_weights_alone_is_a_floating_point_layer() -> None:
    model = network("int8")
    stem = next(node for node in model.graph.node if node.name == "stem")
    stem.input[0] = "pixels"  # past its Q/DQ pair

    assert asked_layer_types(model) == {"stem": "float32", "classifier": "int8"}


def test_weights_behind_a_cast_count_as_what_they_are_cast_to() -> None:
    filters = np.ones((3, 3, 1, 1))
    full = numpy_helper.from_array(filters.astype(np.float32), "w")
    model = single_op(helper.make_node("Conv", ["x", "w"], ["labels"], name="conv"), [full])
    half = numpy_helper.from_array(filters.astype(np.float16), "half")
    model.graph.initializer[0].CopyFrom(half)
    model.graph.node.insert(0, helper.make_node("Cast", ["half"], ["w"], to=1))

    assert asked_layer_types(model) == {"conv": "float32"}


def test_product_of_two_computed_tensors_is_left_out() -> None:
    model = single_op(helper.make_node("MatMul", ["x", "x"], ["labels"], name="square"))

    assert asked_layer_types(model) == {}


# the layout that TensorRT-RTX 1.7.1 writes, cut to what is read
PLAN_TEXT = b"""\x00\x01vtrt\x00
  tensor={ dims={ 1 } name="a.1_59" offset=0 strides={ 1 } type=half }
  tensor={ alignment=128 name="w_dconst" region=consts strides={ 576 1 192 64 } type=half }
  tensor={ name="b" strides={ 1 } type=int8 }
  tensor={ name="v" strides={ 1 } type=float }
  corrltn={ name="x" input={"a.1_59" "w_dconst" } layers="[ONNX Layer: stem][ONNX Layer: relu]" }
  fully_connected={ name="y" input={"b" "v" } k=0 layers="[ONNX Layer: classifier]__gemm" }
  corrltn={ name="z" output={"e" } input={"unknown" } layers="[ONNX Layer: lost]" }
  mul={ name="m" output={"f" } input={"b" "v" } layers="[ONNX Layer: scale]" }
"""


def test_plan_text_gives_the_wider_of_a_products_factors() -> None:
    found = plan_text_layer_types(PLAN_TEXT)

    assert found == {
        "stem": "float16",
        "relu": "float16",
        "classifier": "float32",
    }


def test_text_of_another_form_proves_nothing() -> None:
    assert plan_text_layer_types(b"vtrt" + bytes(range(256)) * 100) == {}


# NVIDIA's documentation shows this layer of TensorRT 10 ("Inspecting an engine")
LAYER_10 = {
    "Name": "stem + relu",
    "LayerType": "CaskConvolution",
    "Inputs": [
        {
            "Name": "x",
            "Dimensions": [16, 512, 28, 28],
            "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format.",
        }
    ],
    "Weights": {"Type": "Int8", "Count": 131072},
    "Metadata": "[ONNX Layer: stem]\x1e[ONNX Layer: relu]",
}
# from TensorRT 11 on, format and type are apart
LAYER_11 = {
    "Name": "classifier",
    "LayerType": "CaskConvolution",
    "Inputs": [{"Name": "y", "Format": "Row major linear", "Datatype": "Half"}],
    "Weights": {"Type": "Half", "Count": 84},
    "Metadata": "[ONNX Layer: classifier]",
}
REFORMAT = {
    "Name": "copy",
    "LayerType": "Reformat",
    "Inputs": [{"Name": "x", "Format/Datatype": "Row major linear FP32"}],
    "Metadata": "[ONNX Layer: stem]",
}


def test_inspector_is_understood_in_both_spellings() -> None:
    text = json.dumps({"Layers": [LAYER_10, LAYER_11, REFORMAT], "Bindings": ["image"]})

    found = inspector_layer_types(text)

    assert found == {"stem": "int8", "relu": "int8", "classifier": "float16"}


@pytest.mark.parametrize(
    ("spelling", "kind"),
    [
        ("Row major linear FP32", "float32"),
        ("Row major linear FP16 format", "float16"),
        ("Row major linear BFloat16 format", "bfloat16"),
        ("Channel major INT8 format", "int8"),
        ("Row major linear FP8 format", "float8"),
        ("Float", "float32"),
    ],
)
def test_inspectors_type_names(spelling: str, kind: str) -> None:
    layer = {**LAYER_10, "Inputs": [{"Format/Datatype": spelling}], "Weights": {"Type": "?"}}

    assert inspector_layer_types(json.dumps({"Layers": [layer]}))["stem"] == kind


def test_int8_data_with_floating_point_weights_is_floating_point() -> None:
    layer = {**LAYER_10, "Weights": {"Type": "Float", "Count": 1}}

    assert inspector_layer_types(json.dumps({"Layers": [layer]}))["stem"] == "float32"


def test_engine_without_details_proves_nothing() -> None:
    assert inspector_layer_types(json.dumps({"Layers": ["stem + relu", "classifier"]})) == {}


def test_inspector_that_gives_no_json_is_an_error() -> None:
    with pytest.raises(BuildError, match="the engine inspector gave no JSON: 'oops'"):
        inspector_layer_types("oops")


def test_layer_in_another_type_than_its_graphs_is_an_error() -> None:
    asked = {"stem": "float16", "classifier": "float16"}

    with pytest.raises(
        BuildError,
        match=r"not what was asked for: 1 of 2 layers.*'stem' \(Conv\) runs in float32 instead of",
    ):
        check_layer_types(asked, {"stem": "float32", "classifier": "float16"}, OPS)


def test_quantised_convolution_must_be_an_int8_one() -> None:
    with pytest.raises(BuildError, match="runs in float16 instead of int8"):
        check_layer_types({"stem": "int8"}, {"stem": "float16"}, OPS)


def test_quantised_transposed_convolution_may_stay_in_floating_point() -> None:
    shares, floating = check_layer_types(
        {"stem": "int8", "up": "int8"},
        {"stem": "int8", "up": "float32"},
        {"stem": "Conv", "up": "ConvTranspose"},
    )

    assert shares == {"int8": 0.5, "float32": 0.5}
    assert floating == ("up",)


def test_layers_that_the_plan_does_not_tell_of_are_not_counted() -> None:
    shares, floating = check_layer_types(
        {"stem": "float16", "classifier": "float16"}, {"stem": "float16"}, OPS
    )

    assert (shares, floating) == ({"float16": 1.0}, ())
