"""Makes damaged and hostile variants of small segmentation graphs, and opens them apart from here.

Run as a script it tells what becomes of each kind: `python -m tests.deploy.graph.mutated_files`.
"""

from __future__ import annotations

import io
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from fcn_deploy.graph.scan.wire import encode_delimited, encode_varint
from tests.deploy.onnx_models import ints, segmenter_model

__all__ = ["KINDS", "Opened", "open_files", "seed_graphs", "write_mutants"]

Rng = np.random.Generator
Change = Callable[[ModelProto, Rng], None]

TIME_LIMIT_SECONDS = 30
MEMORY_LIMIT_BYTES = 4 << 30
_FILES_PER_WORKER = 200
_EXTREMES = (-(1 << 63), -(1 << 31), -7, -1, 0, 1, 2, 5, 1 << 16, 1 << 31, 1 << 40, (1 << 63) - 1)
_HUGE = 1 << 34
_STANDARD = sorted(
    {schema.name for schema in onnx.defs.get_all_schemas_with_history() if not schema.domain}
)

# opens each file that is named on stdin, and answers with one line
_WORKER = """
import json, logging, resource, sys
limit, backend = int(sys.argv[1]), sys.argv[2]
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
logging.disable(logging.CRITICAL)
from fcn_deploy import FcnDeployError, Segmenter
for line in sys.stdin:
    try:
        Segmenter.open(line.strip(), backend=backend, num_threads=1, cache=False).close()
        answer = ["opened", ""]
    except FcnDeployError as error:
        answer = ["refused", f"{type(error).__name__}: {error}"]
    except BaseException as error:
        answer = ["fault", f"{type(error).__name__}: {error}"]
    print("\\n@" + json.dumps([*answer, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
    sys.stdout.flush()
"""


@dataclass(frozen=True, slots=True)
class Opened:
    """What became of one file.

    Attributes:
        outcome: ``"opened"``, ``"refused"`` (by an FcnDeployError), ``"fault"`` (by another
            error), ``"crash"`` or ``"hang"``.
        message: of the error, or the signal's name.
        peak_mib: of the process that opened it and those before it.
    """

    path: Path
    backend: str
    outcome: str
    message: str
    seconds: float
    peak_mib: int


def seed_graphs() -> tuple[ModelProto, ...]:
    """Give small segmentation graphs: by hand for opset 21 and 13, and as torch exports them."""
    return segmenter_model(), _skip_model(), _exported_model()


def write_mutants(folder: Path, *, count: int, seed: int) -> list[Path]:
    """Write files, each named by its number and kind; the kinds take turns.

    Returns:
        Their paths.
    """
    rng = np.random.default_rng(seed)
    graphs = [_bytes(model) for model in seed_graphs()]
    _write_neighbours(folder)
    kinds = [*KINDS]
    paths = []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        model = _parsed(graphs[rng.integers(len(graphs))])
        changed = KINDS[kind](model, rng)
        path = folder / f"{number:04d}-{kind}.onnx"
        path.write_bytes(_bytes(model) if changed is None else changed)
        paths.append(path)
    return paths


def open_files(paths: Sequence[Path], *, backend: str) -> Iterator[Opened]:
    """Open each file by Segmenter.open in a process of limited memory, with limited time."""
    rest = list(paths)
    while rest:
        with _Worker(backend) as worker:
            for _ in range(min(len(rest), _FILES_PER_WORKER)):
                found = worker.open(rest.pop(0))
                yield found
                if found.outcome in ("crash", "hang"):
                    break


class _Worker:
    def __init__(self, backend: str) -> None:
        root = Path(__file__).resolve().parents[3]
        places = [str(root / folder) for folder in ("", "export", "benchmarks")]
        self._backend = backend
        self._peak_mib = 0
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _WORKER, str(MEMORY_LIMIT_BYTES), backend],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"},
        )

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def open(self, path: Path) -> Opened:
        assert self._process.stdin is not None
        start = time.monotonic()
        self._process.stdin.write(f"{path}\n".encode())
        self._process.stdin.flush()
        answer = self._answer(start + TIME_LIMIT_SECONDS)
        seconds = time.monotonic() - start
        if answer is None:
            self._process.kill()
            outcome, message = "hang", f"no answer in {TIME_LIMIT_SECONDS} s"
        elif answer == b"":
            code = self._process.wait()
            name = signal.Signals(-code).name if code < 0 else f"exit {code}"
            outcome, message = "crash", name
        else:
            outcome, message, peak = json.loads(answer)
            self._peak_mib = peak >> 10
        return Opened(path, self._backend, outcome, message, seconds, self._peak_mib)

    def _answer(self, until: float) -> bytes | None:
        """Read the line that begins with @; nothing where the process ended, None at the limit."""
        assert self._process.stdout is not None
        handle = self._process.stdout.fileno()
        seen = b""
        while (left := until - time.monotonic()) > 0:
            if not select.select([handle], [], [], left)[0]:
                break
            piece = os.read(handle, 1 << 16)
            seen += piece
            if not piece:
                return b""
            if seen.endswith(b"\n") and b"\n@" in seen:
                return seen.rsplit(b"\n@", 1)[1]
        return None


