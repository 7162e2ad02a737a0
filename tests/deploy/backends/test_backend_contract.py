"""What every backend promises, run over all that are installed and the fake one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, parser

from fcn_deploy.backends import backend_names, get_backend
from fcn_deploy.backends.base import Backend, ExecutionContext, ModelSource
from fcn_deploy.errors import (
    ArtifactError,
    BackendUnavailableError,
    ClosedError,
    DTypeError,
    ExecutionError,
    ForkedProcessError,
    NonFiniteInputError,
    ShapeError,
)
from fcn_deploy.machine import CpuAbilities
from fcn_deploy.names import Array, Precision, TensorSpec
from fcn_deploy.telemetry import import_openvino
from fcn_deploy.testing import FakeBackend
from tests.deploy.graphs import segmentation_graph
from tests.deploy.layouts import LAYOUTS, of_a_file, of_bytes

GRAPH = segmentation_graph()


def fake_network(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """A network of `GRAPH`'s inputs and outputs: scores at half size, enlarged by repeating."""
    frames = feeds["image"]
    scores = frames[:, ::2, ::2].transpose(0, 3, 1, 2).astype(np.float32)  # [N, 3, h, w]
    labels = scores.argmax(1).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)
    return {"network_scores": scores, "labels": labels[:, : frames.shape[1], : frames.shape[2]]}


def fake_backend() -> FakeBackend:
    return FakeBackend(
        fake_network,
        inputs=[TensorSpec("image", "uint8", (None, None, None, 3))],
        outputs=[TensorSpec("labels", "uint8", (None, None, None))],
        inner=[TensorSpec("network_scores", "float32", (None, 3, None, None))],
    )


@pytest.fixture(params=backend_names())
def library(request: pytest.FixtureRequest) -> Backend:
    """A backend that runs any graph."""
    name: str = request.param
    return get_backend(name)


@pytest.fixture(params=[*backend_names(), "fake"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """A backend that runs `GRAPH`, or what has its inputs and outputs."""
    name: str = request.param
    return fake_backend() if name == "fake" else get_backend(name)


def open_graph(
    backend: Backend, data: bytes = GRAPH, *, outputs: tuple[str, ...] | None = None
) -> ExecutionContext:
    return backend.open(ModelSource(Path("model.onnx"), data, outputs))


def image(height: int = 12, width: int = 16, *, batch: int = 1) -> Array:
    return np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), np.uint8)


def test_it_is_here_and_says_its_version(backend: Backend) -> None:
    assert backend.available()
    assert backend.version()[0].isdigit()
    assert Precision.FP32 in backend.precisions()


def test_its_specs_are_those_of_the_graph(backend: Backend) -> None:
    context = open_graph(backend)

    assert [str(spec) for spec in context.inputs] == ["image: uint8 [?, ?, ?, 3]"]
    assert [(spec.name, spec.dtype) for spec in context.outputs] == [("labels", "uint8")]


@pytest.mark.parametrize(("height", "width", "batch"), [(12, 16, 1), (13, 7, 3), (1, 1, 1)])
def test_any_size_and_batch_run(backend: Backend, height: int, width: int, batch: int) -> None:
    labels = open_graph(backend).execute({"image": image(height, width, batch=batch)})["labels"]

    assert labels.shape == (batch, height, width)
    assert labels.dtype == np.uint8


def test_all_backends_agree() -> None:
    frames = image(33, 47, batch=2)
    maps = [
        open_graph(get_backend(name)).execute({"image": frames})["labels"]
        for name in backend_names()
    ]

    assert len(np.unique(maps[0])) > 1
    assert len(maps) >= 2
    for other in maps[1:]:
        np.testing.assert_array_equal(other, maps[0])


