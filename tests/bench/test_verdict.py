"""What makes a row SUSPECT, and that a clean one is not."""

from __future__ import annotations

import numpy as np
import pytest

from fcn_bench.verdict import Evidence, Verdict, VerdictLimits, decide_verdict


def clean_series(seed: int = 0, count: int = 60) -> list[float]:
    series: list[float] = np.random.default_rng(seed).normal(10, 0.3, count).tolist()
    return series


def test_clean_series_is_valid() -> None:
    evidence = Evidence(clean_series(), warm=True, foreign_cpu=0.01, fp32_agreement=1.0)

    assert decide_verdict(evidence) == (Verdict.VALID, ())


def test_warm_up_of_given_length_is_not_judged() -> None:
    assert decide_verdict(Evidence(clean_series(), warm=None))[0] is Verdict.VALID


@pytest.mark.parametrize("count", [1, 2, 19])
def test_few_samples_are_suspect(count: int) -> None:
    verdict, reasons = decide_verdict(Evidence(clean_series(count=count)))

    assert verdict is Verdict.SUSPECT
    assert f"{count} samples; 20 are the least" in reasons


def test_drift_is_suspect() -> None:
    series = np.array(clean_series()) + np.linspace(0, 2, 60)

    verdict, reasons = decide_verdict(Evidence(series.tolist()))

    assert verdict is Verdict.SUSPECT
    assert any("slower at the end than at the start" in reason for reason in reasons)


def test_getting_faster_is_suspect_too() -> None:
    series = np.array(clean_series()) + np.linspace(2, 0, 60)

    assert any(
        "faster at the end" in reason for reason in decide_verdict(Evidence(series.tolist()))[1]
    )


def test_drift_within_the_limit_is_valid() -> None:
    series = np.array(clean_series()) + np.linspace(0, 0.3, 60)  # 3 %

    assert decide_verdict(Evidence(series.tolist()))[0] is Verdict.VALID


def test_spread_is_suspect() -> None:
    series = [10.0, 14.0] * 30

    verdict, reasons = decide_verdict(Evidence(series))

    assert verdict is Verdict.SUSPECT
    assert any("spread (p90 - p10) / p50 is 33%" in reason for reason in reasons)


def test_one_outlier_is_not_a_spread() -> None:
    assert decide_verdict(Evidence([*clean_series(), 500.0]))[0] is Verdict.VALID


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (Evidence(clean_series(), warm=False), "warm-up ended before"),
        (Evidence(clean_series(), foreign_cpu=0.4), "other processes took 40% of the CPUs"),
        (Evidence(clean_series(), output_faults=("constant output",)), "constant output"),
        (Evidence(clean_series(), fp32_agreement=0.985), "only 98.50% of the pixels"),
    ],
)
def test_each_other_fault_is_suspect_with_its_reason(evidence: Evidence, reason: str) -> None:
    verdict, reasons = decide_verdict(evidence)

    assert verdict is Verdict.SUSPECT
    assert len(reasons) == 1
    assert reason in reasons[0]


def test_limits_can_be_tightened() -> None:
    evidence = Evidence(clean_series())

    assert decide_verdict(evidence, limits=VerdictLimits(max_spread=0.01))[0] is Verdict.SUSPECT
    assert decide_verdict(evidence, limits=VerdictLimits(min_samples=100))[0] is Verdict.SUSPECT
