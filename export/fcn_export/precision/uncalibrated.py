"""Make a graph of any precision without calibration images, where its labels do not matter.

Types and shapes decide what a plan's layers are and how long they take; thresholds do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from fcn_deploy.names import Precision
from fcn_export.precision.calibration_table import CalibrationKey, CalibrationTable
from fcn_export.precision.image_report import ImageReport
from fcn_export.precision.passes.to_half import convert_to_fp16, fp16_remainder
from fcn_export.precision.place_qdq import place_qdq
from fcn_export.precision.thresholds import METHODS
from fcn_export.precision.to_int8 import Int8Builder, prepare

if TYPE_CHECKING:
    import onnx

__all__ = ["in_precision", "uniform_table"]

_NO_IMAGES = ImageReport(
    0,
    total=0,
    class_pixels=(),
    class_images=(),
    brightness_mean=0.0,
    brightness_spread=0.0,
    near_duplicates=0,
    sizes=((0, 0),) * 3,
    served=(0, 0),
)


def in_precision(model: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    """Give a float32 graph's variant as a plan is built from it.

    Args:
        model: not modified.
        precision: fp32, fp16 or int8; bf16 runs the graph of fp32.

    Raises:
        UnsupportedModelError: the graph cannot be made fp16, or has nothing to quantise.
    """
    copy = type(model)()
    copy.CopyFrom(model)
    if precision is Precision.FP16:
        convert_to_fp16(copy)
    elif precision is Precision.INT8:
        prepared = prepare(copy)
        copy = Int8Builder(prepared, uniform_table(prepared)).build(method="minmax").model
        fp16_remainder(copy)
    return copy


def uniform_table(model: onnx.ModelProto, *, threshold: float = 4.0) -> CalibrationTable:
    """Give a table with one threshold for every tensor that gets a Q/DQ pair.

    Args:
        model: as `prepare` gives it.
    """
    names = {
        name for group in place_qdq(ir.from_proto(model).graph).groups.values() for name in group
    }
    thresholds = {name: dict.fromkeys(METHODS, threshold) for name in names}
    return CalibrationTable(CalibrationKey("", "", ""), thresholds, {}, _NO_IMAGES)
