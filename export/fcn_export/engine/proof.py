"""Prove which arithmetic a finished plan holds, layer by layer, against its graph.

Of an engine that can be opened, TensorRT's inspector tells. A plan of TensorRT-RTX made without a
GPU cannot be opened; but it carries its program as text, in which each convolution names the ONNX
node it came from, and each tensor its type. That text is not documented: where a release writes it
in another way, nothing is found, and the plan counts as unproven.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from fcn_deploy.errors import BuildError

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = [
    "LayerTypes",
    "asked_layer_types",
    "check_layer_types",
    "inspector_layer_types",
    "layer_name",
    "plan_text_layer_types",
]

LayerTypes = Mapping[str, str]
"""Element type that a layer multiplies in, by its `layer_name`: ``"float32"``,
``"float16"``, ``"bfloat16"``, ``"int8"`` or ``"float8"``."""

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")

# TensorRT has no INT8 kernels for these on every GPU, and then computes them in floating point
_MAY_STAY_FLOAT = ("ConvTranspose", "Gemm", "MatMul")

_PASSED_ON = ("Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")

# onnx.TensorProto: FLOAT, FLOAT16, BFLOAT16, INT8, FLOAT8E4M3FN
_TYPES = {1: "float32", 10: "float16", 16: "bfloat16", 3: "int8", 17: "float8"}

_PLAN_TYPES = {
    b"float": "float32",
    b"half": "float16",
    b"bfloat16": "bfloat16",
    b"bf16": "bfloat16",
    b"int8": "int8",
    b"fp8_e4m3": "float8",
}
_PLAN_TENSOR = re.compile(rb'\n *(?:sub_)?tensor=\{[^\n]*?name="?([^" ]+)[^\n]*? type=(\w+) ')
_PLAN_PRODUCT = re.compile(
    rb"\n *(?:corrltn|deconvolution|fully_connected)=\{"
    rb'[^\n]*? input=\{([^}\n]*)\}[^\n]*? layers="([^"\n]*)"'
)
_PLAN_LAYER = re.compile(rb"\[ONNX Layer: ([^\]]+)\]")
_QUOTED = re.compile(rb'"([^"]+)"')

# how the inspector's JSON spells types, in TensorRT 10 ("Row major linear FP16 format") and 11
_INSPECTOR_TYPES = (
    (re.compile(r"\b(int8|i8)\b", re.IGNORECASE), "int8"),
    (re.compile(r"\b(fp8|float8|e4m3)", re.IGNORECASE), "float8"),
    (re.compile(r"\b(bf16|bfloat16)\b", re.IGNORECASE), "bfloat16"),
    (re.compile(r"\b(fp16|half|float16)\b", re.IGNORECASE), "float16"),
    (re.compile(r"\b(fp32|float|float32)\b", re.IGNORECASE), "float32"),
)
_INSPECTOR_LAYER = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


def asked_layer_types(model: onnx.ModelProto) -> LayerTypes:
    """Give the type that each layer with weights is to multiply in, from the graph.

    A layer whose two factors come from DequantizeLinear is to run in the type before it. Layers
    whose factors are both computed, or of unknown type, are left out.
    """
    import onnx_ir as ir

    asked = {}
    for node in ir.from_proto(model).graph:
        if node.op_type in WEIGHTED:
            data, weights = node.inputs[:2]
            found = _weight_type(weights)
            if found in ("int8", "float8") and not _is_dequantized(data):
                found = _scale_type(weights)
            if found is not None:
                asked[layer_name(node.name, node.outputs[0].name)] = found
    return asked


def layer_name(node: str | None, output: str | None) -> str:
    """Give the name that TensorRT has for a node, with or without one of its own."""
    return node or f"node_of_{output}"


def plan_text_layer_types(plan: bytes) -> LayerTypes:
    """Read the types of products from the text inside a plan of TensorRT-RTX; empty if unknown."""
    tensors = dict(_PLAN_TENSOR.findall(plan))
    found: dict[str, str] = {}
    for inputs, layers in _PLAN_PRODUCT.findall(plan):
        factors = [tensors.get(name) for name in _QUOTED.findall(inputs)[:2]]
        types = [_PLAN_TYPES[factor] for factor in factors if factor in _PLAN_TYPES]
        for layer in _PLAN_LAYER.findall(layers) if types else ():
            found[layer.decode()] = _widest([*types, *_known(found, layer.decode())])
    return found


def inspector_layer_types(information: str) -> LayerTypes:
    """Read the types of layers from the engine inspector's JSON; empty where it has no details.

    Raises:
        BuildError: the text is no JSON.
    """
    try:
        layers = json.loads(information).get("Layers", [])
    except (ValueError, AttributeError) as error:
        raise BuildError(f"the engine inspector gave no JSON: {information[:80]!r}.") from error
    found: dict[str, str] = {}
    for layer in layers:
        if not isinstance(layer, dict):  # names only: the engine was built without details
            continue
        factors = _factor_types(layer)
        for name in _INSPECTOR_LAYER.findall(str(layer.get("Metadata", ""))) if factors else ():
            found[name] = _widest([*factors, *_known(found, name)])
    return found


def check_layer_types(
    asked: LayerTypes, found: LayerTypes, op_types: Mapping[str, str]
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Hold a plan's layers against the graph's.

    Args:
        op_types: ONNX operator by the name of the node.

    Returns:
        The share of layers that multiply in each type, largest first; and the names of layers
        that run in floating point though quantised, where TensorRT may do so.

    Raises:
        BuildError: a layer runs in another type than the graph's.
    """
    wrong: list[tuple[str, str, str, str]] = []
    wider: list[tuple[str, str, str, str]] = []
    for name, want in asked.items():
        got = found.get(name, want)
        if got != want:
            op_type = op_types.get(name, "")
            may = want in ("int8", "float8") and op_type in _MAY_STAY_FLOAT
            (wider if may else wrong).append((name, op_type, want, got))
    if wrong:
        name, op_type, want, got = wrong[0]
        raise BuildError(
            f"the plan is not what was asked for: {len(wrong)} of {len(asked)} layers run in "
            f"another type; node '{name}' ({op_type}) runs in {got} instead of {want}.",
            hint="Use --engine none, or report this with the model.",
        )
    counted = Counter(found[name] for name in asked if name in found)
    total = sum(counted.values())
    shares = {kind: count / total for kind, count in counted.most_common()}
    return shares, tuple(name for name, *_ in wider)


