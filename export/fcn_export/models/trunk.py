"""A classifier's convolutional part, with outputs where scores can be read off."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from fcn_deploy.errors import UnsupportedModelError
from fcn_export.models.cells import PadToMultiple, check_cells
from fcn_export.models.convolutionalize import convert
from fcn_export.models.grid import Grid, find_grids
from fcn_export.models.nodes import Sliding, argument, describe, layer_of, operation, sliding_of
from fcn_export.models.tracing import first_convolution

__all__ = ["PAPER_PADDING_PX", "Level", "Trunk", "make_trunk"]

_FINEST_STRIDE = 8
# images that a trunk is tried with: strides up to 64 px divide the one, and leave one pixel more
_WHOLE_PX, _ODD_PX = (128, 192), (129, 193)

PAPER_PADDING_PX = 100
"""The paper's networks pad the image by so much, so that none is too small for fc6's window."""


@dataclass(frozen=True, slots=True)
class Level:
    """Features that a convolution makes scores of.

    Attributes:
        channels: of the features.
        grid: where the scores' cells lie.
        kernel, padding, dilation: of the convolution; of one cell, but where the classifier's only
            linear layer saw a window.
    """

    channels: int
    grid: Grid
    kernel: int = 1
    padding: int = 0
    dilation: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Trunk:
    """A convolutional network with several outputs.

    Attributes:
        module: takes images; gives a tuple of feature maps, in the order of `levels`.
        levels: the coarsest first.
    """

    module: fx.GraphModule
    levels: tuple[Level, ...]


def make_trunk(
    classifier: nn.Module,
    *,
    input_size: tuple[int, int],
    paper_padding: bool = False,
    first_taps: bool = False,
) -> Trunk:
    """Convert a classifier, and leave out its last layer.

    Pooling over all of the features goes, as in the paper's FCN-GoogLeNet: each cell then scores
    what it has seen.

    Args:
        classifier: on the CPU; not modified.
        input_size: (height, width) in px that it was made for.
        paper_padding: pad the image by 100 px, and the window of fc6 not at all; otherwise every
            window is padded by half of its size, so that cells cover the image, and no more.
        first_taps: skips leave from the first features of a stride, not from the last.

    Raises:
        UnsupportedModelError: the classifier cannot be converted, has several last layers, or has
            layers whose cells do not cover an image of any size.
    """
    conversion = convert(classifier, input_size=input_size, keep_pool=False)
    module = conversion.module
    last = conversion.convolved[-1]
    top = last.all_input_nodes[0]
    any_size = True
    if paper_padding:
        _pad_as_in_paper(module)
        check_cells(module, top, size=input_size, covering=False)
    else:
        windows = {*conversion.sliding, conversion.convolved[0]}
        _pad_aligned(module, windows)
        check_cells(module, top, size=_WHOLE_PX, covering=True, even=windows)
        try:
            check_cells(module, top, size=_ODD_PX, covering=True, even=windows)
        except UnsupportedModelError:
            any_size = False
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    grids = find_grids(module)
    if output.args[0] is not last:
        raise UnsupportedModelError(
            f"the classifier's last linear layer is '{last.target}', but its output is made "
            "from more than that.",
            hint="Give the classifier without what follows its scores, such as Softmax.",
        )
    taps = _taps(module, grids, top, first=first_taps)
    layer = module.get_submodule(str(last.target))
    output.args = ((top, *taps),)
    if not any_size:
        _pad_to_multiple(module, grids[top].stride)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    channels = {node: conversion.shapes[node][1] for node in (top, *taps)}
    levels = [_top_level(channels[top], grids[top], layer)]
    levels += [Level(channels[node], grids[node]) for node in taps]
    return Trunk(module, tuple(levels))


def _top_level(channels: int, grid: Grid, last: nn.Module) -> Level:
    if not isinstance(last, nn.Conv2d) or last.kernel_size[0] != last.kernel_size[1]:
        raise UnsupportedModelError(
            f"the classifier's last layer sees a window of {getattr(last, 'kernel_size', None)}; "
            "expected a square one."
        )
    kernel, dilation = last.kernel_size[0], last.dilation[0]
    padding = last.padding[0] if isinstance(last.padding, tuple) else 0
    made = grid.slid(kernel, stride=1, padding=padding, dilation=dilation)
    return Level(channels, made, kernel, padding, dilation)


def _pad_as_in_paper(module: fx.GraphModule) -> None:
    """Pad the image, and nothing else than the classifier did; Caffe's pools round up."""
    first = first_convolution(module)
    if first is not None:
        first.padding = (PAPER_PADDING_PX, PAPER_PADDING_PX)
    for layer in _pools(module):
        layer.ceil_mode = True
    for node in module.graph.nodes:
        own, window = layer_of(module, node), sliding_of(module, node)
        if isinstance(own, nn.Conv2d) and own is not first and _leaves_out(window):
            raise UnsupportedModelError(
                f"{describe(module, node)} pads by {own.padding}, and leaves out cells where its "
                f"stride does not divide their number; expected half of its kernel "
                f"{own.kernel_size}, so that there are enough to crop.",
                hint="Use the geometry 'aligned', or pad the layer by half of its kernel.",
            )