def _skip_model() -> ModelProto:
    """Float NCHW in; a skip, a fixed upsampling, a crop, scores out; opset 13."""
    rng = np.random.default_rng(11)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)

    taps = np.array([0.25, 0.75, 0.75, 0.25], np.float32)
    kernel = np.tile(np.outer(taps, taps), (4, 1, 1, 1)).astype(np.float32)
    make = helper.make_node
    nodes = [
        make("Pad", ["image", "around"], ["padded"], mode="constant"),
        make("Conv", ["padded", "w1", "b1"], ["c1"], kernel_shape=[3, 3]),
        make("BatchNormalization", ["c1", "gain", "b1", "b1", "gain"], ["n1"], epsilon=1e-5),
        make("Relu", ["n1"], ["r1"]),
        make("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        make("Conv", ["p1", "w2"], ["c2"], kernel_shape=[3, 3], dilations=[2, 2], pads=[2] * 4),
        make("Clip", ["c2", "low", "high"], ["r2"]),
        make("Concat", ["p1", "r2"], ["both"], axis=1),
        make("Conv", ["both", "w3"], ["low_scores"], kernel_shape=[1, 1]),
        make("ConvTranspose", ["low_scores", "up"], ["full"], strides=[2, 2], group=4),
        make("Shape", ["image"], ["image_shape"]),
        make("Gather", ["image_shape", "last_two"], ["image_size"], axis=0),
        make("Constant", [], ["one"], value=ints("", [1, 1])),
        make("Add", ["image_size", "one"], ["ends"]),
        make("Slice", ["full", "one", "ends", "last_two"], ["cut"]),
        make("Softmax", ["cut"], ["scores"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "skip",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 4, "h", "w"])],
        [
            ints("around", [0, 0, 1, 1, 0, 0, 1, 1]),
            ints("last_two", [2, 3]),
            weight("w1", 6, 3, 3, 3),
            weight("b1", 6),
            numpy_helper.from_array(np.ones(6, np.float32), "gain"),
            weight("w2", 6, 6, 3, 3),
            weight("w3", 4, 12, 1, 1),
            numpy_helper.from_array(np.array(0, np.float32), "low"),
            numpy_helper.from_array(np.array(6, np.float32), "high"),
            numpy_helper.from_array(kernel, "up"),
        ],
        value_info=[helper.make_tensor_value_info("c2", TensorProto.FLOAT, ["n", 6, None, None])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def _exported_model() -> ModelProto:
    import torch
    from torch import nn

    from fcn_export.trace.exporter_messages import quiet_exporters

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(5)
            self.first = nn.Conv2d(3, 6, 3, stride=4, padding=1)
            self.norm = nn.BatchNorm2d(6)
            self.last = nn.Conv2d(6, 5, 1)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            scores = self.last(torch.relu(self.norm(self.first(image))))
            full = nn.functional.interpolate(scores, size=image.shape[-2:], mode="bilinear")
            return full.argmax(1).to(torch.uint8)

    content = io.BytesIO()
    sizes = {0: "n", 2: "h", 3: "w"}
    with quiet_exporters():
        torch.onnx.export(
            Network().eval(),
            (torch.zeros(1, 3, 32, 48),),
            content,  # type: ignore[arg-type]  # with dynamo=False it takes a file
            dynamo=False,
            input_names=["image"],
            output_names=["labels"],
            opset_version=17,
            dynamic_axes={"image": sizes, "labels": {0: "n", 1: "h", 2: "w"}},
        )
    return _parsed(content.getvalue())


def _parsed(data: bytes) -> ModelProto:
    model = ModelProto()
    model.ParseFromString(data)
    return model


def _bytes(model: ModelProto) -> bytes:
    return bytes(model.SerializeToString())


def _pick(values: Sequence[Any], rng: Rng) -> Any:
    return values[int(rng.integers(len(values)))]


def _extreme(rng: Rng) -> int:
    return int(_pick(_EXTREMES, rng))


def _flip_bits(model: ModelProto, rng: Rng) -> bytes:
    out = bytearray(_bytes(model))
    for _ in range(rng.integers(1, 5)):
        out[rng.integers(len(out))] ^= 1 << int(rng.integers(8))
    return bytes(out)


def _cut(model: ModelProto, rng: Rng) -> bytes:
    data = _bytes(model)
    return data[: int(rng.integers(len(data)))]


def _edit_bytes(model: ModelProto, rng: Rng) -> bytes:
    out = bytearray(_bytes(model))
    for _ in range(rng.integers(1, 4)):
        at, size = int(rng.integers(len(out))), int(rng.integers(1, 24))
        choice = rng.integers(4)
        if choice == 0:
            del out[at : at + size]
        elif choice == 1:
            out[at:at] = out[at : at + size]
        elif choice == 2:
            out[at:at] = rng.bytes(size)
        else:
            number = encode_varint(1 << int(rng.integers(64)))
            out[at : at + len(number)] = number
    return bytes(out)


def _edit_field(model: ModelProto, rng: Rng) -> None:
    """Set any field of any message to another value of its own type."""
    messages = [*_messages(model)]
    for _ in range(rng.integers(1, 4)):
        message = _pick(messages, rng)
        fields = [f for f, _ in message.ListFields() if f.message_type is None]
        if not fields:
            continue
        field = _pick(fields, rng)
        value: Any = _extreme(rng)
        if field.cpp_type == field.CPPTYPE_INT32:
            value = int(_pick((-1, 0, 1, 2, 7, 10, 16, 99, (1 << 31) - 1), rng))
        elif field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
            value = float(_pick((0.0, -1.0, 1e38, float("nan"), float("inf")), rng))
        elif field.cpp_type == field.CPPTYPE_UINT64:
            value = abs(value)
        elif field.cpp_type == field.CPPTYPE_STRING:
            value = rng.bytes(9) if field.type == field.TYPE_BYTES else f"name{value}"
        try:
            if field.is_repeated:
                held = getattr(message, field.name)
                held[int(rng.integers(len(held)))] = value
            else:
                setattr(message, field.name, value)
        except ValueError:
            continue  # an enum's number that protobuf does not take


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in value if field.is_repeated else (value,):
                yield from _messages(child)


def _make_cycle(model: ModelProto, rng: Rng) -> None:
    nodes = model.graph.node
    later = int(rng.integers(1, len(nodes)))
    earlier = nodes[int(rng.integers(later))]
    name = nodes[later].output[0]
    if earlier.input:
        earlier.input[int(rng.integers(len(earlier.input)))] = name
    else:
        earlier.input.append(name)
    if rng.integers(3) == 0:
        earlier.input[0] = earlier.output[0]


def _odd_weight_dims(model: ModelProto, rng: Rng) -> None:
    tensor = _pick(model.graph.initializer, rng)
    size = _extreme(rng)
    if tensor.dims and rng.integers(3):
        tensor.dims[int(rng.integers(len(tensor.dims)))] = size
    else:
        tensor.dims[:] = [size] * int(rng.integers(1, 70))
    if rng.integers(3) == 0:
        tensor.raw_data = b""


def _odd_described_dims(model: ModelProto, rng: Rng) -> None:
    described = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    shape = _pick(described, rng).type.tensor_type.shape
    for _ in range(rng.integers(1, 4)):
        choice = rng.integers(3)
        if choice == 0:
            shape.dim.add(dim_value=_extreme(rng))
        elif choice == 1 and shape.dim:
            shape.dim.pop()
        elif shape.dim:
            shape.dim[int(rng.integers(len(shape.dim)))].dim_value = _extreme(rng)
    if rng.integers(8) == 0:
        for _ in range(2000):
            shape.dim.add(dim_value=2)


def _nest_deeply(model: ModelProto, rng: Rng) -> bytes:
    depth = int(_pick((20, 90, 120, 2000, 50_000), rng))
    choice = rng.integers(4)
    if choice == 0:  # graphs in attributes
        inner = b""
        for _ in range(min(depth, 2000)):
            attribute = encode_delimited(1, b"then_branch") + encode_delimited(6, inner)
            node = encode_delimited(4, b"If") + encode_delimited(5, attribute)
            inner = encode_delimited(1, node)
        return _bytes(model) + encode_delimited(7, inner)
    if choice == 1:  # sequences of sequences
        inner = b""
        for _ in range(min(depth, 2000)):
            inner = encode_delimited(4, encode_delimited(1, inner))
        info = encode_delimited(1, b"deep") + encode_delimited(2, inner)
        return _bytes(model) + encode_delimited(7, encode_delimited(13, info))
    if choice == 2:  # groups of an unknown field
        return _bytes(model) + b"\xfb\x03" * depth + b"\xfc\x03" * depth
    name = model.graph.output[0].name  # a long chain of nodes
    for number in range(int(_pick((180, 900, 1_900, 19_000), rng))):
        model.graph.node.add(op_type="Relu", input=[name], output=[f"chain{number}"])
        name = f"chain{number}"
    model.graph.output[0].name = name
    return _bytes(model)


def _spoil_text(model: ModelProto, rng: Rng) -> bytes:
    data = _bytes(model)
    nodes = model.graph.node
    names = [name.encode() for node in nodes for name in (*node.output, node.op_type) if name]
    old = _pick(names, rng)
    bad = bytes(_pick((b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"\x00\x1b", b"%n%s"), rng))
    new = (bad * len(old))[: len(old)]
    return data.replace(old, new) if rng.integers(2) else data.replace(old, new, 1)


def _wrong_arity(model: ModelProto, rng: Rng) -> None:
    node = _pick(model.graph.node, rng)
    choice = rng.integers(5)
    if choice == 0:
        del node.input[:]
    elif choice == 1 and node.input:
        del node.input[int(rng.integers(len(node.input))) :]
    elif choice == 2 and node.input:
        node.input[int(rng.integers(len(node.input)))] = ""
    elif choice == 3:
        node.input.extend([node.input[0] if node.input else ""] * int(_pick((1, 3, 500), rng)))
    else:
        node.output.extend(f"more{i}" for i in range(int(_pick((1, 3, 500), rng))))


def _unknown_operator(model: ModelProto, rng: Rng) -> None:
    node = _pick(model.graph.node, rng)
    choice = rng.integers(4)
    if choice == 0:
        node.op_type = str(_pick(("Evil", "", "relu", "Conv\x00", "x" * 70_000), rng))
    elif choice == 1:
        node.domain = str(_pick(("com.microsoft", "ai.onnx.ml", "org.openvino", "?"), rng))
        if rng.integers(2):
            model.opset_import.add(domain=node.domain, version=1)
    elif choice == 2:
        node.overload = "other"
    else:
        entry = model.opset_import[0]
        entry.version = int(_pick((-1, 0, 1, 5, 29, 99, 1 << 31, (1 << 63) - 1), rng))


def _swap_operator(model: ModelProto, rng: Rng) -> None:
    for _ in range(rng.integers(1, 3)):
        node = _pick(model.graph.node, rng)
        node.op_type = str(_pick(_STANDARD, rng))
        if rng.integers(2):
            del node.attribute[:]


def _few_inputs(model: ModelProto, rng: Rng) -> None:
    """Put a standard operator with one input, or none, in a node's place."""
    node = _pick(model.graph.node, rng)
    node.op_type = str(_pick(_STANDARD, rng))
    del node.input[int(rng.integers(2)) :]
    del node.attribute[:]
    if rng.integers(2):
        model.opset_import[0].version = int(rng.integers(6, 25))


def _duplicate_names(model: ModelProto, rng: Rng) -> None:
    graph = model.graph
    choice = rng.integers(5)
    if choice == 0:
        graph.initializer.append(_pick(graph.initializer, rng))
    elif choice == 1:
        graph.node.append(_pick(graph.node, rng))
    elif choice == 2:
        _pick(graph.node, rng).output[0] = _pick(graph.node, rng).output[0]
    elif choice == 3:
        _pick((graph.input, graph.output), rng).append(_pick((*graph.input, *graph.output), rng))
    else:
        _pick(graph.initializer, rng).name = graph.input[0].name


def _missing_names(model: ModelProto, rng: Rng) -> None:
    graph = model.graph
    choice = rng.integers(5)
    if choice == 0:
        node = _pick([node for node in graph.node if node.input], rng)
        node.input[int(rng.integers(len(node.input)))] = "nowhere"
    elif choice == 1:
        graph.node.remove(_pick(graph.node, rng))
    elif choice == 2:
        graph.initializer.remove(_pick(graph.initializer, rng))
    elif choice == 3:
        graph.ClearField(str(_pick(("input", "output", "node", "initializer"), rng)))
    else:
        model.ClearField(str(_pick(("graph", "opset_import", "ir_version"), rng)))


def _wrong_attribute(model: ModelProto, rng: Rng) -> None:
    node = _pick([node for node in model.graph.node if node.attribute], rng)
    attribute = _pick(node.attribute, rng)
    name = attribute.name
    choice = rng.integers(4)
    if choice == 0:
        attribute.type = int(rng.integers(0, 15))
    elif choice == 1:
        value = _pick((7, 0.5, "text", [1, 2], [0.5], ["a"], ints("t", [3])), rng)
        attribute.CopyFrom(helper.make_attribute(name, value))
    elif choice == 2:
        attribute.ClearField("type")
    else:
        attribute.CopyFrom(AttributeProto(name=name, type=attribute.type))


def _extreme_attribute(model: ModelProto, rng: Rng) -> None:
    found = [a for node in model.graph.node for a in node.attribute if a.ints or a.type == 2]
    for _ in range(rng.integers(1, 3)):
        attribute = _pick(found, rng)
        if attribute.type == AttributeProto.INT:
            attribute.i = _extreme(rng)
        elif rng.integers(4) == 0:
            attribute.ints[:] = [_extreme(rng)] * int(_pick((0, 1, 3, 9, 4000), rng))
        elif attribute.ints:
            attribute.ints[int(rng.integers(len(attribute.ints)))] = _extreme(rng)


def _repeat_hugely(model: ModelProto, rng: Rng) -> None:
    """Add a chain of operators that makes a huge tensor of constants, and give it out."""
    graph = model.graph
    size = int(_pick((1 << 26, 1 << 30, _HUGE, 1 << 40, (1 << 62)), rng))
    choice = rng.integers(9)
    chains: list[list[tuple[str, list[str], dict[str, Any]]]] = [
        [("ConstantOfShape", ["huge"], {})],
        [("ConstantOfShape", ["few"], {}), ("Tile", ["bomb0", "huge"], {})],
        [("ConstantOfShape", ["few"], {}), ("Expand", ["bomb0", "huge"], {})],
        [("Range", ["zero", "end", "step"], {})],
        [("RandomNormal", [], {"shape": [size]})],
        [("Identity", ["huge"], {}), ("ConstantOfShape", ["bomb0"], {})],
        [("ReduceProd", ["many"], {"keepdims": 1}), ("ConstantOfShape", ["bomb0"], {})],
        [
            ("ConstantOfShape", ["many"], {}),
            ("Shape", ["bomb0"], {}),
            ("Mul", ["bomb1", "many"], {}),
            ("ConstantOfShape", ["bomb2"], {}),
        ],
        [("OneHot", ["few", "end", "few2"], {})],
    ]
    graph.initializer.extend(
        [
            ints("huge", [size]),
            ints("few", [3]),
            ints("few2", [0, 1]),
            ints("many", [1 << 12, 1 << 10]),
            numpy_helper.from_array(np.array(0, np.int64), "zero"),
            numpy_helper.from_array(np.array(size, np.int64), "end"),
            numpy_helper.from_array(np.array(1, np.int64), "step"),
        ]
    )
    last = ""
    nodes = []
    for number, (op_type, inputs, attributes) in enumerate(chains[choice]):
        last = f"bomb{number}"
        nodes.append(helper.make_node(op_type, inputs, [last], **attributes))
    if rng.integers(2):  # the scores depend on it
        nodes.append(helper.make_node("ReduceMax", [last], ["bombed"], keepdims=0))
        nodes.append(helper.make_node("Cast", ["bombed"], ["bombed_float"], to=TensorProto.FLOAT))
        target = next(node for node in graph.node if node.op_type == "Conv")
        nodes.append(helper.make_node("Add", [target.output[0], "bombed_float"], ["bombed_conv"]))
        for node in graph.node:
            for i, name in enumerate(node.input):
                if name == target.output[0]:
                    node.input[i] = "bombed_conv"
        before = [*graph.node]
        del graph.node[:]
        at = next(i for i, node in enumerate(before) if node.output[0] == target.output[0]) + 1
        graph.node.extend([*before[:at], *nodes, *before[at:]])
    else:
        graph.node.extend(nodes)
        graph.output.append(helper.make_empty_tensor_value_info(last))


def _point_outside(model: ModelProto, rng: Rng) -> None:
    tensor = _pick(model.graph.initializer, rng)
    place = _pick(
        (
            *("/etc/passwd", "../secret.bin", "link.bin", "hard.bin", "pipe.bin", "folder"),
            *("./weights.bin", "sub/../weights.bin", "*/_ORT_MEM_ADDR_/*", "", "gone.bin"),
            *("weights.bin", "weights.bin"),
        ),
        rng,
    )
    if rng.integers(3):
        tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": str(place)}
    if rng.integers(2):
        entries["offset"] = str(_pick(("0", "4", "-1", "0x10", str(1 << 40), str(1 << 63)), rng))
    if rng.integers(2):
        entries["length"] = str(_pick(("0", "32", "-32", str(1 << 40), "9" * 30), rng))
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


def _write_neighbours(folder: Path) -> None:
    """Write what `_point_outside` points at."""
    (folder / "weights.bin").write_bytes(bytes(1 << 16))
    (folder / "folder").mkdir(exist_ok=True)
    secret = folder.parent / "secret.bin"
    secret.write_bytes(bytes(1 << 16))
    (folder / "link.bin").symlink_to(secret)
    os.link(secret, folder / "hard.bin")
    os.mkfifo(folder / "pipe.bin")


def _mistype(model: ModelProto, rng: Rng) -> None:
    graph = model.graph
    choice = rng.integers(3)
    if choice == 0:
        _pick(graph.initializer, rng).data_type = int(_pick((0, 1, 7, 8, 10, 16, 22, 99), rng))
    elif choice == 1:
        described = _pick((*graph.input, *graph.output), rng)
        described.type.tensor_type.elem_type = int(_pick((0, 1, 2, 7, 8, 9, 14, 16, 99), rng))
    else:
        described = _pick((*graph.input, *graph.output), rng)
        kind = str(_pick(("sequence_type", "optional_type", "map_type"), rng))
        getattr(described.type, kind).SetInParent()


KINDS: Mapping[str, Callable[[ModelProto, Rng], bytes | None]] = {
    "bit-flips": _flip_bits,
    "cut": _cut,
    "edited-bytes": _edit_bytes,
    "edited-field": _edit_field,
    "cycle": _make_cycle,
    "odd-weight-dims": _odd_weight_dims,
    "odd-described-dims": _odd_described_dims,
    "deep-nesting": _nest_deeply,
    "bad-text": _spoil_text,
    "wrong-arity": _wrong_arity,
    "unknown-operator": _unknown_operator,
    "swapped-operator": _swap_operator,
    "few-inputs": _few_inputs,
    "duplicate-names": _duplicate_names,
    "missing-names": _missing_names,
    "wrong-attribute": _wrong_attribute,
    "extreme-attribute": _extreme_attribute,
    "huge-repeat": _repeat_hugely,
    "external-data": _point_outside,
    "wrong-type": _mistype,
}
"""What is done to a graph: changes it, or gives the file's bytes instead."""


def _main(arguments: Sequence[str]) -> None:
    count, seed = int(arguments[0]), int(arguments[1])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "files"
        folder.mkdir()
        paths = write_mutants(folder, count=count, seed=seed)
        for backend in arguments[2:] or ("openvino", "onnxruntime"):
            _report(backend, open_files(paths, backend=backend))


def _report(backend: str, found: Iterable[Opened]) -> None:
    outcomes: Counter[str] = Counter()
    slowest, peak = 0.0, 0
    for one in found:
        outcomes[one.outcome] += 1
        slowest, peak = max(slowest, one.seconds), max(peak, one.peak_mib)
        if one.outcome not in ("opened", "refused"):
            what = f"{backend} {one.path.name} {one.outcome} {one.message[:300]}"
            sys.stdout.write(f"{what} {one.seconds:.1f} s\n")
    sys.stdout.write(f"{backend} {dict(outcomes)} slowest {slowest:.1f} s, peak {peak} MiB\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _main(sys.argv[1:] or ["1000", "1"])
