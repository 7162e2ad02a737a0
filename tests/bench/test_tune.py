"""--tune keeps the fastest variant within the budget, and says why not the others."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from fcn_bench.cli import main
from fcn_bench.report import Row, RowFidelity
from fcn_bench.tune import NotTuned, Tuned, check_tunable, tune
from fcn_bench.verdict import Verdict
from fcn_deploy.artifact.folder import Artifact
from fcn_deploy.artifact.manifest import Fidelity, Manifest, Variant
from fcn_deploy.errors import BenchmarkError, ManifestError
from fcn_deploy.names import Precision
from fcn_deploy.opening.tuned import kept_rows
from tests.bench.conftest import TinyModel
from tests.bench.samples import make_key, make_report, make_row
from tests.deploy.manifests import MANIFEST


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def artifact(*fidelity: Fidelity, budget: str | None = None) -> Artifact:
    manifest: Manifest = replace(
        MANIFEST,
        variants=(Variant("model.onnx", Precision.FP32, fidelity=fidelity),),
        provenance={} if budget is None else {"max_miou_drop": budget},
    )
    return Artifact(Path("model.fcn"), manifest)


def row(
    precision: str,
    median_ms: float,
    *,
    agreement: float | None = None,
    drop: float | None = None,
    verdict: Verdict = Verdict.VALID,
) -> Row:
    fidelity = RowFidelity(label_agreement=agreement, miou_drop=drop)
    return make_row(
        make_key(precision=precision), median_ms=median_ms, fidelity=fidelity, verdict=verdict
    )


@pytest.mark.parametrize(
    ("rows", "chosen"),
    [
        ([row("fp32", 20), row("int8", 5, agreement=0.9995)], "int8"),
        ([row("fp32", 20), row("int8", 5, agreement=0.998)], "fp32"),
        # the loss of mean IoU is the promise; agreement stands in for it where there is no truth
        ([row("fp32", 20), row("int8", 5, agreement=0.998, drop=0.4)], "int8"),
        ([row("fp32", 20), row("int8", 5, agreement=0.9999, drop=0.6)], "fp32"),
        ([row("fp32", 20), row("int8", 5)], "fp32"),
        ([row("fp32", 20), row("int8", 5, agreement=1.0, verdict=Verdict.SUSPECT)], "fp32"),
    ],
)
def test_the_fastest_within_the_budget_is_kept(rows: list[Row], chosen: str) -> None:
    target = artifact(budget="0.5")

    found = tune(make_report(*rows), target)

    assert isinstance(found, Tuned)
    assert found.best.precision == chosen
    kept = kept_rows(target.manifest)
    assert kept is not None
    assert kept.best(backends=("openvino",)) == found.best
    assert any(line.startswith(f"kept openvino {chosen}") for line in found.lines())
    assert str(found.path) in found.lines()[-1]


def test_what_was_measured_at_export_counts_where_nothing_was_now() -> None:
    target = artifact(Fidelity("openvino", Precision.INT8, 0.995, 0.0, 0.7, 0.2))

    found = tune(make_report(row("fp32", 20), row("int8", 5)), target)

    assert isinstance(found, Tuned)
    assert found.best.precision is Precision.INT8
    assert "+0.20 points of mean IoU lost at export, 1 allowed" in found.best.reason


def test_only_frames_one_at_a_time_at_the_first_size_count() -> None:
    report = make_report(
        make_row(make_key(scope="compute", precision="int8"), median_ms=1),
        make_row(make_key("torch", mode="eager"), median_ms=1),
        make_row(make_key(scenario="throughput", precision="int8"), median_ms=1),
        row("fp32", 20),
        make_row(make_key(precision="fp16", size=(64, 64)), median_ms=1),
    )

    found = tune(report, artifact())

    assert isinstance(found, Tuned)
    assert [entry.precision for entry in found.rows.rows] == [Precision.FP32]
    assert found.rows.size == (512, 512)


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([row("fp32", 20, verdict=Verdict.SUSPECT)], r"every row is SUSPECT .*Measure longer"),
        ([row("int8", 20, agreement=0.5)], "no variant that was measured is within the budget"),
        ([], "every row is SUSPECT"),
    ],
)
def test_nothing_is_kept_of_what_cannot_be_relied_on(
    rows: list[Row], why: str, state: Path
) -> None:
    found = tune(make_report(*rows), artifact())

    assert isinstance(found, NotTuned)
    assert re.search(why, found.lines()[0])
    assert not state.exists()


def test_a_budget_that_is_no_number_is_an_error() -> None:
    with pytest.raises(ManifestError, match="max_miou_drop is 'much'"):
        tune(make_report(row("int8", 2, drop=0.1)), artifact(budget="much"))


def test_a_single_file_has_nothing_to_choose(
    tiny: TinyModel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_tunable(tiny.artifact, ["latency"]).manifest.variants
    with pytest.raises(BenchmarkError, match="needs rows of latency"):
        check_tunable(tiny.artifact, ["throughput"])

    status = main([str(tiny.artifact / "model.onnx"), "--tune"])

    assert status == 2
    assert "--tune chooses among the variants of an artifact" in capsys.readouterr().err
