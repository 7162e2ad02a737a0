"""Cut a classifier to its convolutional part, with outputs where scores can be computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx, nn

from fcn_deploy.errors import UnsupportedModelError
from fcn_models.cells import check_cells
from fcn_models.grid import Grid, find_grids
from fcn_models.linear_to_conv import convert
from fcn_models.padding import (
    PAPER_PADDING_PX,
    pad_aligned,
    pad_as_in_paper,
    pad_to_multiple,
)

__all__ = ["PAPER_PADDING_PX", "Level", "Trunk", "make_trunk"]

_FINEST_STRIDE = 8
# images that a trunk is tried with: strides up to 64 px divide the one, and leave one pixel more
_WHOLE_PX, _ODD_PX = (128, 192), (129, 193)


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
        pad_as_in_paper(module)
        check_cells(module, top, size=input_size, covering=False)
    else:
        windows = {*conversion.sliding, conversion.convolved[0]}
        pad_aligned(module, windows)
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
        pad_to_multiple(module, grids[top].stride)
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
    return Level(channels, grid=made, kernel=kernel, padding=padding, dilation=dilation)


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
