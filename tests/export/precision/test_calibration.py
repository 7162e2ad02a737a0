"""Calibration: which images are taken, what is measured of tensors, what is kept and reused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.errors import NonFiniteOutputError, SourceOpenError
from fcn_deploy.names import Array
from fcn_deploy.video.files import VideoFileSource
from fcn_export.precision.calibrate import calibrate
from fcn_export.precision.calibration_images import CalibrationImages, fit_frame
from fcn_export.precision.calibration_table import TABLE_NAME, read_table
from fcn_export.precision.collect import collect_extents, collect_histograms
from fcn_export.precision.image_report import ImageStatistics
from fcn_export.precision.thresholds import BINS, thresholds
from fcn_export.precision.to_int8 import prepare
from tests.export.qdq_graphs import SPEC, FrameGraph

_SHAPES = ShapeRange((1, 16, 16), (1, 32, 32), (1, 64, 64), multiple_of=8)


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    for index in range(20):
        cv2.imwrite(str(images / f"frame_{index}.png"), rng.integers(0, 256, (30, 40, 3), np.uint8))
    return images


def test_images_are_chosen_evenly_and_fewer_where_they_are_large(folder: Path) -> None:
    few = CalibrationImages.find(folder, size=(32, 32), limit=5)
    large = CalibrationImages.find(folder, size=(4000, 4000))

    assert [path.name for path in few.files] == [f"frame_{i}.png" for i in (2, 6, 10, 14, 18)]
    assert few.total == 20
    assert len(large) == 16


def test_list_names_images_beside_itself(folder: Path) -> None:
    listed = folder / "some.txt"
    listed.write_text("# a comment\nframe_3.png\n\nframe_1.png\n", encoding="utf-8")

    images = CalibrationImages.find(listed, size=(32, 32))

    assert [path.name for path in images.files] == ["frame_3.png", "frame_1.png"]
    assert sum(1 for _ in images.frames(color="bgr")) == 2


def test_list_with_a_missing_image_names_it(folder: Path) -> None:
    listed = folder / "some.txt"
    listed.write_text("frame_3.png\nnowhere.png\n", encoding="utf-8")

    with pytest.raises(SourceOpenError, match=r"1 of 2 images .* missing, the first is .*nowhere"):
        CalibrationImages.find(listed, size=(32, 32))


def test_video_gives_evenly_spread_frames(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (32, 24))
    for level in range(0, 200, 10):
        writer.write(np.full((24, 32, 3), level, np.uint8))
    writer.release()

    images = CalibrationImages.find(path, size=(32, 32), limit=5)
    found = [int(frame.mean() + 5) // 10 * 10 for frame in images.frames(color="bgr")]

    assert images.total == 20
    assert found == [20, 60, 100, 140, 180]


def test_digest_follows_the_pixels_not_the_names(folder: Path) -> None:
    first = CalibrationImages.find(folder, size=(32, 32))

    (folder / "frame_0.png").rename(folder / "frame_00.png")
    renamed = CalibrationImages.find(folder, size=(32, 32))
    cv2.imwrite(str(folder / "frame_1.png"), np.zeros((30, 40, 3), np.uint8))
    changed = CalibrationImages.find(folder, size=(32, 32))

    assert first.sha256 == renamed.sha256 != changed.sha256


def test_images_are_padded_as_the_runtime_does_and_cut_to_the_largest_size() -> None:
    frame = np.arange(30 * 100 * 3, dtype=np.uint8).reshape(30, 100, 3)

    fitted = fit_frame(frame, _SHAPES)

    assert fitted.shape == (1, 32, 64, 3)
    np.testing.assert_array_equal(fitted[0, :30], frame[:, 18:82])
    np.testing.assert_array_equal(fitted[0, 31], frame[29, 18:82])


def _batches(rng: np.random.Generator) -> list[Array]:
    return [rng.integers(0, 256, (1, 24, 24, 3), np.uint8) for _ in range(3)]


def _values(model: onnx.ModelProto, batches: list[Array], name: str) -> Array:
    """Give all values of an inner tensor, straight from ONNX's reference implementation."""
    from onnx.reference import ReferenceEvaluator

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    evaluator = ReferenceEvaluator(copy)
    found = []
    for batch in batches:
        results = evaluator.run([name], {"image": batch})
        found.append(np.asarray(next(iter(results))).ravel())
    return np.concatenate(found)


@pytest.mark.parametrize("held_bytes", [1, 1 << 30])
def test_streamed_histograms_count_what_all_tensors_together_hold(
    held_bytes: int, rng: np.random.Generator
) -> None:
    model = FrameGraph(rng).residual()
    batches = _batches(rng)
    names = ["input", "middle", "second"]

    extents = collect_extents(model, names, batches)
    counts = collect_histograms(model, extents, lambda: iter(batches), held_bytes=held_bytes)

    for name in names:
        values = _values(model, batches, name)
        assert extents[name].low == pytest.approx(values.min(), abs=1e-5)
        assert extents[name].high == pytest.approx(values.max(), abs=1e-5)
        assert extents[name].elements == values.size // 3
        expected, _ = np.histogram(np.abs(values), BINS, (0, extents[name].largest))
        assert counts[name].sum() == values.size
        # float32 sums differ in their last bits, which moves a value at an edge to the next bin
        assert np.abs(np.cumsum(counts[name]) - np.cumsum(expected)).max() <= 4


