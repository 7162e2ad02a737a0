"""What a node of a traced network is, whether it is written as a layer, a function or a method."""

from __future__ import annotations

from typing import Any, Literal

from torch import fx, nn

__all__ = [
    "argument",
    "axes_of",
    "describe",
    "is_elementwise",
    "is_linear",
    "join_by_channels",
    "layer_of",
    "operation",
    "pooled_by",
]

_ELEMENTWISE_LAYERS = (
    nn.Identity,
    nn.Dropout,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Hardtanh,
    nn.Sigmoid,
    nn.Tanh,
)
_ELEMENTWISE = frozenset(
    {
        *("relu", "relu_", "relu6", "leaky_relu", "elu", "gelu", "silu", "hardswish", "hardtanh"),
        *("sigmoid", "tanh", "dropout", "add", "iadd", "sub", "mul", "truediv", "contiguous"),
    }
)
_POOLS: dict[str, Literal["average", "max"]] = {
    "AdaptiveAvgPool2d": "average",
    "AdaptiveMaxPool2d": "max",
    "adaptive_avg_pool2d": "average",
    "adaptive_max_pool2d": "max",
}
# operators that work along the classes, and where their axis is among the arguments
_BY_CHANNELS = {"cat": 1, "concat": 1, "softmax": 1, "log_softmax": 1}


def layer_of(module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """Give the layer that a node calls; None where it calls a function or a method."""
    return module.get_submodule(str(node.target)) if node.op == "call_module" else None


def operation(node: fx.Node) -> str:
    """Give the name of the function or method that a node calls; for nn.Flatten, flatten."""
    if node.op == "call_function":
        return str(getattr(node.target, "__name__", node.target))
    if node.op == "call_method":
        return str(node.target)
    if node.op == "call_module":
        module = node.graph.owning_module
        layer = None if module is None else layer_of(module, node)
        return "flatten" if isinstance(layer, nn.Flatten) else type(layer).__name__
    return node.op


def argument(node: fx.Node, name: str, position: int, default: Any = None) -> Any:
    """Give an argument of a function or method, by name or by position."""
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[position] if len(node.args) > position else default


def axes_of(node: fx.Node) -> tuple[int, ...]:
    """Give the axes of a mean over a tensor of four, none negative."""
    axes = argument(node, "dim", 1)
    if not isinstance(axes, tuple | list):
        axes = (axes,)
    return tuple(sorted(axis % 4 for axis in axes if isinstance(axis, int)))


def is_linear(module: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether it is a linear layer, in whatever form."""
    return isinstance(layer_of(module, node), nn.Linear) or (
        node.op == "call_function" and operation(node) in ("linear", "addmm", "matmul", "bmm")
    )


def is_elementwise(module: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether each value depends on that of the same place alone."""
    layer = layer_of(module, node)
    if layer is not None:
        return isinstance(layer, _ELEMENTWISE_LAYERS)
    return operation(node) in _ELEMENTWISE


def pooled_by(module: fx.GraphModule, node: fx.Node) -> Literal["average", "max"] | None:
    """Say how a node pools to a size that it is told; None where it does not."""
    layer = layer_of(module, node)
    return _POOLS.get(operation(node) if layer is None else type(layer).__name__)


def join_by_channels(module: fx.GraphModule, node: fx.Node, *, rank: int) -> bool:
    """Let an operator along the last axis of vectors work along the channels of maps.

    Returns:
        False where it is no such operator, or works along another axis.
    """
    layer = layer_of(module, node)
    if isinstance(layer, nn.Softmax | nn.LogSoftmax):
        if layer.dim is None or layer.dim % rank != 1:
            return False
        layer.dim = 1
        return True
    name = operation(node)
    if node.op == "call_module" or name not in _BY_CHANNELS:
        return False
    position = _BY_CHANNELS[name]
    axis = argument(node, "dim", position, 0 if name in ("cat", "concat") else None)
    if not isinstance(axis, int) or axis % rank != 1:
        return False
    node.args = tuple(value for i, value in enumerate(node.args) if i != position)
    node.kwargs = {**node.kwargs, "dim": 1}
    return True


def describe(module: fx.GraphModule, node: fx.Node | None) -> str:
    """Name a node for a message."""
    if node is None:
        return "the network"
    layer = layer_of(module, node)
    if layer is not None:
        return f"{type(layer).__name__} '{node.target}'"
    return f"{operation(node)} '{node.name}'"
