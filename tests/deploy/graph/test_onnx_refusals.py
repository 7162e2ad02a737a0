"""Operators that no plain network needs, and models that ask for too much, are refused."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fcn_deploy.errors import (
    ArtifactError,
    BackendUnavailableError,
    UnsupportedOpError,
    UntrustedArtifactError,
)
from fcn_deploy.graph.scan import ScanLimits, scan_onnx
from fcn_deploy.graph.scan.outputs import without_weights
from fcn_deploy.segmenter import Segmenter
from tests.deploy.onnx_models import (
    RELU,
    X,
    Y,
    ints,
    model_of,
    one_node,
    segmenter_bytes,
    segmenter_model,
)

FLOAT = TensorProto.FLOAT


@pytest.mark.parametrize(
    ("op_type", "domain", "message"),
    [
        ("FusedConv", "com.microsoft", "'FusedConv' of the domain 'com.microsoft'"),
        ("Scaler", "ai.onnx.ml", "'Scaler' of the domain 'ai.onnx.ml'"),
        ("Evil", "x\n\x1b[2J", r"domain 'x\\n\\x1b\[2J'"),
        ("SequenceConstruct", "", r"'bad' \('SequenceConstruct'\) makes a sequence"),
        ("SplitToSequence", "ai.onnx", r"\('SplitToSequence'\) makes a sequence"),
        ("Optional", "", r"\('Optional'\) makes a sequence, an optional"),
        ("StringNormalizer", "", r"\('StringNormalizer'\) makes .* texts"),
    ],
)
def test_operators_that_no_plain_network_needs_are_refused_by_name(
    op_type: str, domain: str, message: str
) -> None:
    node = helper.make_node(op_type, ["x"], ["y"], name="bad", domain=domain)

    with pytest.raises(UnsupportedOpError, match=message):
        scan_onnx(one_node(node), foreign=True)


@pytest.mark.parametrize(
    ("op_type", "attribute"),
    [("If", "then_branch"), ("Loop", "body"), ("Scan", "body")],
)
def test_control_flow_is_refused_by_name(op_type: str, attribute: str) -> None:
    inner = helper.make_graph([], "inner", [], [])
    node = helper.make_node(op_type, ["x"], ["y"], name="bad", **{attribute: inner})

    with pytest.raises(UnsupportedOpError, match=f"'bad' \\('{op_type}'\\) holds a graph"):
        scan_onnx(one_node(node))


def test_the_long_name_of_the_standard_domain_is_taken() -> None:
    node = helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")

    assert scan_onnx(one_node(node)).nodes[0].domain == ""


def test_a_graph_in_an_attribute_is_refused() -> None:
    inner = helper.make_graph([], "inner", [], [])
    node = helper.make_node("Relu", ["x"], ["y"], name="bad", body=inner)

    with pytest.raises(UnsupportedOpError, match=r"'bad'.*holds a graph or a type.*'body'"):
        scan_onnx(one_node(node))


def test_an_operator_that_does_not_exist_is_refused_by_name() -> None:
    node = helper.make_node("MyRelu", ["x"], ["y"], name="bad")

    with pytest.raises(UnsupportedOpError, match="'bad' is 'MyRelu', which is no standard"):
        scan_onnx(one_node(node), foreign=True)


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Conv", ["x"], ["y"]),  # ends OpenVINO 2026.4.1 with a signal
        helper.make_node("Conv", ["", "x"], ["y"]),
        helper.make_node("Conv", ["x"] * 4, ["y"]),
        helper.make_node("Pad", ["x"], ["y"]),
        helper.make_node("Concat", ["x", ""], ["y"], axis=0),
        helper.make_node("Relu", [], ["y"]),
        helper.make_node("Relu", ["x"], ["y", "z"]),
    ],
)
def test_an_operator_with_too_few_or_many_inputs_or_outputs_is_refused(
    node: onnx.NodeProto,
) -> None:
    with pytest.raises(ArtifactError, match=f"(size .* not in range.*)?{node.op_type}"):
        scan_onnx(one_node(node), foreign=True)


def test_every_operator_with_an_input_too_few_is_refused_in_every_opset() -> None:
    tried = 0
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain or schema.deprecated or schema.min_input == 0:
            continue
        node = helper.make_node(schema.name, ["x"] * (schema.min_input - 1), ["y"])
        model = model_of([node], inputs=[X], outputs=[Y], opset=schema.since_version)
        tried += 1

        with pytest.raises(ArtifactError, match=r"in opset .* it takes|size . not in range"):
            scan_onnx(model.SerializeToString(), foreign=True)

    assert tried > 200


def test_local_functions_are_refused_with_the_way_out() -> None:
    model = model_of([RELU], inputs=[X], outputs=[Y])
    model.functions.add(name="f", domain="mine")

    with pytest.raises(UnsupportedOpError, match="inline_local_functions"):
        scan_onnx(model.SerializeToString())


@pytest.mark.parametrize(("field", "value"), [("ir_version", 99), ("ir_version", 0)])
def test_an_unknown_ir_version_is_refused(field: str, value: int) -> None:
    model = model_of([RELU], inputs=[X], outputs=[Y])
    setattr(model, field, value)

    with pytest.raises(UnsupportedOpError, match=rf"IR version {value}; onnx .* knows 1\.\."):
        scan_onnx(model.SerializeToString(), foreign=True)


def test_an_unknown_opset_is_refused() -> None:
    model = model_of([RELU], inputs=[X], outputs=[Y], opset=99)

    with pytest.raises(UnsupportedOpError, match="opset 99; onnx"):
        scan_onnx(model.SerializeToString(), foreign=True)


def test_a_sequence_as_input_is_refused() -> None:
    sequence = helper.make_tensor_sequence_value_info("s", FLOAT, [1])
    model = model_of([RELU], inputs=[X, sequence], outputs=[Y])

    with pytest.raises(UnsupportedOpError, match="'s' is a sequence_type"):
        scan_onnx(model.SerializeToString())


def test_sparse_weights_are_refused() -> None:
    model = model_of([RELU], inputs=[X], outputs=[Y])
    model.graph.sparse_initializer.add(dims=[1 << 30])
    attribute = helper.make_node("Relu", ["x"], ["y"])
    attribute.attribute.add(name="v", type=onnx.AttributeProto.SPARSE_TENSOR).sparse_tensor.dims[
        :
    ] = [1]

    with pytest.raises(UntrustedArtifactError, match="sparse initializer"):
        scan_onnx(model.SerializeToString())
    with pytest.raises(UntrustedArtifactError, match="sparse tensor"):
        scan_onnx(one_node(attribute))


def bomb(*nodes: onnx.NodeProto, initializers: tuple[TensorProto, ...] = ()) -> bytes:
    info = helper.make_tensor_value_info(nodes[-1].output[0], FLOAT, None)
    model = model_of([*nodes, RELU], inputs=[X], outputs=[Y, info], initializers=initializers)
    return bytes(model.SerializeToString())


def make(op_type: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [output], **attributes)  # type: ignore[arg-type]


def number(name: str, value: int) -> TensorProto:
    return numpy_helper.from_array(np.array(value, np.int64), name)


LARGE = 64 << 20
VECTOR = numpy_helper.from_array(np.zeros(8192, np.float32), "v")


@pytest.mark.parametrize(
    "data",
    [
        bomb(make("ConstantOfShape", ["s"], "b"), initializers=(ints("s", [LARGE]),)),
        bomb(make("ConstantOfShape", ["s"], "b"), initializers=(ints("s", [1 << 20] * 9),)),
        bomb(make("Constant", [], "s", value_ints=[LARGE]), make("ConstantOfShape", ["s"], "b")),
        bomb(
            make("Concat", ["p", "p"], "s", axis=0),
            make("ConstantOfShape", ["s"], "b"),
            initializers=(ints("p", [8192]),),
        ),
        bomb(
            make("Mul", ["p", "p"], "q"),
            make("Cast", ["q"], "s", to=7),
            make("ConstantOfShape", ["s"], "b"),
            initializers=(ints("p", [8192]),),
        ),
        bomb(make("Expand", ["v", "s"], "b"), initializers=(VECTOR, ints("s", [8192, 1]))),
        bomb(make("Tile", ["v", "s"], "b"), initializers=(VECTOR, ints("s", [8192]))),
        bomb(
            make("Tile", ["v", "s"], "t"),
            make("Tile", ["t", "s"], "b"),
            initializers=(VECTOR, ints("s", [100])),
        ),
        bomb(make("RandomNormal", [], "b", shape=[LARGE])),
        bomb(
            make("Range", ["a", "z", "d"], "b"),
            initializers=(number("a", 0), number("z", LARGE), number("d", 1)),
        ),
        bomb(
            make("Add", ["v", "u"], "b"),
            initializers=(VECTOR, numpy_helper.from_array(np.zeros((8192, 1), np.float32), "u")),
        ),
        bomb(
            make("MatMul", ["u", "w"], "b"),
            initializers=(
                numpy_helper.from_array(np.zeros((8192, 1), np.float32), "u"),
                numpy_helper.from_array(np.zeros((1, 8192), np.float32), "w"),
            ),
        ),
        bomb(make("Pad", ["v", "s"], "b"), initializers=(VECTOR, ints("s", [LARGE, 0]))),
        bomb(
            make("Gather", ["p", "i"], "s"),
            make("ConstantOfShape", ["s"], "b"),
            initializers=(ints("p", [1, LARGE]), ints("i", [1])),
        ),
        bomb(
            make("OneHot", ["v", "n", "w"], "b"),
            initializers=(VECTOR, ints("n", [8192]), ints("w", [0, 1])),
        ),
        bomb(
            make("ConstantOfShape", ["p"], "q"),
            make("Shape", ["q"], "r"),
            make("Mul", ["r", "p"], "s"),
            make("ConstantOfShape", ["s"], "b"),
            initializers=(ints("p", [200, 200]),),
        ),
    ],
)
def test_a_small_file_that_asks_for_much_memory_is_refused(data: bytes) -> None:
    with pytest.raises(UntrustedArtifactError, match=r"makes \d+ elements.*at most 16777216"):
        scan_onnx(data, foreign=True)


@pytest.mark.parametrize("op_type", ["Pow", "Div", "ReduceProd"])
def test_a_size_that_constants_decide_in_an_unknown_way_is_refused(op_type: str) -> None:
    inputs = ["p"] if op_type == "ReduceProd" else ["p", "p"]
    nodes = make(op_type, inputs, "s"), make("ConstantOfShape", ["s"], "b")

    with pytest.raises(UntrustedArtifactError, match="makes an unknown number of elements"):
        scan_onnx(bomb(*nodes, initializers=(ints("p", [8192]),)), foreign=True)


def test_large_constants_of_both_kinds_are_checked_by_their_shape() -> None:
    large = numpy_helper.from_array(np.zeros(1 << 20, np.float32), "large")
    nodes = [make("Constant", [], "held", value=large), make("Add", ["large", "held"], "sum")]
    data = bomb(*nodes, initializers=(large,))

    graph = scan_onnx(data, foreign=True)

    assert len(without_weights(data, graph)) < 1000
    assert graph.initializers["large"].dims == (1 << 20,)


def test_an_image_of_unknown_rank_and_its_shape_are_no_bomb() -> None:
    nodes = make("Shape", ["x"], "s"), make("ConstantOfShape", ["s"], "b")
    model = model_of([*nodes, RELU], inputs=[X], outputs=[Y])
    del model.graph.input[0].type.tensor_type.shape.dim[:]
    model.graph.input[0].type.tensor_type.shape.dim.add(dim_param="n")

    assert len(scan_onnx(model.SerializeToString(), foreign=True).nodes) == 3


def test_without_onnx_a_foreign_file_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)

    with pytest.raises(BackendUnavailableError, match=r"'onnx', which is not.*pip install onnx"):
        scan_onnx(segmenter_bytes(), foreign=True)


def test_constants_of_a_usual_size_are_taken() -> None:
    data = bomb(make("ConstantOfShape", ["s"], "b"), initializers=(ints("s", [16 << 20]),))

    assert len(scan_onnx(data, foreign=True).nodes) == 2


def test_too_many_nodes_fields_or_bytes_are_refused() -> None:
    data = segmenter_bytes()

    with pytest.raises(UntrustedArtifactError, match="more than 5 nodes"):
        scan_onnx(data, limits=ScanLimits(max_nodes=5))
    with pytest.raises(UntrustedArtifactError, match=r"has 11 nodes; at most 5 .* no artifact"):
        scan_onnx(data, limits=ScanLimits(max_foreign_nodes=5), foreign=True)
    with pytest.raises(UntrustedArtifactError, match="more than 50 fields"):
        scan_onnx(data, limits=ScanLimits(max_fields=50))
    with pytest.raises(ArtifactError, match="at most 100 can be"):
        scan_onnx(data, limits=ScanLimits(max_bytes=100))


def test_messages_that_nest_too_deep_are_refused() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    dim = node.device_configurations.add().sharding_spec.add().sharded_dim.add()
    dim.simple_sharding.add(dim_value=2, num_shards=2)

    assert scan_onnx(one_node(node)).nodes[0].op_type == "Relu"
    with pytest.raises(UntrustedArtifactError, match="nests more than 2 levels"):
        scan_onnx(one_node(node), limits=ScanLimits(max_depth=2))


@pytest.mark.parametrize(
    ("attribute", "values"), [("pads", [65536, 1, 1, 1]), ("pads", [1, 1]), ("kernel_shape", [])]
)
def test_windows_that_do_not_fit_or_make_no_sense_are_refused(
    tmp_path: Path, attribute: str, values: list[int]
) -> None:
    weights = np.ones((2, 3, 3, 3), np.float32)
    node = helper.make_node("Conv", ["image", "weights"], ["scores"])
    given = node.attribute.add(name=attribute, type=onnx.AttributeProto.INTS)
    given.ints.extend(values)
    graph = helper.make_graph(
        [node],
        "windows",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 2, "h", "w"])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = tmp_path / "windows.onnx"
    onnx.save(model, path)

    with pytest.raises(ArtifactError, match=f"has {attribute} .*; expected 2|4 numbers of 0 to"):
        Segmenter.open(path)


def test_an_image_of_an_absurd_size_is_refused(tmp_path: Path) -> None:
    model = segmenter_model()
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 1 << 40
    path = tmp_path / "absurd.onnx"
    onnx.save(model, path)

    with pytest.raises(ArtifactError, match=r"input 'image' is .*1099511627776.*at most"):
        Segmenter.open(path)
