"""Frames for checks: photographs, seeded ones somewhat like them; any as a graph takes it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np

from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.names import Array
from fcn_deploy.preprocess import pad_frame

if TYPE_CHECKING:
    from fcn_export.graph_spec import GraphSpec

__all__ = [
    "as_batch",
    "at_usual_size",
    "natural_batch",
    "natural_frame",
    "photographs",
    "tried_batches",
    "varied_batches",
]


def natural_frame(height: int, width: int, seed: int) -> Array:
    """Make a frame of soft blobs at many scales, with edges and a little noise.

    White noise would not do: a network answers it with one class nearly everywhere.

    Args:
        height, width: in px.
        seed: the same seed, height and width give the same frame.

    Returns:
        uint8 [height, width, 3] in 0..255, blue, green, red; owned by the caller.

    Raises:
        ValueError: height or width is below 1.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a frame of {height}x{width} px cannot be made")
    rng = np.random.default_rng((seed, height, width))
    frame = np.full((height, width, 3), 110.0, dtype=np.float32)
    for cells in (2, 4, 8, 16, 32):
        blobs = _blobs(rng, height, width, cells)
        if cells in (4, 8):  # hard edges, as objects have them
            blobs = np.where(blobs > 0, np.float32(1.0), blobs)
        frame += blobs * np.float32(110.0 / cells**0.5)
    frame += rng.normal(0.0, 4.0, size=frame.shape).astype(np.float32)
    return np.clip(frame, 0, 255).astype(np.uint8)


def natural_batch(batch: int, height: int, width: int, seed: int) -> Array:
    """Stack `batch` different natural frames: uint8 [batch, height, width, 3]."""
    return np.stack([natural_frame(height, width, seed + index) for index in range(batch)])


def photographs() -> Iterator[tuple[str, Array]]:
    """Read the photographs that the package brings, in the order of their names.

    Of people, an animal, buildings, things and textures; `LICENCES.txt` beside them says whose.

    Returns:
        Names, and frames, uint8 [256, 384, 3] or [384, 256, 3], blue, green, red.
    """
    import cv2

    folder = files("fcn_export.check") / "photographs"
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".jpg"):
            data = np.frombuffer(file.read_bytes(), np.uint8)
            yield file.name, np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))


def at_usual_size(frame: Array, shapes: ShapeRange) -> Array:
    """Reduce a frame that is larger than the usual size, and enlarge one below the smallest.

    Args:
        frame: uint8 [H, W, 3].

    Returns:
        uint8 [H', W', 3]: the frame itself where it fits. What is reduced keeps its proportions.
    """
    import cv2

    height, width = frame.shape[:2]
    scale = min(1.0, shapes.opt[1] / height, shapes.opt[2] / width)
    size = (
        max(round(height * scale), shapes.min[1], 1),
        max(round(width * scale), shapes.min[2], 1),
    )
    if size == (height, width):
        return frame
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized: Array = cv2.resize(frame, size[::-1], interpolation=method)
    return resized


def varied_batches(height: int, width: int, *, count: int = 1) -> list[Array]:
    """Make batches that a network has no reason to answer all alike.

    Returns:
        uint8 [count, height, width, 3] each: soft blobs, noise, black, white.
    """
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    frames = [
        *(natural_frame(height, width, seed) for seed in range(2)),
        noise,
        np.zeros_like(noise),
        np.full_like(noise, 255),
    ]
    return [np.repeat(frame[None], count, axis=0) for frame in frames]


def tried_batches(spec: GraphSpec, shapes: ShapeRange) -> list[Array]:
    """Make varied batches of two sizes that a graph takes, or of its only one.

    Returns:
        uint8 [N, H, W, 3] each.
    """
    fixed = None not in spec.fixed[1:]
    sizes = [shapes.min[1:]] if fixed else [(96, 128), (160, 96)]
    return [as_batch(one[0], spec, shapes) for size in sizes for one in varied_batches(*size)]


def as_batch(frame: Array, spec: GraphSpec, shapes: ShapeRange) -> Array:
    """Give a frame as a graph takes it: padded as the runtime does, as often as its batch wants.

    Args:
        frame: uint8 [H, W, 3].

    Returns:
        uint8 [N, H', W', 3] with H' and W' at least the frame's and the range's smallest.
    """
    height, width = frame.shape[:2]
    size = shapes.padded_size(max(height, shapes.min[1]), max(width, shapes.min[2]))
    return np.repeat(pad_frame(frame, size)[None], spec.fixed[0] or 1, axis=0)


def _blobs(rng: np.random.Generator, height: int, width: int, cells: int) -> Array:
    """Interpolate a random grid of `cells` cells a side: float32 [height, width, 3], -1..1."""
    grid = rng.uniform(-1.0, 1.0, size=(cells + 1, cells + 1, 3)).astype(np.float32)
    row, row_part = _grid_steps(height, cells)
    column, column_part = _grid_steps(width, cells)
    part = column_part[None, :, None]
    above = grid[row][:, column] * (1 - part) + grid[row][:, column + 1] * part
    below = grid[row + 1][:, column] * (1 - part) + grid[row + 1][:, column + 1] * part
    weight = row_part[:, None, None]
    blobs: Array = above * (1 - weight) + below * weight
    return blobs


def _grid_steps(length: int, cells: int) -> tuple[Array, Array]:
    """For each px: the grid cell that it lies in, and how far into it, 0..1."""
    position = np.linspace(0, cells, length, endpoint=False, dtype=np.float32)
    cell = np.minimum(position.astype(np.int64), cells - 1)
    return cell, (position - cell).astype(np.float32)
