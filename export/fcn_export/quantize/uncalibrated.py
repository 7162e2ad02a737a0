"""A graph in every precision without an image: to build plans, or to time them, not for labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fcn_deploy.tensors import Precision
from fcn_export.passes.fp16 import convert_to_fp16, fp16_remainder
from fcn_export.quantize.image_report import ImageReport
from fcn_export.quantize.int8 import Int8Builder, prepare
from fcn_export.quantize.placement import place
from fcn_export.quantize.table import CalibrationKey, CalibrationTable
from fcn_export.quantize.thresholds import METHODS

if TYPE_CHECKING:
    import onnx

__all__ = ["uncalibrated_variant"]

_THRESHOLD = 4.0  # of every activation: any will do, as types decide what is built, not numbers
_NO_IMAGES = ImageReport(0, 0, (), (), 0.0, 0.0, 0, ((0, 0),) * 3, (0, 0))


def uncalibrated_variant(graph: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    """Give a graph's variant as a plan is built from it, with made-up ranges for INT8.

    Args:
        graph: float32, with frames as input; not changed.

    Raises:
        UnsupportedModelError: as the passes say.
    """
    copy = type(graph)()
    copy.CopyFrom(graph)
    if precision is Precision.FP16:
        convert_to_fp16(copy)
    if precision is Precision.INT8:
        prepared = prepare(copy)
        copy = Int8Builder(prepared, _made_up_table(prepared)).build(method="minmax").model
        fp16_remainder(copy)
    return copy


def _made_up_table(model: onnx.ModelProto) -> CalibrationTable:
    names = {name for group in place(model.graph).groups.values() for name in group}
    thresholds = {name: dict.fromkeys(METHODS, _THRESHOLD) for name in names}
    return CalibrationTable(CalibrationKey("", "", ""), thresholds, {}, _NO_IMAGES)
