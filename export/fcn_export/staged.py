"""Hold what lies in the staging folder of an export: the verified graph and its variants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fcn_deploy.artifact.manifest import ClassInfo, Source
from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.names import Precision
from fcn_export.check.reference import Reference
from fcn_export.graph_spec import GraphSpec
from fcn_export.onnx_file import OnnxFile
from fcn_export.steps import Steps
from fcn_models.labelled_images import EvalItem

__all__ = ["GRAPH_NAME", "GraphVariant", "Staged", "VariantInputs", "variant_name"]


def variant_name(precision: Precision) -> str:
    """Give a graph's file name: ``model.onnx`` for fp32, else ``model.<precision>.onnx``."""
    return "model.onnx" if precision is Precision.FP32 else f"model.{precision}.onnx"


GRAPH_NAME = variant_name(Precision.FP32)


@dataclass(frozen=True, slots=True)
class Staged:
    """A graph on disk, and the model that it must equal.

    Attributes:
        exporter: what wrote the graph.
        notes: what a user should know, one sentence each.
        traced: (height, width) in px that the tracer saw; None where nothing was traced.
        explain: says, after a failed verification, which nodes are at fault; None if unknown.
        classes: that the model's file names; None where it names none.
    """

    file: OnnxFile
    spec: GraphSpec
    shapes: ShapeRange
    reference: Reference
    source: Source
    exporter: str
    opset: int
    notes: tuple[str, ...] = ()
    traced: tuple[int, int] | None = None
    explain: Callable[[], str | None] = lambda: None
    classes: tuple[ClassInfo, ...] | None = None


@dataclass(frozen=True, slots=True)
class GraphVariant:
    """One graph of the artifact, in the staging folder.

    Attributes:
        notes: what a user should know, one sentence each.
        figures: what the making counted, as plain values for `report.json`.
    """

    precision: Precision
    file: OnnxFile
    notes: tuple[str, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantInputs:
    """What a variant of the verified graph is made from.

    Attributes:
        staged: the verified fp32 graph, and the model it equals. Its file's folder is where the
            variant is written, under `variant_name`; other files put there join the artifact.
        artifact: where the whole goes in the end; an earlier one may be there.
        classes: name and colour of each class.
        calibrate: images folder, image list or video, for INT8 ranges; None where none is made.
        max_miou_drop: the most mean IoU that a variant may lose, in points, where `has_labels`.
        items: reads the images that variants are measured on, from the first again at each call;
            their labels are ground truth where `has_labels`.
        steps: told of progress; the variant's step is open already.
    """

    staged: Staged
    artifact: Path
    classes: tuple[ClassInfo, ...]
    calibrate: Path | None
    max_miou_drop: float
    items: Callable[[], Iterator[EvalItem]]
    has_labels: bool
    steps: Steps
