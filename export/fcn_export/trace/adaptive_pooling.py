"""Adaptive pooling to a grid of bins, written so that it follows any size while a module is traced.

Torch's exporters take adaptive pooling to one bin alone, or to bins that divide the size. Here
each axis is pooled by itself over bands that are computed from the shape: bin i of an axis of
`size` holds floor(i * size / bins) <= y < ceil((i + 1) * size / bins), as torch defines it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ["FollowingPools", "pool_averages", "pool_maxima"]

Bins = int | torch.SymInt | None
"""Outputs of one axis; None keeps it as it is."""


class FollowingPools(TorchFunctionMode):
    """Pools adaptively in operations of any size, inside its `with`; modules are left alone.

    Pooling to a single bin is left to torch, whose exporters know it as a mean.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        pool = _POOLS.get(func)
        if pool is None:
            return func(*args, **named)
        values = [*args, *(named[key] for key in _ARGUMENTS[len(args) :] if key in named)]
        bins = _bins_of(values[1]) if len(values) == 2 else None
        if bins is None or bins == (1, 1):  # indices are wanted too, or a mean of all
            return func(*args, **named)
        return pool(values[0], bins)


def pool_averages(x: torch.Tensor, bins: tuple[Bins, Bins]) -> torch.Tensor:
    """Average float [..., H, W] over bins, as `adaptive_avg_pool2d`.

    Returns:
        [..., bins[0], bins[1]] of the same dtype.
    """
    rows, columns = (_bands(x, axis, count) for axis, count in zip((-2, -1), bins, strict=True))
    if rows is not None:
        x = torch.matmul(rows / rows.sum(dim=1, keepdim=True), x)  # [..., bins, W]
    if columns is not None:
        x = torch.matmul(x, (columns / columns.sum(dim=1, keepdim=True)).transpose(0, 1))
    return x


def pool_maxima(x: torch.Tensor, bins: tuple[Bins, Bins]) -> torch.Tensor:
    """Take the largest of float [..., H, W] in each bin, as `adaptive_max_pool2d`.

    Returns:
        [..., bins[0], bins[1]] of the same dtype.
    """
    rows, columns = (_bands(x, axis, count) for axis, count in zip((-2, -1), bins, strict=True))
    least = torch.finfo(x.dtype).min
    if rows is not None:
        x = torch.where(rows[:, :, None] > 0, x.unsqueeze(-3), least).amax(dim=-2)
    if columns is not None:
        x = torch.where(columns > 0, x.unsqueeze(-2), least).amax(dim=-1)
    return x


def _bands(x: torch.Tensor, axis: int, bins: Bins) -> torch.Tensor | None:
    """Give [bins, size] of the input's type: 1 where a bin holds the place, else 0."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    size = x.shape[axis]
    # to the TorchScript tracer sizes are tensors, and a comparison a part of the graph
    followed = isinstance(size, torch.Tensor)
    if bins is None or (not followed and statically_known_true(bins == size)):
        return None
    count: Any = bins  # an int, or followed as the sizes are
    place = torch.arange(size, device=x.device)  # [size]
    number = torch.arange(count, device=x.device).unsqueeze(1)  # [bins, 1]
    # start <= y < end in whole numbers: floor(a / b) <= y is a < (y + 1) b, y < ceil(a / b) is
    # y b < a
    after_start = torch.lt(number * size, (place + 1) * count)
    before_end = torch.lt(place * count, (number + 1) * size)
    return after_start.to(x.dtype) * before_end.to(x.dtype)


def _bins_of(output_size: Any) -> tuple[Bins, Bins] | None:
    """Give the bins of height and width; None where they are no numbers (of a tracer's own)."""
    both = output_size if isinstance(output_size, tuple | list) else (output_size, output_size)
    if len(both) != 2 or not all(n is None or isinstance(n, int | torch.SymInt) for n in both):
        return None
    return both[0], both[1]


_ARGUMENTS = ("input", "output_size")
_POOLS: dict[Any, Callable[[torch.Tensor, tuple[Bins, Bins]], torch.Tensor]] = {
    functional.adaptive_avg_pool2d: pool_averages,
    torch._C._nn.adaptive_avg_pool2d: pool_averages,
    torch.ops.aten.adaptive_avg_pool2d.default: pool_averages,
    torch.ops.aten._adaptive_avg_pool2d.default: pool_averages,
    functional.adaptive_max_pool2d: pool_maxima,
}
