"""Hold what a graph says of its output against what the output holds; make probabilities of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from fcn_deploy.errors import ArtifactError, FcnDeployError
from fcn_deploy.graph.meaning.found_meaning import Activation, FoundMeaning
from fcn_deploy.names import Array

__all__ = ["asked_meaning", "check_values", "labels_of", "probabilities", "require_known"]

_HINT = "Say what it is with --activation logits|sigmoid|softmax|ids and --threshold X."
_TOLERANCE = 0.02  # of probabilities and of their sum, in float16 and behind epsilons
_OVERSHOOT = 0.35  # of cubic interpolation, at a step from 0 to 1
_FLAT = 0.05  # values that differ by less say nothing


def asked_meaning(
    meaning: FoundMeaning,
    *,
    activation: str | None = None,
    threshold: float | None = None,
    error: type[FcnDeployError] = ArtifactError,
) -> FoundMeaning:
    """Put what the user says in place of what the graph says.

    Args:
        activation: None and ``"auto"`` leave it to the graph.
        threshold: probability above which a single class is there; None means 0.5.
        error: what to raise.

    Raises:
        FcnDeployError: of type `error`: a threshold of several classes or of ids, or beyond 0..1;
            an activation of a query network.
    """
    found = meaning
    if activation not in (None, "auto"):
        if meaning.kind == "queries":
            raise error(f"'{meaning.output}' holds {meaning.evidence}; it has no --activation.")
        found = replace(
            meaning,
            kind="labels" if activation == "ids" else "scores",
            activation=_named(activation, error),
            evidence=f"--activation {activation}; in the graph {meaning.evidence}",
            asked=True,
        )
        found = replace(found, threshold=0.5 if _may_be_single(found) else None)
    if threshold is None:
        return found
    if not _may_be_single(found):
        raise error(
            f"--threshold {threshold:g} was given for '{found.output}', which holds "
            f"{_described(found)}; it is for a single class.",
            hint="Leave --threshold out.",
        )
    if not 0 < threshold < 1:
        raise error(
            f"--threshold {threshold:g} is no probability; expected a number between 0 and 1."
        )
    return replace(found, threshold=threshold)


def _named(activation: str | None, error: type[FcnDeployError]) -> Activation:
    known: tuple[Activation, ...] = ("logits", "sigmoid", "softmax", "log_softmax", "ids")
    for name in known:
        if name == activation:
            return name
    raise error(f"--activation {activation} is not known; expected auto, {', '.join(known)}.")


def _may_be_single(meaning: FoundMeaning) -> bool:
    """Say whether it may be scores of one class: then they are held against a threshold."""
    one = meaning.num_classes in (1, None)
    return meaning.kind == "scores" and one and meaning.activation not in ("softmax", "log_softmax")


def _described(meaning: FoundMeaning) -> str:
    count = "" if meaning.num_classes is None else f" of {meaning.num_classes} classes"
    return f"{meaning.activation}{count} ({meaning.evidence})"


def require_known(meaning: FoundMeaning, *, error: type[FcnDeployError] = ArtifactError) -> None:
    """Refuse an output of which neither the graph nor the user says what it means.

    Args:
        error: what to raise.

    Raises:
        FcnDeployError: of type `error`: it is unknown, or of a query network.
    """
    if meaning.kind == "queries":
        raise error(
            f"the network gives {meaning.evidence}; expected one output of class scores.",
            hint="Export a wrapper that joins masks and classes into scores [N, C, H, W].",
        )
    if meaning.activation == "unknown":
        raise error(
            f"what output '{meaning.output}' means is not known: it ends in {meaning.evidence}.",
            hint=_HINT,
        )


def check_values(
    meaning: FoundMeaning,
    outputs: Sequence[Array],
    *,
    error: type[FcnDeployError] = ArtifactError,
) -> FoundMeaning:
    """Hold a meaning against values, and fill in what only they can say.

    Args:
        outputs: what the network gave under `meaning.output` for varied frames, best of several
            sizes, of any shape and dtype. Values that are the same everywhere, or not finite,
            prove nothing.
        error: what to raise.

    Returns:
        The meaning, with `class_axis`, `num_classes`, `rank` and `threshold` as they are.

    Raises:
        FcnDeployError: of type `error`: the meaning is unknown, or the values contradict it. Its
            text says what was found, and names the options that say what it is.
    """
    name = f"output '{meaning.output}'"
    require_known(meaning, error=error)
    found = _shaped(meaning, outputs, error)
    if found.threshold is None and _may_be_single(found) and found.num_classes == 1:
        found = replace(found, threshold=0.5)
    if found.num_classes != 1 and found.threshold not in (None, 0.5):
        raise error(
            f"--threshold {found.threshold:g} was given for {name} of {found.num_classes} classes; "
            "it is for a single class.",
            hint="Leave --threshold out.",
        )
    if found.num_classes != 1:
        found = replace(found, threshold=None)
    low, high = _range(outputs)
    if low > high or (low == high and found.activation != "ids"):
        return found
    problem = _contradiction(found, outputs, low, high)
    if problem is not None:
        raise error(
            f"{name} was taken for {_described(found)}, but {problem}.",
            hint=_HINT,
        )
    return found


def _shaped(
    meaning: FoundMeaning, outputs: Sequence[Array], error: type[FcnDeployError]
) -> FoundMeaning:
    """Find the classes' axis in the outputs' shapes, where the graph left it open."""
    shapes = [output.shape for output in outputs]
    ranks = {len(shape) for shape in shapes}
    listed = " and ".join(dict.fromkeys(str([*shape]) for shape in shapes))
    name = f"output '{meaning.output}'"
    if ranks not in ({3}, {4}):
        raise error(
            f"{name} is {listed}; expected scores [N, C, H, W] or [N, H, W, C], "
            "or labels [N, H, W]."
        )
    if ranks == {3}:
        if meaning.activation in ("softmax", "log_softmax"):
            raise error(f"{name} is {listed}, which has no classes to sum up over.", hint=_HINT)
        if meaning.activation != "ids" and (meaning.num_classes or 1) > 1:
            raise error(
                f"{name} is {listed}, but the graph makes it of {meaning.num_classes} classes; "
                "expected scores [N, C, H, W] or [N, H, W, C].",
                hint="Export the network with its batch axis.",
            )
        classes = meaning.num_classes if meaning.activation == "ids" else 1
        return replace(meaning, class_axis=None, rank=3, num_classes=classes)
    axis = meaning.class_axis
    if axis is None or meaning.asked:
        axis = _axis_in_shapes(shapes, one=meaning.activation == "ids") or axis
    if axis is None:
        raise error(
            f"{name} is {listed}: which axis is that of the classes is not known.",
            hint="Export the network with its number of classes written in the output's shape.",
        )
    counts = {shape[axis] for shape in shapes}
    if meaning.activation == "ids":
        if counts != {1}:
            raise error(
                f"{name} is {listed}; class ids are [N, H, W], [N, 1, H, W] or [N, H, W, 1].",
                hint=_HINT,
            )
        return replace(meaning, class_axis=axis, rank=4)
    (count,) = counts if len(counts) == 1 else (0,)
    if count == 0 or (meaning.num_classes not in (None, count) and not meaning.asked):
        raise error(
            f"{name} is {listed}; expected {meaning.num_classes or 'the same number of'} classes "
            f"on axis {axis}."
        )
    if count == 1 and meaning.activation in ("softmax", "log_softmax"):
        raise error(f"{name} is {listed}: a softmax over a single class is always 1.", hint=_HINT)
    return replace(meaning, class_axis=axis, rank=4, num_classes=count)


def _axis_in_shapes(shapes: Sequence[tuple[int, ...]], *, one: bool) -> int | None:
    """Give the only axis, of the second and the last, that may hold classes."""
    candidates = [axis for axis in (1, 3) if len({shape[axis] for shape in shapes}) == 1]
    if one:
        candidates = [axis for axis in candidates if shapes[0][axis] == 1]
    return candidates[0] if len(candidates) == 1 else None


def _range(outputs: Sequence[Array]) -> tuple[float, float]:
    low, high = math.inf, -math.inf
    for output in outputs:
        finite = output[np.isfinite(output)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return low, high


def _contradiction(
    meaning: FoundMeaning, outputs: Sequence[Array], low: float, high: float
) -> str | None:
    """Say what in the values cannot be; None where nothing is."""
    span = f"its values are {low:.4g} to {high:.4g}"
    if meaning.activation == "ids":
        whole = all(
            bool((output == np.trunc(output.astype(np.float64))).all()) for output in outputs
        )
        if not whole or low < 0:
            return f"{span}, not all whole numbers from 0"
        count = meaning.num_classes
        return f"{span}, above {count} classes" if count is not None and high >= count else None
    tolerance = _OVERSHOOT if meaning.overshoots else _TOLERANCE
    inside = low >= -tolerance and high <= 1 + tolerance
    if meaning.activation in ("sigmoid", "softmax") and not inside:
        return f"{span}, not 0 to 1"
    if meaning.activation == "softmax" and not _sums_to_one(meaning, outputs, np.asarray):
        return "they do not sum up to 1 over the classes"
    if meaning.activation == "log_softmax" and not _sums_to_one(meaning, outputs, np.exp):
        return "their exponentials do not sum up to 1 over the classes"
    if meaning.activation != "logits" or meaning.asked or high - low < _FLAT:
        return None
    if low < 0 or high > 1:
        return None
    if meaning.num_classes == 1:
        return f"{span}, as of probabilities"
    if _sums_to_one(meaning, outputs, np.asarray):
        return "they sum up to 1 over the classes, as of a softmax"
    return None


def _sums_to_one(meaning: FoundMeaning, outputs: Sequence[Array], of: object) -> bool:
    """Say whether each pixel's sum is 1, but for padding, which is 0 throughout."""
    for output in outputs:
        values = np.asarray(output, np.float64)
        made = np.exp(values) if of is np.exp else values
        sums = made.sum(axis=meaning.class_axis)
        padding = (values == 0).all(axis=meaning.class_axis)
        odd = np.isfinite(sums) & ~padding & (abs(sums - 1) > _TOLERANCE)
        if odd.any():
            return False
    return True


