"""An ONNX file is understood without onnx, and refused where a library should not see it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fcn_deploy.errors import (
    ArtifactError,
    ArtifactMissingError,
    UnsupportedOpError,
    UntrustedArtifactError,
)
from fcn_deploy.onnx_scan import ScanLimits, StoredTensor, scan_onnx, with_extra_outputs
from fcn_deploy.onnx_scan.schema import ELEMENT_TYPES, MODEL, TENSOR
from fcn_deploy.onnx_scan.wire import (
    Kind,
    Message,
    Reader,
    encode_delimited,
    encode_int,
    encode_varint,
)
from tests.deploy.onnx_models import (
    CLASSES,
    external_tensor,
    ints,
    model_of,
    segmenter_bytes,
    segmenter_model,
    with_external_weight,
)

FLOAT = TensorProto.FLOAT
X = helper.make_tensor_value_info("x", FLOAT, [8])
Y = helper.make_tensor_value_info("y", FLOAT, [8])
RELU = helper.make_node("Relu", ["x"], ["y"])


def one_node(node: onnx.NodeProto, *initializers: TensorProto) -> bytes:
    model = model_of([node], inputs=[X], outputs=[Y], initializers=initializers)
    return bytes(model.SerializeToString())


def with_weight(weight: TensorProto) -> bytes:
    return one_node(helper.make_node("Add", ["x", "weight"], ["y"]), weight)


def weight_of(data: bytes) -> StoredTensor:
    return scan_onnx(data).initializers["weight"]


# --- what is read


def test_a_segmentation_graph_is_read_with_its_symbolic_sizes() -> None:
    graph = scan_onnx(segmenter_bytes())

    assert (graph.ir_version, graph.opset) == (10, 21)
    assert graph.inputs[0].dims == ("n", "h", "w", 3)
    assert str(graph.inputs[0].spec()) == "image: uint8 [?, ?, ?, 3]"
    assert graph.outputs[0].name == "labels"
    assert [node.op_type for node in graph.nodes][:3] == ["Cast", "Transpose", "Conv"]
    assert graph.nodes[1].attributes == {"perm": (0, 3, 1, 2)}
    assert graph.initializers["w2"].dims == (CLASSES, 8, 1, 1)
    assert graph.external_files == frozenset()


def test_producers_and_consumers_are_found_by_tensor_name() -> None:
    graph = scan_onnx(segmenter_bytes())

    producer = graph.producer("full")
    assert producer is not None
    assert producer.label == "'upsample'"
    assert graph.producer("image") is None
    assert [n.op_type for n in graph.consumers("network_scores")] == ["Shape", "Resize"]
    assert graph.consumers("labels") == ()


def test_an_initializer_that_is_listed_as_an_input_is_not_fed() -> None:
    model = segmenter_model()
    model.graph.input.append(helper.make_tensor_value_info("b1", FLOAT, [8]))

    graph = scan_onnx(model.SerializeToString())

    assert [tensor.name for tensor in graph.inputs] == ["image"]


def test_every_field_number_agrees_with_onnx() -> None:
    seen: set[str] = set()

    def compare(message: Message, descriptor: object) -> None:
        if message.name in seen:
            return
        seen.add(message.name)
        fields = {f.number: f for f in descriptor.fields}  # type: ignore[attr-defined]  # protobuf
        assert {n: f.name for n, f in fields.items()} == {
            n: name for n, (name, _) in message.fields.items()
        }, message.name
        for number, (name, kind) in message.fields.items():
            assert (fields[number].message_type is not None) == (kind is Kind.MESSAGE), name
            if name in message.children:
                compare(message.children[name], fields[number].message_type)

    compare(MODEL, onnx.ModelProto.DESCRIPTOR)

    assert len(seen) == 19
    assert onnx.IR_VERSION == 14


def test_every_element_type_of_onnx_is_known_by_name() -> None:
    codes = set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED, TensorProto.STRING}

    names = {code: helper.tensor_dtype_to_np_dtype(code).name for code in codes}

    assert {code: ELEMENT_TYPES[code].name for code in codes} == names
    assert {code: ELEMENT_TYPES[code].field for code in codes} == {
        code: helper.tensor_dtype_to_field(code) for code in codes
    }


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize(
    "dtype",
    ["float32", "float64", "float16", "int8", "uint8", "int16", "int32", "int64", "uint32"]
    + ["uint64", "bool", "complex64", "complex128"],
)
def test_small_values_are_read_from_raw_and_typed_fields(
    dtype: str, raw: bool, rng: np.random.Generator
) -> None:
    expected = rng.integers(-100, 100, (2, 3)).astype(dtype)
    code = helper.np_dtype_to_tensor_dtype(expected.dtype)
    content = expected.tobytes() if raw else expected.reshape(-1)
    tensor = helper.make_tensor("weight", code, [2, 3], content, raw=raw)

    found = weight_of(with_weight(tensor))

    assert (found.dtype, found.dims, found.nbytes) == (dtype, (2, 3), expected.nbytes)
    assert found.value is not None
    np.testing.assert_array_equal(found.value, expected)
    assert not found.value.flags.writeable


@pytest.mark.parametrize(
    "code", [16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26]
)  # the types that NumPy does not have
@pytest.mark.parametrize("raw", [True, False])
def test_types_that_numpy_lacks_keep_their_name_and_have_no_value(code: int, raw: bool) -> None:
    values = np.ones(5, helper.tensor_dtype_to_np_dtype(code))
    stored = numpy_helper.from_array(values, "weight")
    if not raw:
        stored = helper.make_tensor("weight", code, [5], values)

    found = weight_of(with_weight(stored))

    assert (found.dtype, found.size, found.value) == (ELEMENT_TYPES[code].name, 5, None)


def test_large_values_are_left_in_the_file() -> None:
    large = numpy_helper.from_array(np.zeros(4097, np.float32), "weight")

    assert weight_of(with_weight(large)).value is None
    assert weight_of(with_weight(large)).nbytes == 4097 * 4


def test_every_kind_of_constant_node_has_its_value() -> None:
    cases = [
        ({"value": ints("", [3, 4])}, [3, 4]),
        ({"value_int": 7}, 7),
        ({"value_ints": [7, -8]}, [7, -8]),
        ({"value_float": 0.5}, 0.5),
        ({"value_floats": [0.5, 2.0]}, [0.5, 2.0]),
    ]
    for attributes, expected in cases:
        node = helper.make_node("Constant", [], ["c"], **attributes)  # type: ignore[arg-type]
        model = model_of([node, RELU], inputs=[X], outputs=[Y])

        value = scan_onnx(model.SerializeToString()).constant("c")

        assert value is not None
        assert value.tolist() == expected


def test_a_graph_that_comes_in_pieces_is_their_concatenation() -> None:
    data = segmenter_bytes()
    info = helper.make_tensor_value_info("full", FLOAT, ["n", CLASSES, "h", "w"])
    piece = onnx.ModelProto(graph=onnx.GraphProto(output=[info])).SerializeToString()

    graph = scan_onnx(data + piece)

    assert [t.name for t in graph.outputs] == ["labels", "full"]
    assert [t.name for t in onnx.load_from_string(data + piece).graph.output] == ["labels", "full"]


def test_a_size_of_minus_one_or_an_empty_name_means_any() -> None:
    model = model_of([RELU], inputs=[X], outputs=[Y])
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", FLOAT, [-1, "", None, 4]))

    assert scan_onnx(model.SerializeToString()).outputs[0].dims == (None, None, None, 4)


def test_a_tensor_without_numpy_type_has_no_spec() -> None:
    model = model_of([RELU], inputs=[X], outputs=[Y])
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.BFLOAT16

    with pytest.raises(UnsupportedOpError, match="'x' has element type bfloat16"):
        scan_onnx(model.SerializeToString()).inputs[0].spec()


def test_scanning_imports_neither_onnx_nor_a_backend() -> None:
    code = (
        "import sys; from fcn_deploy.onnx_scan import scan_onnx; import fcn_deploy.tail;"
        "scan_onnx(open(0, 'rb').read());"
        "print(sorted({'onnx', 'torch', 'onnxruntime', 'openvino'} & set(sys.modules)))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], input=segmenter_bytes(), capture_output=True, check=True
    )

    assert done.stdout.strip() == b"[]"


# --- the wire format


def reader_of(data: bytes) -> Reader:
    return Reader(memoryview(data), name="file", max_fields=10_000, max_depth=16)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=50))
def test_packed_numbers_survive_the_round_trip(numbers: list[int]) -> None:
    data = b"".join(encode_varint(number & 2**64 - 1) for number in numbers)
    reader = reader_of(data)

    assert reader.packed_ints(TENSOR, (0, len(data))).tolist() == numbers
    assert reader.count_packed_ints(TENSOR, (0, len(data))) == len(numbers)


@given(st.integers(-(2**63), 2**63 - 1), st.text(max_size=200), st.binary(max_size=200))
def test_fields_survive_the_round_trip_and_agree_with_protobuf(
    number: int, text: str, raw: bytes
) -> None:
    data = encode_int(1, number) + encode_delimited(8, text.encode()) + encode_delimited(9, raw)

    fields = dict(reader_of(data).fields(TENSOR, ((0, len(data)),)))

    start, end = fields["raw_data"]
    assert (fields["dims"], fields["name"], data[start:end]) == (number, text, raw)
    theirs = TensorProto.FromString(data)
    assert (theirs.dims[0], theirs.name, theirs.raw_data) == (number, text, raw)


@given(st.binary(max_size=64))
def test_any_bytes_read_to_the_end_or_end_in_an_artifact_error(data: bytes) -> None:
    try:
        list(reader_of(data).fields(TENSOR, ((0, len(data)),)))
    except ArtifactError:
        return
    TensorProto.FromString(data)  # what is accepted, protobuf accepts


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x08", "ends inside a number"),
        (b"\x08" + b"\xff" * 11, "number is too long"),
        (b"\x08" + b"\xff" * 9 + b"\x02", "number is too long"),
        (b"\x88\x80\x80\x80\x80\x80\x00", "number is too long"),
        (b"\x42\x05abc", "field 'name' should have 5 bytes, 3 are left"),
        (b"\x42\x02\xff\xfe", "not UTF-8"),
        (b"\x43\x44", "field 8 with wire type 3"),
        (b"\x45\x00\x00\x00\x00", "field 8 with wire type 5"),
        (b"\x00\x00", "field 0 with wire type 0"),
        (b"\x7a\x00", "field 15 with wire type 2"),
        (b"\x10" + encode_varint(2**32 + 1), "4294967297 does not fit in 32 bits"),
    ],
)
def test_bytes_that_two_parsers_could_read_differently_are_refused(
    data: bytes, message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        list(reader_of(data).fields(TENSOR, ((0, len(data)),)))


@pytest.mark.parametrize(
    ("packed", "message"),
    [(b"\x01\x80", "is cut"), (b"\xff" * 11 + b"\x00", "too long"), (b"\xff" * 30, "too long")],
)
def test_packed_numbers_that_are_cut_or_too_long_are_refused(packed: bytes, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        reader_of(packed).packed_ints(TENSOR, (0, len(packed)))


def test_packed_numbers_are_counted_over_block_borders() -> None:
    block = 1 << 20
    data = b"\x01" * (block - 2) + b"\xff" * 4 + b"\x01" + b"\x02" * 10

    assert reader_of(data).count_packed_ints(TENSOR, (0, len(data))) == block - 2 + 1 + 10


# --- damage


def test_a_cut_file_is_refused_wherever_it_is_cut() -> None:
    data = segmenter_bytes()

    for length in range(len(data)):
        with pytest.raises(ArtifactError, match="the model"):
            scan_onnx(data[:length])


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff\xe0 a picture", b"PK\x03\x04", b"<net/>"])
def test_something_else_under_the_name_of_a_model_is_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"picture\.onnx (is not a valid|holds no)"):
        scan_onnx(data, name="picture.onnx")


def break_tensor(**changes: object) -> Callable[[TensorProto], None]:
    def apply(tensor: TensorProto) -> None:
        for name, value in changes.items():
            if isinstance(value, list):
                tensor.ClearField(name)
                getattr(tensor, name).extend(value)
            else:
                setattr(tensor, name, value)

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (break_tensor(dims=[9]), "shape \\[9\\] and type float32 needs 36 bytes; found 32"),
        (break_tensor(dims=[-8]), "sizes \\[-8\\]; expected at most 32, each in 0"),
        (break_tensor(dims=[2**40, 0]), "each in 0"),
        (break_tensor(dims=[1] * 40), "40 dimensions"),
        (break_tensor(data_type=0), "unknown element type 0"),
        (break_tensor(data_type=99), "unknown element type 99"),
        (break_tensor(data_type=11), "needs 64 bytes; found 32"),
        (break_tensor(data_type=8), "type string"),
        (break_tensor(raw_data=b""), "found 0"),
        (break_tensor(float_data=[1.0] * 8), "found 32"),
    ],
)
def test_a_weight_whose_bytes_do_not_fit_its_shape_is_refused(
    change: Callable[[TensorProto], None], message: str
) -> None:
    weight = numpy_helper.from_array(np.zeros(8, np.float32), "weight")
    change(weight)

    with pytest.raises(ArtifactError, match=message):
        scan_onnx(with_weight(weight))


def test_a_weight_in_the_field_of_another_type_is_refused() -> None:
    weight = TensorProto(name="weight", data_type=FLOAT, dims=[8], int32_data=[1] * 8)

    with pytest.raises(ArtifactError, match="8 values in float_data; found 0 and int32_data"):
        scan_onnx(with_weight(weight))


def break_graph(change: Callable[[onnx.GraphProto], object]) -> bytes:
    model = segmenter_model()
    change(model.graph)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.node.pop(0), "'nchw'.* reads 'float', which nothing before it gives"),
        (lambda g: g.node.reverse(), "which nothing before it gives"),
        (lambda g: g.node.append(g.node[0]), "makes the tensor 'float' twice"),
        (lambda g: g.initializer.append(g.initializer[0]), "two initializers named 'w1'"),
        (lambda g: g.input.append(g.input[0]), "two inputs named 'image'"),
        (lambda g: g.output.append(g.output[0]), "no output, or one twice"),
        (lambda g: g.ClearField("output"), "no output"),
        (lambda g: setattr(g.output[0], "name", "no"), "output 'no', which nothing gives"),
        (lambda g: g.node[1].attribute.append(g.node[1].attribute[0]), "two attributes 'perm'"),
        (lambda g: setattr(g.node[1].attribute[0], "i", 4), "'perm' has the type 7"),
        (lambda g: g.node[0].ClearField("op_type"), "without an operator"),
        (lambda g: setattr(g.input[0].type.tensor_type, "elem_type", 77), "element type 77"),
    ],
)
def test_a_graph_that_does_not_hang_together_is_refused(
    change: Callable[[onnx.GraphProto], object], message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        scan_onnx(break_graph(change))


# --- what no plain network needs


@pytest.mark.parametrize(
    ("op_type", "domain", "message"),
    [
        ("FusedConv", "com.microsoft", "'FusedConv' of the domain 'com.microsoft'"),
        ("Scaler", "ai.onnx.ml", "'Scaler' of the domain 'ai.onnx.ml'"),
        ("Evil", "x\n\x1b[2J", r"domain 'x\\n\\x1b\[2J'"),
        ("If", "", "'bad'.*'If', which holds a graph"),
        ("Loop", "", "'Loop'"),
        ("Scan", "ai.onnx", "'Scan'"),
        ("SequenceConstruct", "", "'SequenceConstruct'"),
        ("OptionalGetElement", "", "'OptionalGetElement'"),
        ("ImageDecoder", "", "'ImageDecoder'"),
    ],
)
def test_operators_that_no_plain_network_needs_are_refused_by_name(
    op_type: str, domain: str, message: str
) -> None:
    node = helper.make_node(op_type, ["x"], ["y"], name="bad", domain=domain)

    with pytest.raises(UnsupportedOpError, match=message):
        scan_onnx(one_node(node))


def test_the_long_name_of_the_standard_domain_is_taken() -> None:
    node = helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")

    assert scan_onnx(one_node(node)).nodes[0].domain == ""


def test_a_graph_in_an_attribute_is_refused() -> None:
    inner = helper.make_graph([], "inner", [], [])
    node = helper.make_node("Relu", ["x"], ["y"], name="bad", body=inner)

    with pytest.raises(UnsupportedOpError, match="'bad'.*holds a graph or a type.*'body'"):
        scan_onnx(one_node(node))


def test_local_functions_are_refused_with_the_way_out() -> None:
    model = model_of([RELU], inputs=[X], outputs=[Y])
    model.functions.add(name="f", domain="mine")

    with pytest.raises(UnsupportedOpError, match="inline_local_functions"):
        scan_onnx(model.SerializeToString())


@pytest.mark.parametrize(("field", "value"), [("ir_version", 99), ("ir_version", 0)])
def test_an_unknown_ir_version_is_refused(field: str, value: int) -> None:
    model = model_of([RELU], inputs=[X], outputs=[Y])
    setattr(model, field, value)

    with pytest.raises(UnsupportedOpError, match=rf"IR version {value}; known are 1\.\.14"):
        scan_onnx(model.SerializeToString())


def test_an_unknown_opset_is_refused() -> None:
    model = model_of([RELU], inputs=[X], outputs=[Y], opset=99)

    with pytest.raises(UnsupportedOpError, match="opset 99"):
        scan_onnx(model.SerializeToString())


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


# --- bombs


def bomb(*nodes: onnx.NodeProto, initializers: tuple[TensorProto, ...] = ()) -> bytes:
    info = helper.make_tensor_value_info(nodes[-1].output[0], FLOAT, None)
    model = model_of([*nodes, RELU], inputs=[X], outputs=[Y, info], initializers=initializers)
    return bytes(model.SerializeToString())


def make(op_type: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [output], **attributes)  # type: ignore[arg-type]


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
            initializers=(ints("a", [0]), ints("z", [LARGE]), ints("d", [1])),
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
    ],
)
def test_a_small_file_that_asks_for_much_memory_is_refused(data: bytes) -> None:
    with pytest.raises(UntrustedArtifactError, match=r"makes \d+ elements.*at most 16777216"):
        scan_onnx(data)


def test_constants_of_a_usual_size_are_taken() -> None:
    data = bomb(make("ConstantOfShape", ["s"], "b"), initializers=(ints("s", [16 << 20]),))

    assert len(scan_onnx(data).nodes) == 2


def test_too_many_nodes_fields_or_bytes_are_refused() -> None:
    data = segmenter_bytes()

    with pytest.raises(UntrustedArtifactError, match="more than 5 nodes"):
        scan_onnx(data, limits=ScanLimits(max_nodes=5))
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


# --- external data

PLACE = [("location", "weights.bin"), ("offset", "4"), ("length", "32")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder with a file of weights in it, and a secret outside."""
    inside = tmp_path / "model"
    inside.mkdir()
    (inside / "weights.bin").write_bytes(bytes(64))
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    return inside


