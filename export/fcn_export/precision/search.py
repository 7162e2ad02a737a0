"""Find the fewest blocks to keep in higher precision so that the loss of mean IoU is allowed.

Each block is lowered alone to measure its damage. The most damaging blocks are then kept, as few as
hold the budget. Every figure is written to a file at once, so that a search that was stopped can go
on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcn_deploy.artifact.partial_files import write_whole
from fcn_deploy.errors import BudgetError
from fcn_export.precision.collect import Progress
from fcn_export.precision.damage import Damage

if TYPE_CHECKING:
    import onnx

__all__ = ["Block", "Point", "Search", "SearchNotes", "SearchResult"]

_PRUNED = 8  # kept blocks that are tried without, at most


@dataclass(frozen=True, slots=True)
class Block:
    """Nodes that are lowered or kept together.

    Attributes:
        name: of its first node.
        nodes: names of ONNX nodes.
        work: multiply-adds, or anything in proportion.
    """

    name: str
    nodes: tuple[str, ...]
    work: float


@dataclass(frozen=True, slots=True)
class Point:
    """One choice of blocks, measured on all images.

    Attributes:
        kept: names of the blocks in higher precision.
        cost: estimated, of the whole in higher precision.
    """

    kept: tuple[str, ...]
    cost: float
    damage: Damage


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The result of a search.

    Attributes:
        chosen: the point to make.
        points: all that were measured, cheapest first.
        ranking: blocks with the damage that each does alone, worst first; empty where it was not
            needed.
        unranked: blocks that there was no time for.
    """

    chosen: Point
    points: tuple[Point, ...]
    ranking: tuple[tuple[str, Damage], ...] = ()
    unranked: tuple[str, ...] = ()

    def pareto(self) -> tuple[Point, ...]:
        """Give the points that no other is both cheaper and better than, cheapest first."""
        best: list[Point] = []
        for point in self.points:
            if not best or _drop(point.damage) < _drop(best[-1].damage):
                best.append(point)
        return tuple(best)

    def to_json(self) -> dict[str, Any]:
        """Give plain values for a JSON document."""
        return {
            "kept": list(self.chosen.kept),
            "pareto": [
                {
                    "kept": list(point.kept),
                    "estimated_cost": point.cost,
                    "miou_drop": point.damage.miou_drop,
                    "disagreement": point.damage.disagreement,
                }
                for point in self.pareto()
            ],
            "ranking": [
                {"node": name, "miou_drop": damage.miou_drop, "disagreement": damage.disagreement}
                for name, damage in self.ranking
            ],
            "unranked": list(self.unranked),
        }


