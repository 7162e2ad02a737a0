"""A classifier traced with torch.fx, with the shapes of its tensors; or why it cannot be read."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn

from fcn_deploy.errors import UnsupportedModelError
from fcn_export.foreign_errors import first_line
from fcn_export.models.nodes import describe

__all__ = ["ShapeRecorder", "trace_with_shapes", "unsupported"]

_HINT = (
    "A classifier must be a convolutional trunk, pooling, flatten and linear layers, "
    "with elementwise layers between them."
)


def trace_with_shapes(
    classifier: nn.Module, input_size: tuple[int, int]
) -> tuple[fx.GraphModule, dict[fx.Node, tuple[int, ...]]]:
    """Trace a copy of a classifier, and run it once on two images.

    Args:
        input_size: (height, width) in px.

    Returns:
        The copy in evaluation mode, and the shape of each node's output.

    Raises:
        UnsupportedModelError: it cannot be traced, has no Conv2d, or fails at this size.
    """
    own = copy.deepcopy(classifier).eval()
    try:
        module = fx.symbolic_trace(own)
    except Exception as exc:  # the trace runs the user's code, which may raise anything
        raise unsupported(
            f"torch.fx cannot trace it: {type(exc).__name__}: {first_line(exc)}"
        ) from exc
    first = next((x for x in own.modules() if isinstance(x, nn.Conv2d)), None)
    if first is None:
        raise unsupported("it has no Conv2d")
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


def unsupported(reason: str) -> UnsupportedModelError:
    """Give the error that says why a classifier cannot be converted."""
    return UnsupportedModelError(
        f"the classifier cannot be made fully convolutional: {reason}.", hint=_HINT
    )
