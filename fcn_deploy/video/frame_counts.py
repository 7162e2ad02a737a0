"""Count what became of every frame of a pipeline, and how long it took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

__all__ = ["LATENCIES_KEPT", "PipelineStats", "combine"]

LATENCIES_KEPT = 4096
"""Latencies of the last frames that are kept: a long run's memory must not grow."""

_PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class PipelineStats:
    """Counts of a pipeline's frames: captured = delivered + sum of dropped + discarded_at_close.

    While the pipeline runs, frames that wait in its queues are captured and not yet anything else.

    Attributes:
        captured: frames that the source gave.
        delivered: frames that the consumer got.
        dropped: lost frames by cause: ``late`` (policy ``latest`` had a newer one), ``failed``
            (the network could not run it).
        discarded_at_close: frames under way when the pipeline was closed or broke.
        elapsed_s: from the first capture to the last delivery.
        latencies_ms: from the end of decoding to delivery, of the last frames.
        notices: remarks, such as a file that ended early.
    """

    captured: int = 0
    delivered: int = 0
    dropped: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    discarded_at_close: int = 0
    elapsed_s: float = 0.0
    latencies_ms: tuple[float, ...] = field(default=(), repr=False)
    notices: tuple[str, ...] = ()

    @property
    def fps(self) -> float:
        """Delivered frames a second; 0 before the first."""
        return self.delivered / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def latency_ms(self) -> dict[str, float]:
        """p50, p90, p95, p99, mean, max and n of `latencies_ms`; empty before the first frame."""
        ordered = sorted(self.latencies_ms)
        if not ordered:
            return {}
        count = len(ordered)
        summary = {
            f"p{percent}": ordered[min(count - 1, percent * count // 100)]
            for percent in _PERCENTILES
        }
        return summary | {"mean": sum(ordered) / count, "max": ordered[-1], "n": count}

    def to_json(self) -> dict[str, object]:
        """Give the figures as JSON values."""
        return {
            "captured": self.captured,
            "delivered": self.delivered,
            "dropped": dict(self.dropped),
            "discarded_at_close": self.discarded_at_close,
            "fps": self.fps,
            "latency_ms": self.latency_ms,
            "notices": list(self.notices),
        }


def combine(parts: Iterable[PipelineStats]) -> PipelineStats:
    """Add up pipelines that ran one after the other."""
    parts = list(parts)
    dropped: Counter[str] = Counter()
    for part in parts:
        dropped.update(part.dropped)
    return PipelineStats(
        captured=sum(part.captured for part in parts),
        delivered=sum(part.delivered for part in parts),
        dropped=MappingProxyType(dict(dropped)),
        discarded_at_close=sum(part.discarded_at_close for part in parts),
        elapsed_s=sum(part.elapsed_s for part in parts),
        latencies_ms=tuple(latency for part in parts for latency in part.latencies_ms),
        notices=tuple(notice for part in parts for notice in part.notices),
    )
