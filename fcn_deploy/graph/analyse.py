"""The one door to what a segmentation graph says: what its output means and where it may stop."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import cast

from fcn_deploy.artifact.manifest import SeenByNetwork
from fcn_deploy.artifact.output_meaning import Activation, ClassAxis, OutputMeaning
from fcn_deploy.graph.field_summary import summarize_field
from fcn_deploy.graph.peel import PeeledTail, peel_tail
from fcn_deploy.graph.receptive_field import ReceptiveField, find_receptive_field
from fcn_deploy.graph.scan import OnnxGraph
from fcn_deploy.graph.tail import Tail, find_tail

__all__ = ["GraphAnalysis", "analyse"]


@dataclass(frozen=True, slots=True)
class GraphAnalysis:
    """What was found in a graph.

    Attributes:
        output: that labels are read from.
        tail: how that output is made; None where it is not one of the usual ways.
        peeled: what a runtime may do in place of the tail, crops included, or why it may not.
        meaning: the same in the words of a manifest.
    """

    graph: OnnxGraph = field(repr=False)
    output: str
    tail: Tail | None
    peeled: PeeledTail | str
    meaning: OutputMeaning

    def receptive_field(self) -> SeenByNetwork | str:
        """Work out what the network sees, or a phrase that says why it cannot be told."""
        return summarize_field(self.graph)

    def measured(self) -> OutputMeaning:
        """Give the meaning with the memory that a run takes, for a manifest."""
        peeled = self.peeled
        end = peeled.scores if isinstance(peeled, PeeledTail) else self.output
        seen = find_receptive_field(self.graph, end)
        memory = float(seen.bytes_per_px) if isinstance(seen, ReceptiveField) else None
        return _meaning(self.graph, self.output, self.tail, peeled, memory)


def analyse(graph: OnnxGraph, *, output: str | None = None) -> GraphAnalysis:
    """Find out what an output means, and whether a runtime may stop at its scores.

    Args:
        output: which; None means the first.
    """
    name = graph.outputs[0].name if output is None else output
    tail = find_tail(graph, output=name)
    peeled = _peel(graph, tail)
    return GraphAnalysis(graph, name, tail, peeled, _meaning(graph, name, tail, peeled))


def _peel(graph: OnnxGraph, tail: Tail | None) -> PeeledTail | str:
    if graph.external_files:
        return "its weights lie in files of their own"
    if len(graph.outputs) != 1:
        return "it has several outputs"
    return peel_tail(graph, tail)


def _meaning(
    graph: OnnxGraph,
    output: str,
    tail: Tail | None,
    peeled: PeeledTail | str,
    bytes_per_px: float | None = None,
) -> OutputMeaning:
    if tail is None:
        return OutputMeaning(_activation_of(graph, output), bytes_per_px=bytes_per_px)
    # a crop or a transposed convolution says more than sizes where scores lie
    unplaced = tail.crops or tail.coordinates == "transposed"
    inner = None if unplaced else tail.low_scores
    scores: str | None = inner or tail.scores
    if scores is not None and graph.producer(scores) is None:
        scores = None  # the image itself, which is no output that could be asked for
    stop = peeled if isinstance(peeled, PeeledTail) else None
    return OutputMeaning(
        activation=tail.low_activation or (None if tail.labels else tail.activation) or "logits",
        threshold=_probability(tail),
        class_axis=cast(ClassAxis, tail.class_axis),
        stop_at=None if stop is None else stop.scores,
        finish=None if stop is None else stop.finish,
        scores=None if scores == output else scores,
        scores_class_axis=cast(
            ClassAxis, tail.class_axis if inner is None else tail.low_class_axis
        ),
        whole_because=None if stop or tail.labels is None else str(peeled),
        bytes_per_px=bytes_per_px,
    )


def _activation_of(graph: OnnxGraph, output: str) -> Activation:
    described = graph.tensor(output)
    dtype = described.dtype if described is not None else None
    return "ids" if (dtype or "").startswith(("int", "uint", "bool")) else "logits"


def _probability(tail: Tail) -> float | None:
    """Give the probability above which a single class is there; None where it is no number."""
    if tail.threshold is None:
        return 0.5
    if not math.isfinite(tail.threshold):
        return None
    if tail.activation or tail.low_activation:
        return tail.threshold
    return 1 / (1 + math.exp(-max(-700.0, tail.threshold)))