def test_an_inner_tensor_can_be_given_out_too(backend: Backend) -> None:
    context = open_graph(backend, outputs=("labels", "network_scores"))

    outputs = context.execute({"image": image()})
    only = context.execute({"image": image()}, outputs=["network_scores"])

    assert outputs["network_scores"].shape == (1, 3, 6, 8)
    assert outputs["network_scores"].dtype == np.float32
    assert list(only) == ["network_scores"]


def test_a_cut_network_gives_the_same_inner_tensor(backend: Backend) -> None:
    whole = open_graph(backend, outputs=("labels", "network_scores"))
    cut = open_graph(backend, outputs=("network_scores",))

    expected = whole.execute({"image": image()})["network_scores"]

    assert [spec.name for spec in cut.outputs] == ["network_scores"]
    np.testing.assert_array_equal(cut.execute({"image": image()})["network_scores"], expected)


def test_results_belong_to_the_caller(backend: Backend) -> None:
    context = open_graph(backend)
    first = context.execute({"image": image()})["labels"]
    before = first.copy()

    second = context.execute({"image": 255 - image()})["labels"]
    second[...] = 77

    np.testing.assert_array_equal(first, before)
    assert not np.shares_memory(first, second)


def test_the_input_is_not_modified(backend: Backend) -> None:
    frames = image()

    open_graph(backend).execute({"image": frames})

    np.testing.assert_array_equal(frames, image())


def test_an_input_that_is_not_contiguous_runs(backend: Backend) -> None:
    frames = image(24, 16)[:, ::2]

    labels = open_graph(backend).execute({"image": frames})["labels"]

    expected = open_graph(backend).execute({"image": frames.copy()})["labels"]
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_input_of_any_layout_gives_the_same_and_stays_as_it_is(
    backend: Backend, layout: str, batch: int
) -> None:
    given = LAYOUTS[layout](image(24, 16, batch=batch))
    plain = np.array(given, order="C")
    before = given.flags.writeable, given.strides
    context = open_graph(backend)

    labels = context.execute({"image": given})["labels"]

    np.testing.assert_array_equal(labels, context.execute({"image": plain})["labels"])
    np.testing.assert_array_equal(given, plain)
    assert (given.flags.writeable, given.strides) == before


def test_no_layout_is_that_of_a_plain_array() -> None:
    for name, layout in LAYOUTS.items():
        flags = layout(image(24, 16, batch=2)).flags

        assert not (flags.writeable and flags.c_contiguous), name


FIRST_NODES = {
    "rectified": "out = Relu(image)",
    "passed on": "out = Identity(image)",
    "added to itself": "out = Add(image, image)",
    "joined to itself": "out = Concat<axis = 0>(image, image)",
    "cut": "first, rest = Split<axis = 1, num_outputs = 2>(image)  out = Relu(first)",
    "reshaped": "whole = Constant<value_ints = [-1]>()  flat = Reshape(image, whole)  "
    "out = Sigmoid(flat)",
}


@pytest.mark.parametrize("first", FIRST_NODES)
def test_no_first_node_writes_into_memory_that_is_read_only(
    library: Backend, first: str, tmp_path: Path
) -> None:
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> network '
        f"(float[N, 4, H, W] image) => (float[] out) {{ {FIRST_NODES[first]} }}"
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    values = np.random.default_rng(1).standard_normal((1, 4, 32, 32), np.float32)
    mapped = of_a_file(values, tmp_path)
    context = open_graph(library, model.SerializeToString())

    found = context.execute({"image": mapped})["out"]

    np.testing.assert_array_equal(found, context.execute({"image": values})["out"])
    np.testing.assert_array_equal(mapped, values)


