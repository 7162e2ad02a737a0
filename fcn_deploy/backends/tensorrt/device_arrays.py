"""Share arrays on the GPU: ours with other libraries, and theirs (PyTorch, CuPy) with us."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fcn_deploy.backends.base import ContextManaged
from fcn_deploy.errors import ShapeError
from fcn_deploy.names import Array

__all__ = ["DeviceArray", "DeviceView", "stream_handle", "view_of", "wrong_out"]


@dataclass(frozen=True, slots=True)
class DeviceView:
    """Where someone's array lies.

    Attributes:
        stream: handle of the stream that fills it, as the array says itself; None where it does
            not say.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stream: int | None = None


class DeviceArray(ContextManaged):
    """Device memory that the caller owns: `close()` frees it, and so does the session's `close()`.

    PyTorch, CuPy and Numba take it without a copy by ``__cuda_array_interface__``, as in
    ``torch.as_tensor(array, device="cuda")``, and use it no longer than it is open.
    """

    def __init__(
        self,
        address: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        free: Callable[[DeviceArray], None],
    ) -> None:
        super().__init__()
        self.address = address
        self.shape = shape
        self.dtype = dtype
        self._free = free

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype} {list(self.shape)})"

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        self._require_usable(repr(self))
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "version": 3,
            "stream": None,  # its maker knows the stream in which it is ready
        }

    def close(self) -> None:
        """Free the memory, after the run that fills it. May be called twice."""
        if not self._closed:
            super().close()
            self._free(self)


def view_of(array: Any, *, name: str, ordinal: int) -> DeviceView:
    """Read where an array on the GPU lies.

    Args:
        array: anything with ``__cuda_array_interface__``, such as a tensor of PyTorch's on cuda.
        name: what it is, for messages.
        ordinal: the GPU that it must be on.

    Raises:
        ShapeError: it is not C-contiguous.
        TypeError: it is no array on a GPU.
        ValueError: it is on another GPU.
    """
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None:
        raise TypeError(
            f"'{name}' is a {type(array).__name__} without __cuda_array_interface__, no array "
            "on a GPU. Move it there, or give NumPy arrays to infer()."
        )
    index = getattr(getattr(array, "device", None), "index", None)
    if isinstance(index, int) and index != ordinal:
        raise ValueError(f"'{name}' is on GPU {index}; the engine is on GPU {ordinal}")
    shape = tuple(int(size) for size in interface["shape"])
    dtype = np.dtype(interface["typestr"])
    strides = interface.get("strides")
    if strides is not None and tuple(strides) != _contiguous_strides(shape, dtype.itemsize):
        raise ShapeError(
            f"'{name}' has strides {list(strides)}; expected a C-contiguous {dtype} {list(shape)}.",
            hint="Call contiguous() on it, or its library's like.",
        )
    return DeviceView(int(interface["data"][0]), shape, dtype, interface.get("stream"))


def stream_handle(stream: Any, arrays: Iterable[Any], views: Iterable[DeviceView]) -> int:
    """Find the stream that device arrays are used in.

    Args:
        stream: a handle, or an object of PyTorch's, CuPy's, PyCUDA's or cuda.core's; None takes
            the one that an array names itself, else PyTorch's current one for its tensors, else
            the default stream.

    Raises:
        TypeError: it is none of these.
        ValueError: it is None, and the arrays name several.
    """
    if stream is None:
        named = {view.stream for view in views if view.stream is not None}
        if len(named) > 1:
            raise ValueError(
                f"the inputs name {len(named)} streams; put them in order and give one as stream="
            )
        if named:
            return int(named.pop())
        # no import: where a tensor exists, PyTorch is loaded
        torch = sys.modules.get("torch")
        for array in arrays:
            if torch is not None and isinstance(array, torch.Tensor):
                return int(torch.cuda.current_stream(array.device).cuda_stream)
        return 0
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    for attribute in ("cuda_stream", "ptr", "handle"):  # PyTorch, CuPy, PyCUDA
        if hasattr(stream, attribute):
            return int(getattr(stream, attribute))
    if isinstance(stream, int):
        return stream
    raise TypeError(f"stream is a {type(stream).__name__}; expected a handle or a stream object")


def wrong_out(
    name: str, found: Array | DeviceView, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> str:
    """Say that an array to write an output into has another shape or dtype."""
    return f"out['{name}'] is {found.dtype} {list(found.shape)}; expected {dtype} {list(shape)}."


def _contiguous_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    strides: list[int] = []
    step = itemsize
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))
