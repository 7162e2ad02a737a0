"""An ONNX file is understood without onnx, and can be given further outputs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fcn_deploy.errors import (
    ArtifactError,
    UnsupportedOpError,
)
from fcn_deploy.graph.scan import StoredTensor, scan_onnx, with_extra_outputs, with_outputs
from fcn_deploy.graph.scan.schema import ELEMENT_TYPES, IR_VERSION, MODEL
from fcn_deploy.graph.scan.wire import (
    Kind,
    Message,
    encode_delimited,
    encode_int,
)
from fcn_deploy.telemetry import import_onnxruntime, import_openvino
from tests.deploy.artifacts import write_artifact, write_graph
from tests.deploy.onnx_models import (
    CLASSES,
    RELU,
    X,
    Y,
    ints,
    model_of,
    segmenter_bytes,
    segmenter_model,
    with_weight,
)

FLOAT = TensorProto.FLOAT


def weight_of(data: bytes) -> StoredTensor:
    return scan_onnx(data).initializers["weight"]


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
        ours = {n: name for n, (name, _) in message.fields.items()}
        theirs = {n: f.name for n, f in fields.items()}
        assert ours.items() <= theirs.items(), message.name
        assert ours == theirs or onnx.IR_VERSION > IR_VERSION, message.name
        for number, (name, kind) in message.fields.items():
            assert (fields[number].message_type is not None) == (kind is Kind.MESSAGE), name
            if name in message.children:
                compare(message.children[name], fields[number].message_type)

    compare(MODEL, onnx.ModelProto.DESCRIPTOR)

    assert len(seen) == 19
    assert onnx.IR_VERSION >= IR_VERSION


def test_fields_of_a_newer_format_are_skipped_and_those_of_a_known_one_refused() -> None:
    new = encode_int(900, 7) + encode_delimited(901, b"any") + b"\xf5\x38abcd" + b"\xf1\x38abcdefgh"
    model = segmenter_model()
    model.ir_version = IR_VERSION + 1
    newer = model.SerializeToString()
    cut = with_outputs(newer + new, ["full"])

    assert scan_onnx(newer + new) == scan_onnx(newer)
    assert [tensor.name for tensor in scan_onnx(cut).outputs] == ["full"]
    with pytest.raises(ArtifactError, match="field 900 with wire type 0 is not part"):
        scan_onnx(segmenter_bytes() + new)
    with pytest.raises(ArtifactError, match="field 0 with"):
        scan_onnx(newer + b"\x00\x00")


def test_every_element_type_of_onnx_is_known_by_name() -> None:
    codes = set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED, TensorProto.STRING}
    if onnx.IR_VERSION > IR_VERSION:  # it may have new ones, of a size that is not known
        codes &= ELEMENT_TYPES.keys()

    names = {code: helper.tensor_dtype_to_np_dtype(code).name for code in codes}

    assert {code: ELEMENT_TYPES[code].name for code in codes} == names
    assert {code: ELEMENT_TYPES[code].field for code in codes} == {
        code: helper.tensor_dtype_to_field(code) for code in codes
    }


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize(
    "dtype",
    [
        "float32",
        "float64",
        "float16",
        "int8",
        "uint8",
        "int16",
        "int32",
        "int64",
        "uint32",
        "uint64",
        "bool",
        "complex64",
        "complex128",
    ],
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
        "import sys; from fcn_deploy.graph.scan import scan_onnx; import fcn_deploy.graph.tail;"
        "scan_onnx(open(0, 'rb').read());"
        "print(sorted({'onnx', 'torch', 'onnxruntime', 'openvino'} & set(sys.modules)))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], input=segmenter_bytes(), capture_output=True, check=True
    )

    assert done.stdout.strip() == b"[]"


def test_opening_an_artifact_does_not_import_onnx_and_opening_a_bare_file_does(
    tmp_path: Path,
) -> None:
    code = (
        "import sys; from fcn_deploy import Segmenter\n"
        "for backend in ('openvino', 'onnxruntime'):\n"
        "    Segmenter.open(sys.argv[1], backend=backend).close()\n"
        "print('onnx' in sys.modules)"
    )

    done = [
        subprocess.run(
            [sys.executable, "-c", code, path], capture_output=True, check=True
        ).stdout.strip()
        for path in (write_artifact(tmp_path), write_graph(tmp_path))
    ]

    assert done == [b"False", b"True"]


def test_an_extra_output_is_given_by_onnxruntime_and_openvino(tmp_path: Path) -> None:
    onnxruntime, openvino = import_onnxruntime(), import_openvino()
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

    assert [(t.name, t.dtype) for t in outputs[1:]] == [("r1", "float16"), ("c1", None)]


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
