"""What a graph's outputs mean: which holds labels or class scores, in which layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fcn_deploy.artifact.output_meaning import OutputMeaning
from fcn_deploy.errors import ArtifactError
from fcn_deploy.graph.peel import PeeledTail
from fcn_deploy.names import TensorSpec
from fcn_deploy.opening.locate import ModelFile

__all__ = ["OutputFormat", "main_output", "output_format"]


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
    file: ModelFile,
    main: TensorSpec,
    meaning: OutputMeaning | None,
    *,
    peel: bool,
    confidence: str | None,
) -> OutputFormat:
    """Say what the outputs of a loaded graph mean.

    Args:
        main: the output to label by.
        meaning: what is known of it; None of files that are no ONNX graphs.
        peel: the network stops where `meaning` says, if it says so.

    Raises:
        ArtifactError: the output is neither labels nor scores of classes.
    """
    if meaning is None:
        meaning = OutputMeaning("logits")
    if peel and meaning.stop_at is not None and meaning.finish is not None:
        peeled = PeeledTail.of(meaning.stop_at, meaning.finish)
        if len(main.shape) != 4 or not main.dtype.startswith("float"):
            raise ArtifactError(f"'{file.path}' gives {main} to stop at; expected float scores.")
        return OutputFormat("scores", peeled.scores, threshold=peeled.threshold, peeled=peeled)
    whole = meaning.whole_because if peel else "it was asked for whole"
    found = OutputFormat(
        kind="labels" if main.dtype.startswith(("int", "uint", "bool")) else "scores",
        name=main.name,
        class_axis=meaning.class_axis,
        threshold=meaning.score_threshold,
        confidence=confidence,
        inner_scores=meaning.scores,
        inner_class_axis=meaning.scores_class_axis,
        not_peeled_because=whole if meaning.makes_labels else None,
    )
    if found.kind == "scores" and len(main.shape) != 4:
        raise ArtifactError(
            f"'{file.path}' gives {main}; expected labels [N, H, W] or scores [N, C, H, W]."
        )
    return found


def main_output(file: ModelFile, outputs: Sequence[TensorSpec]) -> TensorSpec:
    """Pick the output to label by: the only one, or the one with the usual name.

    Raises:
        ArtifactError: more than one may be labels or scores of classes.
    """
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
