"""Compile the head's loops to machine code, once on each machine.

This module and the kernels import Numba, which takes a quarter of a second; they are imported only
when scores are to become labels. Kernels release the GIL, start no threads and share no state.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pickle import PickleError
from typing import Any, TypeVar, cast

from numba import njit, typeof, types
from numba.extending import intrinsic

from fcn_deploy.head.geometry import make_axis

__all__ = ["instruction", "kernel", "kernel_part"]

_log = logging.getLogger(__name__)

_CACHE_FAULTS = (OSError, EOFError, PickleError)
"""Errors that Numba raises when the disk is full, or a file of its cache is damaged."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


def kernel_part(function: _Function) -> _Function:
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
    try:
        dispatcher = njit(nogil=True, cache=True)(function)
    except RuntimeError:  # Numba found no folder that it may write to
        return _in_memory(function, signature)
    try:
        dispatcher.compile(signature)
    except _CACHE_FAULTS as exc:
        _log.warning("Numba's cache in %s fails: %r", dispatcher.stats.cache_path, exc)
        if not dispatcher.signatures:  # else only writing failed
            return _in_memory(function, signature)
    dispatcher.disable_compile()  # other types are a mistake, not a reason to wait for seconds
    return cast(_Function, dispatcher)


def _in_memory(function: _Function, signature: Any) -> _Function:
    compiled: _Function = njit(signature, nogil=True)(function)
    return compiled
