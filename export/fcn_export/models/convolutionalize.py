"""A classifier made fully convolutional: its linear layers become convolutions of equal weights.

The classifier is traced with torch.fx. Where its features are flattened, the flattening goes, and
each linear layer behind it becomes a convolution over what it has seen: the window of the features
at the classifier's own input size. At that size the scores stay the same; on a larger image there
is one score for each place of the window (Long, Shelhamer, Darrell: Fully Convolutional Networks
for Semantic Segmentation, CVPR 2015, section 3.1).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from fcn_deploy.errors import UnsupportedModelError
from fcn_export.models.nodes import (
    axes_of,
    describe,
    is_elementwise,
    is_linear,
    join_by_channels,
    layer_of,
    operation,
    pooled_by,
)

__all__ = ["Conversion", "convert", "convolutionalize"]

_HINT = (
    "A classifier must be a convolutional trunk, pooling, flatten and linear layers, "
    "with elementwise layers between them."
)
_FLATTENING = ("flatten", "view", "reshape", "squeeze")

# of the largest score: convolutions sum in another order than matrix products
_ROUNDING = 1e-3


@dataclass(slots=True)
class Conversion:
    """A converted graph, with what is known of its nodes.

    Attributes:
        module: takes images, gives a map of scores.
        shapes: of each node's output at the classifier's own size, before the conversion.
        convolved: nodes of linear layers that are convolutions now, in order.
        pools: nodes of the pooling before the flattening, where it is more than the identity.
    """

    module: fx.GraphModule
    shapes: dict[fx.Node, tuple[int, ...]]
    convolved: list[fx.Node] = field(default_factory=list)
    pools: list[fx.Node] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Window:
    """What one vector was flattened from: channels, (height, width), and the cells between."""

    channels: int
    size: tuple[int, int] = (1, 1)
    spacing: tuple[int, int] = (1, 1)


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
        larger image, in steps of the trunk's stride. It is in evaluation mode.

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
    module, shapes = _traced(classifier, input_size)
    conversion = Conversion(module, shapes)
    windows: dict[fx.Node, _Window] = {}
    for node in list(module.graph.nodes):
        source = _flattened(node, shapes)
        if source is not None:
            features, window = _opened(conversion, node, source, keep_pool=keep_pool)
            windows[features] = window
            node.replace_all_uses_with(features)
            module.graph.erase_node(node)
            continue
        if node.op != "output" and any(one in windows for one in node.all_input_nodes):
            windows[node] = _converted(conversion, node, windows)
        elif is_linear(module, node):
            raise _unsupported(
                f"{describe(module, node)} does not read flattened features, but "
                f"{list(shapes[node.all_input_nodes[0]])}"
            )
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    if not isinstance(output.args[0], fx.Node) or output.args[0] not in windows:
        raise _unsupported(
            "its output is not one tensor of scores made by linear layers behind a flatten"
        )
    if not conversion.convolved:
        raise _unsupported("no linear layer follows its flatten")
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return conversion


def _traced(
    classifier: nn.Module, input_size: tuple[int, int]
) -> tuple[fx.GraphModule, dict[fx.Node, tuple[int, ...]]]:
    own = copy.deepcopy(classifier).eval()
    try:
        module = fx.symbolic_trace(own)
    except Exception as exc:  # the trace runs the user's code, which may raise anything
        raise _unsupported(
            f"torch.fx cannot trace it: {type(exc).__name__}: {_first_line(exc)}"
        ) from exc
    first = next((x for x in own.modules() if isinstance(x, nn.Conv2d)), None)
    if first is None:
        raise _unsupported("it has no Conv2d")
    recorder = _ShapeRecorder(module)
    image = torch.zeros(2, first.in_channels, *input_size, device=first.weight.device)
    try:
        with torch.no_grad():
            recorder.run(image)
    except Exception as exc:  # as above
        raise _unsupported(
            f"{describe(module, recorder.current)} fails at {input_size[0]}x{input_size[1]}: "
            f"{_first_line(exc)}"
        ) from exc
    return module, recorder.shapes


class _ShapeRecorder(fx.Interpreter):
    """Runs a graph once and keeps the shapes of all tensors."""

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


def _flattened(node: fx.Node, shapes: dict[fx.Node, tuple[int, ...]]) -> fx.Node | None:
    """Give the features [N, C, h, w] of which this node makes [N, C * h * w]; None if it does not.

    A mean over height and width is such a node too.
    """
    if not node.args or not isinstance(node.args[0], fx.Node):
        return None
    source = node.args[0]
    given, made = shapes.get(source), shapes.get(node)
    if given is None or made is None or len(given) != 4 or len(made) != 2:
        return None
    name = operation(node)
    flat = name in _FLATTENING and made[1] == given[1] * given[2] * given[3]
    mean = name == "mean" and made[1] == given[1] and axes_of(node) == (2, 3)
    return source if flat or mean else None


def _opened(
    conversion: Conversion, node: fx.Node, source: fx.Node, *, keep_pool: bool
) -> tuple[fx.Node, _Window]:
    """Let the pooling before a flatten slide; give the features that take the flatten's place."""
    module, shapes = conversion.module, conversion.shapes
    channels, height, width = shapes[source][1:]
    if operation(node) == "mean":
        if not keep_pool:
            return source, _Window(channels)
        name = f"{node.name}_sliding"
        module.add_submodule(name, nn.AvgPool2d((height, width), stride=1))
        with module.graph.inserting_before(node):
            pool = module.graph.call_module(name, (source,))
        conversion.pools.append(pool)
        return pool, _Window(channels)
    found = _pool_before(module, source)
    if found is None:
        return source, _Window(channels, (height, width))
    kernel = _pool_kernel(module, found, shapes)
    if (height, width) == (1, 1) and not keep_pool:
        before = found.all_input_nodes[0]
        found.replace_all_uses_with(before)
        return (before if found is source else source), _Window(channels)
    _let_slide(module, found, kernel)
    if kernel != (1, 1):
        conversion.pools.append(found)
    return source, _Window(channels, (height, width), kernel)


