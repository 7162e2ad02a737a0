"""Conditions of `--assert`: what can be written, and which rows they are about."""

from __future__ import annotations

import pytest

from fcn_bench.assertions import check_assertions, parse_assertion
from fcn_bench.report import RowFidelity
from fcn_deploy.errors import BenchmarkError
from tests.bench.samples import make_key, make_row


@pytest.mark.parametrize(
    ("text", "scope", "metric", "operator", "number"),
    [
        ("p95_ms<=12", "frame", "p95_ms", "<=", 12.0),
        (" speedup >= 3.5 ", "frame", "speedup", ">=", 3.5),
        ("stream.p95_ms<=40", "stream", "p95_ms", "<=", 40.0),
        ("miou_drop<0.5", "frame", "miou_drop", "<", 0.5),
        ("compute.p50_ms>1e-3", "compute", "p50_ms", ">", 1e-3),
        ("label_agreement==1", "frame", "label_agreement", "==", 1.0),
        ("miou_drop>=-.5", "frame", "miou_drop", ">=", -0.5),
    ],
)
def test_condition_is_read(
    text: str, scope: str, metric: str, operator: str, number: float
) -> None:
    found = parse_assertion(text)

    assert (found.scope, found.metric, found.operator, found.number) == (
        *(scope, metric, operator, number),
    )


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "p95_ms",
            "p95_ms<=",
            "<=12",
            "p95_ms=12",
            "p95_ms!=12",
            "p95_ms<=12ms",
            "12>=p95_ms",
        ),
        *("p95_ms<=12 and speedup>3", "p95_ms<=nan", "__import__('os')<=1", "row.p95_ms<=12"),
        *("p95_ms<=1_000", "p95_ms<=0x10", "video.p95_ms<=1"),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(BenchmarkError, match="cannot read the assertion"):
        parse_assertion(text)


def test_unknown_metric_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(BenchmarkError, match="no known metric; known are p50_ms, p90_ms"):
        parse_assertion("p75_ms<=12")


def test_condition_must_hold_for_every_row_but_pytorchs() -> None:
    rows = [
        make_row(make_key("torch", mode="eager"), median_ms=100, speedup=None),
        make_row(make_key(), median_ms=20),
        make_row(make_key(precision="bf16"), median_ms=10),
    ]

    (fast, slow) = check_assertions(
        [parse_assertion("p50_ms<=15"), parse_assertion("p50_ms<=25")], rows
    )

    assert not fast.held
    assert [row.key.precision for row, _ in fast.failures] == ["fp32"]
    assert "FAILED: openvino fp32 1 stream, latency, frame, 1x512x512 has 20" in str(fast)
    assert slow.held
    assert "holds for 2 row(s)" in str(slow)


def test_scope_and_scenario_choose_the_rows() -> None:
    rows = [
        make_row(make_key(), median_ms=20),
        make_row(make_key(scope="compute"), median_ms=5),
        make_row(make_key(mode="2 streams", scenario="throughput"), median_ms=2),
    ]
    texts = ["compute.p50_ms<=5", "p50_ms>=20", "throughput_fps==500"]

    results = check_assertions([parse_assertion(text) for text in texts], rows)

    assert [(result.held, result.checked) for result in results] == [(True, 1)] * 3


def test_only_scenario_that_ran_is_used() -> None:
    rows = [make_row(make_key(mode="2 streams", scenario="throughput"), median_ms=2)]

    assert check_assertions([parse_assertion("p50_ms<=3")], rows)[0].checked == 1


@pytest.mark.parametrize(
    ("text", "needs"),
    [("miou_drop<=0.5", "--eval and a PyTorch baseline"), ("speedup>=1", "a PyTorch baseline")],
)
def test_condition_on_what_was_not_measured_is_an_error_and_never_passes(
    text: str, needs: str
) -> None:
    rows = [make_row(make_key(), speedup=None)]

    with pytest.raises(BenchmarkError, match=f"nothing that was measured. It needs {needs}"):
        check_assertions([parse_assertion(text)], rows)


def test_condition_about_no_row_is_an_error() -> None:
    with pytest.raises(BenchmarkError, match="nothing that was measured"):
        check_assertions([parse_assertion("p50_ms<=1")], [])


def test_row_without_the_value_fails_where_others_have_it() -> None:
    rows = [
        make_row(make_key(), fidelity=RowFidelity(near_tie_share=0.0)),
        make_row(make_key("onnxruntime")),
    ]

    (result,) = check_assertions([parse_assertion("near_tie_share<=0.1")], rows)

    assert not result.held
    assert "onnxruntime fp32 1 stream, latency, frame, 1x512x512 has no value" in str(result)