@pytest.mark.parametrize("kind", ["writable", "of bytes", "of a file"])
def test_openvino_reads_a_contiguous_frame_where_it_lies(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = image(2160, 3840)
    if kind != "writable":
        frames = of_bytes(frames) if kind == "of bytes" else of_a_file(frames, tmp_path)
    library = import_openvino()
    made = library.Tensor
    tensors: list[Any] = []

    def tensor(array: Array, *, shared_memory: bool) -> Any:
        tensors.append(made(array, shared_memory=shared_memory))
        return tensors[-1]

    monkeypatch.setattr(library, "Tensor", tensor)

    open_graph(get_backend("openvino")).execute({"image": frames})

    assert [each.data.ctypes.data for each in tensors] == [frames.ctypes.data]
    assert frames.flags.writeable == (kind == "writable")


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "uint16", "bool"])
def test_another_dtype_is_refused(backend: Backend, dtype: str) -> None:
    with pytest.raises(DTypeError, match=f"'image' is {dtype}; expected uint8"):
        open_graph(backend).execute({"image": image().astype(dtype)})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_input_that_is_not_finite_is_refused(library: Backend, value: float) -> None:
    context = open_graph(library, segmentation_graph(input_type=TensorProto.FLOAT))
    frames = image().astype(np.float32)
    frames[0, 3, 5, 1] = value

    with pytest.raises(NonFiniteInputError, match=r"'image' holds NaN or infinity.*Replace"):
        context.execute({"image": frames})


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, r"takes \['image'\]; got \[\]"),
        ({"picture": image()}, r"got \['picture'\]"),
        ({"image": image()[0]}, r"shape \[12, 16, 3\]; expected image: uint8 \[\?, \?, \?, 3\]"),
        ({"image": image()[..., :2]}, r"shape \[1, 12, 16, 2\]"),
        ({"image": image()[:, :0]}, r"shape \[1, 0, 16, 3\]"),
    ],
)
def test_another_shape_is_refused(backend: Backend, feeds: dict[str, Array], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        open_graph(backend).execute(feeds)


def test_a_failing_network_is_our_error(library: Backend) -> None:
    graph = segmentation_graph(size=(12, 16))
    context = open_graph(library, graph)

    with pytest.raises((ShapeError, ExecutionError), match="image"):
        context.execute({"image": image(13, 16)})


def test_garbage_is_our_error(library: Backend) -> None:
    with pytest.raises(ArtifactError, match=r"model\.onnx|the model"):
        open_graph(library, b"\x08\x0a garbage")


@pytest.mark.cpu_abilities
def test_a_precision_that_is_not_here_is_refused(
    backend: Backend, set_cpu: Callable[[CpuAbilities], None]
) -> None:
    set_cpu(CpuAbilities(bf16=False, int8=False))

    assert Precision.BF16 not in backend.precisions()
    with pytest.raises(BackendUnavailableError, match="cannot compute in bf16"):
        backend.open(ModelSource(Path("model.onnx"), GRAPH), precision=Precision.BF16)


@pytest.mark.cpu_abilities
@pytest.mark.usefixtures("cpu")
def test_what_computes_in_fp32_inside_says_so(library: Backend) -> None:
    assert library.arithmetic(Precision.FP32) == "fp32"
    assert "fp32 arithmetic" in library.arithmetic(Precision.FP16)
    assert "fp32" in library.arithmetic(Precision.INT8)


@pytest.mark.cpu_abilities
def test_bf16_is_openvinos_alone_and_only_where_the_cpu_has_it(
    backend: Backend, cpu: CpuAbilities
) -> None:
    expected = cpu.bf16 and backend.name == "openvino"

    assert (Precision.BF16 in backend.precisions()) == expected


class AskedOpenVino(ModuleType):
    """Stands in for the library: says what its CPU computes in, and keeps what it is asked for."""

    def __init__(self, *capabilities: str) -> None:
        super().__init__("openvino")
        self.__version__ = "2026.4.1"
        self.capabilities = capabilities
        self.hints: list[str] = []

    def Core(self) -> AskedOpenVino:
        return self

    def get_property(self, device: str, name: str) -> tuple[str, ...]:
        assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
        return self.capabilities

    def read_model(self, model: object) -> object:
        return model

    def compile_model(self, model: object, device: str, config: dict[str, Any]) -> SimpleNamespace:
        self.hints.append(config["INFERENCE_PRECISION_HINT"])
        return SimpleNamespace(inputs=[], outputs=[])


@pytest.mark.parametrize(
    "capabilities", [("FP32", "INT8"), ("BF16", "FP32", "FP16", "INT8")], ids=["AVX2", "AMX-FP16"]
)
def test_openvino_computes_in_bf16_where_asked_to_and_else_in_fp32(
    capabilities: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # the hint f16 would lower the layers too that an fp16 graph keeps in float32
    library = AskedOpenVino(*capabilities)
    monkeypatch.setitem(sys.modules, "openvino", library)
    backend = get_backend("openvino")

    for precision in backend.precisions():
        backend.open(ModelSource(Path("model.onnx"), GRAPH), precision=precision)

    hints = dict(zip(backend.precisions(), library.hints, strict=True))
    assert hints.pop(Precision.BF16, None) == ("bf16" if "BF16" in capabilities else None)
    assert hints == {Precision.FP32: "f32", Precision.FP16: "f32", Precision.INT8: "f32"}


def test_close_twice_is_fine_and_use_after_it_is_refused(backend: Backend) -> None:
    context = open_graph(backend)

    context.close()
    context.close()

    with pytest.raises(ClosedError, match=r"'model\.onnx' is closed"):
        context.execute({"image": image()})


def test_threads_share_a_context(backend: Backend) -> None:
    context = open_graph(backend)
    frames = [image(10 + n, 20) for n in range(8)]
    expected = [context.execute({"image": frame})["labels"] for frame in frames]
    wrong: list[int] = []

    def work(n: int) -> None:
        for _ in range(20):
            labels = context.execute({"image": frames[n]})["labels"]
            if not np.array_equal(labels, expected[n]):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(frames))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


def test_threads_that_come_first_together_share_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[AskedOpenVino] = []

    class SlowLibrary(AskedOpenVino):
        def Core(self) -> AskedOpenVino:
            made.append(self)
            time.sleep(0.05)  # so that the others come while the first is made
            return self

    monkeypatch.setitem(sys.modules, "openvino", SlowLibrary("FP32"))
    threads = [threading.Thread(target=get_backend("openvino").precisions) for _ in range(4)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(made) == 1


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from fcn_deploy.backends import get_backend
from fcn_deploy.backends.base import ModelSource

signal.signal(signal.SIGINT, signal.default_int_handler)
source = ModelSource(Path("model.onnx"), sys.stdin.buffer.read())
first, second = (get_backend(sys.argv[1]).open(source) for _ in range(2))
first.close()
second.close()
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_after_networks_were_closed_in_turn_is_delivered(library: Backend) -> None:
    root = Path(__file__).parents[3]

    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, library.name],
        input=GRAPH,
        capture_output=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, b"interrupted\n"), done.stderr.decode()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_forked_child_is_told(backend: Backend) -> None:
    context = open_graph(backend)
    reading, writing = os.pipe()

    if os.fork() == 0:
        try:
            context.execute({"image": image()})
        except ForkedProcessError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        message = pipe.read()
    os.wait()

    assert "was opened in process" in message
    assert "spawn" in message


def test_a_float_network_of_anyones_runs(library: Backend) -> None:
    graph = segmentation_graph(input_type=TensorProto.FLOAT, layout="NCHW", head="scores")

    outputs = open_graph(library, graph).execute({"image": np.zeros((1, 3, 8, 8), np.float32)})

    assert outputs["out"].shape == (1, 3, 4, 4)


def test_an_unknown_backend_lists_the_known() -> None:
    with pytest.raises(ValueError, match="expected one of openvino, onnxruntime"):
        get_backend("caffe")


def test_weights_beside_a_name_that_is_not_utf8_are_refused() -> None:
    with pytest.raises(ArtifactError, match="is not named in UTF-8, and its weights lie beside"):
        ModelSource(Path(os.fsdecode(b"model\xff.onnx")))
