"""One array's values in every layout that memory can have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fcn_deploy.names import Array

__all__ = ["LAYOUTS", "of_a_file", "of_bytes"]


def of_bytes(array: Array) -> Array:
    """Give a read-only array, as `np.frombuffer` and `np.asarray(image)` of Pillow do."""
    return np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape)


def of_a_file(array: Array, folder: Path) -> Array:
    """Map an array into memory whose pages cannot be written: a process that tries dies."""
    path = folder / "array.raw"
    path.write_bytes(array.tobytes())
    return np.memmap(path, array.dtype, "r", shape=array.shape)


# of frames [..., H, W, 3]; each is read-only or not contiguous
LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "read-only": of_bytes,
    "every second row": lambda frames: np.repeat(frames, 2, axis=-3)[..., ::2, :, :],
    "every second column": lambda frames: np.repeat(frames, 2, axis=-2)[..., ::2, :],
    "upside down": lambda frames: frames[..., ::-1, :, :],
    "mirrored": lambda frames: frames[..., ::-1, :],
    "turned": lambda frames: np.rot90(frames, axes=(-3, -2)),
    "other order of channels": lambda frames: frames[..., ::-1],
    "a part": lambda frames: frames[..., 2:-3, 4:-1, :],
    "Fortran order": np.asfortranarray,
    "channels first": lambda frames: np.moveaxis(np.moveaxis(frames, -1, 0).copy(), 0, -1),
    "one row repeated": lambda frames: np.broadcast_to(frames[..., :1, :, :], frames.shape),
    "read-only and flipped": lambda frames: of_bytes(frames)[..., ::-1, :, :],
}
