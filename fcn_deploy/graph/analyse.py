"""The one door to what a segmentation graph says: what its output means and where it may stop."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import cast

from fcn_deploy.artifact.manifest import SeenByNetwork
from fcn_deploy.artifact.output_meaning import Activation, ClassAxis, OutputMeaning
from fcn_deploy.graph.field_summary import summarize_field
from fcn_deploy.graph.meaning import FoundMeaning, find_meaning, require_known
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
        found: what the output means, as far as the graph says it.
    """

    graph: OnnxGraph = field(repr=False)
    output: str
    tail: Tail | None
    peeled: PeeledTail | str
    found: FoundMeaning

    def receptive_field(self) -> SeenByNetwork | str:
        """Work out what the network sees, or a phrase that says why it cannot be told."""
        return summarize_field(self.graph)

    def meaning(self, found: FoundMeaning | None = None) -> OutputMeaning:
        """Give the same in the words of a manifest.

        Args:
            found: what is known of the output since, from its user and its values; None leaves it
                to the graph.

        Raises:
            ArtifactError: what the output means is not known.
        """
        return _meaning(self, found or self.found)

    def measured(self, found: FoundMeaning | None = None) -> OutputMeaning:
        """Give the meaning with the memory that a run takes, for a manifest; as `meaning`."""
        peeled = self.peeled
        end = peeled.scores if isinstance(peeled, PeeledTail) else self.output
        seen = find_receptive_field(self.graph, end)
        memory = float(seen.bytes_per_px) if isinstance(seen, ReceptiveField) else None
        return _meaning(self, found or self.found, memory)


def analyse(graph: OnnxGraph, *, output: str | None = None) -> GraphAnalysis:
    """Find out what an output means, and whether a runtime may stop at its scores.

    Args:
        output: which; None means the first.
    """
    name = graph.outputs[0].name if output is None else output
    tail = find_tail(graph, output=name)
    return GraphAnalysis(graph, name, tail, _peel(graph, tail), find_meaning(graph, output=name))


def _peel(graph: OnnxGraph, tail: Tail | None) -> PeeledTail | str:
    if graph.external_files:
        return "its weights lie in files of their own"
    if len(graph.outputs) != 1:
        return "it has several outputs"
    return peel_tail(graph, tail)


def _meaning(
    analysis: GraphAnalysis, found: FoundMeaning, bytes_per_px: float | None = None
) -> OutputMeaning:
    require_known(found)
    graph, tail, output = analysis.graph, analysis.tail, analysis.output
    labels = found.kind == "labels"
    activation = _written(found.activation)
    # a tail of scores is looked for with the classes second
    fits = tail is not None and (tail.labels is not None) == labels
    if tail is None or not fits or (not labels and found.class_axis != 1):
        return OutputMeaning(
            activation,
            threshold=0.5 if found.threshold is None else found.threshold,
            class_axis=cast("ClassAxis | None", found.class_axis),
            bytes_per_px=bytes_per_px,
        )
    # a crop or a transposed convolution says more than sizes where scores lie
    unplaced = tail.crops or tail.coordinates == "transposed"
    inner = None if unplaced else tail.low_scores
    scores: str | None = inner or tail.scores
    if scores is not None and graph.producer(scores) is None:
        scores = None  # the image itself, which is no output that could be asked for
    if found.asked and tail.activation is not None:
        scores = None  # it is not known what the user's word makes of what lies before
    inside = _activation_of(graph, scores)
    if found.asked and inside != "ids":
        inside = activation
    stop = analysis.peeled if isinstance(analysis.peeled, PeeledTail) and labels else None
    return OutputMeaning(
        activation=inside if labels else activation,
        threshold=_probability(graph, tail) if labels else found.threshold or 0.5,
        class_axis=cast("ClassAxis | None", tail.class_axis if labels else found.class_axis),
        stop_at=None if stop is None else stop.scores,
        finish=None if stop is None else stop.finish,
        scores=None if scores == output else scores,
        scores_class_axis=cast(
            ClassAxis, tail.class_axis if inner is None else tail.low_class_axis
        ),
        whole_because=None if stop or not labels else str(analysis.peeled),
        bytes_per_px=bytes_per_px,
        scores_activation=None if labels or inside == activation else inside,
    )


def _written(found: str) -> Activation:
    """Give a manifest's word: the softmax of log-probabilities is that of the scores."""
    return cast(Activation, "logits" if found == "log_softmax" else found)


def _activation_of(graph: OnnxGraph, scores: str | None) -> Activation:
    """Say what a tensor of scores is; ``"ids"``, which makes no probabilities, where unknown."""
    found = "unknown" if scores is None else find_meaning(graph, output=scores).activation
    return "ids" if found == "unknown" else _written(found)


def _probability(graph: OnnxGraph, tail: Tail) -> float | None:
    """Give the probability above which a single class is there; None where it is not known."""
    if tail.threshold is None:
        return 0.5
    activation = tail.activation or find_meaning(graph, output=tail.scores).activation
    if not math.isfinite(tail.threshold) or activation in ("unknown", "ids"):
        return None
    if activation in ("sigmoid", "softmax"):
        return tail.threshold
    return 1 / (1 + math.exp(-max(-700.0, tail.threshold)))
