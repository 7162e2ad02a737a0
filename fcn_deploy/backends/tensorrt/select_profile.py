"""Select the optimization profile that runs given shapes: the smallest that takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fcn_deploy.errors import ShapeError

__all__ = ["EngineProfile", "select_profile"]


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """Shapes of the inputs, by name, that one set of the plan's kernels takes."""

    index: int
    min: Mapping[str, tuple[int, ...]]
    opt: Mapping[str, tuple[int, ...]]
    max: Mapping[str, tuple[int, ...]]

    def takes(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return all(
            len(shape) == len(self.min[name])
            and all(
                low <= size <= high
                for low, size, high in zip(self.min[name], shape, self.max[name], strict=True)
            )
            for name, shape in shapes.items()
        )

    @property
    def elements(self) -> int:
        """Elements of the largest inputs: the smallest profile that fits is the best tuned."""
        return sum(int(np.prod(shape, dtype=np.int64)) for shape in self.max.values())

    def __str__(self) -> str:
        parts = [f"{name} {list(self.min[name])}..{list(self.max[name])}" for name in self.min]
        return f"profile {self.index}: {', '.join(parts)}"


def select_profile(
    profiles: Sequence[EngineProfile], shapes: Mapping[str, tuple[int, ...]], *, name: str
) -> int:
    """Give the number of the smallest profile that takes these shapes of the inputs.

    Args:
        name: of the plan, for the message.

    Raises:
        ShapeError: none does; the message lists them all.
    """
    fitting = [profile for profile in profiles if profile.takes(shapes)]
    if fitting:
        return min(fitting, key=lambda profile: (profile.elements, profile.index)).index
    given = ", ".join(f"'{tensor}' {list(shape)}" for tensor, shape in shapes.items())
    offered = "; ".join(map(str, profiles))
    raise ShapeError(
        f"input {given} fits none of {len(profiles)} profiles of '{name}': "
        f"{offered}.{_nearest(profiles, shapes)}",
        hint="Resize the frames, or export with --min-size, --max-size, --batch or --profiles.",
    )


def _nearest(profiles: Sequence[EngineProfile], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Say which sizes are out of the profile that misses the fewest."""
    misses: list[list[str]] = []
    for profile in profiles:
        found = []
        for name, shape in shapes.items():
            for axis, size in enumerate(shape):
                low, high = profile.min[name][axis], profile.max[name][axis]
                if not low <= size <= high:
                    found.append(f"axis {axis} is {size}, not {low}..{high}")
        misses.append(found)
    fewest = min(misses, key=len, default=[])
    return f" Of the nearest, {', '.join(fewest)}." if fewest else ""
