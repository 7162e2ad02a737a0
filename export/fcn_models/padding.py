"""Choose the padding of a trunk's windows: the paper's, or so that cells cover the image."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, fx, nn

from fcn_deploy.errors import UnsupportedModelError
from fcn_models.nodes import Sliding, argument, describe, layer_of, operation, sliding_of
from fcn_models.tracing import first_convolution

__all__ = [
    "PAPER_PADDING_PX",
    "PadToMultiple",
    "pad_aligned",
    "pad_as_in_paper",
    "pad_to_multiple",
]

PAPER_PADDING_PX = 100
"""The paper's networks pad the image by so much, so that none is too small for fc6's window."""


class PadToMultiple(nn.Module):
    """Pads images with zeros at the bottom and at the right, until a whole number divides both."""

    def __init__(self, multiple: int) -> None:
        super().__init__()
        self.multiple = multiple

    def forward(self, image: Tensor) -> Tensor:
        """Pad an image, float32 [N, C, H, W], on all four sides."""
        height, width = image.shape[2:]
        return nn.functional.pad(image, (0, -width % self.multiple, 0, -height % self.multiple))


def pad_as_in_paper(module: fx.GraphModule) -> None:
    """Pad the image, and nothing else than the classifier did; Caffe's pools round up.

    Raises:
        UnsupportedModelError: a layer other than the first pads less than half of its window.
    """
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


def pad_to_multiple(module: fx.GraphModule, multiple: int) -> None:
    """Let the image be padded first: windows of an even side leave out what is left over."""
    (image,) = (node for node in module.graph.nodes if node.op == "placeholder")
    module.add_submodule("pad_to_multiple", PadToMultiple(multiple))
    with module.graph.inserting_after(image):
        padded = module.graph.call_module("pad_to_multiple", (image,))
    image.replace_all_uses_with(padded, delete_user_cb=lambda user: user is not padded)


def pad_aligned(module: fx.GraphModule, windows: Collection[fx.Node]) -> None:
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
        if sliding_of(module, node) is None:
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