def _pool_before(module: fx.GraphModule, source: fx.Node) -> fx.Node | None:
    node = source
    while pooled_by(module, node) is None:
        if not is_elementwise(module, node) or len(node.all_input_nodes) != 1:
            return None
        node = node.all_input_nodes[0]
    return node


def _pool_kernel(
    module: fx.GraphModule, pool: fx.Node, shapes: dict[fx.Node, tuple[int, ...]]
) -> tuple[int, int]:
    given, made = shapes[pool.all_input_nodes[0]][2:], shapes[pool][2:]
    if given[0] % made[0] or given[1] % made[1]:
        raise _unsupported(
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


def _converted(conversion: Conversion, node: fx.Node, windows: dict[fx.Node, _Window]) -> _Window:
    """Convert a node that reads what was a vector."""
    module = conversion.module
    read = [windows.get(one) for one in node.all_input_nodes]
    known = [window for window in read if window is not None]
    window, layer = known[0], layer_of(module, node)
    if isinstance(layer, nn.Linear) and len(read) == 1:
        made = _as_convolution(layer, window)
        module.set_submodule(str(node.target), made)
        conversion.convolved.append(node)
        return _Window(made.out_channels)
    if isinstance(layer, nn.Conv2d) and node.target in {n.target for n in conversion.convolved}:
        raise _unsupported(f"{describe(module, node)} is used twice")
    if isinstance(layer, nn.BatchNorm1d) and window.size == (1, 1):
        module.set_submodule(str(node.target), _as_2d(layer))
        return window
    if is_elementwise(module, node) and len(known) == len(read) and len(set(known)) == 1:
        return window
    if all(one == _Window(one.channels) for one in known) and len(known) == len(read):
        if join_by_channels(module, node, rank=len(conversion.shapes[node])):
            return _Window(conversion.shapes[node][1])
        if operation(node) in _FLATTENING and conversion.shapes[node] == conversion.shapes.get(
            node.all_input_nodes[0]
        ):
            node.op, node.target = "call_function", _unchanged
            node.args, node.kwargs = (node.all_input_nodes[0],), {}
            return window
    raise _unsupported(f"{describe(module, node)} reads flattened features")


def _unchanged(features: torch.Tensor) -> torch.Tensor:
    """Stand for a second flatten of what was flat already."""
    return features


def _as_convolution(linear: nn.Linear, window: _Window) -> nn.Conv2d:
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


def _as_2d(norm: nn.BatchNorm1d) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(
        norm.num_features,
        eps=norm.eps,
        momentum=norm.momentum,
        affine=norm.affine,
        track_running_stats=norm.track_running_stats,
    )
    made.load_state_dict(norm.state_dict())
    return made.train(norm.training)


def _check(classifier: nn.Module, conversion: Conversion, input_size: tuple[int, int]) -> None:
    """Compare both at the classifier's size, and run a larger image.

    Raises:
        UnsupportedModelError: the scores differ, or the size is not free.
    """
    image = torch.zeros(1, next(iter(conversion.shapes.values()))[1], *input_size)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(image.shape, generator=generator)
    was_training = classifier.training
    recorder = _ShapeRecorder(conversion.module)
    with torch.no_grad():
        expected = classifier.eval()(image)
        classifier.train(was_training)
        found = conversion.module(image)
        difference = float((found.flatten(1) - expected).abs().max())
        if found.shape[2:] != (1, 1) or difference > _ROUNDING * max(
            1.0, float(expected.abs().max())
        ):
            raise _unsupported(
                f"converted, it gives scores {list(found.shape)} that differ by {difference:.2g}"
            )
        try:
            recorder.run(nn.functional.pad(image, (0, 67, 0, 35)))
        except Exception as exc:  # the user's layers may raise anything
            raise _unsupported(
                f"{describe(conversion.module, recorder.current)} is bound to "
                f"{input_size[0]}x{input_size[1]}: {_first_line(exc)}"
            ) from exc


def _unsupported(reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the classifier cannot be made fully convolutional: {reason}.", hint=_HINT
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0][:300]
