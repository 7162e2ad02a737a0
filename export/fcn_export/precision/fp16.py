"""Make the fp16 variant of an artifact: find large values, rewrite the graph, report losses."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

from fcn_deploy.names import Precision
from fcn_export.check.sample_frames import as_batch
from fcn_export.name_list import first_names
from fcn_export.onnx_file import write_onnx
from fcn_export.precision.budget import keep_budget
from fcn_export.precision.passes.half_weights import MAX_HALF
from fcn_export.precision.passes.lint import check_types
from fcn_export.precision.passes.ranges import largest_values, nodes_beyond
from fcn_export.precision.passes.to_half import Fp16Changes, convert_to_fp16
from fcn_export.precision.search import Block, SearchResult
from fcn_export.staged import GraphVariant, VariantInputs, variant_name

if TYPE_CHECKING:
    import onnx

__all__ = ["make_fp16"]

_FRAMES = 4
_HEADROOM = 4.0
"""Other frames may hold larger values than the few that are looked at."""


def make_fp16(inputs: VariantInputs) -> GraphVariant:
    """Make `model.fp16.onnx` of the verified graph.

    Layers whose values come near fp16's largest on a few frames stay fp32.

    Raises:
        UnsupportedModelError: the graph is none that the pass can rewrite.
        BudgetError: with `--eval`: mean IoU drops by more than allowed, whatever is kept in fp32.
        ArtifactError, ExecutionError: ONNX Runtime does not run the fp32 graph.
    """
    staged, tell = inputs.staged, inputs.steps.tell
    tell("looking at the range of every layer")
    batches = (
        as_batch(item.frame, staged.spec, staged.shapes) for item in islice(inputs.items(), _FRAMES)
    )
    largest = largest_values(staged.file, batches)
    tell("rewriting the graph")
    model = staged.file.load()
    hot = nodes_beyond(model.graph, largest, MAX_HALF / _HEADROOM)
    found, kept_nodes = _within_budget(inputs, hot)
    changes = convert_to_fp16(model, float32_nodes={*hot, *kept_nodes})
    name = variant_name(Precision.FP16)
    faults = check_types(model, name=name)
    file = write_onnx(model, staged.file.path.with_name(name))
    peak = max(largest.values(), default=0.0)
    kept = len(changes.float_nodes)
    tell(
        f"{len(changes.half_nodes)} layers, {kept} more in fp32, largest value {peak:.3g}, "
        f"{file.size_bytes / 1e6:.1f} MB"
    )
    notes = (*_notes(changes, hot, kept_nodes), *faults)
    return GraphVariant(Precision.FP16, file, notes, _figures(changes, peak, found))


def _within_budget(
    inputs: VariantInputs, hot: Collection[str]
) -> tuple[SearchResult | None, tuple[str, ...]]:
    """Find the nodes to keep in fp32 so that the budget holds: a convolution with what follows."""

    def build(kept: Collection[str]) -> onnx.ModelProto:
        variant = inputs.staged.file.load()
        convert_to_fp16(variant, float32_nodes={*hot, *kept})
        return variant

    graph = inputs.staged.file.load()
    plain = inputs.staged.file.load()
    blocks = _blocks(graph.graph, convert_to_fp16(plain, float32_nodes=hot).half_nodes)
    found = keep_budget(
        inputs,
        precision=Precision.FP16,
        model=graph,
        blocks=blocks,
        build=build,
        key=f"{hashlib.sha256(inputs.staged.file.data).hexdigest()} fp16 {sorted(hot)}",
        quick=True,
    )
    kept = () if found is None else found.chosen.kept
    return found, tuple(n for block in blocks if block.name in kept for n in block.nodes)


def _blocks(graph: onnx.GraphProto, names: Collection[str]) -> tuple[Block, ...]:
    """Split nodes at the convolutions; a block's work is how many nodes it has."""
    parts: list[list[str]] = []
    for node in graph.node:
        if node.name not in names:
            continue
        if node.op_type in ("Conv", "ConvTranspose") or not parts:
            parts.append([])
        parts[-1].append(node.name)
    return tuple(Block(part[0], tuple(part), float(len(part))) for part in parts)


def _notes(
    changes: Fp16Changes, hot: tuple[str, ...], kept_nodes: tuple[str, ...]
) -> tuple[str, ...]:
    notes = []
    if kept_nodes:
        notes.append(f"fp16: {first_names(kept_nodes)} compute in fp32, to keep the mean IoU.")
    weights = changes.weights
    if weights.clamped:
        notes.append(
            f"fp16: {weights.clamped} weights beyond {MAX_HALF:.0f} were clamped, in "
            f"{first_names(weights.clamped_tensors)}."
        )
    if weights.flushed:
        notes.append(
            f"fp16: too small, and 0 therefore: {weights.flushed} of {weights.values} weights."
        )
    held = [name for name in changes.float_nodes if name in hot]
    if held:
        notes.append(
            f"fp16: values above {MAX_HALF / _HEADROOM:.0f} were seen, so {first_names(held)} "
            "compute in fp32."
        )
    return tuple(notes)


def _figures(changes: Fp16Changes, peak: float, found: SearchResult | None) -> dict[str, Any]:
    weights = asdict(changes.weights)
    return {
        "fp16_nodes": len(changes.half_nodes),
        "fp32_nodes": list(changes.float_nodes),
        "casts": changes.casts,
        "search": None if found is None else found.to_json(),
        "largest_value": peak if peak < float("inf") else None,
        "weights": {**weights, "clamped_tensors": list(changes.weights.clamped_tensors)},
    }
