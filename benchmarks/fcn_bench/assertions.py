"""`--assert`: a condition on the rows of a report, such as ``p95_ms<=12``.

``METRIC OPERATOR NUMBER``, or with a scope before it: ``compute.p95_ms<=12``. Without one, the
scope is ``frame``. Latencies, `speedup` and fidelity are looked up in latency rows,
`throughput_fps` in throughput rows; of the scenario that ran, where only one did. PyTorch's own
rows do not count. The condition must hold for *every* row left: narrow the rows with --backend,
--precision and --size.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from fcn_bench.report import Row
from fcn_deploy.errors import BenchmarkError

__all__ = [
    "Assertion",
    "AssertionResult",
    "check_assertions",
    "check_measured",
    "parse_assertion",
]

_LATENCY: Final = ("p50", "p90", "p95", "p99", "mean", "std", "min", "max")
_METRICS: Final[dict[str, Callable[[Row], float | None]]] = {
    **{f"{name}_ms": (lambda row, n=name: getattr(row.latency_ms, n)) for name in _LATENCY},  # type: ignore[misc]  # mypy cannot type a lambda with a default
    "throughput_fps": lambda row: row.throughput_fps,
    "speedup": lambda row: None if row.speedup is None else row.speedup.ratio.value,
    "speedup_best": lambda row: None if row.speedup_best is None else row.speedup_best.ratio.value,
    "label_agreement": lambda row: row.fidelity.label_agreement,
    "near_tie_share": lambda row: row.fidelity.near_tie_share,
    "miou": lambda row: row.fidelity.miou,
    "miou_drop": lambda row: row.fidelity.miou_drop,
    "miou_vs_baseline": lambda row: row.fidelity.miou_vs_baseline,
    "peak_rss_bytes": lambda row: row.peak_rss_bytes,
}
_OPERATORS: Final[dict[str, Callable[[float, float], bool]]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
_NEEDS: Final = {
    "speedup": "a PyTorch baseline, in a stream one that keeps up",
    "speedup_best": "a PyTorch baseline, in a stream one that keeps up",
    "label_agreement": "a PyTorch baseline",
    "near_tie_share": "a PyTorch baseline and a target that gives its scores",
    "miou_vs_baseline": "a PyTorch baseline",
    "miou": "--eval",
    "miou_drop": "--eval and a PyTorch baseline",
}
_FORM = re.compile(
    r"\s*(?:(?P<scope>compute|transfer|frame|stream)\.)?(?P<metric>[a-z][a-z0-9_]*)\s*"
    r"(?P<operator><=|>=|==|<|>)\s*(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*"
)


@dataclass(frozen=True, slots=True)
class Assertion:
    """A condition on rows; its `text` is as the user wrote it."""

    text: str
    scope: str
    metric: str
    operator: str
    number: float


@dataclass(frozen=True, slots=True)
class AssertionResult:
    """The result of one condition: whether it held, and the values of the rows that broke it."""

    assertion: Assertion
    checked: int
    failures: tuple[tuple[Row, float | None], ...]

    @property
    def held(self) -> bool:
        return not self.failures

    def __str__(self) -> str:
        if self.held:
            return f"assert {self.assertion.text}: holds for {self.checked} row(s)"
        found = "; ".join(
            f"{row.key} has {'no value' if value is None else format(value, '.6g')}"
            for row, value in self.failures
        )
        return f"assert {self.assertion.text}: FAILED: {found}"


def parse_assertion(text: str) -> Assertion:
    """Read a condition.

    Raises:
        BenchmarkError: it is of another form, or names an unknown metric.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise BenchmarkError(
            f"cannot read the assertion {text!r}; expected METRIC, one of "
            f"{' '.join(_OPERATORS)}, and a number, such as p95_ms<=12, or with a scope (compute, "
            "transfer, frame, stream) before it, such as compute.p95_ms<=12."
        )
    if match["metric"] not in _METRICS:
        raise BenchmarkError(
            f"the assertion {text!r} names no known metric; known are {', '.join(_METRICS)}."
        )
    return Assertion(
        text.strip(),
        scope=match["scope"] or "frame",
        metric=match["metric"],
        operator=match["operator"],
        number=float(match["number"]),
    )


def check_measured(
    assertions: Sequence[Assertion], scenarios: Sequence[str], *, labelled: bool
) -> None:
    """Refuse, before anything is measured, conditions on what will not be.

    Raises:
        BenchmarkError: a scope's scenario does not run, or there is no ground truth.
    """
    for assertion in assertions:
        streams = assertion.scope == "stream"
        if streams and "stream" not in scenarios:
            raise BenchmarkError(
                f"the assertion {assertion.text!r} is of the scenario stream; scenarios are "
                f"{', '.join(scenarios)}.",
                hint="Add stream to --scenario.",
            )
        if not streams and set(scenarios) == {"stream"}:
            raise BenchmarkError(
                f"the assertion {assertion.text!r} is of the scope {assertion.scope}, and the "
                "scenario stream has rows of the scope stream alone.",
                hint=f"Write stream.{assertion.metric}, or add latency to --scenario.",
            )
        if assertion.metric in ("miou", "miou_drop") and not labelled:
            raise BenchmarkError(
                f"the assertion {assertion.text!r} is about ground truth, which was not given.",
                hint=f"It needs {_NEEDS[assertion.metric]}.",
            )


def check_assertions(
    assertions: Sequence[Assertion], rows: Sequence[Row]
) -> tuple[AssertionResult, ...]:
    """Compare every row that a condition is about.

    Raises:
        BenchmarkError: a condition is about no row, or about something not measured at all.
    """
    return tuple(_check(assertion, rows) for assertion in assertions)


def _check(assertion: Assertion, rows: Sequence[Row]) -> AssertionResult:
    ours = [row for row in rows if row.key.backend != "torch" and row.key.scope == assertion.scope]
    scenario = "throughput" if assertion.metric == "throughput_fps" else "latency"
    ours = [row for row in ours if row.key.scenario == scenario] or ours
    values = [(row, _METRICS[assertion.metric](row)) for row in ours]
    if all(value is None for _, value in values):
        needs = _NEEDS.get(assertion.metric)
        raise BenchmarkError(
            f"the assertion {assertion.text!r} is about nothing that was measured.",
            hint=None if needs is None else f"It needs {needs}.",
        )
    compare = _OPERATORS[assertion.operator]
    failures = tuple(
        (row, value)
        for row, value in values
        if value is None or not compare(value, assertion.number)
    )
    return AssertionResult(assertion, len(values), failures)
