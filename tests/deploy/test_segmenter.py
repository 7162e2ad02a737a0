"""Frames in, labels out: sizes, batches, scores, bad input, threads."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fcn_deploy import Segmenter
from fcn_deploy.artifact.manifest import TensorInfo
from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.backends import backend_names
from fcn_deploy.errors import (
    ClosedError,
    DTypeError,
    FcnDeployError,
    NonFiniteOutputError,
    ShapeError,
)
from fcn_deploy.names import Array
from fcn_deploy.opening.load import open_model
from fcn_deploy.opening.options import OpenOptions
from fcn_deploy.testing import FakeBackend
from tests.deploy.artifacts import frame, write_artifact, write_graph
from tests.deploy.graphs import segmentation_graph
from tests.deploy.layouts import LAYOUTS, of_a_file, of_bytes
from tests.deploy.manifests import MANIFEST


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
    model = open_model(write_artifact(tmp_path, shapes=shapes), OpenOptions())
    seen: list[tuple[int, ...]] = []

    def noted(feeds: Mapping[str, Array]) -> dict[str, Array]:
        seen.append(feeds["image"].shape)
        return model.context.execute(feeds)

    network = FakeBackend(noted, inputs=model.context.inputs, outputs=model.context.outputs)
    padded = Segmenter(replace(model, context=network.open(model.file.source())))

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


@pytest.mark.parametrize("backend", backend_names())
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_frame_of_any_layout_gives_the_same_and_stays_as_it_is(
    tmp_path: Path, backend: str, layout: str
) -> None:
    given = LAYOUTS[layout](frame(48, 70))
    plain = np.array(given, order="C")
    # padded, whole, and in tiles; frames alone and together
    padded = ShapeRange((1, 8, 8), (1, 64, 64), (4, 128, 128), multiple_of=32)
    artifact = write_artifact(tmp_path, shapes=padded)
    segmenters = [
        Segmenter.open(path, backend=backend, tile_pixels=pixels)
        for path in (artifact, write_graph(tmp_path))
        for pixels in (40 * 40, None)
    ]

    for segmenter in segmenters:
        expected = segmenter(plain)
        for result in (segmenter(given), *segmenter.batch([given, plain, given])):
            np.testing.assert_array_equal(result.labels, expected.labels)
            np.testing.assert_array_equal(result.overlay(), expected.overlay())
    np.testing.assert_array_equal(given, plain)


@pytest.mark.parametrize("backend", backend_names())
def test_frames_of_pillow_and_of_mapped_files_run(tmp_path: Path, backend: str) -> None:
    segmenter = Segmenter.open(write_artifact(tmp_path), backend=backend)
    given = [np.asarray(Image.fromarray(frame())), of_a_file(frame(), tmp_path)]

    results = [*map(segmenter, given), *segmenter.batch(given)]

    assert not any(one.flags.writeable for one in given)
    for result in results:
        np.testing.assert_array_equal(result.labels, segmenter(frame()).labels)


@pytest.mark.parametrize("kind", ["writable", "read-only"])
def test_a_contiguous_frame_is_not_copied_for_the_network(tmp_path: Path, kind: str) -> None:
    given = frame(2160, 3840) if kind == "writable" else of_bytes(frame(2160, 3840))
    segmenter = Segmenter.open(write_artifact(tmp_path))

    (prepared,) = segmenter.prepare([given]).values()

    assert prepared.ctypes.data == given.ctypes.data


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
