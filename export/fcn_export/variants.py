"""The graphs of an artifact: the one that was verified, and what is made of it per precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fcn_deploy.choice import graph_precision
from fcn_deploy.tensors import Precision
from fcn_export.onnx_file import OnnxFile

if TYPE_CHECKING:
    from fcn_deploy.manifest import ClassInfo
    from fcn_export.eval_set import EvalItem
    from fcn_export.report import Steps
    from fcn_export.request import ExportRequest
    from fcn_export.staging import Staged

__all__ = [
    "GraphVariant",
    "Maker",
    "Making",
    "made_precisions",
    "make_variants",
    "variant_name",
]


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


@dataclass(frozen=True, slots=True)
class Making:
    """What a maker of a variant may use.

    Attributes:
        staged: the verified fp32 graph, and the model it equals. Its file's folder is where the
            variant is written, under `variant_name`; other files put there join the artifact.
        classes: one for each label.
        artifact: where the whole goes in the end; an earlier one may be there.
        items: reads the images that variants are measured on, from the first again at each call;
            their labels are ground truth where `has_labels`.
        steps: told what goes on; the step is open already.
    """

    staged: Staged
    classes: tuple[ClassInfo, ...]
    artifact: Path
    request: ExportRequest
    items: Callable[[], Iterator[EvalItem]]
    has_labels: bool
    steps: Steps


Maker = Callable[[Making], GraphVariant]
"""Makes one variant; raises ExportError where it cannot be made as asked."""

# fp32 is the verified graph itself; bf16 has no file, backends compute in it from fp32's
_MAKERS: Mapping[Precision, tuple[str, str]] = {
    Precision.FP16: ("fcn_export.fp16", "make_fp16"),
    Precision.INT8: ("fcn_export.int8", "make_int8"),
}


def made_precisions() -> tuple[Precision, ...]:
    """Give every precision that an artifact can be asked for."""
    return tuple(p for p in Precision if graph_precision(p) is Precision.FP32 or p in _MAKERS)


def variant_name(precision: Precision) -> str:
    """Give a graph's file name: ``model.onnx`` for fp32, else ``model.<precision>.onnx``."""
    return "model.onnx" if precision is Precision.FP32 else f"model.{precision}.onnx"


def make_variants(making: Making) -> tuple[GraphVariant, ...]:
    """Make every graph that was asked for, the verified one first.

    Raises:
        ExportError: as the makers say.
    """
    variants = [GraphVariant(Precision.FP32, making.staged.file)]
    for precision in making.request.wanted_precisions():
        if graph_precision(precision) is Precision.FP32:
            continue
        with making.steps.step(str(precision)):
            variants.append(_maker(precision)(making))
    return tuple(variants)


def _maker(precision: Precision) -> Maker:
    module, function = _MAKERS[precision]
    return cast(Maker, getattr(import_module(module), function))
