"""Make a classifier fully convolutional: linear layers become convolutions of equal weights.

The classifier is traced with torch.fx. Where its features are flattened, the flattening goes, and
each linear layer behind it becomes a convolution over what it has seen: the window of the features
at the classifier's own input size. At that size the scores stay the same; on a larger image there
is one score for each place of the window (Long, Shelhamer, Darrell: Fully Convolutional Networks
for Semantic Segmentation, CVPR 2015, section 3.1).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from fcn_models.flattened_window import (
    Window,
    as_2d,
    as_convolution,
    open_window,
)
from fcn_models.flattening import FLATTENING, Flattening, read_flattening
from fcn_models.foreign_errors import first_line
from fcn_models.nodes import (
    describe,
    is_elementwise,
    is_linear,
    join_by_channels,
    layer_of,
    operation,
)
from fcn_models.tracing import HINT_POOL, ShapeRecorder, trace_with_shapes, unsupported

__all__ = ["Conversion", "convert", "convolutionalize"]

# how much larger the image is that must have more scores: a stride of 64 px is the largest
_MORE_PX = (67, 99)
# of the largest score: convolutions sum in another order than matrix products
_ROUNDING = 1e-3


@dataclass(slots=True)
class Conversion:
    """A converted graph, with what is known of its nodes.

    Attributes:
        module: takes images, gives a map of scores.
        shapes: of each node's output at the classifier's own size, before the conversion.
        convolved: nodes of linear layers that are convolutions now, in order.
        sliding: nodes of pools that slide now in steps of one cell.
    """

    module: fx.GraphModule
    shapes: dict[fx.Node, tuple[int, ...]]
    convolved: list[fx.Node] = field(default_factory=list)
    sliding: list[fx.Node] = field(default_factory=list)


def convolutionalize(
    classifier: nn.Module, *, input_size: tuple[int, int] = (224, 224)
) -> fx.GraphModule:
    """Make a classifier fully convolutional, with the same weights.

    Args:
        classifier: on the CPU, of a convolutional trunk, pooling, flatten and linear layers, such
            as torchvision's AlexNet, VGG, GoogLeNet and ResNet; not modified.
        input_size: (height, width) in px that it was made for. It decides how much of the
            features its first linear layer has seen.

    Returns:
        A module with copies of the weights, under the same names. It takes images of `input_size`
        and larger, and gives scores [N, classes, h, w]: [N, classes, 1, 1] at `input_size`, where
        they are the classifier's to float rounding, and one for each place of that window on a
        larger image, in steps of the trunk's stride: pooling over all of the features slides. It
        is in evaluation mode, and dropout that was called as a function is a layer.

    Raises:
        UnsupportedModelError: a layer cannot be converted; it is named.
    """
    conversion = convert(classifier, input_size=input_size)
    _check(classifier, conversion, input_size)
    return conversion.module


def convert(
    classifier: nn.Module, *, input_size: tuple[int, int], keep_pool: bool = True
) -> Conversion:
    """Convert without running the result.

    Args:
        keep_pool: False drops the pooling over all of the features, so that each cell has scores
            of its own.

    Raises:
        UnsupportedModelError: a layer cannot be converted; it is named.
    """
    module, shapes = trace_with_shapes(classifier, input_size)
    conversion = Conversion(module, shapes)
    windows: dict[fx.Node, Window] = {}
    opened: dict[Flattening, fx.Node] = {}
    for node in list(module.graph.nodes):
        flattening = read_flattening(node, shapes)
        if flattening is not None:
            if flattening not in opened:
                features, window, pools = open_window(
                    module, node, flattening, shapes, keep_pool=keep_pool
                )
                windows[features], opened[flattening] = window, features
                conversion.sliding.extend(pools)
            node.replace_all_uses_with(opened[flattening])
            module.graph.erase_node(node)
            continue
        # a size stays as it is: the number of images is that of the features
        if node in shapes and node.op != "output" and windows.keys() & node.all_input_nodes:
            windows[node] = _converted(conversion, node, windows)
        elif is_linear(module, node):
            source = node.all_input_nodes[0]
            raise unsupported(
                f"{describe(module, node)} does not read flattened features, but "
                f"{list(shapes.get(source, ()))} that {describe(module, source)} makes"
            )
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    if not isinstance(output.args[0], fx.Node) or output.args[0] not in windows:
        raise unsupported(
            "its output is not one tensor of scores made by linear layers behind a flatten"
        )
    if not conversion.convolved:
        raise unsupported("no linear layer follows its flatten")
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return conversion


def _converted(conversion: Conversion, node: fx.Node, windows: dict[fx.Node, Window]) -> Window:
    """Convert a node that reads what was a vector."""
    module = conversion.module
    tensors = windows.keys() | conversion.shapes.keys()
    read = [windows.get(one) for one in node.all_input_nodes if one in tensors]
    known = [window for window in read if window is not None]
    window, layer = known[0], layer_of(module, node)
    if isinstance(layer, nn.Linear) and len(read) == 1:
        made = as_convolution(layer, window)
        module.set_submodule(str(node.target), made)
        conversion.convolved.append(node)
        return Window(made.out_channels)
    if isinstance(layer, nn.Conv2d) and node.target in {n.target for n in conversion.convolved}:
        raise unsupported(f"{describe(module, node)} is used twice")
    if isinstance(layer, nn.BatchNorm1d) and window.size == (1, 1):
        module.set_submodule(str(node.target), as_2d(layer))
        return window
    if is_elementwise(module, node) and len(known) == len(read) and len(set(known)) == 1:
        return window
    shape = conversion.shapes[node]
    single_cells = len(known) == len(read) and all(one == Window(one.channels) for one in known)
    if single_cells and join_by_channels(module, node, rank=len(shape)):
        return Window(shape[1])
    vector = (window.channels * window.size[0] * window.size[1],)
    if operation(node) in FLATTENING and shape[1:] == vector and len(known) == 1:
        node.op, node.target = "call_function", _unchanged
        node.args, node.kwargs = (node.all_input_nodes[0],), {}
        return window
    raise unsupported(f"{describe(module, node)} reads flattened features")


def _unchanged(features: torch.Tensor) -> torch.Tensor:
    """Stand for a second flatten of what was flat already."""
    return features


def _check(classifier: nn.Module, conversion: Conversion, input_size: tuple[int, int]) -> None:
    """Compare both at the classifier's size, and run a larger image.

    Raises:
        UnsupportedModelError: the scores differ, or the size is not free.
    """
    module = conversion.module
    channels = next(iter(conversion.shapes.values()))[1]
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, channels, *input_size, generator=generator)
    small, large = ShapeRecorder(module), ShapeRecorder(module)
    with torch.no_grad():
        expected = copy.deepcopy(classifier).eval()(image)
        found = small.run(image)
        if found.shape[2:] != (1, 1):
            raise unsupported(f"converted, it gives scores {list(found.shape)} at its own size")
        difference = float((found.flatten(1) - expected).abs().max())
        if not difference <= _ROUNDING * max(1.0, float(expected.abs().max())):
            raise unsupported(f"converted, it gives scores that differ by {difference:.2g}")
        try:
            large.run(nn.functional.pad(image, (0, _MORE_PX[1], 0, _MORE_PX[0])))
        except Exception as exc:  # the user's layers may raise anything
            raise unsupported(
                f"{describe(module, large.current)} is bound to "
                f"{input_size[0]}x{input_size[1]}: {first_line(exc)}"
            ) from exc
    bound = _bound_by(module, small.shapes, large.shapes)
    if bound is not None:
        height, width = large.shapes[bound][2:]
        raise unsupported(
            f"{describe(module, bound)} makes {height}x{width} cells of a larger image, too, and "
            "does not slide",
            hint=HINT_POOL,
        )


def _bound_by(
    module: fx.GraphModule,
    small: Mapping[fx.Node, tuple[int, ...]],
    large: Mapping[fx.Node, tuple[int, ...]],
) -> fx.Node | None:
    """Give the node for whose sake a larger image has no more scores; None where it has."""

    def is_bound(node: fx.Node) -> bool:
        given, made = small.get(node, ()), large.get(node, ())
        return len(given) == len(made) == 4 and (given[2] == made[2] or given[3] == made[3])

    bound = None
    (node,) = (node for node in module.graph.nodes if node.op == "output")
    while (earlier := next(filter(is_bound, node.all_input_nodes), None)) is not None:
        bound = node = earlier
    return bound