def _weight_type(value: ir.Value | None) -> str | None:
    source = _before_moves(value)
    node = None if source is None else source.producer()
    if node is None or node.op_type == "Constant":
        return _constant_type(source)
    if node.op_type == "DequantizeLinear":  # of its weights, or of its zero point
        return next(filter(None, map(_constant_type, node.inputs[::2])), None)
    return _TYPES.get(node.attributes.get_int("to")) if node.op_type == "Cast" else None


def _scale_type(value: ir.Value | None) -> str | None:
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return None
    return _constant_type(node.inputs[1])


def _is_dequantized(value: ir.Value | None) -> bool:
    source = _before_moves(value)
    node = None if source is None else source.producer()
    return node is not None and node.op_type == "DequantizeLinear"


def _before_moves(value: ir.Value | None) -> ir.Value | None:
    """Go back over nodes that only move values."""
    while value is not None and (node := value.producer()) and node.op_type in _PASSED_ON:
        value = node.inputs[0]
    return value


def _constant_type(value: ir.Value | None) -> str | None:
    from onnx_ir.convenience import get_const_tensor

    tensor = None if value is None else get_const_tensor(value)
    return None if tensor is None else _TYPES.get(tensor.dtype)


def _known(found: Mapping[str, str], name: str) -> Iterator[str]:
    if name in found:
        yield found[name]


def _widest(types: list[str]) -> str:
    """Give the type that decides how precise a product is: the wider of its two factors'."""
    order = ("float8", "int8", "float16", "bfloat16", "float32")
    return max(types, key=order.index)


def _factor_types(layer: Mapping[str, Any]) -> list[str]:
    """Give the types of a layer's data and weights; empty for a layer without weights."""
    if "Weights" not in layer or not layer.get("Inputs"):
        return []
    data = layer["Inputs"][0]
    spelled = [
        str(data.get("Datatype") or data.get("Format/Datatype") or ""),
        str(layer["Weights"].get("Type", "")),
    ]
    return [
        name
        for text in spelled
        if (name := next((name for known, name in _INSPECTOR_TYPES if known.search(text)), None))
    ]
