"""Protobuf is read strictly, and a cut or damaged file is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from fcn_deploy.errors import (
    ArtifactError,
)
from fcn_deploy.graph.scan import scan_onnx
from fcn_deploy.graph.scan.schema import TENSOR
from fcn_deploy.graph.scan.wire import (
    Reader,
    encode_delimited,
    encode_int,
    encode_varint,
)
from tests.deploy.onnx_models import (
    segmenter_bytes,
    segmenter_model,
    with_weight,
)

FLOAT = TensorProto.FLOAT


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