def labels_of(output: Array, meaning: FoundMeaning) -> Array:
    """Make class ids of a whole output.

    Args:
        output: [N, C, H, W], or as `meaning` says.
        meaning: as `check_values` gives it.

    Returns:
        int64 [N, H, W]: of a single class 1 where it is likelier than the threshold.
    """
    values = output
    if meaning.class_axis is not None:
        values = np.moveaxis(output, meaning.class_axis, 1)  # [N, C, H, W]
    if meaning.activation == "ids":
        return (values[:, 0] if values.ndim == 4 else values).astype(np.int64)
    limit = meaning.score_threshold
    if limit is None:
        return np.asarray(values.argmax(axis=1), np.int64)
    single = values[:, 0] if values.ndim == 4 else values
    return (single > np.asarray(limit, single.dtype)).astype(np.int64)


class _Activated(Protocol):
    @property
    def activation(self) -> str: ...


def probabilities(scores: Array, meaning: _Activated) -> Array:
    """Turn scores into probabilities, activating them where the network did not.

    Args:
        scores: float [C, H, W], one class included; not modified.
        meaning: of the network's output that they come from, as it was found or as a manifest
            says it.

    Returns:
        float32 [C, H, W] in 0..1, owned by the caller.

    Raises:
        ValueError: the output holds labels, or its meaning is unknown.
    """
    if meaning.activation in ("ids", "unknown"):
        raise ValueError(f"{meaning.activation} have no probabilities")
    values = scores.astype(np.float32)
    if meaning.activation == "log_softmax":
        values = np.exp(values)
    elif meaning.activation == "logits" and len(values) == 1:
        values = np.float32(0.5) * (np.tanh(values * np.float32(0.5)) + 1)  # does not overflow
    elif meaning.activation == "logits":
        values = np.exp(values - values.max(axis=0))
        values /= values.sum(axis=0)
    clipped: Array = np.clip(values, 0, 1)
    return clipped
