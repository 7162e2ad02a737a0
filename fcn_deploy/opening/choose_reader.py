"""How a network's output is read: as labels, as scores, or as peeled scores."""

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

__all__ = ["choose_reader", "main_output"]


def choose_reader(
    file: ModelFile, specs: Sequence[TensorSpec], meaning: OutputMeaning, *, main: str, peel: bool
) -> OutputReader:
    """Choose how the outputs of a loaded network are read, by what its main output means.

    Args:
        specs: the network's outputs.
        meaning: of the main output.
        main: the output to label by.
        peel: the network was stopped where `meaning` says, if it says so.

    Raises:
        ArtifactError: the output has other axes than labels or scores have.
    """
    (spec,) = (spec for spec in specs if spec.name == main)
    if peel and meaning.stop_at is not None and meaning.finish is not None:
        return _peeled_reader(file, spec, meaning, PeeledTail.of(meaning.stop_at, meaning.finish))
    if not meaning.holds_labels:
        return _scores_reader(file, spec, meaning)
    named = file.manifest is not None and any(one.name == "confidence" for one in specs)
    why = meaning.whole_because if peel else "it was asked for whole"
    return LabelsReader(
        file=file.path.name,
        output=main,
        head=f"in the graph, as {why}" if meaning.makes_labels else "in the graph",
        shapes=file.shapes,
        classes=_classes(file, None),
        scores=meaning.scores,
        scores_axis=meaning.scores_class_axis,
        activation=meaning.activation,
        confidence="confidence" if named else None,
    )


def _peeled_reader(
    file: ModelFile, scores: TensorSpec, meaning: OutputMeaning, peeled: PeeledTail
) -> PeeledScoresReader:
    if len(scores.shape) != 4 or not scores.dtype.startswith("float"):
        raise ArtifactError(f"'{file.path}' gives {scores} to stop at; expected float scores.")
    return PeeledScoresReader(
        file=file.path.name,
        output=scores.name,
        head=f"in the runtime, peeled from the graph at '{scores.name}'",
        shapes=file.shapes,
        classes=_classes(file, scores.shape[1]),
        scores=scores.name,
        activation=meaning.activation,
        threshold=peeled.threshold,
        peeled=peeled,
    )


def _scores_reader(file: ModelFile, scores: TensorSpec, meaning: OutputMeaning) -> ScoresReader:
    axis = meaning.class_axis
    if len(scores.shape) != (3 if axis is None else 4):
        raise ArtifactError(
            f"'{file.path}' gives {scores}; expected labels [N, H, W] or scores [N, C, H, W]."
        )
    inner = meaning.scores is not None
    return ScoresReader(
        file=file.path.name,
        output=scores.name,
        head="in the runtime, as the graph ends in scores",
        shapes=file.shapes,
        classes=_classes(file, 1 if axis is None else scores.shape[axis]),
        scores=meaning.scores or scores.name,
        scores_axis=meaning.scores_class_axis if inner else axis,
        activation=(meaning.scores_activation if inner else None) or meaning.activation,
        class_axis=axis,
        threshold=meaning.score_threshold,
    )


def _classes(file: ModelFile, channels: int | None) -> tuple[ClassInfo, ...]:
    """Give what the manifest says; numbers of a bare graph, none where it does not say how many."""
    if file.manifest is not None:
        return file.manifest.classes
    names = range(2 if channels == 1 else channels or 0)
    colors = voc_palette(len(names))
    return tuple(ClassInfo(str(label), color) for label, color in zip(names, colors, strict=True))


def main_output(
    file: ModelFile, ranks: Sequence[tuple[str, int | None]], *, asked: str | None = None
) -> str:
    """Pick the output to label by: the one asked for, the only one, or one with a usual name.

    Args:
        ranks: name and number of axes of each output; None where that is not said.
        asked: its name, from the user.

    Raises:
        ArtifactError: there is no such output, or several are as good.
    """
    names = [name for name, _ in ranks]
    if asked is not None and asked not in names:
        raise ArtifactError(
            f"'{file.path}' has no output '{asked}'; it has {', '.join(names)}.",
            hint="Name one of them with --output-key.",
        )
    if asked is not None or len(names) == 1:
        return names[0] if asked is None else asked
    for name in ("labels", "out", "scores", "logits", "output"):
        if name in names:
            return name
    images = [name for name, rank in ranks if rank == 4]
    if len(images) == 1:
        return images[0]
    raise ArtifactError(
        f"'{file.path}' has several outputs: {', '.join(names)}.",
        hint="Name the one that holds labels or class scores with --output-key.",
    )
