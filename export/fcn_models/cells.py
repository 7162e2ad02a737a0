"""Check, by running a network, that its maps have as many cells as its strides say."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from fcn_models.foreign_errors import first_line
from fcn_models.nodes import Sliding, describe, sliding_of
from fcn_models.tracing import HINT_POOL, ShapeRecorder, first_convolution, unsupported

__all__ = ["check_cells"]

Size = tuple[int, int]

_HINT = (
    "Change the size of maps with nn.Conv2d, nn.MaxPool2d and nn.AvgPool2d alone; "
    "without a stride, a window needs an odd side."
)


def check_cells(
    module: fx.GraphModule,
    top: fx.Node,
    *,
    size: Size,
    covering: bool,
    even: Collection[fx.Node] = (),
) -> None:
    """Run a network, and compare the size of each map with those that it is made of.

    Args:
        top: a node whose cells must be more than one that stands for the whole image.
        size: (height, width) of the image in px, of several cells of `top`.
        covering: a window that slides in steps of s must make ceil(n / s) cells of n; otherwise it
            may make whatever it makes.
        even: nodes that make one cell more where their window's side is even.

    Raises:
        UnsupportedModelError: a node fails, or makes other cells; it is named.
    """
    shapes = _run(module, size)
    cells: dict[fx.Node, Size] = {}
    pooled: dict[fx.Node, fx.Node] = {}  # a value of the whole image, and the pool that made it
    for node in module.graph.nodes:
        maps = [one for one in node.all_input_nodes if one in cells]
        shape = shapes.get(node, ())
        made = (shape[2], shape[3]) if len(shape) == 4 else None
        if not maps:
            if made is not None:
                cells[node] = made
            continue
        given = max(cells[one] for one in maps)
        window = sliding_of(module, node)
        if window is None:
            expected = given
        elif covering:
            expected = _covering(window, given, node in even)
        else:
            expected = made or given
        cells[node] = made or expected
        if all(one in pooled for one in maps):
            pooled[node] = pooled[maps[0]]
        elif window is None and cells[node] == (1, 1) != expected:
            pooled[node] = node
        elif cells[node] != expected:
            raise unsupported(
                f"{describe(module, node)} makes {_text(cells[node])} cells of {_text(given)}; "
                f"expected {_text(expected)}",
                hint=_HINT,
            )
    if top in pooled:
        pool = describe(module, pooled[top])
        raise unsupported(
            f"{pool} makes one cell of the whole image, and does not slide",
            hint=HINT_POOL,
        )


def _run(module: fx.GraphModule, size: Size) -> dict[fx.Node, tuple[int, ...]]:
    first = first_convolution(module)
    if first is None:
        raise unsupported("it has no Conv2d")
    recorder = ShapeRecorder(module)
    try:
        # only the shapes are computed, not the values
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            recorder.run(torch.zeros(1, first.in_channels, *size, device=first.weight.device))
    except Exception as exc:  # the user's layers may raise anything
        raise unsupported(
            f"{describe(module, recorder.current)} fails at {_text(size)}: {first_line(exc)}"
        ) from exc
    return recorder.shapes


def _covering(window: Sliding, given: Size, even: bool) -> Size:
    """Give ceil(n / stride) of n along both axes, and one more for an even window."""
    strides = window.stride or (1, 1)
    kernel, dilation = window.kernel or (1, 1), window.dilation or (1, 1)
    rows, columns = (
        -(-count // stride) + (spread * (side - 1) % 2 if even else 0)
        for count, stride, side, spread in zip(given, strides, kernel, dilation, strict=True)
    )
    return rows, columns


def _text(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
