"""What an export did, in figures: for the terminal, for scripts, and for the artifact."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fcn_deploy.artifact.manifest import ClassInfo, Source
from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.backends import get_backend
from fcn_deploy.names import Array, Precision
from fcn_deploy.opening.choose import graph_precision
from fcn_deploy.peak_memory import peak_rss_bytes
from fcn_export.check.fidelity import mean_iou, pixel_accuracy
from fcn_export.check.measure import Measured
from fcn_export.check.verify import ParityRow
from fcn_export.plans import PlanFile
from fcn_export.staged import GraphVariant

__all__ = ["ExportReport", "GraphFile"]

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class GraphFile:
    """One graph of the artifact.

    Attributes:
        size_bytes: with its weights, where they are in a file of their own.
        figures: what its making counted.
    """

    precision: Precision
    name: str
    size_bytes: int
    figures: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, variant: GraphVariant) -> GraphFile:
        """Describe a graph while its files are in the staging folder."""
        file = variant.file
        return cls(variant.precision, file.path.name, file.size_bytes, variant.figures)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What was made, and how near it is to the model.

    Attributes:
        path: of the artifact.
        exporter: of torch, that took the model; ``"onnx"`` where the model was an ONNX file.
        notes: what a user should know, one sentence each.
        files: one entry a graph; the verified fp32 graph is the first.
        parity: one row for each shape that was verified.
        model: what the model itself reached; holds a confusion only with `--eval`.
        measured: one entry for each backend and precision.
        images: how many were measured, and of which kind.
        plans: one entry for each that was built, or tried.
        timings_seconds: by step.
        peak_rss_bytes: of the process, so far; None where the system does not say.
    """

    path: Path
    source: Source
    num_classes: int
    classes: tuple[ClassInfo, ...]
    shapes: ShapeRange
    head: str
    exporter: str
    opset: int
    notes: tuple[str, ...]
    files: tuple[GraphFile, ...]
    reference: str
    parity: tuple[ParityRow, ...]
    model: Measured
    measured: tuple[Measured, ...]
    images: str
    plans: tuple[PlanFile, ...] = ()
    timings_seconds: dict[str, float] = field(default_factory=dict)
    peak_rss_bytes: int | None = field(default_factory=peak_rss_bytes)

    def file_of(self, precision: Precision) -> GraphFile:
        """Give the graph that is run for a precision."""
        wanted = graph_precision(precision)
        return next(file for file in self.files if file.precision is wanted)

    def to_json(self) -> dict[str, Any]:
        """Give plain values for a JSON document; figures that do not exist are None."""
        return {
            "schema_version": SCHEMA_VERSION,
            "artifact": str(self.path),
            "source": {**asdict(self.source), "arch_args": dict(self.source.arch_args)},
            "num_classes": self.num_classes,
            "shapes": asdict(self.shapes),
            "head": self.head,
            "exporter": self.exporter,
            "opset": self.opset,
            "notes": list(self.notes),
            "size_bytes": self.files[0].size_bytes,
            "files": [
                {**asdict(file), "precision": str(file.precision), "figures": dict(file.figures)}
                for file in self.files
            ],
            "parity": {"reference": self.reference, "rows": [_row(row) for row in self.parity]},
            "model": {"name": self.reference, **self._figures(self.model)},
            "variants": [self._variant(entry) for entry in self.measured],
            "images": self.images,
            "plans": [plan.to_json() for plan in self.plans],
            "timings_seconds": dict(self.timings_seconds),
            "peak_rss_bytes": self.peak_rss_bytes,
        }

    def to_bytes(self) -> bytes:
        """Give the content of the artifact's `report.json`."""
        return (
            json.dumps(self.to_json(), indent=2, sort_keys=True, allow_nan=False) + "\n"
        ).encode()

    def _variant(self, entry: Measured) -> dict[str, Any]:
        if entry.runner is None:
            raise ValueError("the model itself is no variant")
        runner = entry.runner
        file = self.file_of(runner.precision)
        what = {
            "backend": runner.backend,
            "precision": str(runner.precision),
            "arithmetic": get_backend(runner.backend).arithmetic(runner.precision),
            "file": file.name,
            "size_bytes": file.size_bytes,
        }
        if entry.failure is not None:
            return {**what, "failure": entry.failure}
        fidelity = entry.fidelity(self.model)
        worst = fidelity.worst_image
        return {
            **what,
            "label_agreement": fidelity.label_agreement,
            "near_tie_share": fidelity.near_tie_share,
            "boundary_share": fidelity.boundary_share,
            "miou_vs_baseline": _number(fidelity.miou_vs_baseline),
            "worst_image": None if worst is None else asdict(worst),
            "worst_class_iou": fidelity.worst_class_iou,
            "images": fidelity.images,
            "pixels": fidelity.pixels,
            "status": fidelity.status,
            "max_score_error": entry.max_score_error,
            "relative_score_error": fidelity.relative_score_error,
            "miou_drop": _number(fidelity.miou_drop),
            **self._figures(entry),
        }

    def _figures(self, entry: Measured) -> dict[str, Any]:
        """Mean IoU, pixel accuracy and IoU a class; empty without ground truth."""
        if entry.confusion is None:
            return {"miou": None}
        miou, per_class = mean_iou(entry.confusion)
        return {
            "miou": _number(miou),
            "pixel_accuracy": _number(pixel_accuracy(entry.confusion)),
            "per_class": self._per_class(per_class, entry.confusion),
        }

    def _per_class(self, iou: Array, confusion: Array) -> list[dict[str, Any]]:
        truth, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
        return [
            {
                "name": entry.name,
                "iou": _number(float(iou[index])),
                "pixels": int(truth[index]),
                "predicted_pixels": int(predicted[index]),
            }
            for index, entry in enumerate(self.classes[: len(iou)])
        ]


def _row(row: ParityRow) -> dict[str, Any]:
    return {
        "batch": row.batch,
        "height": row.height,
        "width": row.width,
        "max_score_error": row.max_score_error,
        "max_score": row.max_score,
        "label_agreement": row.disagreement.label_agreement,
        "near_tie_share": row.disagreement.near_tie_share,
        "real_share": row.disagreement.real_share,
    }


def _number(value: float | None) -> float | None:
    """JSON has no NaN."""
    return None if value is None or math.isnan(value) else value
