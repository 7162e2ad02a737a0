"""Learn from a module, by running it, how its graph must be: classes, sizes, upsampling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.errors import UnsupportedModelError
from fcn_export.graph_spec import GraphSpec
from fcn_export.load.torch_model import LoadedModel, probe
from fcn_export.request import ExportRequest
from fcn_export.trace.size_rule import STEPS, find_size_rule, fit_shapes

if TYPE_CHECKING:
    from torch import nn

__all__ = ["plan_graph"]

_PROBE_SIZE = (128, 192)  # multiples of every step that is tried, unequal, and cheap


def plan_graph(
    module: nn.Module, loaded: LoadedModel, request: ExportRequest
) -> tuple[GraphSpec, ShapeRange]:
    """Run the network at small sizes and decide its graph.

    Args:
        module: `loaded`'s, in evaluation mode, on the CPU, float32.

    Returns:
        The graph's specification, and the range of shapes fitted to what the network takes.

    Raises:
        UnsupportedModelError: the network fails at every size, or gives no class scores.
    """
    preprocess = request.preprocess()
    channels = len(preprocess.mean)
    key = loaded.output_key
    classes = _count_classes(module, channels, key, request.size)

    def run(height: int, width: int) -> tuple[int, int]:
        import torch

        from fcn_export.load.torch_model import select_output

        with torch.no_grad():
            scores = select_output(module(torch.zeros(1, channels, height, width)), key)
        return scores.shape[2], scores.shape[3]

    asked = request.shapes()
    rule = find_size_rule(run, min_size=asked.min[1:], max_size=asked.max[1:])
    spec = GraphSpec(
        preprocess,
        classes,
        input_color=request.input_color,
        head=request.head,
        output_key=key,
        upsample=not rule.full_resolution,
        multiple_of=rule.multiple_of,
        min_size=rule.min_size,
        opset=request.opset,
    )
    return spec, fit_shapes(asked, rule)


def _count_classes(module: nn.Module, channels: int, key: str | None, size: tuple[int, int]) -> int:
    """Run the network once; where it refuses a small image, at the usual size."""
    try:
        return probe(module, channels=channels, size=_PROBE_SIZE, output_key=key)[1]
    except UnsupportedModelError:
        height, width = (-(-side // STEPS[-1]) * STEPS[-1] for side in size)
        return probe(module, channels=channels, size=(height, width), output_key=key)[1]
