"""Which of a network's outputs is read, and how: as labels, as scores, or as peeled scores."""

from __future__ import annotations

from collections.abc import Sequence

from fcn_deploy.artifact.manifest import ClassInfo
from fcn_deploy.artifact.output_meaning import OutputMeaning
from fcn_deploy.draw import voc_palette
from fcn_deploy.errors import ArtifactError
from fcn_deploy.graph.peel import PeeledTail
from fcn_deploy.names import TensorSpec
from fcn_deploy.opening.locate import ModelFile
from fcn_deploy.opening.readers import (
    LabelsReader,
    OutputReader,
    PeeledScoresReader,
    ScoresReader,
)

__all__ = ["choose_reader"]


def choose_reader(
    file: ModelFile, specs: Sequence[TensorSpec], meaning: OutputMeaning | None, *, peel: bool
) -> OutputReader:
    """Find out how the outputs of a loaded network of anyone's making are read.

    Args:
        specs: the network's outputs.
        meaning: of its only output; None where it has several, or is no ONNX graph.
        peel: the network was stopped where `meaning` says, if it says so.

    Raises:
        ArtifactError: none of them, or more than one, may be labels or scores of classes.
    """
    named = [spec for spec in specs if spec.name == "confidence" and file.manifest is not None]
    main = _main_output(file, [spec for spec in specs if spec not in named])
    meaning = meaning or file.meaning(main.name) or OutputMeaning("logits")
    if peel and meaning.stop_at is not None and meaning.finish is not None:
        return _peeled_reader(file, main, PeeledTail.of(meaning.stop_at, meaning.finish))
    if not main.dtype.startswith(("int", "uint", "bool")):
        return _scores_reader(file, main, meaning)
    why = meaning.whole_because if peel else "it was asked for whole"
    return LabelsReader(
        file=file.path.name,
        output=main.name,
        head=f"in the graph, as {why}" if meaning.makes_labels else "in the graph",
        shapes=file.shapes,
        classes=_classes(file, None),
        scores=meaning.scores,
        scores_axis=meaning.scores_class_axis,
        confidence=named[0].name if named else None,
    )


def _peeled_reader(file: ModelFile, scores: TensorSpec, peeled: PeeledTail) -> PeeledScoresReader:
    if len(scores.shape) != 4 or not scores.dtype.startswith("float"):
        raise ArtifactError(f"'{file.path}' gives {scores} to stop at; expected float scores.")
    return PeeledScoresReader(
        file=file.path.name,
        output=scores.name,
        head=f"in the runtime, peeled from the graph at '{scores.name}'",
        shapes=file.shapes,
        classes=_classes(file, scores.shape[1]),
        scores=scores.name,
        threshold=peeled.threshold,
        peeled=peeled,
    )


def _scores_reader(file: ModelFile, scores: TensorSpec, meaning: OutputMeaning) -> ScoresReader:
    if len(scores.shape) != 4:
        raise ArtifactError(
            f"'{file.path}' gives {scores}; expected labels [N, H, W] or scores [N, C, H, W]."
        )
    inner = meaning.scores is not None
    return ScoresReader(
        file=file.path.name,
        output=scores.name,
        head="in the runtime, as the graph ends in scores",
        shapes=file.shapes,
        classes=_classes(file, scores.shape[meaning.class_axis]),
        scores=meaning.scores or scores.name,
        scores_axis=meaning.scores_class_axis if inner else meaning.class_axis,
        class_axis=meaning.class_axis,
        threshold=meaning.score_threshold,
    )


def _classes(file: ModelFile, channels: int | None) -> tuple[ClassInfo, ...]:
    """Give what the manifest says; numbers of a bare graph, none where it does not say how many."""
    if file.manifest is not None:
        return file.manifest.classes
    names = range(2 if channels == 1 else channels or 0)
    colors = voc_palette(len(names))
    return tuple(ClassInfo(str(label), color) for label, color in zip(names, colors, strict=True))


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
