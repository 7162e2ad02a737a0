"""Name the first few layers or tensors of many, for notes and tables."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

__all__ = ["first_names"]

_NAMED = 3


def first_names(names: Collection[str], *, quote: str = "'") -> str:
    """List the first three names and the number of the others: ``'a', 'b', 'c' and 4 more``."""
    shown = ", ".join(f"{quote}{name}{quote}" for name in islice(names, _NAMED))
    more = len(names) - _NAMED
    return f"{shown} and {more} more" if more > 0 else shown
