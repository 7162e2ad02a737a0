"""Damaged models: the scan fails only as documented, and what it lets through kills no library."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from fcn_deploy.errors import ArtifactError, UnsupportedOpError
from fcn_deploy.graph.scan import OnnxGraph, ScanLimits, scan_onnx
from fcn_deploy.graph.scan.wire import encode_delimited, encode_int, encode_varint
from fcn_deploy.graph.tail import find_tail
from tests.deploy.onnx_models import segmenter_model

MUTANTS = 2000
LOADED_MUTANTS = 60
MEGABYTE = 1 << 20
EXTREMES = (-(1 << 63), -1, 0, 1, 2, 5, 1 << 16, 1 << 31, 1 << 62, (1 << 63) - 1)
OPERATORS = ("Conv", "Relu", "Resize", "Transpose", "Concat", "MaxPool", "Softmax", "Slice", "Pad")
HEADER = encode_int(1, 10) + encode_delimited(8, encode_int(2, 21))  # IR 10, opset 21

# loads every file named on stdin by both libraries; the last line printed names the last attempt
LOADER = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
from fcn_deploy.telemetry import import_onnxruntime, import_openvino
onnxruntime, openvino = import_onnxruntime(), import_openvino()
core = openvino.Core()
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
options.intra_op_num_threads = 1
loaded = {"onnxruntime": 0, "openvino": 0}
for path in sys.stdin.read().split():
    for library in loaded:
        print(library, path, flush=True)
        try:
            if library == "onnxruntime":
                onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            else:
                core.compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": 1})
        except Exception:
            continue
        loaded[library] += 1
print(loaded["onnxruntime"], loaded["openvino"])
"""


def seed_model() -> bytes:
    """Give a model with everything in it that exporters write."""
    model = segmenter_model()
    model.graph.value_info.append(
        onnx.helper.make_tensor_value_info("network_scores", onnx.TensorProto.FLOAT, ["n", 5, 2, 2])
    )
    model.graph.node[0].metadata_props.add(key="trace", value="model.py:1")
    model.graph.quantization_annotation.add(tensor_name="c1")
    model.doc_string = "a model"
    return bytes(model.SerializeToString())


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Change a model in one to three places."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at, size = int(rng.integers(len(out))), int(rng.integers(1, 24))
        match rng.integers(6):
            case 0:
                out[at] ^= 1 << int(rng.integers(8))
            case 1:
                out[at] = int(rng.integers(256))
            case 2:
                del out[at : at + size]
            case 3:
                out[at:at] = out[at : at + size]
            case 4:
                out[at:at] = rng.bytes(size)
            case _:
                number = encode_varint(1 << int(rng.integers(64)))
                out[at : at + len(number)] = number
        if not out:
            break
    return bytes(out)


def rewire(data: bytes, rng: np.random.Generator) -> bytes:
    """Change one to three things in a model that stays well-formed protobuf."""
    model = onnx.ModelProto.FromString(data)
    graph = model.graph
    names = [name for node in graph.node for name in node.output]
    names += ["", *(tensor.name for tensor in graph.initializer)]
    for _ in range(rng.integers(1, 4)):
        node = graph.node[rng.integers(len(graph.node))]
        tensor = graph.initializer[rng.integers(len(graph.initializer))]
        attribute = node.attribute[rng.integers(len(node.attribute))] if node.attribute else None
        number = EXTREMES[rng.integers(len(EXTREMES))]
        match rng.integers(7):
            case 0 if attribute and attribute.type == onnx.AttributeProto.INT:
                attribute.i = number
            case 0 | 1 if attribute and attribute.ints:
                attribute.ints[rng.integers(len(attribute.ints))] = number
            case 2 if node.input:
                node.input[rng.integers(len(node.input))] = names[rng.integers(len(names))]
            case 3 if node.input:
                del node.input[int(rng.integers(len(node.input)))]
            case 4 if attribute:
                node.attribute.remove(attribute)
            case 5:
                node.op_type = OPERATORS[rng.integers(len(OPERATORS))]
            case _:
                tensor.dims.reverse()
    return bytes(model.SerializeToString())


def scan_or_none(data: bytes, *, foreign: bool = False) -> OnnxGraph | None:
    """Scan; None where it is refused in one of the documented ways."""
    try:
        return scan_onnx(data, foreign=foreign)
    except (ArtifactError, UnsupportedOpError) as error:
        message = str(error)
    assert 10 < len(message) < 1000
    assert message.isprintable()
    return None


