"""The fp16 variant of an artifact: ranges looked at, graph rewritten, everything lost reported."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from typing import Any

from fcn_deploy.tensors import Precision
from fcn_export.frames import as_batch
from fcn_export.onnx_file import write_onnx
from fcn_export.passes.fp16 import Fp16Changes, convert_to_fp16
from fcn_export.passes.half_weights import MAX_HALF
from fcn_export.passes.ranges import largest_values, nodes_beyond
from fcn_export.variants import GraphVariant, Making, variant_name

__all__ = ["make_fp16"]

_FRAMES = 4
_HEADROOM = 4.0
"""Other frames may hold larger values than the few that are looked at."""

_NAMED = 3  # of many, in a note


def make_fp16(making: Making) -> GraphVariant:
    """Make `model.fp16.onnx` of the verified graph.

    Layers whose values come near fp16's largest on a few frames stay fp32.

    Raises:
        UnsupportedModelError: the graph is none that the pass can rewrite.
        ArtifactError, ExecutionError: ONNX Runtime does not run the fp32 graph.
    """
    staged, tell = making.staged, making.steps.tell
    tell("looking at the range of every layer")
    batches = (
        as_batch(item.frame, staged.spec, staged.shapes) for item in islice(making.items(), _FRAMES)
    )
    largest = largest_values(staged.file, batches)
    tell("rewriting the graph")
    model = staged.file.load()
    hot = nodes_beyond(model.graph, largest, MAX_HALF / _HEADROOM)
    changes = convert_to_fp16(model, float32_nodes=hot)
    file = write_onnx(model, staged.file.path.with_name(variant_name(Precision.FP16)))
    peak = max(largest.values(), default=0.0)
    kept = len(changes.float_nodes)
    tell(
        f"{len(changes.half_nodes)} layers, {kept} more in fp32, largest value {peak:.3g}, "
        f"{file.size_bytes / 1e6:.1f} MB"
    )
    return GraphVariant(Precision.FP16, file, _notes(changes, hot), _figures(changes, peak))


def _notes(changes: Fp16Changes, hot: tuple[str, ...]) -> tuple[str, ...]:
    notes = []
    weights = changes.weights
    if weights.clamped:
        notes.append(
            f"fp16: {weights.clamped} weights beyond {MAX_HALF:.0f} were clamped, in "
            f"{_listed(weights.clamped_tensors)}."
        )
    if weights.flushed:
        share = weights.flushed / weights.values
        notes.append(f"fp16: {weights.flushed} weights ({share:.2%}) are too small and became 0.")
    held = [name for name in changes.float_nodes if name in hot]
    if held:
        notes.append(
            f"fp16: values above {MAX_HALF / _HEADROOM:.0f} were seen, so {_listed(held)} "
            "compute in fp32."
        )
    return tuple(notes)


def _figures(changes: Fp16Changes, peak: float) -> dict[str, Any]:
    weights = asdict(changes.weights)
    return {
        "fp16_nodes": len(changes.half_nodes),
        "fp32_nodes": list(changes.float_nodes),
        "casts": changes.casts,
        "largest_value": peak if peak < float("inf") else None,
        "weights": {**weights, "clamped_tensors": list(changes.weights.clamped_tensors)},
    }


def _listed(names: tuple[str, ...] | list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_NAMED])
    more = len(names) - _NAMED
    return f"{shown} and {more} more" if more > 0 else shown
