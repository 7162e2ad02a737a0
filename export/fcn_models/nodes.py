"""Tell what a node of a traced network does, be it a layer, a function or a method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx, nn

__all__ = [
    "Sliding",
    "argument",
    "axes_of",
    "describe",
    "is_cellwise",
    "is_elementwise",
    "is_linear",
    "join_by_channels",
    "layer_of",
    "operation",
    "sliding_of",
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
    nn.SELU,
    nn.CELU,
    nn.Mish,
    nn.Softplus,
    nn.Sigmoid,
    nn.Tanh,
)
# layers that see one cell of a map, and all of its channels
_CELLWISE_LAYERS = (nn.BatchNorm2d, nn.Dropout2d, nn.AlphaDropout)
_ELEMENTWISE = frozenset(
    {
        *("relu", "relu_", "relu6", "leaky_relu", "elu", "gelu", "silu", "hardswish", "hardtanh"),
        *("sigmoid", "tanh", "dropout", "add", "iadd", "sub", "mul", "truediv", "contiguous"),
        *("pow", "clamp"),
    }
)
# operators that work along the classes, and where their axis is among the arguments
_BY_CHANNELS = {"cat": 1, "concat": 1, "softmax": 1, "log_softmax": 1}


@dataclass(frozen=True, slots=True)
class Sliding:
    """A window that slides over a map; along both axes, or None where that is not fixed."""

    kernel: tuple[int, int] | None
    stride: tuple[int, int] | None
    padding: tuple[int, int] | None
    dilation: tuple[int, int] | None


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


def sliding_of(module: fx.GraphModule, node: fx.Node) -> Sliding | None:
    """Give the window of a convolution, a pool, or a slice of every n-th cell; None of others."""
    layer, name = layer_of(module, node), operation(node)
    if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        kernel, stride, padding = layer.kernel_size, layer.stride, layer.padding
        return Sliding(*map(_pair, (kernel, stride, padding, getattr(layer, "dilation", 1))))
    if node.op == "call_function" and name in ("max_pool2d", "avg_pool2d"):
        if len(node.all_input_nodes) > 1:  # its window is computed, from the map's size mostly
            return None
        kernel = argument(node, "kernel_size", 1)
        stride = argument(node, "stride", 2) or kernel
        padding = argument(node, "padding", 3, 0)
        dilation = argument(node, "dilation", 4, 1) if name == "max_pool2d" else 1
        return Sliding(*map(_pair, (kernel, stride, padding, dilation)))
    if name == "getitem" and isinstance(node.args[1], tuple | list):
        index = node.args[1]
        whole = [s for s in index if isinstance(s, slice) and (s.start or 0, s.stop) == (0, None)]
        steps = [1 if one.step is None else one.step for one in whole]
        if len(whole) == len(index) == 4 and steps[:2] == [1, 1]:
            return Sliding((1, 1), _pair(steps[2:]), (0, 0), (1, 1))
    return None


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, int):
        return value, value
    if not isinstance(value, tuple | list) or not all(isinstance(one, int) for one in value):
        return None
    return value[0], value[-1]


def axes_of(node: fx.Node, rank: int) -> tuple[int, ...]:
    """Give the axes of a mean over a tensor of `rank` axes, none negative."""
    axes = argument(node, "dim", 1)
    if not isinstance(axes, tuple | list):
        axes = (axes,)
    return tuple(sorted(axis % rank for axis in axes if isinstance(axis, int)))


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


def is_cellwise(module: fx.GraphModule, node: fx.Node) -> bool:
    """Say whether each cell of a map [N, C, h, w] depends on those of the same place alone."""
    layer = layer_of(module, node)
    if isinstance(layer, nn.Conv2d):
        return (*layer.kernel_size, *layer.stride, *layer.padding) == (1, 1, 1, 1, 0, 0)
    if layer is None and operation(node) in ("cat", "concat"):
        return argument(node, "dim", 1, 0) in (1, -3)
    return isinstance(layer, _CELLWISE_LAYERS) or is_elementwise(module, node)


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