@pytest.mark.parametrize("constant_node", [False, True])
def test_weights_in_a_plain_file_beside_the_model_are_taken(
    folder: Path, constant_node: bool
) -> None:
    graph = scan_onnx(with_external_weight(PLACE, constant_node=constant_node), folder=folder)

    assert graph.external_files == {"weights.bin"}


def test_weights_elsewhere_need_a_folder() -> None:
    with pytest.raises(UntrustedArtifactError, match=r"'weight'.*'weights\.bin'.*without a folder"):
        scan_onnx(with_external_weight(PLACE))


@pytest.mark.parametrize("constant_node", [False, True])
@pytest.mark.parametrize(
    "location",
    [
        "../secret.bin",
        "/etc/passwd",
        "./weights.bin",
        "sub/weights.bin",
        "..",
        ".",
        "",
        ".hidden",
        "*/_ORT_MEM_ADDR_/*",
        "C:\\weights.bin",
        "weights.bin\x00.txt",
        "weights.bin\n",
        "wеights.bin",  # noqa: RUF001  # the second letter is Cyrillic
        "w" * 129,
    ],
)
def test_a_location_that_is_no_bare_file_name_is_refused(
    folder: Path, location: str, constant_node: bool
) -> None:
    data = with_external_weight([("location", location)], constant_node=constant_node)
    who = "attribute 'value' of node 'holder'" if constant_node else "initializer 'weight'"

    with pytest.raises(UntrustedArtifactError, match=f"{who}.*bare name of a plain file"):
        scan_onnx(data, folder=folder)


