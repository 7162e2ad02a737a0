"""Keep a reduced precision within the budget of mean IoU, with layers in fp32 where needed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from fcn_deploy.names import Precision
from fcn_deploy.opening.choose import graph_precision
from fcn_export.check.measure import runners
from fcn_export.precision.damage import Damage, DamageMeter
from fcn_export.precision.search import Block, Search, SearchNotes, SearchResult
from fcn_export.staged import VariantInputs

if TYPE_CHECKING:
    import onnx

__all__ = ["LOW_COST", "keep_budget"]

LOW_COST = {Precision.FP16: 0.5, Precision.INT8: 0.25}
"""A layer's estimated cost, as a share of its cost in fp32: the ratio of the bytes of a value."""

_RANKING_IMAGES = 8


def keep_budget(
    inputs: VariantInputs,
    precision: Precision,
    model: onnx.ModelProto,
    blocks: Sequence[Block],
    build: Callable[[Collection[str]], onnx.ModelProto],
    *,
    key: str,
    quick: bool = False,
) -> SearchResult | None:
    """Find which blocks to keep in fp32 so that the export's budget holds on every backend here.

    Damages are kept in a file beside the artifact until the budget holds, so that an export that
    was stopped continues where it was.

    Args:
        model: the fp32 graph.
        build: makes the variant that keeps the nodes named in fp32.
        key: what decides the variant, beside the nodes that are kept.
        quick: search only if a few images lose more than half of the budget: for precisions that
            hardly ever lose any.

    Returns:
        None without ground truth: there is no mean IoU to keep; and where `quick` says enough.

    Raises:
        BudgetError: the budget holds with no block lowered.
    """
    if not inputs.has_labels:
        return None
    able = runners((graph_precision(precision),))
    backends = [runner.backend for runner in able if runner.precision is precision]
    inputs.steps.tell("labels of the fp32 graph")
    if quick and _few_lose_little(
        inputs, precision=precision, model=model, backends=backends, variant=build(())
    ):
        return None
    all_images = _meter(inputs, model, backends)
    few_images: list[
        DamageMeter
    ] = []  # made when the first layer is ranked: most networks need none

    def measure_few(variant: onnx.ModelProto) -> Damage:
        if not few_images:
            every = max(1, all_images.images // _RANKING_IMAGES)
            few_images.append(_meter(inputs, model, backends[:1], every))
        return few_images[0].measure(variant, precision)

    path = inputs.artifact.with_name(f".{inputs.artifact.name}.{precision}-search.json")
    digest = hashlib.sha256(f"{key} {all_images.digest} {backends}".encode()).hexdigest()
    notes = SearchNotes(path, digest)
    search = Search(
        precision=str(precision),
        blocks=blocks,
        build=build,
        measure_few=measure_few,
        measure_all=lambda variant: all_images.measure(variant, precision),
        low_cost=LOW_COST[precision],
        notes=notes,
    )
    result = search.run(inputs.max_miou_drop, on_progress=inputs.steps.tell)
    notes.clear()
    return result


def _few_lose_little(
    inputs: VariantInputs,
    precision: Precision,
    model: onnx.ModelProto,
    backends: Sequence[str],
    variant: onnx.ModelProto,
) -> bool:
    every = max(1, sum(1 for _ in inputs.items()) // _RANKING_IMAGES)
    drop = _meter(inputs, model, backends, every).measure(variant, precision).miou_drop
    return drop is not None and drop <= inputs.max_miou_drop / 2


def _meter(
    inputs: VariantInputs, model: onnx.ModelProto, backends: Sequence[str], every: int = 1
) -> DamageMeter:
    staged = inputs.staged
    return DamageMeter(
        model,
        inputs.items,
        staged.spec,
        staged.shapes,
        has_labels=inputs.has_labels,
        backends=backends,
        every=every,
    )
