"""Frames in, labels out: sizes, batches, scores, bad input, threads, artifacts and bare graphs."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from fcn_deploy import Segmenter
from fcn_deploy.artifact import ArtifactWriter
from fcn_deploy.backends import backend_names
from fcn_deploy.choice import choose_precision
from fcn_deploy.errors import (
    ArtifactError,
    ArtifactMissingError,
    BackendUnavailableError,
    ClosedError,
    DigestMismatchError,
    DTypeError,
    FcnDeployError,
    ManifestError,
    NonFiniteOutputError,
    ShapeError,
    UntrustedArtifactError,
)
from fcn_deploy.machine import CpuFeature, describe_machine
from fcn_deploy.manifest import ClassInfo, Fidelity, TensorInfo, Variant
from fcn_deploy.profile import ShapeRange
from fcn_deploy.tensors import Array, Precision
from tests.deploy.graphs import segmentation_graph
from tests.deploy.test_artifact import MANIFEST


def write_artifact(folder: Path, graph: bytes | None = None, **changes: Any) -> Path:
    classes = tuple(ClassInfo(name, (n, n, n)) for n, name in enumerate(("sky", "road", "car")))
    path = folder / "model.fcn"
    with ArtifactWriter(path, force=True) as writer:
        writer.add("model.onnx", graph if graph is not None else segmentation_graph())
        writer.commit(replace(MANIFEST, classes=classes, **changes))
    return path


def write_graph(folder: Path, **options: Any) -> Path:
    path = folder / "bare.onnx"
    path.write_bytes(segmentation_graph(**options))
    return path


def frame(height: int = 24, width: int = 32, *, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("backend", backend_names())
def test_an_artifact_labels_a_frame_of_any_size(tmp_path: Path, backend: str) -> None:
    with Segmenter.open(write_artifact(tmp_path), backend=backend) as segmenter:
        result = segmenter(frame(25, 31))

    assert result.labels.shape == (25, 31)
    assert result.labels.dtype == np.uint8
    assert sum(result.shares().values()) == pytest.approx(1)
    assert list(result.shares()) == ["sky", "road", "car"]
    assert result.overlay(alpha=0.3).shape == (25, 31, 3)
    assert result.colorize().shape == (25, 31, 3)


def test_it_says_what_runs_and_why(tmp_path: Path) -> None:
    segmenter = Segmenter.open(write_artifact(tmp_path), backend="onnxruntime")

    assert "onnxruntime fp32" in repr(segmenter)
    assert "onnxruntime was asked for" in repr(segmenter)
    assert segmenter.head == "in the runtime, peeled from the graph at 'network_scores'"
    assert segmenter.shapes == MANIFEST.shapes


@pytest.mark.parametrize("num_streams", [1, 3])
@pytest.mark.parametrize("backend", backend_names())
def test_a_batch_of_mixed_sizes_gives_what_single_frames_give(
    tmp_path: Path, backend: str, num_streams: int
) -> None:
    segmenter = Segmenter.open(write_artifact(tmp_path), backend=backend, num_streams=num_streams)
    frames = [frame(24, 32), frame(24, 32, seed=1), frame(9, 50), *[frame(24, 32)] * 9]

    results = segmenter.batch(frames)

    assert len(results) == len(frames)
    for one, result in zip(frames, results, strict=True):
        np.testing.assert_array_equal(result.labels, segmenter(one).labels)
    assert segmenter.batch([]) == []


@pytest.mark.parametrize("backend", backend_names())
def test_scores_are_those_before_upsampling(tmp_path: Path, backend: str) -> None:
    segmenter = Segmenter.open(write_artifact(tmp_path), backend=backend)

    result = segmenter(frame(24, 32), scores=True)

    assert result.scores is not None
    assert result.scores.shape == (3, 12, 16)
    assert result.scores.dtype == np.float32
    np.testing.assert_array_equal(result.labels, segmenter(frame(24, 32)).labels)


def test_a_network_of_multiples_runs_on_any_frame(tmp_path: Path) -> None:
    shapes = ShapeRange((1, 64, 64), (1, 64, 64), (1, 64, 64), multiple_of=16)
    padded = Segmenter.open(write_artifact(tmp_path, shapes=shapes))
    seen: list[tuple[int, ...]] = []
    execute = padded._model.context.execute

    class Spy:
        inputs, outputs = padded._model.context.inputs, padded._model.context.outputs

        def execute(self, feeds: Any, /, *, outputs: Any = None) -> Any:
            seen.append(feeds["image"].shape)
            return execute(feeds)

        def close(self) -> None:
            padded._model.context.close()

    padded._model = replace(padded._model, context=Spy())

    labels = padded(frame(17, 33)).labels

    assert seen == [(1, 32, 48, 3)]
    assert labels.shape == (17, 33)


def test_the_graphs_colour_order_is_obeyed(tmp_path: Path) -> None:
    bgr = Segmenter.open(write_artifact(tmp_path / "a"))
    info = TensorInfo("image", "uint8", (None, None, None, 3), "NHWC", "rgb")
    rgb = Segmenter.open(write_artifact(tmp_path / "b", inputs=(info,)))

    np.testing.assert_array_equal(bgr(frame()[..., ::-1]).labels, rgb(frame()).labels)
    assert not np.array_equal(bgr(frame()).labels, rgb(frame()).labels)


@pytest.mark.parametrize(
    ("bad", "kind", "message"),
    [
        (None, DTypeError, "NoneType; expected a NumPy array.*not read"),
        ([[0]], DTypeError, "list; expected a NumPy array"),
        (np.zeros((4, 4), np.uint8), ShapeError, r"\[4, 4\].*COLOR_GRAY2BGR"),
        (np.zeros((4, 4, 1), np.uint8), ShapeError, r"\[4, 4, 1\].*COLOR_GRAY2BGR"),
        (np.zeros((4, 4, 4), np.uint8), ShapeError, r"\[4, 4, 4\].*COLOR_BGRA2BGR"),
        (np.zeros((3, 4, 5), np.uint8), ShapeError, r"transpose\(1, 2, 0\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), ShapeError, r"list of them to batch\(\)"),
        (np.zeros((0, 4, 3), np.uint8), ShapeError, "none of them zero"),
        (np.zeros((4, 4, 3), np.uint16), DTypeError, "uint16.*frame >> 8"),
        (np.zeros((4, 4, 3), np.float32), DTypeError, r"float32.*0\.\.255"),
        (
            np.broadcast_to(np.uint8(0), (50_000, 50_000, 3)),
            FcnDeployError,
            "50000x50000; at most 2147483648",
        ),
    ],
)
def test_what_is_no_frame_is_refused_with_the_way_out(
    tmp_path: Path, bad: Any, kind: type[FcnDeployError], message: str
) -> None:
    segmenter = Segmenter.open(write_artifact(tmp_path), backend="onnxruntime")

    with pytest.raises(kind, match=message):
        segmenter(bad)


def test_the_smallest_frame_runs(tmp_path: Path) -> None:
    assert Segmenter.open(write_artifact(tmp_path))(frame(1, 1)).labels.shape == (1, 1)


def test_a_frame_that_is_a_view_runs(tmp_path: Path) -> None:
    segmenter = Segmenter.open(write_artifact(tmp_path))
    view = frame(24, 64)[:, ::2]

    np.testing.assert_array_equal(segmenter(view).labels, segmenter(view.copy()).labels)


def test_the_frame_is_not_modified(tmp_path: Path) -> None:
    given = frame()

    Segmenter.open(write_artifact(tmp_path))(given).overlay()

    np.testing.assert_array_equal(given, frame())


def test_threads_may_share_one(tmp_path: Path) -> None:
    segmenter = Segmenter.open(write_artifact(tmp_path))
    expected = [segmenter(frame(20 + n, 30)).labels for n in range(6)]
    wrong: list[int] = []

    def work(n: int) -> None:
        for _ in range(10):
            result = segmenter(frame(20 + n, 30), scores=n % 2 == 0)
            if not np.array_equal(result.labels, expected[n]):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


def test_a_closed_one_says_so(tmp_path: Path) -> None:
    segmenter = Segmenter.open(write_artifact(tmp_path))

    segmenter.close()
    segmenter.close()

    with pytest.raises(ClosedError, match="is closed"):
        segmenter(frame())


@pytest.mark.parametrize("backend", backend_names())
@pytest.mark.parametrize(("layout", "color"), [("NCHW", "rgb"), ("NHWC", "bgr")])
def test_a_bare_float_graph_gets_its_preprocessing_and_its_head(
    tmp_path: Path, backend: str, layout: str, color: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_graph(tmp_path, input_type=TensorProto.FLOAT, layout=layout, head="scores")

    with caplog.at_level(logging.WARNING):
        segmenter = Segmenter.open(path, backend=backend, color=color)
    result = segmenter(frame(24, 32), scores=True)

    assert segmenter.precision is Precision.FP32
    assert segmenter.head == "in the runtime, as the graph ends in scores"
    assert "has no manifest" in caplog.text
    assert color in caplog.text
    assert result.labels.shape == (24, 32)
    assert result.scores is not None
    assert result.scores.shape == (3, 12, 16)
    assert [entry.name for entry in result.classes] == ["0", "1", "2"]


def test_a_bare_float_graph_equals_a_reference(tmp_path: Path) -> None:
    import onnxruntime

    path = write_graph(tmp_path, input_type=TensorProto.FLOAT, layout="NCHW", head="scores")
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    rgb = frame()[..., ::-1].astype(np.float32) / 255
    feed = ((rgb - np.array(mean, np.float32)) / np.array(std, np.float32)).transpose(2, 0, 1)[None]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    expected = session.run(None, {"image": feed})[0][0]

    segmenter = Segmenter.open(path, mean=mean, std=std, backend="onnxruntime")
    result = segmenter(frame(), scores=True)

    assert result.scores is not None
    # float32 rounding of two orders of the same operations
    np.testing.assert_allclose(result.scores, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", ["scores", "sigmoid"])
def test_one_class_means_probability_above_one_half(tmp_path: Path, head: str) -> None:
    graph = {"input_type": TensorProto.FLOAT, "layout": "NCHW", "classes": 1, "stride": 1}
    path = write_graph(tmp_path, head=head, **graph)
    segmenter = Segmenter.open(path)

    result = segmenter(frame(), scores=True)

    assert result.scores is not None
    logits_of = Segmenter.open(write_graph(tmp_path, head="scores", **graph))
    scores = logits_of(frame(), scores=True).scores
    assert scores is not None
    np.testing.assert_array_equal(result.labels, (scores[0] > 0).astype(np.uint8))
    assert 0 < result.labels.mean() < 1


def test_a_bare_uint8_graph_is_given_frames_in_the_order_asked_for(tmp_path: Path) -> None:
    bgr = Segmenter.open(write_graph(tmp_path), color="bgr")
    rgb = Segmenter.open(write_graph(tmp_path))

    np.testing.assert_array_equal(bgr(frame()[..., ::-1]).labels, rgb(frame()).labels)


def test_a_file_in_an_artifact_is_opened_with_its_manifest(tmp_path: Path) -> None:
    path = write_artifact(tmp_path)

    segmenter = Segmenter.open(path / "model.onnx")

    assert segmenter.manifest is not None
    assert [entry.name for entry in segmenter.classes] == ["sky", "road", "car"]


def test_preprocessing_of_an_artifact_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mean cannot be given"):
        Segmenter.open(write_artifact(tmp_path), mean=(0.5, 0.5, 0.5))


def test_a_fixed_size_graph_says_which_size(tmp_path: Path) -> None:
    segmenter = Segmenter.open(write_graph(tmp_path, size=(24, 32), batch=1))

    assert segmenter(frame(24, 32)).labels.shape == (24, 32)
    assert len(segmenter.batch([frame(24, 32)] * 3)) == 3
    with pytest.raises(ShapeError, match=r"frame is 25x32; 'bare\.onnx' has a fixed height of 24"):
        segmenter(frame(25, 32))


def test_nan_scores_are_an_error(tmp_path: Path) -> None:
    bare = Segmenter.open(write_graph(tmp_path, head="scores", poison=float("nan")))
    artifact = Segmenter.open(write_artifact(tmp_path, segmentation_graph(poison=float("nan"))))

    with pytest.raises(NonFiniteOutputError, match="NaN or infinity"):
        bare(frame())
    with pytest.raises(NonFiniteOutputError, match="NaN or infinity"):
        artifact(frame(), scores=True)


def test_a_damaged_graph_never_reaches_a_parser(tmp_path: Path) -> None:
    path = write_artifact(tmp_path)
    content = bytearray((path / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "model.onnx").write_bytes(content)

    with pytest.raises(DigestMismatchError, match="SHA-256"):
        Segmenter.open(path)


def test_a_manifest_of_another_graph_is_refused(tmp_path: Path) -> None:
    info = TensorInfo("picture", "uint8", (None, None, None, 3), "NHWC", "bgr")

    with pytest.raises(ManifestError, match="says input 'picture'"):
        Segmenter.open(write_artifact(tmp_path, inputs=(info,)))


def test_a_linked_graph_is_refused(tmp_path: Path) -> None:
    target = write_graph(tmp_path)
    (tmp_path / "link.onnx").symlink_to(target)

    with pytest.raises(UntrustedArtifactError, match="symbolic link"):
        Segmenter.open(tmp_path / "link.onnx")


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("nothing.fcn", ArtifactMissingError, "there is no"),
        ("weights.pt", ArtifactError, "by fcn-export"),
        ("empty.onnx", ArtifactError, r"empty\.onnx"),
    ],
)
def test_what_is_no_model_is_refused(
    tmp_path: Path, name: str, kind: type[FcnDeployError], message: str
) -> None:
    (tmp_path / "weights.pt").write_bytes(b"x")
    (tmp_path / "empty.onnx").write_bytes(b"")

    with pytest.raises(kind, match=message):
        Segmenter.open(tmp_path / name)


def test_an_absent_precision_is_an_error_not_a_slower_run(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailableError, match=r"cannot compute in bf16.*it can in fp32"):
        Segmenter.open(write_artifact(tmp_path), backend="onnxruntime", precision="bf16")
    with pytest.raises(ValueError, match="expected auto, fp32"):
        Segmenter.open(write_artifact(tmp_path), precision="fp8")


class Cpu:
    """A backend as far as the choice looks at it."""

    name = "openvino"
    suffixes = (".onnx",)

    def __init__(self, *precisions: Precision) -> None:
        self._precisions = precisions

    def precisions(self) -> tuple[Precision, ...]:
        return self._precisions


@pytest.mark.parametrize(
    ("agreement", "able", "chosen", "why"),
    [
        (0.9995, True, Precision.BF16, "kept 99.95"),
        (0.9985, True, Precision.FP32, "kept 99.85"),
        (None, True, Precision.FP32, "not measured"),
        (0.9995, False, Precision.FP32, "no bf16 on this CPU"),
    ],
)
def test_auto_takes_bf16_only_where_labels_were_measured_to_stay(
    agreement: float | None, able: bool, chosen: Precision, why: str
) -> None:
    fidelity = () if agreement is None else (Fidelity("openvino", Precision.BF16, agreement, 0.0),)
    manifest = replace(MANIFEST, variants=(replace(MANIFEST.variants[0], fidelity=fidelity),))
    backend: Any = Cpu(Precision.FP32, *([Precision.BF16] if able else []))

    precision, reason = choose_precision("auto", backend, manifest)

    assert precision is chosen
    assert why in reason


@pytest.mark.parametrize(
    ("agreement", "instructions", "chosen", "why"),
    [
        (0.9995, True, Precision.INT8, "int8 kept 99.95"),
        (0.9985, True, Precision.FP32, "int8 kept 99.85"),
        (0.9995, False, Precision.FP32, "no instructions for int8"),
        (None, True, Precision.FP32, "no int8 graph"),
    ],
)
def test_auto_takes_int8_only_where_the_cpu_is_made_for_it_and_labels_stay(
    agreement: float | None,
    instructions: bool,
    chosen: Precision,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vnni = CpuFeature("VNNI", instructions, "int8 at full speed")
    machine = replace(describe_machine(), features=(vnni,))
    monkeypatch.setattr("fcn_deploy.choice.describe_machine", lambda: machine)
    variants = MANIFEST.variants[:1]
    if agreement is not None:
        fidelity = (Fidelity("openvino", Precision.INT8, agreement, 0.0),)
        variants = (*variants, Variant("model.int8.onnx", Precision.INT8, fidelity=fidelity))
    backend: Any = Cpu(Precision.FP32, Precision.INT8)

    precision, reason = choose_precision("auto", backend, replace(MANIFEST, variants=variants))

    assert precision is chosen
    assert why in reason
    assert "openvino has no bf16 on this CPU" in reason or precision is Precision.INT8


def test_an_interpreter_ends_quietly_with_an_open_segmenter(tmp_path: Path) -> None:
    path = write_artifact(tmp_path)
    code = (
        "import sys, numpy as np\n"
        "from fcn_deploy import Segmenter\n"
        "s = Segmenter.open(sys.argv[1])\n"
        "print(s(np.zeros((8, 8, 3), np.uint8)).labels.shape)\n"
    )

    child = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip

    assert child.returncode == 0
    assert child.stdout == "(8, 8)\n"
    assert child.stderr == ""
