"""Find types in a graph that would give wrong numbers or no engine, before it is written.

The rules are those of TensorRT 10.13 to 11.4 and TensorRT-RTX 1.7, whose parser was tried on each;
its own errors come late, or not at all: an unsigned Q is built with a warning and read as signed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx_ir as ir

from fcn_deploy.errors import UnsupportedModelError
from fcn_export.onnx_values import array_of, name_of
from fcn_export.precision.passes.element_types import InferTypes
from fcn_export.precision.passes.half_weights import MIN_NORMAL_HALF
from fcn_export.precision.passes.quantized import DEQUANTIZE, QUANTIZE

if TYPE_CHECKING:
    import onnx

__all__ = ["Finding", "check_types", "lint"]

_NO_PLUGIN = frozenset(("CenterCropPad", "NonZero"))


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault of one node.

    Attributes:
        rule: names the kind of fault.
        severity: ``"error"`` gives wrong numbers somewhere, or types that no engine takes;
            ``"tensorrt"`` runs on CPUs and cannot be built for TensorRT.
        message: what, found, and what to do.
    """

    rule: str
    severity: Literal["error", "tensorrt"]
    node: str
    message: str

    def __str__(self) -> str:
        return self.message


def lint(model: onnx.ModelProto) -> tuple[Finding, ...]:
    """Look at every node; changes nothing.

    Returns:
        One entry a fault, in the order of the nodes.

    Raises:
        UnsupportedModelError: a tensor's type is unknown.
    """
    typed = InferTypes()(ir.from_proto(model)).model
    return tuple(
        finding
        for node in typed.graph
        for finding in (*_quantisation(node), *_uint8(node), *_operators(node))
    )


def check_types(model: onnx.ModelProto, *, name: str) -> tuple[str, ...]:
    """Refuse a graph with errors; give the rest as notes.

    Args:
        name: of the file that would be written.

    Raises:
        UnsupportedModelError: there is an error; the first is told, and how many there are.
    """
    found = lint(model)
    errors = [finding for finding in found if finding.severity == "error"]
    if errors:
        more = f" ({len(errors)} such faults in all)" if len(errors) > 1 else ""
        raise UnsupportedModelError(f"'{name}' is not written: {errors[0]}{more}.")
    return tuple(f"TensorRT cannot build '{name}': {finding}." for finding in found)


def _quantisation(node: ir.Node) -> Iterator[Finding]:
    if node.op_type not in (QUANTIZE, DEQUANTIZE):
        return
    small = node.outputs[0] if node.op_type == QUANTIZE else node.inputs[0]
    quantised = None if small is None else small.dtype
    if quantised == ir.DataType.UINT8:
        yield Finding(
            "unsigned",
            "error",
            name_of(node),
            f"node '{node.name}' quantises to UINT8 (TensorRT would read it as INT8 and clip at "
            "127); re-quantise with signed symmetric activations",
        )
    if quantised == ir.DataType.INT32:
        yield Finding(
            "int32-bias",
            "error",
            name_of(node),
            f"INT32 bias DequantizeLinear '{node.name}': quantise with QuantizeBias=False",
        )
    zero_point = array_of(node.inputs[2]) if len(node.inputs) > 2 else None
    if zero_point is not None and zero_point.any():
        value = zero_point.reshape(-1)[np.flatnonzero(zero_point)[0]]
        yield Finding(
            "zero-point",
            "error",
            name_of(node),
            f"non-zero zero point {int(value)} in '{node.name}'; quantise symmetrically",
        )
    scale = array_of(node.inputs[1])
    if scale is not None and scale.dtype == np.float16 and scale.min() < MIN_NORMAL_HALF:
        yield Finding(
            "subnormal-scale",
            "error",
            name_of(node),
            f"FP16 Q/DQ scale {float(scale.min()):.2g} in '{node.name}' is subnormal; keep the "
            "layer in float32",
        )


def _uint8(node: ir.Node) -> Iterator[Finding]:
    """Let only the first Cast read uint8, and only the last make it."""
    if node.op_type in (QUANTIZE, DEQUANTIZE):
        return  # told as unsigned
    for value in node.inputs:
        if value is None or value.dtype != ir.DataType.UINT8 or node.op_type == "Cast":
            continue
        name = value.name
        if value.is_graph_input():
            message = f"uint8 tensor '{name}' goes into {node.op_type} '{node.name}'; Cast it first"
        else:
            message = f"uint8 tensor '{name}' inside the graph at '{node.name}' ({node.op_type})"
        yield Finding("inner-uint8", "error", name_of(node), message)
    for value in node.outputs:
        if value.dtype == ir.DataType.UINT8 and not value.is_graph_output():
            yield Finding(
                "inner-uint8",
                "error",
                name_of(node),
                f"uint8 tensor '{value.name}' inside the graph at '{node.name}' ({node.op_type}); "
                "Cast to uint8 last of all",
            )


def _operators(node: ir.Node) -> Iterator[Finding]:
    name = name_of(node)
    if (
        node.op_type == "Resize"
        and "antialias" in node.attributes
        and node.attributes.get_int("antialias")
    ):
        yield Finding("antialias", "tensorrt", name, f"Resize '{name}' has antialias=1")
    if node.op_type == "ConvTranspose" and node.outputs[0].dtype == ir.DataType.BFLOAT16:
        yield Finding("bf16-conv-transpose", "tensorrt", name, f"BF16 ConvTranspose '{name}'")
    if node.op_type in _NO_PLUGIN:
        message = f"TensorRT has no {node.op_type} ('{name}')"
        yield Finding("no-plugin", "tensorrt", name, message)
