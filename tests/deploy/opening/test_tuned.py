"""What --tune kept is found again for the same files, machine and libraries only, and obeyed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fcn_deploy.artifact.folder import Artifact, ArtifactWriter
from fcn_deploy.artifact.manifest import Manifest, Variant
from fcn_deploy.doctor import diagnose
from fcn_deploy.errors import ArtifactError
from fcn_deploy.machine import describe_machine
from fcn_deploy.names import Precision
from fcn_deploy.opening import tuned
from fcn_deploy.opening.tuned import TunedRow, TunedRows, keep_rows, kept_rows, rows_path
from fcn_deploy.segmenter import Segmenter
from tests.deploy.graphs import segmentation_graph
from tests.deploy.manifests import MANIFEST


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    return folder


def write(folder: Path, *, seed: int = 0) -> Path:
    """An artifact with an fp32 and an fp16 file; both hold one graph, as only names matter here."""
    path = folder / f"model{seed}.fcn"
    with ArtifactWriter(path) as writer:
        for name in ("model.onnx", "model.fp16.onnx"):
            writer.add(name, segmentation_graph(seed=seed))
        variants = (
            Variant("model.onnx", Precision.FP32),
            Variant("model.fp16.onnx", Precision.FP16),
        )
        writer.commit(replace(MANIFEST, variants=variants))
    return path


def row(
    backend: str = "openvino",
    precision: Precision = Precision.FP32,
    latency_ms: float = 10.0,
    *,
    within: bool = True,
) -> TunedRow:
    return TunedRow(backend, precision, latency_ms, within, "as measured")


def measured(*rows: TunedRow) -> TunedRows:
    return TunedRows((480, 640), rows)


FP16_WINS = measured(
    row(),
    row("openvino", Precision.FP16, 12),
    row("onnxruntime", Precision.FP32, 9),
    row("onnxruntime", Precision.FP16, 5),
)


def manifest_of(path: Path) -> Manifest:
    return Artifact.open(path).manifest


def test_what_is_kept_is_found_again_and_the_artifact_is_not_touched(
    tmp_path: Path, state: Path
) -> None:
    path = write(tmp_path)
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    kept = keep_rows(manifest_of(path), FP16_WINS)

    assert kept_rows(manifest_of(path)) == FP16_WINS
    assert kept.is_relative_to(state)
    assert list(kept.parent.iterdir()) == [kept]  # nothing temporary stays
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_a_second_choice_replaces_the_first(tmp_path: Path) -> None:
    manifest = manifest_of(write(tmp_path))
    keep_rows(manifest, FP16_WINS)

    keep_rows(manifest, measured(row()))

    assert kept_rows(manifest) == measured(row())


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(tuned, "distribution_version", lambda name: "99.0"),
        lambda patch: patch.setattr(
            tuned, "describe_machine", lambda: replace(describe_machine(), usable_cores=63)
        ),
        lambda patch: patch.setattr(
            tuned, "describe_machine", lambda: replace(describe_machine(), cpu="another")
        ),
    ],
)
def test_another_machine_or_library_knows_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[pytest.MonkeyPatch], None]
) -> None:
    manifest = manifest_of(write(tmp_path))
    keep_rows(manifest, FP16_WINS)

    change(monkeypatch)

    assert kept_rows(manifest) is None


def test_other_files_know_nothing_of_it(tmp_path: Path) -> None:
    keep_rows(manifest_of(write(tmp_path)), FP16_WINS)

    assert kept_rows(manifest_of(write(tmp_path, seed=1))) is None


@pytest.mark.parametrize(
    "content",
    [b"{", b'{"format_version": 2}', b'{"format_version": 1, "size": [1], "rows": []}', b"\xff"],
)
def test_a_damaged_file_counts_as_nothing_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    manifest = manifest_of(write(tmp_path))
    rows_path(manifest).parent.mkdir(parents=True)
    rows_path(manifest).write_bytes(content)

    with caplog.at_level(logging.WARNING):
        found = kept_rows(manifest)

    assert found is None
    assert "the choice kept by fcn-bench --tune is left aside" in caplog.text


def test_a_folder_that_cannot_be_written_is_our_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))

    with pytest.raises(ArtifactError, match=r"cannot be kept in .*XDG_STATE_HOME"):
        keep_rows(manifest_of(write(tmp_path)), FP16_WINS)


def test_a_relative_state_folder_is_ignored_as_the_specification_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))

    assert rows_path(manifest_of(write(tmp_path))).is_relative_to(tmp_path / ".local" / "state")


def test_the_best_is_the_fastest_within_the_budget_of_the_backends_that_may_be_used() -> None:
    rows = measured(
        row("openvino", Precision.INT8, 2, within=False),
        row("openvino", Precision.FP32, 10),
        row("onnxruntime", Precision.FP16, 5),
    )

    assert rows.best(backends=("openvino", "onnxruntime")) == rows.rows[2]
    assert rows.best(backends=("openvino",)) == rows.rows[1]
    assert rows.best(backends=("tensorrt",)) is None


def test_of_equally_fast_ones_the_most_precise_is_best() -> None:
    rows = measured(row("openvino", Precision.INT8, 10), row("openvino", Precision.FP32, 10.2))
    slower = measured(row("openvino", Precision.INT8, 10), row("openvino", Precision.FP32, 10.4))

    assert rows.best(backends=("openvino",)) == rows.rows[1]
    assert slower.best(backends=("openvino",)) == slower.rows[0]


def test_auto_opens_what_was_kept_and_says_so(tmp_path: Path) -> None:
    path = write(tmp_path)
    keep_rows(manifest_of(path), FP16_WINS)

    with Segmenter.open(path) as segmenter:
        assert (segmenter.backend, segmenter.precision) == ("onnxruntime", Precision.FP16)
        assert segmenter.path.name == "model.fp16.onnx"
        assert "onnxruntime is the fastest that was measured here" in repr(segmenter)
        assert "fp16, as fcn-bench --tune measured 5 ms a frame of 480x640" in repr(segmenter)
    diagnosis = diagnose(path).model
    assert diagnosis is not None
    assert (diagnosis.backend, diagnosis.precision) == ("onnxruntime", Precision.FP16)
    assert "fcn-bench --tune measured" in (diagnosis.reason or "")


def test_what_is_named_is_obeyed_before_what_was_kept(tmp_path: Path) -> None:
    path = write(tmp_path)
    keep_rows(manifest_of(path), FP16_WINS)

    with Segmenter.open(path, backend="openvino") as segmenter:
        assert (segmenter.backend, segmenter.precision) == ("openvino", Precision.FP32)
        assert "measured 10 ms" in segmenter.reason
    with Segmenter.open(path, precision="fp32") as segmenter:
        assert segmenter.reason.endswith("fp32 was asked for")
    with Segmenter.open(path / "model.onnx") as segmenter:
        assert segmenter.precision in (Precision.FP32, Precision.BF16)
        assert "tune measured" not in segmenter.reason
