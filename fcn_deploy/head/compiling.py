"""How the head's loops become machine code: once a machine, whatever folders may be written.

This module and the kernels import Numba, which takes a quarter of a second; they are imported only
when scores are to become labels. Kernels release the GIL, start no threads and share no state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit, typeof, types
from numba.extending import intrinsic

from fcn_deploy.head.geometry import make_axis

__all__ = ["instruction", "kernel", "part"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def part(function: _Function) -> _Function:
    """Have a function compiled as a part of the kernels that call it."""
    compiled: _Function = njit(function)
    return compiled


def instruction(function: Callable[..., Any]) -> Callable[..., Any]:
    """Have calls in compiled code replaced with the LLVM code that a function writes."""
    wrapped: Callable[..., Any] = intrinsic(function)
    return wrapped


def kernel(function: _Function, result: Any, *arguments: Any) -> _Function:
    """Compile a function of (scores, threshold, rows, columns, first, last, *arguments).

    The machine code is kept on disk, beside the source or in the user's cache folder, and loaded
    from there the next time. Scores of any strides, writable or not, share one kernel.
    """
    axis = typeof(make_axis(1, 1, align_corners=False))  # type: ignore[no-untyped-call]  # Numba
    scores = types.Array(types.float32, 3, "A", readonly=True)
    signature = result(scores, types.float32, axis, axis, types.intp, types.intp, *arguments)
    compiled: _Function
    try:
        compiled = njit(signature, nogil=True, cache=True)(function)
    except (RuntimeError, OSError):  # no such folder can be written to, or its disk is full
        compiled = njit(signature, nogil=True)(function)
    return compiled