def test_network_that_makes_nan_is_refused_with_the_tensor(rng: np.random.Generator) -> None:
    graph = FrameGraph(rng)
    graph.op("Log", "input", out="logarithm")
    graph.op("Mul", "logarithm", graph.constant("nothing", np.float32(0)), out="poisoned")
    model = graph.model(graph.conv("poisoned", (3, 4), out="classifier"))
    batch = np.zeros((1, 8, 8, 3), np.uint8)

    with pytest.raises(NonFiniteOutputError, match="'poisoned' holds NaN or infinity"):
        collect_extents(model, ["poisoned"], [batch])


def _histogram(values: Array) -> tuple[Array, float]:
    largest = float(np.abs(values).max())
    return np.histogram(np.abs(values), BINS, (0, largest))[0], largest


def test_outlier_moves_minmax_alone(rng: np.random.Generator) -> None:
    values = np.append(rng.normal(size=200_000), 40.0)

    found = thresholds(*_histogram(values))

    assert found["minmax"] == 40.0
    assert found["percentile"] == pytest.approx(np.quantile(np.abs(values), 0.9999), rel=0.02)
    assert 2 < found["entropy"] < 8
    assert 2 < found["mse"] < 30  # clipping one value by 20 costs as much as rounding all


def test_mse_threshold_has_the_least_squared_error(rng: np.random.Generator) -> None:
    values = rng.laplace(size=100_000)

    found = thresholds(*_histogram(values))

    def error(threshold: float) -> float:
        step = threshold / 127
        return float(np.mean((values - np.clip(np.rint(values / step), -127, 127) * step) ** 2))

    tried = np.linspace(0.1, 1, 200) * np.abs(values).max()
    best = min(error(threshold) for threshold in tried)
    assert error(found["mse"]) < 1.05 * best  # candidates are 4 % apart
    assert error(found["mse"]) < 0.9 * error(found["minmax"])


def test_second_calibration_with_the_same_key_is_read_back(
    folder: Path, rng: np.random.Generator
) -> None:
    model = prepare(FrameGraph(rng).residual())
    images = CalibrationImages.find(folder, size=(32, 32))
    said: list[str] = []
    table = calibrate(model, images, SPEC, _SHAPES)
    cache = folder / TABLE_NAME
    cache.write_bytes(table.to_bytes(method="mse"))

    again = calibrate(model, images, SPEC, _SHAPES, cache=cache, on_progress=said.append)

    assert again == table
    assert said == [f"ranges of '{cache}' hold: same graph, same images"]


def test_table_of_another_graph_or_a_broken_one_is_not_used(
    folder: Path, rng: np.random.Generator
) -> None:
    model = prepare(FrameGraph(rng).residual())
    table = calibrate(model, CalibrationImages.find(folder, size=(32, 32)), SPEC, _SHAPES)
    cache = folder / TABLE_NAME
    content = table.to_bytes(method="mse")
    cache.write_bytes(content)
    broken = folder / "broken.json"
    broken.write_bytes(content[: len(content) // 2])

    assert read_table(cache, table.key) == table
    assert read_table(cache, replace(table.key, model_sha256="other")) is None
    assert read_table(broken, table.key) is None
    assert read_table(folder / "nowhere.json", table.key) is None


def test_doctor_counts_images_classes_and_duplicates(rng: np.random.Generator) -> None:
    statistics = ImageStatistics(3)
    scene = rng.integers(0, 256, (8, 8, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    for index in range(20):
        frame = scene if index < 10 else rng.integers(0, 10 * index, (64, 64, 3), np.uint8)
        statistics.add_frame(frame)
        labels = np.zeros((64, 64), np.uint8)
        labels[: 1 + index] = 1
        statistics.add_labels(labels)

    report = statistics.report(total=200, served=(512, 512))

    warnings = report.warnings(("road", "car", "bicycle"))
    assert report.class_pixels[1] == pytest.approx(sum(range(1, 21)) / (20 * 64))
    assert report.near_duplicates == 9
    assert "hardly saw bicycle (0.00% of the pixels, in 0 images)" in warnings[0]
    assert "9 of 20 calibration images resemble an earlier one" in warnings[1]
    assert "are below 64x64 px, but --size says 512x512" in warnings[2]


def test_doctor_warns_of_few_images_of_one_brightness(rng: np.random.Generator) -> None:
    statistics = ImageStatistics(2)
    for _ in range(3):
        statistics.add_frame(rng.integers(90, 111, (32, 32, 3), np.uint8))
        statistics.add_labels(np.eye(32, dtype=np.uint8))

    warnings = statistics.report(total=3, served=(32, 32)).warnings(("a", "b"))

    assert [text.split(":")[0].split(" (")[0] for text in warnings] == [
        "Only 3 calibration images",
        "The calibration images are all of one brightness",
    ]


def test_doctor_is_content_with_varied_images(rng: np.random.Generator) -> None:
    statistics = ImageStatistics(2)
    for index in range(16):
        statistics.add_frame(rng.integers(0, 100 + 9 * index, (32, 32, 3), np.uint8))
        statistics.add_labels(np.eye(32, dtype=np.uint8))

    assert statistics.report(total=16, served=(32, 32)).warnings(("a", "b")) == ()


def test_counting_frames_does_not_trust_the_container(tmp_path: Path) -> None:
    path = tmp_path / "empty.avi"
    path.write_bytes(b"RIFF\x00\x00\x00\x00AVI \x00\x01")

    with pytest.raises(SourceOpenError, match="not a video that FFmpeg can open"):
        CalibrationImages.find(path, size=(32, 32))
    assert VideoFileSource(path).frame_count is None
