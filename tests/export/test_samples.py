"""Fidelity is measured on the best images at hand, and a variant that is broken is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fcn_deploy.artifact.folder import Artifact
from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.backends.openvino import OpenVinoBackend
from fcn_deploy.errors import ParityError
from fcn_deploy.names import Array, Precision
from fcn_deploy.preprocess import default_preprocess
from fcn_deploy.segmenter import Segmenter
from fcn_export.check.sample_frames import natural_frame
from fcn_export.export import ExportRequest, export_model
from fcn_export.graph_spec import GraphSpec
from fcn_export.onnx_file import OnnxFile, write_onnx
from fcn_export.precision.calibration_images import CalibrationImages
from fcn_export.samples import choose_samples
from fcn_export.terminal import show_report
from fcn_models.labelled_images import EvalSet
from tests.export.tiny_networks import HalfResolution, seeded

SMALL: dict[str, Any] = {
    "size": (96, 80),
    "min_size": (32, 32),
    "max_size": (160, 200),
    "engine": "none",
}
SHAPES = ShapeRange((1, 32, 32), (1, 96, 80), (1, 160, 200))
SPEC = GraphSpec(default_preprocess(), 5, upsample=False)


def write_images(folder: Path, count: int, *, size: tuple[int, int] = (40, 60)) -> Path:
    folder.mkdir()
    for index in range(count):
        cv2.imwrite(str(folder / f"{index:02}.png"), natural_frame(*size, index))
    return folder


def test_labelled_images_come_before_samples_and_these_before_held_out_ones(tmp_path: Path) -> None:
    calibrate = write_images(tmp_path / "calibrate", 30)
    samples = write_images(tmp_path / "samples", 5, size=(400, 320))
    labels = tmp_path / "labels"
    labels.mkdir()
    for image in samples.iterdir():
        cv2.imwrite(str(labels / image.name), np.zeros((400, 320), np.uint8))
    labelled = EvalSet.find(samples, labels)
    all_given = ExportRequest(calibrate=calibrate, samples=samples)

    taken = [
        choose_samples(request, pairs, SPEC, SHAPES)
        for request, pairs in (
            (all_given, labelled),
            (all_given, None),
            (ExportRequest(calibrate=calibrate), None),
            (ExportRequest(), None),
        )
    ]

    assert [found.what for found in taken] == [
        "5 labelled images",
        "5 samples",
        "12 calibration images that no range is taken from",
        "12 photographs of this package",
    ]
    assert [found.has_labels for found in taken] == [True, False, False, False]
    # labelled images keep their size: their labels have it
    assert {item.frame.shape for item in taken[0].items()} == {(400, 320, 3)}
    assert {item.frame.shape for item in taken[1].items()} == {(96, 77, 3)}


def test_images_are_held_out_of_the_ranges_where_there_are_enough(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "many", 22)

    images = CalibrationImages.find(folder, size=(96, 80), hold_out=True)
    others = images.others()

    assert others is not None
    assert (len(images), len(others)) == (16, 6)
    assert not set(images.names()) & set(others.names())
    assert len(list(others.frames(color="bgr"))) == 6


def test_few_images_are_all_used_for_ranges_and_photographs_measure(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "few", 19)

    images = CalibrationImages.find(folder, size=(96, 80), hold_out=True)
    found = choose_samples(ExportRequest(calibrate=folder), None, SPEC, SHAPES)

    assert (len(images), images.others()) == (19, None)
    assert found.what == "12 photographs of this package"


def test_the_graphs_order_of_channels_is_kept_in_photographs() -> None:
    rgb = GraphSpec(default_preprocess(), 5, upsample=False, input_color="rgb")

    one = next(choose_samples(ExportRequest(), None, SPEC, SHAPES).items())
    other = next(choose_samples(ExportRequest(), None, rgb, SHAPES).items())

    np.testing.assert_array_equal(one.frame, other.frame[..., ::-1])


@pytest.fixture
def spoiled_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass gone wrong: the fp16 graph's last weights have the other sign."""

    def write(model: Any, path: Path) -> OnnxFile:
        weights = [w for w in model.graph.initializer if len(w.dims) == 4]
        last = next(w for w in weights if w.dims[0] == 5)
        values = -np.frombuffer(last.raw_data, np.float16)
        last.raw_data = values.tobytes()
        return write_onnx(model, path)

    monkeypatch.setattr("fcn_export.precision.fp16.write_onnx", write)


@pytest.mark.usefixtures("spoiled_fp16")
def test_a_variant_that_loses_many_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ParityError,
        match=r"fp16 keeps \d+\.\d+% of PyTorch's labels on 12 photographs of this package, .*; "
        r"below 99% a variant is broken\. Leave fp16 out .*--allow-broken",
    ):
        export_model(seeded(HalfResolution), tmp_path / "m.fcn", request=ExportRequest(**SMALL))

    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("spoiled_fp16")
def test_a_broken_variant_that_is_kept_says_so_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = export_model(
        seeded(HalfResolution),
        tmp_path / "m.fcn",
        request=ExportRequest(**SMALL, allow_broken=True),
    )
    show_report(report)

    artifact = Artifact.open(report.path)
    fp16 = next(v for v in artifact.manifest.variants if v.precision is Precision.FP16)
    rows = json.loads(artifact.read("report.json"))["variants"]
    table = capsys.readouterr().out
    assert {entry.status for entry in fp16.fidelity} == {"broken"}
    assert {row["status"] for row in rows if row["precision"] == "fp16"} == {"broken"}
    assert all(row["images"] == 12 and row["pixels"] > 0 for row in rows)
    assert all(row["worst_class_iou"] <= 1 for row in rows)
    assert table.count(" broken ") == 2
    assert "on 12 photographs of this package, 12 with more than one class" in " ".join(
        table.split()
    )


class OffByTwoPercent:
    """A context of OpenVINO whose scores are 2 % too large."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def __enter__(self) -> OffByTwoPercent:
        return self

    def __exit__(self, *args: object) -> None:
        self._context.close()

    def execute(self, feeds: Any, **options: Any) -> dict[str, Array]:
        found = self._context.execute(feeds, **options)
        return {
            name: array * np.float32(1.02) if array.dtype == np.float32 else array
            for name, array in found.items()
        }


def test_a_backend_whose_fp32_is_off_is_named_and_auto_takes_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = OpenVinoBackend.open
    with monkeypatch.context() as patch:
        patch.setattr(
            OpenVinoBackend,
            "open",
            lambda *args, **options: OffByTwoPercent(opened(*args, **options)),
        )
        report = export_model(
            seeded(HalfResolution), tmp_path / "m.fcn", request=ExportRequest(**SMALL)
        )

    fp32 = Artifact.open(report.path).manifest.variants[0].fidelity
    status = {entry.backend: entry.status for entry in fp32 if entry.precision is Precision.FP32}
    with Segmenter.open(report.path, precision="fp32") as segmenter:
        chosen, reason = segmenter.backend, segmenter.reason

    assert status == {"openvino": "differs", "onnxruntime": "ok"}
    assert any("openvino fp32 is not the model: its scores differ by up to 2.00%" in note
               for note in report.notes)  # fmt: skip
    assert chosen == "onnxruntime"
    assert "openvino's fp32 scores differ from PyTorch's by 2.00%" in reason
