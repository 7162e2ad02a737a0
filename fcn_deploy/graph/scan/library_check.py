"""What the `onnx` library says of a foreign graph: operators, versions and sizes are its to know.

Libraries that run a graph trust its operators, and compute at load time what depends on constants
alone, so that a file of a hundred bytes can ask for gigabytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fcn_deploy.errors import (
    ArtifactError,
    BackendUnavailableError,
    UnsupportedOpError,
    UntrustedArtifactError,
)
from fcn_deploy.graph.scan.limits import ScanLimits
from fcn_deploy.graph.scan.onnx_graph import OnnxGraph
from fcn_deploy.graph.scan.outputs import without_weights
from fcn_deploy.graph.scan.tensor import shown

__all__ = ["check_with_onnx"]

_MOST_INPUT_VALUES = 1 << 29
"""Of an image with fixed sides: three channels of more than 13,000 x 13,000 px."""

_WINDOWED = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool")
_WINDOW_ATTRIBUTES = {"kernel_shape": 1, "strides": 1, "dilations": 1, "pads": 2}
"""How many numbers each has for an axis."""

_MOST_WINDOW_PX = 4096


def check_with_onnx(
    data: bytes | memoryview, graph: OnnxGraph, *, name: str, limits: ScanLimits
) -> None:
    """Let `onnx` check a graph that has been scanned. It is shown no large weights.

    Raises:
        ArtifactError: an operator has the wrong inputs, outputs or attributes.
        BackendUnavailableError: `onnx` is not installed.
        UnsupportedOpError: the installed `onnx` does not know the version or an operator, or
            something other than a dense tensor of numbers flows through the graph.
        UntrustedArtifactError: constants alone make too large a tensor, or it has too many nodes.
    """
    if len(graph.nodes) > limits.max_foreign_nodes:
        raise UntrustedArtifactError(
            f"{name} has {len(graph.nodes)} nodes; at most {limits.max_foreign_nodes} are taken "
            "of a file in no artifact.",
            hint="Simplify it: a network that long takes minutes to load.",
        )
    onnx = _library()
    _check_versions(onnx, graph, name)
    _check_inputs(graph, name)
    _check_windows(graph, name)
    model = without_weights(data, graph)
    try:
        onnx.checker.check_model(model)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except _errors(onnx) as error:
        raise ArtifactError(
            f"{name} is not a valid ONNX model: {_text(error)}",
            hint="Export it again, without custom operators.",
        ) from error
    types = {info.name: info.type for info in inferred.graph.value_info}
    _check_types(onnx, graph, types, name)
    _check_sizes(graph, types, name, limits.max_constant_elements)


def _check_versions(onnx: Any, graph: OnnxGraph, name: str) -> None:
    newest_opset = onnx.defs.onnx_opset_version()
    for what, found, newest in (
        ("IR version", graph.ir_version, onnx.IR_VERSION),
        ("opset", graph.opset, newest_opset),
    ):
        if not 1 <= found <= newest:
            raise UnsupportedOpError(
                f"{name} has {what} {found}; onnx {onnx.__version__} knows 1..{newest}.",
                hint="Export it for an older opset, such as 21, or update onnx.",
            )
    for node in graph.nodes:
        if not onnx.defs.has(node.op_type, graph.opset):
            raise UnsupportedOpError(
                f"{name}: node {node.label} is {shown(node.op_type)}, which is no standard "
                f"operator of opset {graph.opset}.",
                hint="Export the model without custom operators.",
            )


def _check_inputs(graph: OnnxGraph, name: str) -> None:
    """Refuse images of a size that nobody has: libraries reserve memory for a fixed one."""
    for tensor in graph.inputs:
        sizes = [size for size in tensor.dims or () if isinstance(size, int)]
        if math.prod(sizes) > _MOST_INPUT_VALUES or 0 in sizes:
            raise ArtifactError(
                f"{name}: input '{tensor.name}' is {list(tensor.dims or ())}; expected sides of "
                f"1 or more and at most {_MOST_INPUT_VALUES:,} values.",
                hint="Export it with free or usual sizes.",
            )


def _check_windows(graph: OnnxGraph, name: str) -> None:
    """Hold the attributes of windows against their weights and against sense.

    onnx does not, and OpenVINO 2026.4.1 writes beyond its memory where they are too few, or a
    padding is of 65,536 px (found by mutated files).
    """
    for node in graph.nodes:
        if node.op_type not in _WINDOWED:
            continue
        weights = graph.initializers.get(node.inputs[1]) if len(node.inputs) > 1 else None
        for attribute, per_axis in _WINDOW_ATTRIBUTES.items():
            values = node.attributes.get(attribute)
            if values is None:
                continue
            count = None if weights is None else per_axis * (len(weights.dims) - 2)
            if (
                not isinstance(values, tuple)
                or (count is not None and len(values) != count)
                or not all(isinstance(one, int) and 0 <= one <= _MOST_WINDOW_PX for one in values)
            ):
                raise ArtifactError(
                    f"{name}: node {node.label} has {attribute} {shown(str(values))}; expected "
                    f"{'numbers' if count is None else f'{count} numbers'} of 0 to "
                    f"{_MOST_WINDOW_PX} px.",
                    hint="Export it again.",
                )


def _check_types(onnx: Any, graph: OnnxGraph, types: Mapping[str, Any], name: str) -> None:
    for node in graph.nodes:
        for kind in (types[output] for output in node.outputs if output in types):
            is_text = kind.tensor_type.elem_type == onnx.TensorProto.STRING
            if is_text or kind.WhichOneof("value") not in (None, "tensor_type"):
                raise UnsupportedOpError(
                    f"{name}: node {node.label} ({shown(node.op_type)}) makes a sequence, an "
                    "optional value or texts; only dense tensors of numbers are run.",
                    hint="Export the model without it.",
                )


def _check_sizes(graph: OnnxGraph, types: Mapping[str, Any], name: str, most: int) -> None:
    """Check what is made of constants alone, and of shapes as far as these are known.

    A size that constants decide in a way that onnx does not follow could be any size.
    """
    constants = {"", *graph.initializers}
    from_shapes = set(constants)
    for node in graph.nodes:
        constant = constants.issuperset(node.inputs)
        if constant:
            constants.update(node.outputs)
        elif node.op_type != "Shape" and not from_shapes.issuperset(node.inputs):
            continue
        from_shapes.update(node.outputs)
        if node.op_type == "Constant":  # its bytes are in the file
            continue
        for output in filter(None, node.outputs):
            sizes = _sizes(types.get(output))
            if (constant and sizes is None) or math.prod(sizes or ()) > most:
                count = "an unknown number of" if sizes is None else math.prod(sizes)
                raise UntrustedArtifactError(
                    f"{name}: node {node.label} ({shown(node.op_type)}) makes {count} elements out "
                    f"of constants alone; at most {most} are allowed.",
                    hint="Fold or shrink it: it would take this memory whenever it is loaded.",
                )


def _sizes(kind: Any) -> list[int] | None:
    if kind is None or not kind.tensor_type.HasField("shape"):
        return None
    dims = kind.tensor_type.shape.dim
    return [dim.dim_value for dim in dims] if all(d.HasField("dim_value") for d in dims) else None


def _library() -> Any:
    try:
        import onnx
        import onnx.checker
        import onnx.shape_inference
    except ImportError as error:
        raise BackendUnavailableError(
            "an .onnx file that is in no artifact is checked by 'onnx', which is not installed.",
            hint="pip install onnx",
        ) from error
    return onnx


def _errors(onnx: Any) -> tuple[type[Exception], ...]:
    own = onnx.checker.ValidationError, onnx.shape_inference.InferenceError
    return (*own, ValueError, RuntimeError)


def _text(error: BaseException) -> str:
    return "".join(c if c.isprintable() else " " for c in " ".join(str(error).split()))[:300]
