"""What a graph's outputs mean: which holds labels or class scores, in which layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fcn_deploy.errors import ArtifactError
from fcn_deploy.graph.peel import PeeledTail
from fcn_deploy.graph.tail import find_tail
from fcn_deploy.names import TensorSpec
from fcn_deploy.opening.locate import ModelFile

__all__ = ["OutputFormat", "output_format"]


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """What a graph's outputs mean.

    Attributes:
        kind: ``"labels"``, or ``"scores"`` where the argmax is left to the runtime.
        name: of the output that holds them.
        class_axis: of scores: 1 for [N, C, H, W], 3 for [N, H, W, C].
        threshold: of a single class's score, above which a pixel is of the class.
        confidence: name of the output with the label's probability, or None.
        inner_scores: name of the tensor that holds the scores before upsampling, or None where
            they are the output itself or unknown.
        inner_class_axis: of that tensor.
        on_device: whether the labels are made of the inner scores where the network runs, and not
            in its graph.
        not_on_device_because: a phrase, where a device might have labelled its scores.
        peeled: what the runtime does in place of the graph's tail; None where nothing.
        not_peeled_because: a phrase, where the graph makes the labels itself.
    """

    kind: Literal["labels", "scores"]
    name: str
    class_axis: int = 1
    threshold: float = 0.0
    confidence: str | None = None
    inner_scores: str | None = None
    inner_class_axis: int = 1
    on_device: bool = False
    not_on_device_because: str | None = None
    peeled: PeeledTail | None = None
    not_peeled_because: str | None = None


def output_format(
    file: ModelFile, specs: Sequence[TensorSpec], peeled: PeeledTail | str
) -> OutputFormat:
    """Find out what the outputs of a graph of anyone's making mean.

    Args:
        specs: the loaded network's outputs.
        peeled: what the runtime does in place of the graph's tail, or why it does nothing.

    Raises:
        ArtifactError: none of them, or more than one, may be labels or scores of classes.
    """
    if isinstance(peeled, PeeledTail):
        return OutputFormat("scores", peeled.scores, threshold=peeled.threshold, peeled=peeled)
    outputs = {spec.name: spec for spec in specs}
    confidence = "confidence" if file.manifest is not None and "confidence" in outputs else None
    main = _main_output(file, [spec for spec in specs if spec.name != confidence])
    tail = find_tail(file.graph, output=main.name) if file.graph is not None else None
    scores, class_axis = None, 1
    if tail is not None:
        # a crop or a transposed convolution says more than sizes where scores lie
        inner = None if tail.crops or tail.coordinates == "transposed" else tail.low_scores
        scores = inner or tail.scores
        class_axis = tail.class_axis if inner is None else tail.low_class_axis
        if file.graph is not None and file.graph.producer(scores) is None:
            scores = None  # the image itself, which is no output that could be asked for
    found = OutputFormat(
        kind="labels" if main.dtype.startswith(("int", "uint", "bool")) else "scores",
        name=main.name,
        class_axis=1 if tail is None else tail.class_axis,
        threshold=0.5 if tail is not None and (tail.activation or tail.probabilities) else 0.0,
        confidence=confidence,
        inner_scores=scores if scores != main.name else None,
        inner_class_axis=class_axis,
        not_peeled_because=peeled if tail is not None and tail.labels is not None else None,
    )
    if found.kind == "scores" and len(main.shape) != 4:
        raise ArtifactError(
            f"'{file.path}' gives {main}; expected labels [N, H, W] or scores [N, C, H, W]."
        )
    return found


def _main_output(file: ModelFile, outputs: Sequence[TensorSpec]) -> TensorSpec:
    """Pick the output to label by: the only one, or the one with the usual name."""
    if len(outputs) == 1:
        return outputs[0]
    for name in ("labels", "out", "scores", "logits", "output"):
        for spec in outputs:
            if spec.name == name:
                return spec
    images = [spec for spec in outputs if len(spec.shape) == 4]
    if len(images) == 1:
        return images[0]
    raise ArtifactError(
        f"'{file.path}' has several outputs: {'; '.join(map(str, outputs))}.",
        hint="Export it again with fcn-export and --output-key.",
    )