def _leaves_out(window: Sliding | None) -> bool:
    """Say whether a window of stride s may make less than n / s cells of n."""
    if window is None or window.stride is None or window.padding is None:
        return False
    kernel, dilation = window.kernel or (1, 1), window.dilation or (1, 1)
    axes = zip(kernel, window.stride, window.padding, dilation, strict=True)
    return any(step > 1 and 2 * pad < spread * (size - 1) for size, step, pad, spread in axes)


def _pad_to_multiple(module: fx.GraphModule, multiple: int) -> None:
    """Let the image be padded first: windows of an even side leave out what is left over."""
    (image,) = (node for node in module.graph.nodes if node.op == "placeholder")
    module.add_submodule("pad_to_multiple", PadToMultiple(multiple))
    with module.graph.inserting_after(image):
        padded = module.graph.call_module("pad_to_multiple", (image,))
    image.replace_all_uses_with(padded, delete_user_cb=lambda user: user is not padded)


def _pad_aligned(module: fx.GraphModule, windows: Collection[fx.Node]) -> None:
    """Let each layer of stride s make ceil(n / s) cells of n, the first one near the border.

    Args:
        windows: the layers that see a window of the features.
    """
    for layer in (x for x in module.modules() if isinstance(x, nn.Conv2d)):
        layer.padding = _half_kernel(layer.kernel_size, layer.dilation, layer.padding)
    for pool in _pools(module):
        kernel = _pair(pool.kernel_size)
        pool.padding = _half_kernel(kernel, (1, 1), pool.padding)
        pool.ceil_mode = kernel[0] % 2 == 0  # an even window has no middle cell to pad around
    for node in windows:
        seeing, window = module.get_submodule(str(node.target)), sliding_of(module, node)
        if window is None or window.kernel is None or window.dilation is None:
            continue
        # a window of an even side, as AlexNet's of six, then gives one cell more
        rows, columns = (
            (spread * (size - 1) + 1) // 2
            for size, spread in zip(window.kernel, window.dilation, strict=True)
        )
        if isinstance(seeing, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            seeing.padding = rows, columns
        if isinstance(seeing, nn.AvgPool2d):
            seeing.count_include_pad = False


def _pools(module: fx.GraphModule) -> list[nn.MaxPool2d | nn.AvgPool2d]:
    """Give the pools as layers; those that are written as functions become layers first."""
    for node in module.graph.nodes:
        if node.op != "call_function" or operation(node) not in ("max_pool2d", "avg_pool2d"):
            continue
        if len(node.all_input_nodes) > 1:  # its window is computed: find_grids names it
            continue
        layer: nn.MaxPool2d | nn.AvgPool2d
        kernel, stride = argument(node, "kernel_size", 1), argument(node, "stride", 2) or None
        padding = argument(node, "padding", 3, 0)
        if operation(node) == "max_pool2d":
            layer = nn.MaxPool2d(kernel, stride, padding, argument(node, "dilation", 4, 1))
        else:
            layer = nn.AvgPool2d(
                kernel,
                stride,
                padding,
                count_include_pad=argument(node, "count_include_pad", 5, True),
                divisor_override=argument(node, "divisor_override", 6),
            )
        name = f"{node.name}_layer"
        module.add_submodule(name, layer)
        node.op, node.target = "call_module", name
        node.args, node.kwargs = (node.all_input_nodes[0],), {}
    return [x for x in module.modules() if isinstance(x, nn.MaxPool2d | nn.AvgPool2d)]


def _half_kernel(
    kernel: tuple[int, ...], dilation: tuple[int, ...], padding: Any
) -> tuple[int, int]:
    """Give half of an odd window; the padding of an even one is left as it is."""
    if any(size % 2 == 0 for size in kernel):
        return _pair(padding)
    half = [spread * (size // 2) for size, spread in zip(kernel, dilation, strict=True)]
    return half[0], half[1]


def _pair(value: Any) -> tuple[int, int]:
    return (value[0], value[1]) if isinstance(value, tuple | list) else (value, value)


def _taps(
    module: fx.GraphModule, grids: Mapping[fx.Node, Grid], top: fx.Node, *, first: bool
) -> list[fx.Node]:
    """Give the features of half the top's stride, a quarter of it and so on, down to 8 px."""
    by_stride: dict[int, list[fx.Node]] = {}
    for node in _bottlenecks(module):
        if node in grids and node.op != "placeholder":
            by_stride.setdefault(grids[node].stride, []).append(node)
    taps = []
    stride = grids[top].stride // 2
    while stride >= _FINEST_STRIDE and stride in by_stride:
        nodes = by_stride[stride]
        taps.append(nodes[0] if first else nodes[-1])
        stride //= 2
    return taps


def _bottlenecks(module: fx.GraphModule) -> list[fx.Node]:
    """Give the nodes through which all goes that later nodes read: none lies inside a block."""
    nodes = list(module.graph.nodes)
    place = {node: index for index, node in enumerate(nodes)}
    found, read_until = [], 0
    for index, node in enumerate(nodes):
        if read_until <= index:
            found.append(node)
        read_until = max([read_until, *(place[user] for user in node.users)])
    return found
