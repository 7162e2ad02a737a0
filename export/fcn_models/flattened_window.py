"""Find the window of features that a classifier flattens, and the layers that read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx, nn

from fcn_models.flattening import REDUCTIONS, Flattening, Pooling
from fcn_models.nodes import (
    axes_of,
    describe,
    is_cellwise,
    layer_of,
    operation,
    sliding_of,
)
from fcn_models.tracing import unsupported

__all__ = [
    "Window",
    "as_2d",
    "as_convolution",
    "open_window",
]

_ADAPTIVE_LAYERS: dict[type[nn.Module], Pooling] = {
    nn.AdaptiveAvgPool2d: "average",
    nn.AdaptiveMaxPool2d: "max",
}
_ADAPTIVE: dict[str, Pooling] = {"adaptive_avg_pool2d": "average", "adaptive_max_pool2d": "max"}
_FIXED: dict[str, Pooling] = {"avg_pool2d": "average", "max_pool2d": "max"}


@dataclass(frozen=True, slots=True)
class Window:
    """The features that one vector was flattened from: channels, (height, width), cell spacing."""

    channels: int
    size: tuple[int, int] = (1, 1)
    spacing: tuple[int, int] = (1, 1)


def open_window(
    module: fx.GraphModule,
    node: fx.Node,
    flattening: Flattening,
    shapes: Mapping[fx.Node, tuple[int, ...]],
    *,
    keep_pool: bool,
) -> tuple[fx.Node, Window, list[fx.Node]]:
    """Let the pooling before a flatten slide.

    Args:
        node: the flatten.
        keep_pool: False drops the pooling over all of the features.

    Returns:
        The features that take the flatten's place, the window of them that was flattened, and the
        pools that slide now.

    Raises:
        UnsupportedModelError: windows of unequal size do not slide.
    """
    source = flattening.source
    channels, height, width = shapes[source][1:]
    pools = _pools_before(module, source, shapes)
    kernels = {pool: _pool_kernel(module, pool, shapes) for pool in pools}
    if len(set(kernels.values())) > 1:
        raise unsupported(
            f"{' and '.join(describe(module, pool) for pool in pools)} have windows of unequal size"
        )
    spacing = next(iter(kernels.values()), (1, 1))
    if flattening.pooling is not None and spacing != (1, 1):
        raise unsupported(f"{describe(module, node)} pools what {pools[0].name} has pooled")
    if (height, width) == (1, 1) and not keep_pool:
        for pool in pools:
            before = pool.all_input_nodes[0]
            pool.replace_all_uses_with(before)
            source = before if pool is source else source
        return source, Window(channels), []
    for pool in pools:
        _replace(module, pool, _sliding(_pooled_by(module, pool, shapes), spacing))
    sliding = [pool for pool in pools if spacing != (1, 1)]
    if flattening.pooling is None:
        return source, Window(channels, (height, width), spacing), sliding
    if keep_pool:
        name = f"{node.name}_sliding"
        module.add_submodule(name, _sliding(flattening.pooling, (height, width)))
        with module.graph.inserting_before(node):
            source = module.graph.call_module(name, (source,))
    return source, Window(channels), sliding


def _pools_before(
    module: fx.GraphModule, source: fx.Node, shapes: Mapping[fx.Node, tuple[int, ...]]
) -> list[fx.Node]:
    """Give the pools from which on each cell was computed for itself, until the flatten."""
    found, seen, waiting = [], set(), [source]
    while waiting:
        node = waiting.pop()
        if node in seen or shapes.get(node, ())[2:] != shapes[source][2:]:
            continue
        seen.add(node)
        if _pooled_by(module, node, shapes) is not None:
            found.append(node)
        elif is_cellwise(module, node):
            waiting.extend(node.all_input_nodes)
    return found


def _pooled_by(
    module: fx.GraphModule, node: fx.Node, shapes: Mapping[fx.Node, tuple[int, ...]]
) -> Pooling | None:
    """Say how a node pools to a size that it is told, or to one cell; None where it does not."""
    layer, name = layer_of(module, node), operation(node)
    adaptive = _ADAPTIVE.get(name)
    for kind, pooling in _ADAPTIVE_LAYERS.items():
        adaptive = pooling if isinstance(layer, kind) else adaptive
    if adaptive is not None or shapes[node][2:] != (1, 1):
        return adaptive
    if name in REDUCTIONS:
        return REDUCTIONS[name] if axes_of(node, 4) == (2, 3) else None
    fixed = "average" if isinstance(layer, nn.AvgPool2d) else _FIXED.get(name)
    sliding = sliding_of(module, node)
    if fixed is None or sliding is None:
        return fixed  # without a window of its own, it has that of the features' size
    # a max pool over all that is left is a stage of the trunk, as VGG's last one on small images
    covers = sliding.kernel == shapes[node.all_input_nodes[0]][2:] and sliding.padding == (0, 0)
    return fixed if covers and fixed == "average" else None


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


def _sliding(pooling: Pooling | None, kernel: tuple[int, int]) -> nn.Module:
    """Give the layer that pools by a window in steps of one cell."""
    if kernel == (1, 1):
        return nn.Identity()
    layer = nn.AvgPool2d if pooling == "average" else nn.MaxPool2d
    return layer(kernel, stride=1)


def _replace(module: fx.GraphModule, pool: fx.Node, layer: nn.Module) -> None:
    users = [node for node in module.graph.nodes if node.target == pool.target]
    if pool.op == "call_module" and len(users) == 1:
        module.set_submodule(str(pool.target), layer)
        return
    name = f"{pool.name}_sliding"
    module.add_submodule(name, layer)
    pool.args, pool.kwargs = (pool.all_input_nodes[0],), {}
    pool.op, pool.target = "call_module", name


def as_convolution(linear: nn.Linear, window: Window) -> nn.Conv2d:
    """Make the convolution that a linear layer is: same weights, one position in the window.

    Raises:
        TypeError: torch made something else than a convolution.
    """
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
    convolution.weight = nn.Parameter(weight, requires_grad=linear.weight.requires_grad)
    convolution.bias = linear.bias
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
    for name, value in (*norm.named_parameters(), *norm.named_buffers()):
        setattr(made, name, value)
    return made.train(norm.training)
