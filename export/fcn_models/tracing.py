"""Trace a classifier with torch.fx and record its tensors' shapes, or say why it cannot be."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn

from fcn_deploy.errors import UnsupportedModelError
from fcn_models.foreign_errors import first_line
from fcn_models.nodes import argument, describe, layer_of, operation

__all__ = [
    "HINT_POOL",
    "ShapeRecorder",
    "first_convolution",
    "trace_graph",
    "trace_with_shapes",
    "unsupported",
]

_HINT = (
    "A classifier must be a convolutional trunk, pooling, flatten and linear layers, "
    "with elementwise layers between them."
)

HINT_POOL = "Between pooling and flatten, use layers that see one cell, such as Conv2d(1x1)."

# calls that drop in training alone: the trace, made in evaluation mode, would never drop
_DROPOUTS: dict[str, type[nn.Module]] = {
    "dropout": nn.Dropout,
    "dropout1d": nn.Dropout1d,
    "dropout2d": nn.Dropout2d,
    "alpha_dropout": nn.AlphaDropout,
}
# layers of torchvision and timm that do the same to whole branches
_DROPPING_LAYERS = ("StochasticDepth", "DropPath")


def trace_with_shapes(
    classifier: nn.Module, input_size: tuple[int, int]
) -> tuple[fx.GraphModule, dict[fx.Node, tuple[int, ...]]]:
    """Trace a copy of a classifier, and run it once on two images.

    Args:
        input_size: (height, width) in px.

    Returns:
        The copy in evaluation mode, with dropout as layers, and the shape of each node's output.

    Raises:
        UnsupportedModelError: it cannot be traced, has no Conv2d, or fails at this size.
    """
    own = copy.deepcopy(classifier).eval()
    module = fx.GraphModule(own, trace_graph(own), type(own).__name__)
    first = first_convolution(module)
    if first is None:
        raise unsupported("it has no Conv2d")
    _make_dropout_layers(module)
    recorder = ShapeRecorder(module)
    image = torch.zeros(2, first.in_channels, *input_size, device=first.weight.device)
    try:
        with torch.no_grad():
            recorder.run(image)
    except Exception as exc:  # as above
        raise unsupported(
            f"{describe(module, recorder.current)} fails at {input_size[0]}x{input_size[1]}: "
            f"{first_line(exc)}"
        ) from exc
    return module, recorder.shapes


def trace_graph(classifier: nn.Module) -> fx.Graph:
    """Trace a classifier as it is, in its own mode.

    Raises:
        UnsupportedModelError: it cannot be traced.
    """
    try:
        return _Tracer().trace(classifier)
    except Exception as exc:  # the trace runs the user's code, which may raise anything
        raise unsupported(
            f"torch.fx cannot trace it: {type(exc).__name__}: {first_line(exc)}"
        ) from exc


def first_convolution(module: fx.GraphModule) -> nn.Conv2d | None:
    """Give the convolution that runs first; None where there is none."""
    layers = (layer_of(module, node) for node in module.graph.nodes)
    return next((layer for layer in layers if isinstance(layer, nn.Conv2d)), None)


class _Tracer(fx.Tracer):
    """Keeps a layer whole whose class is derived from one of PyTorch's and computes as that."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if super().is_leaf_module(m, module_qualified_name):
            return True
        if type(m).__name__ in _DROPPING_LAYERS:
            return True
        if isinstance(m, nn.Conv2d) and type(m)._conv_forward is not nn.Conv2d._conv_forward:
            return False
        owner = next(one for one in type(m).__mro__ if "forward" in vars(one))
        return owner.__module__.startswith("torch.nn.") and owner not in (nn.Module, nn.Sequential)


def _make_dropout_layers(module: fx.GraphModule) -> None:
    for node in module.graph.nodes:
        kind = _DROPOUTS.get(operation(node)) if node.op == "call_function" else None
        if kind is None or argument(node, "training", 2, True) is not False:
            continue
        name = f"{node.name}_layer"
        module.add_submodule(name, kind(argument(node, "p", 1, 0.5)).eval())
        node.op, node.target = "call_module", name
        node.args, node.kwargs = (node.all_input_nodes[0],), {}
    module.recompile()


class ShapeRecorder(fx.Interpreter):
    """Runs a graph once and keeps the shapes of all tensors.

    Attributes:
        current: the node that runs, or that failed.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.current: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        self.current = n
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self.shapes[n] = tuple(result.shape)
        return result


def unsupported(reason: str, *, hint: str = _HINT) -> UnsupportedModelError:
    """Give the error that says why a classifier cannot be converted."""
    return UnsupportedModelError(
        f"the classifier cannot be made fully convolutional: {reason}.", hint=hint
    )