@pytest.mark.parametrize("kind", ["symbolic link", "dangling link", "hard link", "pipe", "folder"])
def test_a_location_that_is_no_plain_file_is_refused(folder: Path, kind: str) -> None:
    path, secret = folder / "link.bin", folder.parent / "secret.bin"
    if kind == "symbolic link":
        path.symlink_to(secret)
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    elif kind == "hard link":
        os.link(secret, path)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()

    with pytest.raises(UntrustedArtifactError, match="'link.bin', (a symbolic|a hard|not a plain)"):
        scan_onnx(with_external_weight([("location", "link.bin")]), folder=folder)


def test_missing_weights_are_named(folder: Path) -> None:
    data = with_external_weight([("location", "gone.bin")])

    with pytest.raises(ArtifactMissingError, match=r"'weight'.*'gone\.bin', which is missing"):
        scan_onnx(data, folder=folder)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("offset", "-1")], "offset '-1'"),
        ([("offset", "33")], "bytes 33 to 65; the file has 64"),
        ([("offset", "9223372036854775807")], "offset '9223372036854775807'"),
        ([("offset", "0x10")], "offset '0x10'"),
        ([("offset", " 1")], "offset ' 1'"),
        ([("offset", "٣")], "offset"),
        ([("length", "-32")], "length '-32'"),
        ([("length", "64")], "has 64 bytes; its shape needs 32"),
        ([("length", "0")], "has 0 bytes"),
        ([("__class__", "x")], "__class__"),
        ([("location", "weights.bin")], "at most once"),
    ],
)
def test_an_offset_length_or_key_that_does_not_fit_is_refused(
    folder: Path, entries: list[tuple[str, str]], message: str
) -> None:
    data = with_external_weight([("location", "weights.bin"), *entries])

    with pytest.raises(UntrustedArtifactError, match=message):
        scan_onnx(data, folder=folder)