def assert_agrees_with_onnx(graph: OnnxGraph, data: bytes) -> None:
    theirs = onnx.ModelProto.FromString(data)
    stored = {t.name: (t.data_type, tuple(t.dims)) for t in theirs.graph.initializer}
    codes = {t.name: t.dims for t in graph.initializers.values()}
    assert codes == {name: dims for name, (_, dims) in stored.items()}
    assert graph.ir_version == theirs.ir_version
    assert [t.name for t in graph.outputs] == [t.name for t in theirs.graph.output]
    assert [t.name for t in graph.inputs] == [
        t.name for t in theirs.graph.input if t.name not in stored
    ]
    assert [(n.op_type, n.name, n.inputs, n.outputs, set(n.attributes)) for n in graph.nodes] == [
        (n.op_type, n.name, tuple(n.input), tuple(n.output), {a.name for a in n.attribute})
        for n in theirs.graph.node
    ]
    for ours, node in zip(graph.nodes, theirs.graph.node, strict=True):
        for attribute in node.attribute:
            if attribute.type in (onnx.AttributeProto.INT, onnx.AttributeProto.INTS):
                value = onnx.helper.get_attribute_value(attribute)
                expected = tuple(value) if isinstance(value, list) else value
                assert ours.attributes[attribute.name] == expected


def test_damaged_models_are_refused_or_read_as_onnx_reads_them(rng: np.random.Generator) -> None:
    data = seed_model()
    accepted = 0

    for _ in range(MUTANTS):
        mutant = mutate(data, rng)
        graph = scan_or_none(mutant)
        if graph is not None:
            accepted += 1
            assert_agrees_with_onnx(graph, mutant)
            find_tail(graph)

    assert MUTANTS // 20 < accepted < MUTANTS * 19 // 20  # both ways were tried


def test_random_bytes_are_refused(rng: np.random.Generator) -> None:
    for size in range(1, 400):
        assert scan_or_none(rng.bytes(size)) is None


@pytest.mark.parametrize("change", [mutate, rewire])
def test_models_that_pass_the_scan_kill_no_library(
    change: Callable[[bytes, np.random.Generator], bytes],
    tmp_path: Path,
    rng: np.random.Generator,
) -> None:
    data, paths = seed_model(), list[str]()
    while len(paths) < LOADED_MUTANTS:
        mutant = change(data, rng)
        if scan_or_none(mutant, foreign=True) is not None:
            path = tmp_path / f"{len(paths)}.onnx"
            path.write_bytes(mutant)
            paths.append(str(path))

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOADER],
        input="\n".join(paths),
        capture_output=True,
        text=True,
        timeout=120,
    )

    last = done.stdout.splitlines()[-1] if done.stdout else ""
    assert done.returncode == 0, (
        f"ended with {done.returncode} after: {last}\n{done.stderr[-2000:]}"
    )
    assert all(int(count) > 0 for count in last.split())  # they were not all broken


@pytest.mark.parametrize(
    "piece",
    [
        encode_delimited(1, b""),  # nodes
        encode_delimited(13, b""),  # descriptions of tensors
        encode_delimited(11, encode_delimited(1, b"x")),  # inputs
        encode_delimited(1, encode_delimited(4, b"Add") + encode_delimited(1, b"") * 60_000),
        encode_delimited(5, b"\x08\x00" * 60_000),  # a tensor of many dimensions
        encode_delimited(13, encode_delimited(2, b"\x0a\x02\x12\x00" * 60_000)),
        encode_delimited(  # a list of numbers in an attribute
            1,
            encode_delimited(2, b"y")
            + encode_delimited(4, b"Add")
            + encode_delimited(5, encode_delimited(8, b"\xff\x01" * 120_000)),
        ),
    ],
)
def test_files_of_many_tiny_parts_take_bounded_memory(piece: bytes) -> None:
    graph = piece * max(1, MEGABYTE // 8 // len(piece))
    data = HEADER + encode_delimited(7, graph)

    tracemalloc.start()
    try:
        assert scan_or_none(data) is None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 20 * len(data) + 16 * MEGABYTE


def test_the_number_of_fields_bounds_the_work() -> None:
    data = HEADER + encode_delimited(7, encode_delimited(16, b"") * 60_000)

    with pytest.raises(ArtifactError, match="more than 50000 fields"):
        scan_onnx(data, limits=ScanLimits(max_fields=50_000))
