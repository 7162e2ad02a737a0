"""The images that fidelity is measured on: labelled ones, the user's, or the package's photographs.

Synthetic frames are none of them: a network may find nothing on these, which proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.names import Array
from fcn_export.check.sample_frames import at_usual_size, photographs
from fcn_export.graph_spec import GraphSpec
from fcn_export.precision.calibration_images import CalibrationImages
from fcn_export.request import ExportRequest
from fcn_models.labelled_images import EvalItem, EvalSet

__all__ = ["Samples", "choose_samples"]

_MAX_SAMPLES = 32


@dataclass(frozen=True, slots=True)
class Samples:
    """Images to measure on.

    Attributes:
        what: how many and of which kind, as in ``12 photographs of this package``.
        items: reads them, from the first again at each call; labels are ground truth where
            `has_labels`, else 0 everywhere.
    """

    what: str
    items: Callable[[], Iterator[EvalItem]]
    has_labels: bool = False


def choose_samples(
    request: ExportRequest, labelled: EvalSet | None, spec: GraphSpec, shapes: ShapeRange
) -> Samples:
    """Take the best images at hand, each at the usual size where it is larger.

    Labelled images come first, at their own size, then those of `request.samples`, then images to
    calibrate on that no range is taken from, then the package's photographs.

    Args:
        labelled: pairs of `request.eval_folders`; None where none were given.

    Raises:
        SourceError: the images that were named cannot be read.
    """
    color, size = spec.input_color, shapes.opt[1:]
    if labelled is not None:
        return Samples(
            f"{len(labelled)} labelled images",
            lambda: labelled.items(color=color, num_labels=spec.num_labels),
            has_labels=True,
        )
    images = None
    if request.samples is not None:
        images = CalibrationImages.find(request.samples, size=size, limit=_MAX_SAMPLES)
        kind = "samples"
    elif request.calibrate is not None:
        images = CalibrationImages.find(request.calibrate, size=size, hold_out=True).others()
        kind = "calibration images that no range is taken from"
    if images is not None:
        found = images
        return Samples(
            f"{len(found)} {kind}",
            lambda: _items(zip(found.names(), found.frames(color=color), strict=True), shapes),
        )
    number = sum(1 for _ in photographs())
    return Samples(
        f"{number} photographs of this package", lambda: _items(_photographs(spec), shapes)
    )


def _photographs(spec: GraphSpec) -> Iterator[tuple[str, Array]]:
    for name, frame in photographs():
        yield name, frame if spec.input_color == "bgr" else np.ascontiguousarray(frame[..., ::-1])


def _items(frames: Iterable[tuple[str, Array]], shapes: ShapeRange) -> Iterator[EvalItem]:
    for name, frame in frames:
        fitted = at_usual_size(frame, shapes)
        yield EvalItem(name, fitted, np.zeros(fitted.shape[:2], np.uint8))
