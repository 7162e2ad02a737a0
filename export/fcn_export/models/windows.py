"""The window of features that a classifier flattens, and its layers when nothing is flattened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx, nn

from fcn_export.models.nodes import axes_of, describe, is_elementwise, operation, pooled_by
from fcn_export.models.tracing import unsupported

__all__ = ["FLATTENING", "Window", "as_2d", "as_convolution", "flattens", "open_window"]

FLATTENING = ("flatten", "view", "reshape", "squeeze")


@dataclass(frozen=True, slots=True)
class Window:
    """What one vector was flattened from: channels, (height, width), and the cells between."""

    channels: int
    size: tuple[int, int] = (1, 1)
    spacing: tuple[int, int] = (1, 1)


def flattens(node: fx.Node, shapes: Mapping[fx.Node, tuple[int, ...]]) -> bool:
    """Say whether a node makes [N, C * h * w] of features [N, C, h, w].

    A mean over height and width is such a node too.
    """
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    given, made = shapes.get(node.args[0]), shapes.get(node)
    if given is None or made is None or len(given) != 4 or len(made) != 2:
        return False
    name = operation(node)
    flat = name in FLATTENING and made[1] == given[1] * given[2] * given[3]
    mean = name == "mean" and made[1] == given[1] and axes_of(node) == (2, 3)
    return flat or mean


def open_window(
    module: fx.GraphModule,
    node: fx.Node,
    shapes: Mapping[fx.Node, tuple[int, ...]],
    *,
    keep_pool: bool,
) -> tuple[fx.Node, Window]:
    """Let the pooling before a flatten slide; give the features that take the flatten's place.

    Args:
        node: a flatten, as `flattens` tells.
        keep_pool: False drops the pooling over all of the features.

    Raises:
        UnsupportedModelError: its windows are of unequal size, so they do not slide.
    """
    source = node.all_input_nodes[0]
    channels, height, width = shapes[source][1:]
    if operation(node) == "mean":
        if not keep_pool:
            return source, Window(channels)
        name = f"{node.name}_sliding"
        module.add_submodule(name, nn.AvgPool2d((height, width), stride=1))
        with module.graph.inserting_before(node):
            return module.graph.call_module(name, (source,)), Window(channels)
    found = _pool_before(module, source)
    if found is None:
        return source, Window(channels, (height, width))
    kernel = _pool_kernel(module, found, shapes)
    if (height, width) == (1, 1) and not keep_pool:
        before = found.all_input_nodes[0]
        found.replace_all_uses_with(before)
        return (before if found is source else source), Window(channels)
    _let_slide(module, found, kernel)
    return source, Window(channels, (height, width), kernel)


def _pool_before(module: fx.GraphModule, source: fx.Node) -> fx.Node | None:
    node = source
    while pooled_by(module, node) is None:
        if not is_elementwise(module, node) or len(node.all_input_nodes) != 1:
            return None
        node = node.all_input_nodes[0]
    return node


def _pool_kernel(
    module: fx.GraphModule, pool: fx.Node, shapes: Mapping[fx.Node, tuple[int, ...]]
) -> tuple[int, int]:
    given, made = shapes[pool.all_input_nodes[0]][2:], shapes[pool][2:]
    if given[0] % made[0] or given[1] % made[1]:
        raise unsupported(
            f"{describe(module, pool)} makes {made[0]}x{made[1]} of {given[0]}x{given[1]} cells; "
            "windows of unequal size do not slide"
        )
    return given[0] // made[0], given[1] // made[1]


def _let_slide(module: fx.GraphModule, pool: fx.Node, kernel: tuple[int, int]) -> None:
    """Replace adaptive pooling by pooling of a fixed window in steps of one cell."""
    sliding = nn.AvgPool2d if pooled_by(module, pool) == "average" else nn.MaxPool2d
    layer = nn.Identity() if kernel == (1, 1) else sliding(kernel, stride=1)
    if pool.op == "call_module":
        module.set_submodule(str(pool.target), layer)
        return
    name = f"{pool.name}_sliding"
    module.add_submodule(name, layer)
    pool.args, pool.kwargs = (pool.all_input_nodes[0],), {}
    pool.op, pool.target = "call_module", name


def as_convolution(linear: nn.Linear, window: Window) -> nn.Conv2d:
    """Make the convolution that a linear layer is: same weights, one position in the window."""
    convolution = nn.utils.skip_init(
        nn.Conv2d,
        window.channels,
        linear.out_features,
        window.size,
        dilation=window.spacing,
        bias=linear.bias is not None,
        device=linear.weight.device,
        dtype=linear.weight.dtype,
    )
    if not isinstance(convolution, nn.Conv2d):  # skip_init is not typed
        raise TypeError(f"expected a Conv2d, got {type(convolution).__name__}")
    weight = linear.weight.detach().view(linear.out_features, window.channels, *window.size)
    convolution.weight = nn.Parameter(weight)
    if linear.bias is not None:
        convolution.bias = nn.Parameter(linear.bias.detach())
    return convolution.train(linear.training)


def as_2d(norm: nn.BatchNorm1d) -> nn.BatchNorm2d:
    """Make the normalisation of maps that one of vectors is."""
    made = nn.BatchNorm2d(
        norm.num_features,
        eps=norm.eps,
        momentum=norm.momentum,
        affine=norm.affine,
        track_running_stats=norm.track_running_stats,
    )
    made.load_state_dict(norm.state_dict())
    return made.train(norm.training)
