"""How near each variant comes to the model on each backend: agreement, borders, mean IoU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fcn_deploy.artifact.manifest import Fidelity, WorstImage
from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.backends import backend_names, get_backend
from fcn_deploy.backends.base import ExecutionContext
from fcn_deploy.errors import ArtifactError, ExecutionError, NonFiniteOutputError
from fcn_deploy.names import Array, Precision
from fcn_deploy.opening.choose import graph_precision, lacks_evidence, shortfall
from fcn_export.check.fidelity import (
    Disagreement,
    border_mask,
    confusion_matrix,
    mean_iou,
    split_disagreement,
    top_two_margin,
    worst_class_iou,
)
from fcn_export.check.reference import Reference, labels_of
from fcn_export.check.sample_frames import as_batch
from fcn_export.check.verify import MAX_REAL_SHARE, MAX_RELATIVE_SCORE_ERROR
from fcn_export.graph_spec import INPUT_NAME, SCORES, GraphSpec
from fcn_export.onnx_file import OnnxFile
from fcn_models.labelled_images import EvalItem

__all__ = ["MAX_HELD_BYTES", "MIN_SOUND_AGREEMENT", "Measured", "Runner", "measure", "runners"]

log = logging.getLogger(__name__)

MIN_SOUND_AGREEMENT = 0.99
"""Of PyTorch's labels: a variant that keeps fewer is broken, whatever explains it."""

MAX_HELD_BYTES = 256_000_000
"""Scores of the model that are kept until every candidate has been held against them."""


@dataclass(frozen=True, slots=True)
class Runner:
    """A backend and a precision that run one of the graphs here."""

    backend: str
    precision: Precision

    def __str__(self) -> str:
        return f"{self.backend} {self.precision}"


@dataclass(slots=True)
class Measured:
    """What was counted for one runner, or for the model itself, over all images.

    Attributes:
        runner: None for the model itself.
        max_score_error: largest absolute difference from the model's scores.
        relative_score_error: largest difference, of the model's largest score of the same image.
        images: how many count: those on which the model finds more than one class.
        disagreement: of the labels of these.
        one_class: the same of the other images, which show nothing of how classes are told apart.
        confusion: int64 [C, C] against ground truth; None where there is none.
        model_confusion: int64 [C, C] against the model's labels; None for the model itself.
        worst: the image with the fewest labels in agreement; None for the model itself.
        failure: why the runner could not be measured; None where it was.
    """

    runner: Runner | None
    max_score_error: float = 0.0
    relative_score_error: float = 0.0
    images: int = 0
    disagreement: Disagreement = field(default_factory=lambda: Disagreement(0, 0, 0, 0))
    one_class: Disagreement = field(default_factory=lambda: Disagreement(0, 0, 0, 0))
    confusion: Array | None = None
    model_confusion: Array | None = None
    worst: WorstImage | None = None
    failure: str | None = None

    @property
    def miou(self) -> float | None:
        """Mean IoU, 0..1; None without ground truth."""
        if self.confusion is None or not self.confusion.any():
            return None
        return mean_iou(self.confusion)[0]

    @property
    def miou_vs_baseline(self) -> float | None:
        """Mean IoU with the model's own labels as the reference, 0..1."""
        if self.model_confusion is None or not self.model_confusion.any():
            return None
        return mean_iou(self.model_confusion)[0]

    def count_truth(self, prediction: Array, truth: Array, num_labels: int) -> None:
        """Add one image with ground truth; both are class ids [H, W]."""
        counts = confusion_matrix(prediction, truth, num_labels)
        self.confusion = counts if self.confusion is None else self.confusion + counts

    def count_model(self, name: str, found: Disagreement, confusion: Array) -> None:
        """Add one image held against the model's labels; confusion is int64 [C, C]."""
        if np.count_nonzero(confusion.sum(axis=1)) < 2:
            self.one_class += found
            return
        self.images += 1
        self.disagreement += found
        known = self.model_confusion
        self.model_confusion = confusion if known is None else known + confusion
        if self.worst is None or found.label_agreement < self.worst.label_agreement:
            self.worst = WorstImage(name, found.label_agreement, worst_class_iou(confusion))

    def fidelity(self, model: Measured) -> Fidelity:
        """Give the figures for the manifest, held against the model's own.

        Raises:
            ValueError: this is the model itself.
        """
        if self.runner is None:
            raise ValueError("the model itself has no fidelity to itself")
        drop = None
        if self.miou is not None and model.miou is not None:
            drop = 100.0 * (model.miou - self.miou)
        everything = self.disagreement + self.one_class
        found = self.disagreement if self.images else self.one_class
        known = self.model_confusion
        fidelity = Fidelity(
            backend=self.runner.backend,
            precision=self.runner.precision,
            # images of one class are no evidence for a variant, but are against it
            label_agreement=min(found.label_agreement, everything.label_agreement),
            near_tie_share=found.near_tie_share,
            miou=self.miou,
            miou_drop=drop,
            miou_vs_baseline=self.miou_vs_baseline,
            boundary_share=found.boundary_share,
            worst_image=self.worst,
            worst_class_iou=None if known is None else worst_class_iou(known),
            images=self.images,
            pixels=self.disagreement.pixels,
            relative_score_error=self.relative_score_error,
        )
        return replace(fidelity, status=self._status(fidelity))

    def _status(self, fidelity: Fidelity) -> str:
        """Judge as `Fidelity.status` says: fp32 as verification does, others as `auto` does."""
        if fidelity.label_agreement < MIN_SOUND_AGREEMENT:
            return "broken"
        if fidelity.precision is Precision.FP32:
            real = (self.disagreement + self.one_class).real_share
            exact = self.relative_score_error <= MAX_RELATIVE_SCORE_ERROR
            return "ok" if exact and real <= MAX_REAL_SHARE else "differs"
        if lacks_evidence(fidelity):
            return "no evidence"
        return "ok" if shortfall(fidelity) is None else "below"


