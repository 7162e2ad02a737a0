"""Compute where the cells of a feature map lie in the image: stride, offset, what they see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx, nn

from fcn_deploy.errors import UnsupportedModelError
from fcn_models.nodes import Sliding, describe, layer_of, operation, sliding_of

__all__ = ["Grid", "find_grids"]


@dataclass(frozen=True, slots=True)
class Grid:
    """The cells of a feature map, alike along both axes.

    Attributes:
        stride: pixels between the centres of neighbouring cells.
        offset: pixel of the image at which the first cell is centred; negative in padding.
        receptive_field: pixels along an axis that a cell depends on.
    """

    stride: int = 1
    offset: float = 0.0
    receptive_field: int = 1

    def slid(self, kernel: int, *, stride: int, padding: int, dilation: int) -> Grid:
        """Give the grid of what a window makes that slides over this one."""
        reach = dilation * (kernel - 1)
        return Grid(
            self.stride * stride,
            self.offset + self.stride * (reach / 2 - padding),
            self.receptive_field + self.stride * reach,
        )


def find_grids(module: fx.GraphModule) -> Mapping[fx.Node, Grid]:
    """Follow a network of convolutions and pools from its image on.

    Raises:
        UnsupportedModelError: a window is not square, a convolution does not pad with zeros or is
            no layer, or branches meet that are not aligned.
    """
    grids: dict[fx.Node, Grid] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            grids[node] = Grid()
            continue
        read = [grids[one] for one in node.all_input_nodes if one in grids]
        if read and node.op != "output":
            grids[node] = _follow(module, node, read)
    return grids


def _follow(module: fx.GraphModule, node: fx.Node, read: list[Grid]) -> Grid:
    layer, sliding = layer_of(module, node), sliding_of(module, node)
    if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
        raise UnsupportedModelError(
            f"{describe(module, node)} pads in the mode '{layer.padding_mode}'; expected 'zeros', "
            "by as much as each size of image needs.",
            hint="Set its padding_mode to 'zeros' and train a little more.",
        )
    if node.op == "call_function" and operation(node) == "conv2d":
        raise UnsupportedModelError(
            f"{describe(module, node)} is a call of a function; expected a layer.",
            hint="Write it as nn.Conv2d, or as a class derived from it that keeps its forward.",
        )
    if sliding is not None:
        return _slid(module, node, read[0], sliding)
    if len({(grid.stride, grid.offset) for grid in read}) > 1:
        found = ", ".join(f"stride {grid.stride} from pixel {grid.offset:g} on" for grid in read)
        raise UnsupportedModelError(
            f"{describe(module, node)} joins maps that are not aligned: {found}.",
            hint="Pad each branch by half its kernel, so that all have the same cells.",
        )
    return max(read, key=lambda grid: grid.receptive_field)


def _slid(module: fx.GraphModule, node: fx.Node, grid: Grid, window: Sliding) -> Grid:
    sides = [
        None if pair is None or pair[0] != pair[1] else pair[0]
        for pair in (window.kernel, window.stride, window.padding, window.dilation)
    ]
    if None in sides:
        raise UnsupportedModelError(
            f"{describe(module, node)} has a window that is not square, or a padding that is not "
            "stated in cells.",
            hint="Give kernel, stride and padding as whole numbers, equal along both axes.",
        )
    size, step, pad, spread = (side or 0 for side in sides)
    return grid.slid(size, stride=step, padding=pad, dilation=spread)
