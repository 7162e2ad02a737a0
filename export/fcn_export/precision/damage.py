"""Measure what a variant loses against the fp32 graph: labels that change, points of mean IoU."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.backends import get_backend
from fcn_deploy.backends.base import ExecutionContext, ModelSource
from fcn_deploy.names import Array, Precision
from fcn_deploy.preprocess import pad_frame
from fcn_export.check.fidelity import confusion_matrix, mean_iou
from fcn_export.check.reference import labels_of
from fcn_export.graph_spec import INPUT_NAME, SCORES, GraphSpec
from fcn_models.labelled_images import EvalItem

if TYPE_CHECKING:
    import onnx

__all__ = ["Damage", "DamageMeter"]


@dataclass(frozen=True, slots=True)
class Damage:
    """How far a variant is from the fp32 graph.

    Attributes:
        miou_drop: mean IoU lost, in points; negative where it gains. None without ground truth.
        disagreement: share of pixels whose label is another, 0..1.
    """

    miou_drop: float | None
    disagreement: float

    @property
    def rank(self) -> tuple[float, float]:
        """Sort key: first the drop in hundredths of a point, then the labels that differ."""
        drop = 0.0 if self.miou_drop is None else round(self.miou_drop, 2)
        return drop, self.disagreement


class DamageMeter:
    """Runs variants over images, read again each time; the fp32 graph's labels are kept packed.

    Args:
        model: the fp32 graph.
        items: starts the images; their labels are ground truth where `has_labels`.
        backends: names; the worst of them counts.
        every: take one of this many images.

    Attributes:
        images: how many are run.
        digest: of the images, their ground truth and the fp32 graph's labels.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        items: Callable[[], Iterator[EvalItem]],
        spec: GraphSpec,
        shapes: ShapeRange,
        *,
        has_labels: bool,
        backends: Sequence[str],
        every: int = 1,
    ) -> None:
        self._items = items
        self._spec = spec
        self._shapes = shapes
        self._has_labels = has_labels
        self._backends = tuple(backends)
        self._every = every
        self._labels: list[bytes] = []
        confusion = self._zeros()
        digest = hashlib.sha256()
        with _opened(model, self._backends[0], Precision.FP32) as context:
            for item in self._images():
                labels = self._run(context, item)
                for array in (item.frame, item.labels, labels):
                    digest.update(array.tobytes())
                self._labels.append(zlib.compress(labels.tobytes(), 1))
                confusion += self._confusion(labels, item)
        self.images = len(self._labels)
        self.digest = digest.hexdigest()
        self._miou = mean_iou(confusion)[0] if confusion.any() else None

    def measure(self, model: onnx.ModelProto, precision: Precision) -> Damage:
        """Run a variant over the images, on every backend.

        Raises:
            ArtifactError, ExecutionError: a backend does not run it.
        """
        damages = [self._measure(model, precision, backend) for backend in self._backends]
        return max(damages, key=lambda damage: damage.rank)

    def _measure(self, model: onnx.ModelProto, precision: Precision, backend: str) -> Damage:
        confusion = self._zeros()
        differing = pixels = 0
        with _opened(model, backend, precision) as context:
            for item, packed in zip(self._images(), self._labels, strict=True):
                labels = self._run(context, item)
                wanted = np.frombuffer(zlib.decompress(packed), labels.dtype).reshape(labels.shape)
                differing += int(np.count_nonzero(labels != wanted))
                pixels += labels.size
                confusion += self._confusion(labels, item)
        drop = None if self._miou is None else 100.0 * (self._miou - mean_iou(confusion)[0])
        return Damage(drop, differing / pixels)

    def _images(self) -> Iterator[EvalItem]:
        return islice(self._items(), self._every // 2, None, self._every)

    def _run(self, context: ExecutionContext, item: EvalItem) -> Array:
        height, width = item.frame.shape[:2]
        low = self._shapes.min[1:]
        size = self._shapes.padded_size(max(height, low[0]), max(width, low[1]))
        images = np.repeat(pad_frame(item.frame, size)[None], self._spec.fixed[0] or 1, axis=0)
        found = context.execute({INPUT_NAME: np.ascontiguousarray(images)})
        labels = (
            found["labels"][:1] if "labels" in found else labels_of(found[SCORES][:1], self._spec)
        )
        return np.ascontiguousarray(labels[0, :height, :width])

    def _confusion(self, labels: Array, item: EvalItem) -> Array:
        if not self._has_labels:
            return self._zeros()
        return confusion_matrix(labels, item.labels, self._spec.num_labels)

    def _zeros(self) -> Array:
        return np.zeros((self._spec.num_labels,) * 2, np.int64)


@contextmanager
def _opened(
    model: onnx.ModelProto, backend: str, precision: Precision
) -> Iterator[ExecutionContext]:
    source = ModelSource(Path(f"a {precision} variant"), model.SerializeToString())
    context = get_backend(backend).open(source, precision=precision)
    try:
        yield context
    finally:
        context.close()
