"""Keep the fastest variant within the budget as this machine's choice, for `--tune`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fcn_bench.report import BenchmarkReport, Row
from fcn_bench.verdict import Verdict
from fcn_deploy.artifact.folder import Artifact
from fcn_deploy.artifact.manifest import Fidelity, Manifest
from fcn_deploy.errors import BenchmarkError, ManifestError
from fcn_deploy.names import Precision
from fcn_deploy.opening.choose import MIN_LABEL_AGREEMENT
from fcn_deploy.opening.tuned import TunedRow, TunedRows, keep_rows
from fcn_export.export import MAX_MIOU_DROP

__all__ = ["NotTuned", "Tuned", "check_tunable", "tune"]

_USUAL_DROP = 1.0  # fcn-export's default budget


@dataclass(frozen=True, slots=True)
class Tuned:
    """The rows that were kept as this machine's choice, and their file."""

    best: TunedRow
    rows: TunedRows
    path: Path

    def lines(self) -> list[str]:
        """Say it on the terminal: every row with the reason for or against it."""
        told = []
        for row in sorted(self.rows.rows, key=lambda row: row.latency_ms):
            mark = "kept" if row == self.best else "    "
            state = "within the budget" if row.within_budget else "outside the budget"
            told.append(
                f"{mark} {row.backend} {row.precision}: {row.latency_ms:.3g} ms a frame, {state}: "
                f"{row.reason}"
            )
        return [*told, f"this machine's choice is in '{self.path}'"]


@dataclass(frozen=True, slots=True)
class NotTuned:
    """Why nothing was kept; what was kept before stays."""

    reason: str

    def lines(self) -> list[str]:
        """Say it on the terminal."""
        return [f"nothing is kept as this machine's choice: {self.reason}"]


def check_tunable(target: Path, scenarios: Sequence[str]) -> Artifact:
    """Refuse, before anything is measured, options that leave no variant to choose from.

    Raises:
        BenchmarkError: the target is no artifact folder, or latency is not among the scenarios.
        ArtifactError: it is damaged.
    """
    if "latency" not in scenarios:
        raise BenchmarkError("--tune needs rows of latency.", hint="Add latency to --scenario.")
    if not target.is_dir():
        raise BenchmarkError(
            f"--tune chooses among the variants of an artifact; '{target}' is one file.",
            hint="Give the artifact's folder.",
        )
    return Artifact.open(target)


def tune(report: BenchmarkReport, artifact: Artifact) -> Tuned | NotTuned:
    """Keep the fastest variant within the budget.

    Rows of latency and of whole frames count, at the first size and batch, if they are VALID.
    Within the budget is a variant that loses no more mean IoU than export allowed, where ground
    truth was given now or then; else one that keeps 99.9 % of PyTorch's labels. fp32 always is.

    Raises:
        ArtifactError: the choice cannot be written, or the manifest's budget is no number.
    """
    frames = [
        row
        for row in report.rows
        if row.key.backend != "torch" and (row.key.scenario, row.key.scope) == ("latency", "frame")
    ]
    same = [row for row in frames if _shape(row) == _shape(frames[0])]
    rows = [row for row in same if row.verdict is Verdict.VALID]
    if not rows:
        why = same[0].notes[0] if same and same[0].notes else "see its notes"
        return NotTuned(f"every row is SUSPECT ({why}). Measure longer, on a quiet machine.")
    manifest = artifact.manifest
    found = tuple(_tuned(row, manifest) for row in rows)
    tuned = TunedRows((rows[0].key.height, rows[0].key.width), found)
    best = tuned.best(backends=[row.backend for row in found])
    if best is None:
        return NotTuned("no variant that was measured is within the budget. Measure fp32 too.")
    return Tuned(best, tuned, keep_rows(manifest, tuned))


def _shape(row: Row) -> tuple[int, int, int]:
    return row.key.batch, row.key.height, row.key.width


def _tuned(row: Row, manifest: Manifest) -> TunedRow:
    within, reason = _budget(row, manifest)
    key = row.key
    return TunedRow(
        key.backend,
        precision=Precision(key.precision),
        latency_ms=row.latency_ms.p50,
        within_budget=within,
        reason=reason,
    )


def _budget(row: Row, manifest: Manifest) -> tuple[bool, str]:
    if row.key.precision == Precision.FP32:
        return True, "fp32 is the reference of all"
    exported = _at_export(row, manifest)
    drop, when = row.fidelity.miou_drop, "now"
    if drop is None and exported is not None:
        drop, when = exported.miou_drop, "at export"
    if drop is not None:
        allowed = _allowed_drop(manifest)
        return drop <= allowed, f"{drop:+.2f} points of mean IoU lost {when}, {allowed:g} allowed"
    agreement, when = row.fidelity.label_agreement, "now"
    if agreement is None and exported is not None:
        agreement, when = exported.label_agreement, "at export"
    if agreement is None:
        return False, "how near its labels are to PyTorch's was never measured"
    return agreement >= MIN_LABEL_AGREEMENT, (
        f"{agreement:.4%} of PyTorch's labels {when}, {MIN_LABEL_AGREEMENT:.1%} needed"
    )


def _allowed_drop(manifest: Manifest) -> float:
    told = manifest.provenance.get(MAX_MIOU_DROP, f"{_USUAL_DROP}")
    try:
        return float(told)
    except ValueError:
        raise ManifestError(
            f"the manifest's provenance.{MAX_MIOU_DROP} is {told!r}; expected points of mean IoU."
        ) from None


def _at_export(row: Row, manifest: Manifest) -> Fidelity | None:
    for variant in manifest.variants:
        for fidelity in variant.fidelity:
            if (fidelity.backend, fidelity.precision) == (row.key.backend, row.key.precision):
                return fidelity
    return None