@dataclass(slots=True)
class SearchNotes:
    """Damages that were measured already, in a file that is rewritten after each.

    Args:
        path: of the file; None keeps nothing.
        key: what the damages depend on; a file of another key is not read.
    """

    path: Path | None
    key: str
    _damages: dict[str, Damage] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            if self.path is not None:
                document = json.loads(self.path.read_text(encoding="utf-8"))
                if document["key"] == self.key:
                    self._damages = {
                        name: Damage(*values) for name, values in document["scores"].items()
                    }
        except (OSError, ValueError, KeyError, TypeError):
            self._damages = {}  # a file that cannot be read holds no damages

    def known(self, name: str, measure: Callable[[], Damage]) -> Damage:
        """Give the damage that the file holds, or measure it and write it down."""
        if name not in self._damages:
            self._damages[name] = measure()
            self._write()
        return self._damages[name]

    def clear(self) -> None:
        """Delete the file."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        if self.path is None:
            return
        damages = {name: [s.miou_drop, s.disagreement] for name, s in self._damages.items()}
        write_whole(self.path, json.dumps({"key": self.key, "scores": damages}).encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How variants are made and measured.

    Attributes:
        precision: of what is lowered, for messages.
        blocks: all that can be lowered.
        build: makes the graph that keeps the nodes named in higher precision.
        measure_few: measures a graph on a few images, to rank blocks.
        measure_all: measures it on all images.
        low_cost: what lowered work costs of the same work in higher precision.
        notes: see `SearchNotes`.
        max_seconds: after which no more blocks are ranked.
    """

    precision: str
    blocks: Sequence[Block]
    build: Callable[[Collection[str]], onnx.ModelProto]
    measure_few: Callable[[onnx.ModelProto], Damage]
    measure_all: Callable[[onnx.ModelProto], Damage]
    low_cost: float
    notes: SearchNotes
    max_seconds: float = 900.0

    def run(self, max_drop: float, *, on_progress: Progress = lambda what: None) -> SearchResult:
        """Keep the fewest blocks with which the loss of mean IoU is allowed.

        Args:
            max_drop: in points.

        Raises:
            BudgetError: the budget does not hold with any block lowered.
        """
        points: dict[tuple[str, ...], Point] = {}

        def try_keeping(names: Sequence[str]) -> bool:
            kept = tuple(block.name for block in self.blocks if block.name in names)
            if kept not in points:
                on_progress(f"all images with {len(kept)} of {len(self.blocks)} layers kept")
                points[kept] = self._point(kept)
            return _drop(points[kept].damage) <= max_drop

        if try_keeping(()):
            return _result((), points, (), ())
        ranking, unranked = self._rank(on_progress)
        order = [*(name for name, _ in ranking), *unranked]
        count = _fewest(len(order) - 1, lambda number: try_keeping(order[:number]))
        if count is None:
            raise _cannot(self.precision, max_drop, points, ranking)
        kept = self._prune(order[:count], try_keeping)
        return _result(kept, points, ranking, unranked)

    def _point(self, kept: tuple[str, ...]) -> Point:
        nodes = self._nodes(kept)
        damage = self.notes.known(
            f"all images, kept: {', '.join(kept)}", lambda: self.measure_all(self.build(nodes))
        )
        whole = sum(block.work for block in self.blocks)
        high = sum(block.work for block in self.blocks if block.name in kept)
        share = high / whole if whole else 0.0
        return Point(kept, share + (1 - share) * self.low_cost, damage)

    def _nodes(self, names: Collection[str]) -> frozenset[str]:
        return frozenset(n for block in self.blocks if block.name in names for n in block.nodes)

    def _rank(
        self, on_progress: Progress
    ) -> tuple[tuple[tuple[str, Damage], ...], tuple[str, ...]]:
        """Measure each block lowered alone; gives the worst first, and what time did not allow."""
        began = time.monotonic()
        damages: dict[str, Damage] = {}
        for number, block in enumerate(self.blocks, 1):
            if time.monotonic() - began > self.max_seconds:
                break
            on_progress(f"layer {number} of {len(self.blocks)} alone: {block.name}")
            others = self._nodes({other.name for other in self.blocks} - {block.name})
            damages[block.name] = self.notes.known(
                f"few images, lowered: {block.name}", partial(self._measure_few, others)
            )
        ranking = sorted(damages.items(), key=lambda item: item[1].rank, reverse=True)
        rest = [block for block in self.blocks if block.name not in damages]
        rest.sort(key=lambda block: block.work)  # unknown damage: keep what costs least first
        return tuple(ranking), tuple(block.name for block in rest)

    def _measure_few(self, nodes: Collection[str]) -> Damage:
        return self.measure_few(self.build(nodes))

    def _prune(
        self, kept: Sequence[str], try_keeping: Callable[[Sequence[str]], bool]
    ) -> tuple[str, ...]:
        """Lower again what need not be kept: the costliest first. The worst one stays."""
        work = {block.name: block.work for block in self.blocks}
        left = list(kept)
        for name in sorted(kept[1:], key=lambda other: -work[other])[:_PRUNED]:
            without = [other for other in left if other != name]
            if try_keeping(without):
                left = without
        return tuple(left)


def _fewest(most: int, holds: Callable[[int], bool]) -> int | None:
    """Find the least number from 1 to `most` that holds, if holding is not lost by more."""
    low, high = 0, 1  # low does not hold
    while high < most and not holds(high):
        low, high = high, high * 2
    high = min(high, most)
    if most < 1 or not holds(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _result(
    kept: Sequence[str],
    points: Mapping[tuple[str, ...], Point],
    ranking: tuple[tuple[str, Damage], ...],
    unranked: tuple[str, ...],
) -> SearchResult:
    chosen = next(point for names, point in points.items() if set(names) == set(kept))
    ordered = sorted(points.values(), key=lambda point: (point.cost, _drop(point.damage)))
    return SearchResult(chosen, tuple(ordered), ranking, unranked)


def _cannot(
    precision: str,
    max_drop: float,
    points: Mapping[tuple[str, ...], Point],
    ranking: tuple[tuple[str, Damage], ...],
) -> BudgetError:
    best = min(points.values(), key=lambda point: _drop(point.damage))
    worst = ", ".join(f"'{name}'" for name, _ in ranking[:3])
    layers = "1 layer" if len(best.kept) == 1 else f"{len(best.kept)} layers"
    return BudgetError(
        f"{precision} loses {_drop(best.damage):.2f} points of mean IoU even with {layers} kept in "
        f"fp32; {max_drop:g} are allowed. The worst layers are {worst}.",
        hint=f"Leave {precision} out of --precision, or allow more with --max-miou-drop.",
    )


def _drop(damage: Damage) -> float:
    return 0.0 if damage.miou_drop is None else damage.miou_drop