def runners(graphs: Iterable[Precision] = (Precision.FP32,)) -> tuple[Runner, ...]:
    """Find what runs the graphs on this machine.

    Args:
        graphs: precisions that there is a file of; fp32's is run in bf16 too, where the CPU has it.

    Returns:
        Every backend and precision, in the order of precisions.
    """
    held = set(graphs)
    backends = {name: get_backend(name) for name in backend_names()}
    able = {
        name: backend
        for name, backend in backends.items()
        if ".onnx" in backend.suffixes and backend.available()  # others read plans
    }
    return tuple(
        Runner(name, precision)
        for precision in Precision
        if graph_precision(precision) in held
        for name, backend in able.items()
        if precision in backend.precisions()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """The model's answer for one image, cropped to it; and the images as a graph takes them."""

    name: str
    images: Array
    scores: Array
    spread: float
    labels: Array
    margin: Array
    at_border: Array
    truth: Array


def measure(
    graphs: Mapping[Precision, OnnxFile],
    reference: Reference,
    spec: GraphSpec,
    shapes: ShapeRange,
    items: Iterable[EvalItem],
    *,
    candidates: Sequence[Runner],
    has_labels: bool,
    on_progress: Callable[[str], None] = lambda what: None,
) -> tuple[Measured, tuple[Measured, ...]]:
    """Run the model and every candidate over the images.

    Images are padded to the network's multiple and results cropped, as the runtime does it. The
    model and the candidates are not in memory together, so that a large network fits.

    Args:
        graphs: a file for each precision that candidates need one of, see `graph_precision`.
        items: images; `labels` is ground truth where `has_labels`.
        on_progress: told which image or candidate comes next.

    Returns:
        The model's own count, and one for each candidate, in the order given; one that failed
        says why.
    """
    own = Measured(None)
    counted = tuple(Measured(candidate) for candidate in candidates)
    names = [output.name for output in spec.outputs]
    inner = () if SCORES in names or spec.activation == "ids" else (SCORES,)
    for answers in _answers(reference, spec, shapes, items, on_progress):
        if has_labels:
            for answer in answers:
                own.count_truth(answer.labels[0], answer.truth, spec.num_labels)
        for measured, candidate in zip(counted, candidates, strict=True):
            if measured.failure is not None:
                continue
            on_progress(str(candidate))
            file = graphs[graph_precision(candidate.precision)]
            try:
                with file.opened(
                    candidate.backend, precision=candidate.precision, inner=inner
                ) as context:
                    for answer in answers:
                        _count(measured, context, answer, spec, has_labels=has_labels)
            except (ArtifactError, ExecutionError) as error:
                # the graph is verified: a backend that cannot run it takes nothing from the others
                log.debug("%s failed", candidate, exc_info=True)
                measured.failure = error.message
    return own, counted


def _answers(
    reference: Reference,
    spec: GraphSpec,
    shapes: ShapeRange,
    items: Iterable[EvalItem],
    on_progress: Callable[[str], None],
) -> Iterator[list[_Answer]]:
    """Let the model answer, as many images at a time as may be held."""
    held: list[_Answer] = []
    for number, item in enumerate(items, 1):
        on_progress(f"image {number}")
        height, width = item.frame.shape[:2]
        images = as_batch(item.frame, spec, shapes)
        scores = np.ascontiguousarray(reference.scores(images)[:1, :, :height, :width])
        labels = labels_of(scores, spec)
        at_border = border_mask(labels[0])[None]
        margin = top_two_margin(scores - np.float32(spec.score_threshold))
        held.append(
            _Answer(
                name=item.name,
                images=images,
                scores=scores,
                spread=float(np.ptp(scores)),
                labels=labels,
                margin=margin,
                at_border=at_border,
                truth=item.labels,
            )
        )
        if sum(answer.scores.nbytes for answer in held) > MAX_HELD_BYTES:
            yield held
            held = []
    if held:
        yield held


def _count(
    measured: Measured,
    context: ExecutionContext,
    answer: _Answer,
    spec: GraphSpec,
    *,
    has_labels: bool,
) -> None:
    """Add one image to a candidate's count."""
    height, width = answer.scores.shape[2:]
    found = context.execute({INPUT_NAME: answer.images})
    # a network that gives class ids hides its scores
    scores = found[SCORES][:1, :, :height, :width] if SCORES in found else answer.scores
    error = max(
        float(np.abs(scores[:, index] - answer.scores[:, index]).max())
        for index in range(scores.shape[1])  # one class at a time: no second full-size tensor
    )
    if "labels" in found:
        labels = found["labels"][:1, :height, :width]
    else:
        labels = labels_of(np.ascontiguousarray(scores), spec)
    if not np.isfinite(error):
        raise NonFiniteOutputError(f"the scores of '{answer.name}' hold NaN or infinity.")
    measured.max_score_error = max(measured.max_score_error, error)
    largest = max(float(np.abs(answer.scores).max()), float(np.finfo(np.float32).tiny))
    measured.relative_score_error = max(measured.relative_score_error, error / largest)
    found_labels = labels.astype(answer.labels.dtype)
    measured.count_model(
        answer.name,
        split_disagreement(
            found_labels,
            answer.labels,
            answer.margin,
            score_error=error,
            score_spread=answer.spread,
            at_border=answer.at_border,
        ),
        confusion_matrix(found_labels, answer.labels, spec.num_labels, ignore_label=None),
    )
    if has_labels:
        measured.count_truth(labels[0], answer.truth, spec.num_labels)
