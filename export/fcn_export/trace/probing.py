"""Learn from a module, by running it, how its graph must be: classes, sizes, upsampling."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.errors import UnsupportedModelError
from fcn_export.graph_spec import GraphSpec
from fcn_export.load.torch_model import LoadedModel, probe
from fcn_export.request import ExportRequest
from fcn_export.trace.size_rule import (
    RunSize,
    SizeRule,
    find_only_size,
    find_size_rule,
    fit_shapes,
)

if TYPE_CHECKING:
    from torch import nn

__all__ = ["specify_graph"]

log = logging.getLogger(__name__)

# unequal and cheap, multiples of all powers of two up to 64; then of patches of 14 and of 12 px
_PROBE_SIZES = ((128, 192), (336, 336), (224, 224))


def specify_graph(
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
    asked = request.shapes()
    classes = _count_classes(module, channels, key, asked)

    whole = request.activation == "ids"

    def run(height: int, width: int) -> tuple[int, int]:
        nonlocal whole
        import torch

        from fcn_export.load.torch_model import select_output

        with torch.no_grad():
            scores = select_output(module(torch.zeros(1, channels, height, width)), key)
        whole = whole or not scores.is_floating_point()
        return scores.shape[2], scores.shape[3]

    rule, bound = _find_rule(run, asked)
    size = asked.opt[1:] if bound else (None, None)
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
        fixed=(None, *size),
        activation="ids" if whole else "logits",
    )
    return spec, asked if bound else fit_shapes(asked, rule)


def _find_rule(run: RunSize, asked: ShapeRange) -> tuple[SizeRule, bool]:
    """Find the rule; also says whether the network is bound to the only size that is asked for."""
    low, usual, high = (shape[1:] for shape in asked)
    if low != high:
        return find_size_rule(run, min_size=low, max_size=high, size=usual), False
    only = find_only_size(run, usual)
    try:
        rule = find_size_rule(run, min_size=low, max_size=high)
    except UnsupportedModelError:
        return only, True
    return (rule, False) if rule.min_size == usual else (only, True)


def _count_classes(module: nn.Module, channels: int, key: str | None, asked: ShapeRange) -> int:
    """Run the network once, at a size that is asked for or else a usual one."""
    single = asked.min[1:] == asked.max[1:]
    sizes = (asked.opt[1:],) if single else (asked.min[1:], *_PROBE_SIZES, asked.opt[1:])
    *first, last = dict.fromkeys(sizes)
    for size in first:
        try:
            return probe(module, channels=channels, size=size, output_key=key)[1]
        except UnsupportedModelError as error:
            log.debug("%dx%d px is refused: %s", *size, error)
    return probe(module, channels=channels, size=last, output_key=key)[1]
