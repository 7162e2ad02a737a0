"""The JSON that others' scripts read, key by key, and the tables for people."""

from __future__ import annotations

import csv
import io
import json
from html.parser import HTMLParser

from rich.console import Console

from fcn_bench.html import html_text
from fcn_bench.report import RowFidelity
from fcn_bench.tables import csv_text, markdown_text, terminal_table
from fcn_bench.verdict import Verdict
from tests.bench.samples import make_key, make_report, make_row


def test_document_has_the_keys_of_schema_version_1() -> None:
    document = make_report(make_row(make_key())).to_json()

    assert document["schema_version"] == 1
    assert {"environment", "target", "baseline", "rows"} <= document.keys()
    assert {"cpu", "cores", "libraries", "threads"} <= document["environment"].keys()


def test_row_has_the_keys_of_schema_version_1() -> None:
    row = make_report(make_row(make_key())).to_json()["rows"][0]

    assert row.keys() == {
        *("backend", "precision", "mode", "scenario", "scope", "batch", "height", "width"),
        *("latency_ms", "throughput_fps", "speedup", "speedup_best", "fidelity"),
        *("peak_rss_bytes", "start_ms", "verdict", "notes"),
    }
    assert row["start_ms"] == {"open": 850.0, "first_frame": 60.0}
    assert row["latency_ms"].keys() == {
        *("p50", "p90", "p95", "p99", "mean", "std", "min", "max", "n")
    }
    assert row["speedup"].keys() == {"value", "ci95", "against"}
    assert row["speedup"]["against"] == "eager"
    assert len(row["speedup"]["ci95"]) == 2
    assert row["fidelity"].keys() == {
        *("label_agreement", "near_tie_share", "miou", "miou_drop", "miou_vs_baseline")
    }
    assert row["verdict"] == "VALID"


def test_document_is_json_with_nulls_where_nothing_was_measured() -> None:
    row = make_row(make_key(), speedup=None)

    document = json.loads(json.dumps(make_report(row).to_json(), allow_nan=False))

    assert document["rows"][0]["speedup"] is None
    assert document["rows"][0]["fidelity"]["miou"] is None


def test_terminal_table_shows_speed_up_verdict_and_notes() -> None:
    suspect = make_row(
        make_key(precision="bf16"), verdict=Verdict.SUSPECT, notes=("6 samples; 20 are the least",)
    )
    console = Console(width=200, record=True, file=io.StringIO())

    console.print(terminal_table(make_report(make_row(make_key()), suspect)))

    text = console.export_text()
    assert "latency, frame (frame in, labels out), 512x512" in text
    assert "3.00x [2.70, 3.30]" in text
    assert "SUSPECT" in text
    assert "6 samples; 20 are the least" in text
    assert "a note of the run" in text


def test_notes_that_differ_in_numbers_alone_are_shown_once() -> None:
    rows = [
        make_row(make_key(precision=precision), notes=(f"spread is {share}%; the limit is 25%",))
        for precision, share in (("fp32", 31), ("bf16", 44))
    ]

    text = markdown_text(make_report(*rows))

    assert text.count("the limit is 25%") == 1
    assert "2 rows, such as openvino fp32" in text


def test_start_is_told_once_for_each_process() -> None:
    rows = [make_row(make_key(scope=scope)) for scope in ("compute", "frame")]
    console = Console(width=200, record=True, file=io.StringIO())

    console.print(terminal_table(make_report(*rows)))

    line = "to open, and for the first frame: openvino fp32 1 stream 0.85 + 0.06 s"
    assert console.export_text().count(line) == 1
    assert markdown_text(make_report(*rows)).count(line) == 1


def test_interval_around_one_says_that_nothing_can_be_told() -> None:
    assert "cannot tell apart" in markdown_text(make_report(make_row(make_key(), speedup=1.0)))


def test_markdown_names_the_machine_and_every_row() -> None:
    text = markdown_text(
        make_report(
            make_row(make_key("torch", mode="eager"), speedup=None),
            make_row(make_key(), fidelity=RowFidelity(0.9999, 0.0001, 0.8123, 0.02, 0.99)),
        )
    )

    assert "A CPU, 2 cores (AVX2, BF16)" in text
    assert "torch 2.14.1, openvino 2026.4.1" in text
    assert "| torch | fp32 | eager |" in text
    assert "0.8123 (-0.02 pt)" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {14}


def test_csv_has_one_line_a_row_with_nested_names() -> None:
    report = make_report(make_row(make_key(), speedup=None), make_row(make_key(precision="bf16")))

    lines = list(csv.DictReader(io.StringIO(csv_text(report))))

    assert [line["precision"] for line in lines] == ["fp32", "bf16"]
    assert float(lines[0]["latency_ms.p50"]) == 10.0
    assert lines[1]["speedup.against"] == "eager"
    assert lines[0]["speedup.value"] == ""


def test_csv_has_the_same_columns_with_a_baseline_and_without() -> None:
    without, with_baseline = (
        csv_text(make_report(make_row(make_key(), speedup=speedup))).splitlines()[0]
        for speedup in (None, 3.0)
    )

    assert without == with_baseline
    assert "speedup.ci95" in without.split(",")


class _Page(HTMLParser):
    """Checks that tags close in order, and keeps what a reader would see."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.outside: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.outside += [name for name, _ in attrs if name in ("src", "href", "onload")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.seen.append(data)


def test_page_has_every_row_as_cells_and_as_a_bar_and_needs_nothing_from_outside() -> None:
    rows = (
        make_row(make_key("torch", mode="eager"), median_ms=60.0, speedup=None),
        make_row(make_key("<b>", "int8"), notes=("int8 & <script>",)),
    )

    text = html_text(make_report(*rows))

    page = _Page()
    page.feed(text)
    assert page.open == []
    assert page.tags.count("tr") == 1 + len(rows)
    assert page.tags.count("rect") == len(rows)
    assert page.outside == []
    assert not {"script", "b", "link", "img"} & set(page.tags)
    assert "<b>" in page.seen
    assert any("int8 & <script>" in part for part in page.seen)
    assert "60.00 ms" in page.seen