def test_a_huge_external_tensor_is_refused(folder: Path) -> None:
    data = with_external_weight([("location", "weights.bin")], dims=[2**31 - 1] * 8)

    with pytest.raises(UntrustedArtifactError, match="the file has 64"):
        scan_onnx(data, folder=folder)


def test_the_same_bytes_for_many_tensors_are_refused(folder: Path) -> None:
    tensors = [external_tensor(f"w{i}", [16], [("location", "weights.bin")]) for i in range(2)]
    data = one_node(RELU, *tensors)

    with pytest.raises(UntrustedArtifactError, match="has 64 bytes.*need 128"):
        scan_onnx(data, folder=folder)


def test_a_tensor_that_is_both_inside_and_outside_is_refused(folder: Path) -> None:
    both = external_tensor("weight", [8], PLACE)
    both.raw_data = bytes(32)
    neither = external_tensor("weight", [8], PLACE)
    neither.data_location = TensorProto.DEFAULT

    for tensor, message in ((both, "also names the file"), (neither, "although they are in")):
        with pytest.raises(UntrustedArtifactError, match=message):
            scan_onnx(with_weight(tensor), folder=folder)


def test_a_location_hidden_in_a_second_piece_of_the_tensor_is_found(folder: Path) -> None:
    plain = with_external_weight(PLACE, constant_node=True)
    model = onnx.load_from_string(plain)
    attribute = model.graph.node[0].attribute[0]
    piece = TensorProto()
    piece.external_data.add(key="location", value="../secret.bin")
    split = attribute.SerializeToString() + encode_delimited(5, piece.SerializeToString())
    node = model.graph.node[0]
    node.ClearField("attribute")
    bytes_of_node = node.SerializeToString() + encode_delimited(5, split)
    del model.graph.node[0]
    graph = encode_delimited(1, bytes_of_node) + model.graph.SerializeToString()
    model.ClearField("graph")
    data = model.SerializeToString() + encode_delimited(7, graph)

    with pytest.raises(UntrustedArtifactError, match=r"secret\.bin.*at most once"):
        scan_onnx(data, folder=folder)


