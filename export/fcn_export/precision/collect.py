"""Run images through the fp32 graph and keep statistics of inner tensors, in bounded memory.

Two passes: the first reduces each tensor to its smallest and largest value inside the graph; the
second counts histograms, of as many tensors at a time as may be held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from fcn_deploy.backends import get_backend
from fcn_deploy.backends.base import ExecutionContext, ModelSource
from fcn_deploy.errors import NonFiniteOutputError, UnsupportedModelError
from fcn_deploy.names import Array
from fcn_export.graph_spec import INPUT_NAME
from fcn_export.onnx_file import MAX_SINGLE_FILE_BYTES
from fcn_export.onnx_values import take_proto
from fcn_export.precision.passes.inner_outputs import ExtentOutputs
from fcn_export.precision.thresholds import BINS

if TYPE_CHECKING:
    import onnx

__all__ = ["HELD_BYTES", "Extent", "Progress", "collect_extents", "collect_histograms"]

Progress = Callable[[str], None]
"""Told what goes on, in a few words."""

HELD_BYTES = 256_000_000
"""Bytes of inner tensors that one run may give for histograms; a single tensor may be larger."""

_BACKEND = "onnxruntime"
_FLOAT_BYTES = 4
_CHUNK = 1 << 20  # elements counted at a time, so that temporaries stay small


@dataclass(frozen=True, slots=True)
class Extent:
    """The statistics of a tensor that the first pass keeps.

    Attributes:
        low, high: smallest and largest value in all images.
        elements: of the largest image's tensor.
    """

    low: float
    high: float
    elements: int

    @property
    def largest(self) -> float:
        """Largest absolute value."""
        return max(abs(self.low), abs(self.high))


def collect_extents(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    batches: Iterable[Array],
    *,
    on_outputs: Callable[[Mapping[str, Array]], None] = lambda outputs: None,
    on_progress: Progress = lambda what: None,
) -> dict[str, Extent]:
    """Find the smallest and largest value of each tensor.

    Args:
        tensors: float32 tensors inside the graph.
        batches: uint8 [N, H, W, 3] each.
        on_outputs: given the graph's own outputs for each batch.

    Raises:
        NonFiniteOutputError: a tensor holds NaN or infinity.
    """
    own = [value.name for value in model.graph.output]
    found: dict[str, Extent] = {}
    extents = ExtentOutputs(tensors)
    wanted = take_proto(extents(ir.from_proto(model)).model)
    with _opened(wanted, "extents") as context:
        del wanted
        for number, batch in enumerate(batches, 1):
            on_progress(f"ranges, image {number}")
            results = context.execute({INPUT_NAME: batch})
            on_outputs({name: results[name] for name in own})
            for name, values in extents.read(results).items():
                extent = Extent(*values)
                if not np.isfinite(extent.low + extent.high):
                    raise NonFiniteOutputError(
                        f"tensor '{name}' holds NaN or infinity for calibration image {number}.",
                        hint="Check the weights and the normalisation (--mean, --std).",
                    )
                old = found.get(name, extent)
                found[name] = Extent(
                    min(old.low, extent.low),
                    max(old.high, extent.high),
                    max(old.elements, extent.elements),
                )
    return found


def collect_histograms(
    model: onnx.ModelProto,
    extents: Mapping[str, Extent],
    batches: Callable[[], Iterator[Array]],
    *,
    held_bytes: int = HELD_BYTES,
    on_progress: Progress = lambda what: None,
) -> dict[str, Array]:
    """Count absolute values in equal bins from 0 to each tensor's largest.

    Args:
        extents: of the first pass; tensors that are 0 throughout are left out of the result.
        batches: starts the images again; once for each group of tensors.
        held_bytes: see `HELD_BYTES`.

    Returns:
        int64 [BINS] by tensor.
    """
    wanted = {name: extent for name, extent in extents.items() if extent.largest > 0}
    counts = {name: np.zeros(BINS, np.int64) for name in wanted}
    groups = _grouped(wanted, held_bytes)
    for position, group in enumerate(groups, 1):
        with _opened(model, "histograms", outputs=group) as context:
            for number, batch in enumerate(batches(), 1):
                on_progress(f"histograms, part {position} of {len(groups)}, image {number}")
                results = context.execute({INPUT_NAME: batch})
                for name in group:
                    _count(counts[name], results[name], wanted[name].largest)
    return counts


def _grouped(extents: Mapping[str, Extent], held_bytes: int) -> list[list[str]]:
    """Split tensors, in the order given, into groups that may be held together."""
    groups: list[list[str]] = []
    room = 0
    for name, extent in extents.items():
        needed = extent.elements * _FLOAT_BYTES
        if not groups or needed > room:
            groups.append([])
            room = held_bytes
        groups[-1].append(name)
        room -= needed
    return groups


def _count(counts: Array, values: Array, largest: float) -> None:
    """Add absolute values to a histogram, in place."""
    flat = values.reshape(-1)
    factor = np.float32(BINS / largest)
    for start in range(0, flat.size, _CHUNK):
        scaled = np.abs(flat[start : start + _CHUNK]) * factor
        bins = np.minimum(scaled.astype(np.int64), BINS - 1)
        counts += np.bincount(bins, minlength=BINS)


@contextmanager
def _opened(
    model: onnx.ModelProto, purpose: str, *, outputs: Sequence[str] | None = None
) -> Iterator[ExecutionContext]:
    if model.ByteSize() > MAX_SINGLE_FILE_BYTES:
        raise UnsupportedModelError(
            f"the network's weights are {model.ByteSize() / 1e9:.1f} GB; up to "
            f"{MAX_SINGLE_FILE_BYTES / 1e9:.1f} GB can be calibrated.",
            hint="Export it without --calibrate.",
        )
    wanted = None if outputs is None else tuple(outputs)
    source = ModelSource(Path(f"calibration {purpose}"), model.SerializeToString(), wanted)
    del model  # frees it unless the caller holds it: the bytes are enough
    context = get_backend(_BACKEND).open(source)
    try:
        yield context
    finally:
        context.close()
