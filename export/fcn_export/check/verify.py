"""Hold an exported graph against the model at sizes that the tracer never saw."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fcn_deploy.artifact.shape_range import BatchShape, ShapeRange
from fcn_deploy.backends.base import ExecutionContext
from fcn_deploy.errors import ExecutionError, ParityError
from fcn_deploy.names import Array
from fcn_export.check.fidelity import Disagreement, split_disagreement, top_two_margin
from fcn_export.check.reference import Reference, confidence_of, labels_of
from fcn_export.check.sample_frames import natural_batch
from fcn_export.graph_spec import INPUT_NAME, LOW_RESOLUTION_SCORES, SCORES, GraphSpec
from fcn_export.onnx_file import OnnxFile

__all__ = [
    "MAX_REAL_SHARE",
    "MAX_RELATIVE_SCORE_ERROR",
    "ParityRow",
    "unseen_shapes",
    "verify",
]

log = logging.getLogger(__name__)

MAX_REAL_SHARE = 1e-3
"""Share of pixels that may differ although the model was sure of its label."""

MAX_RELATIVE_SCORE_ERROR = 1e-3
"""Of the largest score. Two float32 libraries differ by about 1e-5 of it; a wrong interpolation
mode by 1e-2 and more. Without a bound, a large error would declare every pixel a near tie."""

_LARGEST_SIDE_PX = 1024  # PyTorch alone needs 3 GB and half a minute at twice this
_ROWS_AT_A_TIME = 128
_SEED = 20
_BACKEND = "onnxruntime"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityRow:
    """How near the graph came to the model at one shape.

    Attributes:
        max_score_error: largest absolute difference of two scores.
        max_score: largest absolute score of the model, to judge the error by.
        disagreement: of labels, split into near ties and real ones.
    """

    batch: int
    height: int
    width: int
    max_score_error: float
    max_score: float
    disagreement: Disagreement

    def check(self, reference: str) -> None:
        """Raise if the graph is not the model.

        Raises:
            ParityError: the scores or the labels differ by more than rounding explains.
        """
        where = f"at {self.batch}x{self.height}x{self.width} (batch x height x width)"
        allowed = MAX_RELATIVE_SCORE_ERROR * self.max_score
        if self.max_score_error > allowed:
            raise ParityError(
                f"the graph's scores differ from {reference}'s {where} by up to "
                f"{self.max_score_error:.3g}; rounding explains {allowed:.3g}."
            )
        if self.disagreement.real_share > MAX_REAL_SHARE:
            raise ParityError(
                f"{self.disagreement.real_share:.3%} of the labels differ from {reference}'s "
                f"{where} though it was sure of them; at most {MAX_REAL_SHARE:.1%} may."
            )


def unseen_shapes(
    shapes: ShapeRange, *, traced: tuple[int, int] | None, verify_max: bool = False
) -> tuple[BatchShape, ...]:
    """Choose shapes to verify at: odd and even, wide and high, batch 1 and 3, smallest to large.

    Args:
        traced: (height, width) in px that the tracer saw; left out.
        verify_max: add the largest shape of the range; else no side is above 1024 px.

    Returns:
        (batch, height, width) each, inside the range, in steps of its multiple; the smallest
        first. Five or more, where the range has so many.
    """
    low, opt, high = shapes
    step = shapes.multiple_of
    large = _LARGEST_SIDE_PX - step  # off the power of two
    wanted = [
        (1, low[1], low[2]),
        (3, 97, 65),
        (1, 161, 223),
        (3, 135, 240),
        (1, opt[1], opt[2]),
        (1, large - 2 * step, large),
    ]
    chosen: dict[BatchShape, None] = {}
    for batch, height, width in wanted:
        for shift in range(8):
            size = (
                _fit(height + shift * step, low[1], min(high[1], _LARGEST_SIDE_PX), step),
                _fit(width + shift * step, low[2], min(high[2], _LARGEST_SIDE_PX), step),
            )
            shape = (max(low[0], min(batch, high[0])), *size)
            if size != traced and shape not in chosen:
                chosen[shape] = None
                break
    if verify_max:
        chosen[(low[0], high[1], high[2])] = None
    return tuple(sorted(chosen, key=lambda shape: shape[0] * shape[1] * shape[2]))


def verify(
    model: OnnxFile,
    reference: Reference,
    spec: GraphSpec,
    shapes: Sequence[BatchShape],
    *,
    on_shape: Callable[[BatchShape], None] = lambda shape: None,
) -> tuple[ParityRow, ...]:
    """Compare scores and labels of the graph, in ONNX Runtime, with the model's at each shape.

    Args:
        shapes: each once, the largest last.
        on_shape: called before the graph, and before the model, runs at each shape.

    Returns:
        One row a shape, each within the limits.

    Raises:
        ParityError: a label or a score differs by more than rounding explains, a score is NaN or
            infinite, or the graph does not take the shape or does not follow it.
    """
    rows = []
    names = [output.name for output in spec.outputs]
    inner = tuple(
        name
        for name in (SCORES, LOW_RESOLUTION_SCORES)
        if name not in names
        and spec.activation != "ids"  # which has no scores
        and f"{name}".encode() in model.data
    )
    found: dict[BatchShape, dict[str, Array]] = {}
    # the largest first and alone, as what ONNX Runtime took for others stays taken
    for group in (shapes[-1:], shapes[:-1]):
        with model.opened(_BACKEND, inner=inner) as context:
            for shape in group:
                on_shape(shape)
                found[shape] = _run(context, natural_batch(*shape, _SEED))
    # the model answers when the graph has left the memory
    for shape in shapes:
        on_shape(shape)
        expected = reference.scores(natural_batch(*shape, _SEED))
        answer = found.pop(shape)
        _check_shapes(answer, expected, spec)
        row = _compare(answer, expected, spec)
        log.debug("parity: %s", row)
        row.check(reference.name)
        rows.append(row)
    return tuple(rows)


def _fit(size: int, low: int, high: int, step: int) -> int:
    """Move a size into a range and up to a multiple; down where that would leave the range."""
    low, high = -(-low // step) * step, high // step * step
    return max(low, min(-(-size // step) * step, high))


def _run(context: ExecutionContext, images: Array) -> dict[str, Array]:
    """Run the graph; what it gives is copied, since ONNX Runtime's arrays keep its whole arena."""
    try:
        found = context.execute({INPUT_NAME: images})
    except ExecutionError as error:
        raise ParityError(
            f"the graph does not run at {_size(images)}: {error.message}",
        ) from error
    return {name: array.copy() for name, array in found.items()}


