"""`--compare`: regressions are found, and what cannot be compared is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fcn_bench.compare import EarlierReport, compare, load_report
from fcn_bench.verdict import Verdict
from fcn_deploy.errors import BenchmarkError
from tests.bench.samples import make_key, make_report, make_row


def earlier(document: Mapping[str, Any]) -> EarlierReport:
    """Give what reading the document back gives."""
    return msgspec.json.decode(json.dumps(document), type=EarlierReport)


def test_same_report_has_no_regression() -> None:
    report = make_report(make_row(make_key()))

    comparison = compare(report, earlier(report.to_json()))

    assert comparison.held
    assert [change.percent for change in comparison.changes] == [0.0]


@pytest.mark.parametrize(("allowed", "held"), [(None, False), (5.0, False), (25.0, True)])
def test_slower_row_fails_beyond_what_is_allowed(allowed: float | None, held: bool) -> None:
    old = make_report(make_row(make_key(), median_ms=10)).to_json()
    new = make_report(make_row(make_key(), median_ms=12))

    comparison = compare(new, earlier(old), max_regression_percent=allowed)

    assert comparison.held is held
    assert comparison.changes[0].percent == pytest.approx(20)
    assert ("FAILED" in comparison.lines()[0]) is not held


def test_throughput_is_compared_by_frames_a_second() -> None:
    key = make_key(mode="2 streams", scenario="throughput")
    old = make_report(make_row(key)).to_json()
    old["rows"][0]["throughput_fps"] = 130.0  # it was 100 now

    comparison = compare(make_report(make_row(key)), earlier(old))

    assert comparison.regressions[0].percent == pytest.approx(30)


def test_row_without_a_frame_a_second_was_infinitely_slow() -> None:
    key = make_key(mode="2 streams", scenario="throughput")
    old = make_report(make_row(key)).to_json()
    old["rows"][0]["throughput_fps"] = 0.0

    comparison = compare(make_report(make_row(key)), earlier(old))

    assert comparison.held
    assert comparison.changes[0].percent == -100


def test_pytorch_getting_slower_is_told_but_no_regression() -> None:
    key = make_key("torch", mode="eager")
    ours = make_row(make_key())
    old = make_report(make_row(key, median_ms=10), ours).to_json()

    comparison = compare(make_report(make_row(key, median_ms=30), ours), earlier(old))

    assert comparison.held
    assert "200.0 % slower" in comparison.lines()[0]


def test_row_that_is_gone_fails_the_gate() -> None:
    old = make_report(make_row(make_key()), make_row(make_key(precision="bf16"))).to_json()

    comparison = compare(make_report(make_row(make_key())), earlier(old))

    assert not comparison.held
    assert "openvino bf16" in comparison.lines()[-1]
    assert "only in the earlier report" in comparison.lines()[-1]


def test_suspect_row_is_marked() -> None:
    old = make_report(make_row(make_key(), verdict=Verdict.SUSPECT)).to_json()

    lines = compare(make_report(make_row(make_key())), earlier(old)).lines()

    assert "one of the two is SUSPECT" in lines[0]


def test_other_library_versions_are_told() -> None:
    report = make_report(make_row(make_key()))
    old = report.to_json()
    old["environment"]["libraries"] = {"torch": "2.14.1", "openvino": "2026.3"}

    assert compare(report, earlier(old)).notes == ("openvino was 2026.3 and is 2026.4.1",)


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("environment", "cpu", "Another CPU", "the CPU was 'Another CPU' and is 'A CPU'"),
        ("environment", "cores", 8, "the number of cores was 8 and is 2"),
        ("environment", "threads", {"per_row": 1}, "the thread settings"),
        ("target", "sha256", "cd" * 32, "the network"),
    ],
)
def test_reports_of_other_surroundings_are_refused(
    part: str, name: str, value: Any, message: str
) -> None:
    report = make_report(make_row(make_key()))
    old = report.to_json()
    old[part] = {**old[part], name: value}

    with pytest.raises(BenchmarkError, match=f"cannot be compared: {message}"):
        compare(report, earlier(old))


def test_reports_of_other_rates_of_arrival_are_refused() -> None:
    report = make_report(make_row(make_key(scenario="stream", scope="stream")))
    slower, faster = (
        replace(report, environment={**report.environment, "stream_rate_fps": rate})
        for rate in (25.0, 30.0)
    )

    with pytest.raises(
        BenchmarkError, match="arrived 25 times a second and now 30 times"
    ) as caught:
        compare(faster, earlier(slower.to_json()))

    assert caught.value.hint == "Give --rate 25."
    assert compare(report, earlier(slower.to_json())).held  # a report without a stream has no rate


def test_reports_of_other_sizes_have_no_row_in_common() -> None:
    old = make_report(make_row(make_key(size=(256, 256)))).to_json()

    with pytest.raises(BenchmarkError, match="no row in common"):
        compare(make_report(make_row(make_key())), earlier(old))


def test_report_is_read_back_from_its_file(tmp_path: Path) -> None:
    document = make_report(make_row(make_key())).to_json()
    (tmp_path / "old.json").write_text(json.dumps(document))

    assert load_report(tmp_path / "old.json") == earlier(document)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "Expected `object`, got `array`"),
        ("{}", "missing required field `schema_version`"),
        ('{"schema_version": 1, "schema_version": 1}', "a key twice"),
        ('{"schema_version": 1, "rows": [1]}', r"at 'rows\[0\]': Expected `object`, got `int`"),
        ('{"schema_version": 2}', "schema version 2; this release reads 1"),
        ('{"schema_version": 1, "complete": false}', "of a run that was interrupted"),
        ('{"schema_version": 1, "rows": []}', "has no rows"),
    ],
)
def test_file_that_is_no_report_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "old.json").write_text(text)

    with pytest.raises(BenchmarkError, match=message):
        load_report(tmp_path / "old.json")


def test_missing_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"cannot read the report .*No such file"):
        load_report(tmp_path / "old.json")


def test_damaged_row_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    old = make_report(make_row(make_key())).to_json()
    del old["rows"][0]["latency_ms"]
    (tmp_path / "old.json").write_text(json.dumps(old))

    with pytest.raises(
        BenchmarkError, match=r"malformed at 'rows\[0\]': .*missing required field `latency_ms`"
    ):
        load_report(tmp_path / "old.json")


@pytest.mark.parametrize("value", [0, -1, "fast", None])
def test_row_with_an_impossible_time_is_refused(tmp_path: Path, value: object) -> None:
    old = make_report(make_row(make_key())).to_json()
    old["rows"][0]["latency_ms"]["p50"] = value
    (tmp_path / "old.json").write_text(json.dumps(old))

    with pytest.raises(BenchmarkError, match=r"at 'rows\[0\]\.latency_ms\.p50': Expected `float`"):
        load_report(tmp_path / "old.json")
