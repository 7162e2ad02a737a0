"""Show an export on the terminal: one line a step on stderr, the final table on stdout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fcn_deploy.artifact.manifest import Fidelity
from fcn_export.name_list import first_names
from fcn_export.report import ExportReport
from fcn_export.steps import OnStep, StepEvent

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["search_table", "show_report", "step_printer"]

_FILE_WIDTH = 150  # where there is no terminal to ask


@contextmanager
def step_printer(*, quiet: bool) -> Iterator[OnStep]:
    """Give a listener that prints each finished step, and on a terminal the current one."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if quiet:
        yield lambda event: None
        return
    if not console.is_terminal:
        yield (
            lambda event: (
                console.print(_line(event), soft_wrap=True, markup=False)
                if (event.state == "done")
                else None
            )
        )
        return
    with console.status("", spinner="dots") as status:

        def show(event: StepEvent) -> None:
            if event.state == "done":
                console.print(_line(event), soft_wrap=True, markup=False)
            else:
                status.update(f"{event.step:<14} {event.detail}")

        yield show


def show_report(report: ExportReport) -> None:
    """Print what was made: a table of variants, notes, and where the artifact is."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_FILE_WIDTH)
    console.print(_table(report))
    for file in report.files:
        search = file.figures.get("search")
        if search and search["ranking"]:
            console.print(search_table(str(file.precision), search))
    for note in report.notes:
        console.print(f"note: {note}", markup=False)
    seconds = sum(report.timings_seconds.values())
    peak = report.peak_rss_bytes
    memory = "" if peak is None else f", peak memory {peak / 1e9:.2f} GB"
    console.print(
        f"{report.path}  ({seconds:.0f} s{memory})",
        soft_wrap=True,
        markup=False,
    )


def _line(event: StepEvent) -> str:
    return f"{event.step:<14} {event.seconds:6.1f} s  {event.detail}"


def _table(report: ExportReport) -> Table:
    from rich.table import Table

    table = Table(
        title=f"{report.source.file}, {report.num_classes} classes, on {report.images}"
        f"{_counted(report)}"
    )
    table.add_column("variant", no_wrap=True)
    for heading in (
        "size",
        "max error",
        "label agreement",
        "worst class IoU",
        "near ties",
        "differ at borders",
        "worst image",
        "mIoU",
    ):
        table.add_column(heading, justify="right")
    table.add_column("status")
    own = _percent(report.model.miou)
    table.add_row(report.reference, *[""] * 7, own, "reference")
    for entry in report.measured:
        if entry.runner is None:
            continue
        size = f"{report.file_of(entry.runner.precision).size_bytes / 1e6:.1f} MB"
        if entry.failure is not None:
            table.add_row(str(entry.runner), size, *[""] * 7, "failed")
            continue
        fidelity = entry.fidelity(report.model)
        worst = fidelity.worst_image
        table.add_row(
            str(entry.runner),
            size,
            f"{entry.max_score_error:.2e}",
            f"{fidelity.label_agreement:.4%}",
            "-" if fidelity.worst_class_iou is None else f"{fidelity.worst_class_iou:.4f}",
            f"{fidelity.near_tie_share:.4%}",
            "-" if fidelity.boundary_share is None else f"{fidelity.boundary_share:.0%}",
            "-" if worst is None else f"{worst.label_agreement:.3%} {worst.name}",
            _miou(fidelity),
            fidelity.status,
        )
    for plan in report.plans:
        size = f"{plan.size_bytes / 1e6:.1f} MB" if plan.failure is None else ""
        status = "built, not run" if plan.failure is None else "not built"
        table.add_row(f"{plan.library} {plan.precision}", size, *[""] * 7, status)
    return table


def search_table(precision: str, search: Mapping[str, Any]) -> Table:
    """Show what keeping layers in fp32 costs and saves: the points that none is better than."""
    from rich.table import Table

    table = Table(title=f"{precision}: layers in fp32, against the mean IoU that is lost")
    table.add_column("layers in fp32")
    for heading in ("estimated cost", "points lost", "labels that change"):
        table.add_column(heading, justify="right")
    for point in search["pareto"]:
        mark = " (chosen)" if point["kept"] == search["kept"] else ""
        table.add_row(
            f"{first_names(point['kept'], quote='') or 'none'}{mark}",
            f"{point['estimated_cost']:.0%}",
            f"{point['miou_drop']:.2f}",
            f"{point['disagreement']:.3%}",
        )
    return table


def _counted(report: ExportReport) -> str:
    """Say on how many images with more than one class, and pixels, the figures rest."""
    counted = [entry for entry in report.measured if entry.failure is None]
    if not counted:
        return ""
    pixels = counted[0].disagreement.pixels
    return f", {counted[0].images} with more than one class ({pixels / 1e6:.2g} million pixels)"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _miou(fidelity: Fidelity) -> str:
    if fidelity.miou_drop is None:
        return _percent(fidelity.miou)
    change = 0.0 - round(fidelity.miou_drop, 2)  # no "-0.00"
    return f"{_percent(fidelity.miou)} ({change:+.2f})"