def _check_shapes(found: dict[str, Array], expected: Array, spec: GraphSpec) -> None:
    """Check that every output follows the input's size."""
    batch, classes, height, width = expected.shape
    for output in spec.outputs:
        sizes = {"N": batch, "C": classes, "H": height, "W": width}
        wanted = tuple(sizes[letter] for letter in output.layout)
        if found[output.name].shape != wanted:
            raise ParityError(
                f"'{output.name}' is {list(found[output.name].shape)} for an input of "
                f"{height}x{width} px; expected {list(wanted)}."
            )
    low = found.get(LOW_RESOLUTION_SCORES)
    if low is not None and (low.shape[:2] != (batch, classes) or low.shape[2] > height):
        raise ParityError(
            f"'{LOW_RESOLUTION_SCORES}' is {list(low.shape)}; expected [{batch}, {classes}, h, w] "
            f"of at most {height}x{width}."
        )


def _compare(found: dict[str, Array], expected: Array, spec: GraphSpec) -> ParityRow:
    """Compare a band of rows at a time: full-size scores are the largest tensors there are."""
    batch, _, height, width = expected.shape
    error, largest = 0.0, 0.0
    lowest, highest = float("inf"), float("-inf")
    for rows in _bands(height):
        band = expected[:, :, rows]
        top = float(np.abs(band).max())
        apart = float(np.abs(found[SCORES][:, :, rows] - band).max()) if SCORES in found else 0.0
        if not (np.isfinite(top) and np.isfinite(apart)):
            raise ParityError(
                f"scores at {height}x{width} px hold NaN or infinity.",
                hint="Check the weights and the normalisation (--mean, --std).",
            )
        error, largest = max(error, apart), max(largest, top)
        lowest, highest = min(lowest, float(band.min())), max(highest, float(band.max()))
    total = Disagreement(0, 0, 0)
    for rows in _bands(height):
        band = expected[:, :, rows]
        labels = _labels_found(found, rows, spec)
        margin = top_two_margin(band - np.float32(spec.score_threshold))
        total += split_disagreement(
            labels,
            labels_of(band, spec),
            margin,
            score_error=error,
            score_spread=highest - lowest,
        )
    if "confidence" in found:
        error = max(error, _confidence_error(found, expected, spec))
    return ParityRow(
        batch=batch,
        height=height,
        width=width,
        max_score_error=error,
        max_score=largest,
        disagreement=total,
    )


def _bands(height: int) -> Iterator[slice]:
    for start in range(0, height, _ROWS_AT_A_TIME):
        yield slice(start, start + _ROWS_AT_A_TIME)


def _labels_found(found: dict[str, Array], rows: slice, spec: GraphSpec) -> Array:
    if "labels" in found:
        return found["labels"][:, rows]
    return labels_of(np.ascontiguousarray(found[SCORES][:, :, rows]), spec)


def _confidence_error(found: dict[str, Array], expected: Array, spec: GraphSpec) -> float:
    """Largest difference of the confidence from that of the model's scores.

    Those within the score error of the threshold may have the other label's.
    """
    error = 0.0
    for rows in _bands(expected.shape[2]):
        band = np.ascontiguousarray(expected[:, :, rows])
        given, confidence = found["confidence"][:, rows], confidence_of(band, spec)
        apart = np.abs(given - confidence)
        if band.shape[1] == 1 and spec.threshold != 0.5:
            other = labels_of(band, spec) != found["labels"][:, rows]
            apart = np.where(other, np.abs(1 - given - confidence), apart)
        error = max(error, float(apart.max()))
    return error


def _size(images: Array) -> str:
    return "x".join(str(side) for side in images.shape[:3])
