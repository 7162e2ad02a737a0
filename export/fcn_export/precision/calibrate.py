"""Calibrate a graph: find the threshold of every tensor that may be quantised, from images."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.errors import SourceError
from fcn_deploy.names import Array
from fcn_export.check.reference import labels_of
from fcn_export.graph_spec import GraphSpec
from fcn_export.onnx_values import name_of
from fcn_export.precision.calibration_images import CalibrationImages, fit_frame
from fcn_export.precision.calibration_table import CalibrationKey, CalibrationTable, read_table
from fcn_export.precision.collect import Progress, collect_extents, collect_histograms
from fcn_export.precision.image_report import ImageStatistics
from fcn_export.precision.place_qdq import place_qdq, quantizable_nodes
from fcn_export.precision.thresholds import thresholds

if TYPE_CHECKING:
    import onnx

__all__ = ["calibrate", "calibration_key"]

log = logging.getLogger(__name__)


def calibration_key(
    model: onnx.ModelProto, images: CalibrationImages, shapes: ShapeRange
) -> CalibrationKey:
    """Give what decides a calibration table."""
    digest = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    return CalibrationKey(digest, images.sha256, repr(shapes))


def calibrate(
    model: onnx.ModelProto,
    images: CalibrationImages,
    spec: GraphSpec,
    shapes: ShapeRange,
    *,
    cache: Path | None = None,
    on_progress: Progress = lambda what: None,
) -> CalibrationTable:
    """Find thresholds of every tensor that a placement could quantise.

    Args:
        model: float32, with frames as input; nodes have names of their own.
        cache: a table of an earlier run, used where its key is the same.

    Raises:
        SourceError: the source gives no image.
        NonFiniteOutputError: the network makes NaN or infinity of one.
    """
    key = calibration_key(model, images, shapes)
    if cache is not None and (known := read_table(cache, key)) is not None:
        on_progress(f"ranges of '{cache}' hold: same graph, same images")
        return known
    graph = ir.from_proto(model).graph
    placement = place_qdq(graph)
    tensors = sorted({name for group in placement.groups.values() for name in group})
    convolutions = _outputs(graph)
    statistics = ImageStatistics(spec.num_labels)

    def batches() -> Iterator[Array]:
        for frame in images.frames(color=spec.input_color):
            yield np.repeat(fit_frame(frame, shapes), spec.fixed[0] or 1, axis=0)

    def batches_with_statistics() -> Iterator[Array]:
        for frame in images.frames(color=spec.input_color):
            statistics.add_frame(frame)
            yield np.repeat(fit_frame(frame, shapes), spec.fixed[0] or 1, axis=0)

    extents = collect_extents(
        model,
        [*tensors, *(name for name in convolutions if name not in tensors)],
        batches_with_statistics(),
        on_outputs=lambda outputs: statistics.add_labels(_labels(outputs, spec)),
        on_progress=on_progress,
    )
    if not extents:
        raise SourceError(f"'{images.path}' gives no image.")
    counts = collect_histograms(
        model, {name: extents[name] for name in tensors}, batches, on_progress=on_progress
    )
    log.debug("calibrated %d tensors on %d images", len(tensors), len(images))
    return CalibrationTable(
        key,
        {name: thresholds(count, extents[name].largest) for name, count in counts.items()},
        {node: extents[name].elements for name, node in convolutions.items()},
        statistics.report(total=images.total, served=shapes.opt[1:]),
    )


def _outputs(graph: ir.Graph) -> dict[str, str]:
    """Give the convolutions by their output: how large these are says what each costs."""
    wanted = set(quantizable_nodes(graph))
    nodes = [node for node in graph if name_of(node) in wanted]
    return {name_of(node.outputs[0]): name_of(node) for node in nodes}


def _labels(outputs: Mapping[str, Array], spec: GraphSpec) -> Array:
    """Give the labels of the first image: those of the graph, or of its scores."""
    if "labels" in outputs:
        return outputs["labels"][:1]
    return labels_of(np.ascontiguousarray(next(iter(outputs.values()))[:1]), spec)