# --- further outputs


def test_an_extra_output_is_given_by_onnxruntime_and_openvino(tmp_path: Path) -> None:
    import onnxruntime
    import openvino

    data = with_extra_outputs(segmenter_bytes(), ["network_scores"])
    image = np.random.default_rng(3).integers(0, 255, (1, 12, 17, 3), dtype=np.uint8)
    path = tmp_path / "extra.onnx"
    path.write_bytes(data)

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    labels, scores = session.run(None, {"image": image})
    compiled = openvino.Core().compile_model(path, "CPU")
    theirs = compiled({"image": image})

    assert [t.name for t in scan_onnx(data).outputs] == ["labels", "network_scores"]
    assert labels.shape == (1, 12, 17)
    assert scores.shape == (1, CLASSES, 6, 9)
    # two libraries' sums of 27 products of order 10, in fp32 (OpenVINO may take bf16: 1 %)
    np.testing.assert_allclose(theirs["network_scores"], scores, rtol=2e-2, atol=2e-1)


def test_an_extra_output_has_the_type_that_the_model_says() -> None:
    model = segmenter_model()
    model.graph.value_info.append(helper.make_tensor_value_info("r1", TensorProto.FLOAT16, None))

    outputs = scan_onnx(with_extra_outputs(model.SerializeToString(), ["r1", "c1"])).outputs

    assert [(t.name, t.dtype) for t in outputs[1:]] == [("r1", "float16"), ("c1", "float32")]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["nothing"], "no node makes the tensor 'nothing'"),
        (["image"], "no node makes"),
        (["labels"], "an output already"),
        (["full", "full"], "an output already"),
    ],
)
def test_an_extra_output_that_no_node_makes_or_that_is_there_is_refused(
    names: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        with_extra_outputs(segmenter_bytes(), names)


def test_no_extra_outputs_leave_the_model_as_it_is() -> None:
    data = segmenter_bytes()

    assert with_extra_outputs(data, []) is data
