"""Measure every size and batch that was asked for, and make one report of them."""

from __future__ import annotations

import os
from collections.abc import Callable

from fcn_bench.measurement import Measurement
from fcn_bench.options import BenchmarkOptions
from fcn_bench.report import BenchmarkReport, Row
from fcn_bench.targets import read_target

__all__ = ["BenchmarkInterrupted", "BenchmarkOptions", "benchmark"]


class BenchmarkInterrupted(KeyboardInterrupt):
    """Ctrl-C during a benchmark; `report` holds what was measured and says it is incomplete."""

    def __init__(self, report: BenchmarkReport) -> None:
        super().__init__()
        self.report = report


def benchmark(
    target: str | os.PathLike[str],
    options: BenchmarkOptions | None = None,
    *,
    on_step: Callable[[str], None] = lambda message: None,
) -> BenchmarkReport:
    """Time a target against PyTorch.

    Every row runs in a process of its own; all of them take turns in rounds. Speed-ups are ratios
    of medians with a 95 % bootstrap interval. Labels are compared with PyTorch's in every run.

    Args:
        target: artifact folder, a file in one, or a bare ``.onnx``, ``.xml`` or ``.plan``.
        on_step: told what happens next; never called while something is timed.

    Raises:
        BenchmarkError: something cannot be measured as asked.
        ArtifactError: the target is damaged or cannot be run.
        BackendUnavailableError: a backend or precision that was asked for is not available.
        BenchmarkInterrupted: Ctrl-C.
    """
    options = options or BenchmarkOptions()
    measurement = Measurement.of(
        read_target(target, trust_code=options.trust_code), options, on_step
    )
    rows: list[Row] = []
    complete = True
    for height, width in measurement.sizes:
        for batch in options.batches:
            found, finished = measurement.measure(height, width, batch)
            rows += found
            if not finished:
                complete = False
                break
        if not complete:
            break
    report = BenchmarkReport(
        environment=measurement.environment,
        target=measurement.target.to_json(),
        baseline=measurement.baseline_json(),
        rows=tuple(rows),
        notes=(*measurement.notes, *measurement.lost_baseline),
        complete=complete,
    )
    if not complete:
        raise BenchmarkInterrupted(report)
    return report
