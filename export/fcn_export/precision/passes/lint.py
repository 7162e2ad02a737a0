"""What of a graph's types would give wrong numbers or no engine, found before it is written.

The rules are those of TensorRT 10.13 to 11.4 and TensorRT-RTX 1.7, whose parser was tried on each;
its own errors come late, or not at all: an unsigned Q is built with a warning and read as signed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from fcn_deploy.errors import UnsupportedModelError
from fcn_export.precision.passes.element_types import element_types
from fcn_export.precision.passes.half_weights import MIN_NORMAL_HALF
from fcn_export.precision.passes.quantized import DEQUANTIZE, QUANTIZE, constant_of

if TYPE_CHECKING:
    import onnx

__all__ = ["Finding", "check_types", "lint"]

_UINT8, _INT32, _BF16 = 2, 6, 16  # onnx.TensorProto.DataType
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
    types = element_types(model)
    outputs = {value.name for value in model.graph.output}
    inputs = {value.name for value in model.graph.input}
    return tuple(
        finding
        for node in model.graph.node
        for finding in (
            *_quantisation(node, model.graph, types),
            *_uint8(node, types, inputs, outputs),
            *_operators(node, types),
        )
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


def _quantisation(
    node: onnx.NodeProto, graph: onnx.GraphProto, types: Mapping[str, int]
) -> Iterator[Finding]:
    if node.op_type not in (QUANTIZE, DEQUANTIZE):
        return
    quantised = types.get(node.output[0] if node.op_type == QUANTIZE else node.input[0], 0)
    if quantised == _UINT8:
        yield Finding(
            "unsigned",
            "error",
            node.name,
            f"node '{node.name}' quantises to UINT8 (TensorRT would read it as INT8 and clip at "
            "127); re-quantise with signed symmetric activations",
        )
    if quantised == _INT32:
        yield Finding(
            "int32-bias",
            "error",
            node.name,
            f"INT32 bias DequantizeLinear '{node.name}': quantise with QuantizeBias=False",
        )
    zero_point = constant_of(node, 2, graph)
    if zero_point is not None and zero_point.any():
        value = zero_point.reshape(-1)[np.flatnonzero(zero_point)[0]]
        yield Finding(
            "zero-point",
            "error",
            node.name,
            f"non-zero zero point {int(value)} in '{node.name}'; quantise symmetrically",
        )
    scale = constant_of(node, 1, graph)
    if scale is not None and scale.dtype == np.float16 and scale.min() < MIN_NORMAL_HALF:
        yield Finding(
            "subnormal-scale",
            "error",
            node.name,
            f"FP16 Q/DQ scale {float(scale.min()):.2g} in '{node.name}' is subnormal; keep the "
            "layer in float32",
        )


def _uint8(
    node: onnx.NodeProto, types: Mapping[str, int], inputs: set[str], outputs: set[str]
) -> Iterator[Finding]:
    """Let only the first Cast read uint8, and only the last make it."""
    if node.op_type in (QUANTIZE, DEQUANTIZE):
        return  # told as unsigned
    for name in node.input:
        if types.get(name) != _UINT8 or node.op_type == "Cast":
            continue
        if name in inputs:
            message = f"uint8 tensor '{name}' goes into {node.op_type} '{node.name}'; Cast it first"
        else:
            message = f"uint8 tensor '{name}' inside the graph at '{node.name}' ({node.op_type})"
        yield Finding("inner-uint8", "error", node.name, message)
    for name in node.output:
        if types.get(name) == _UINT8 and name not in outputs:
            yield Finding(
                "inner-uint8",
                "error",
                node.name,
                f"uint8 tensor '{name}' inside the graph at '{node.name}' ({node.op_type}); Cast "
                "to uint8 last of all",
            )


def _operators(node: onnx.NodeProto, types: Mapping[str, int]) -> Iterator[Finding]:
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type == "Resize" and "antialias" in attributes and attributes["antialias"].i:
        yield Finding("antialias", "tensorrt", node.name, f"Resize '{node.name}' has antialias=1")
    if node.op_type == "ConvTranspose" and types.get(node.output[0]) == _BF16:
        yield Finding(
            "bf16-conv-transpose", "tensorrt", node.name, f"BF16 ConvTranspose '{node.name}'"
        )
    if node.op_type in _NO_PLUGIN:
        yield Finding(
            "no-plugin", "tensorrt", node.name, f"TensorRT has no {node.op_type} ('{node.name}')"
        )
