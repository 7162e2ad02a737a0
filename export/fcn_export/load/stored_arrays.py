"""NumPy arrays of a checkpoint, read as bytes with a shape: NumPy is not asked to build them.

`numpy.ndarray.__setstate__` and `numpy.dtype.__setstate__` believe what a file says, so that forged
arrays read foreign memory. What is recorded here becomes an array only where its type is a plain
number and its bytes are as many as its shape needs.
"""

from __future__ import annotations

import math

import numpy as np

from fcn_deploy.names import Array

__all__ = ["StoredArray", "StoredType", "make_array"]

_PLAIN_TYPES = frozenset(("b1", "i1", "i2", "i4", "i8", "u1", "f2", "f4", "f8"))
_STATE_LENGTH = 5  # version, shape, type, whether columns come first, bytes


class StoredType:
    """What a file says of an array's type: arguments and state, both only kept."""

    __slots__ = ("code", "state")

    def __init__(self, code: object = None, *_more: object) -> None:
        self.code = code
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def plain(self) -> str | None:
        """Give NumPy's code of a plain number, with its byte order; None where it is none."""
        if not isinstance(self.code, str) or self.code not in _PLAIN_TYPES:
            return None
        order = self.state[1] if isinstance(self.state, tuple) and len(self.state) > 1 else "|"
        return f"{order}{self.code}" if order in ("<", ">", "|", "=") else None


class StoredArray:
    """What a file says of an array: its state, only kept."""

    __slots__ = ("state",)

    def __init__(self, *_arguments: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def to_numpy(self) -> Array | None:
        """Give a copy, of the stored shape and dtype.

        Returns:
            None where it holds no plain numbers, or not as many as it says.
        """
        if not isinstance(self.state, tuple) or len(self.state) != _STATE_LENGTH:
            return None
        _, shape, kind, columns_first, data = self.state
        code = kind.plain() if isinstance(kind, StoredType) else None
        sizes = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
        order = type(columns_first) in (bool, int)
        if code is None or not sizes or not order or not isinstance(data, bytes):
            return None
        dtype = np.dtype(code)
        if not data or len(data) != math.prod(shape) * dtype.itemsize:
            return None
        flat = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))
        return flat.reshape(shape, order="F" if columns_first else "C").copy(order="C")


class _MakeArray:
    """Stands for NumPy's function that starts an array."""

    def __new__(cls, *_arguments: object) -> StoredArray:  # type: ignore[misc] # on purpose
        return StoredArray()


make_array: type = _MakeArray
"""What to call in place of ``numpy.core.multiarray._reconstruct``."""
