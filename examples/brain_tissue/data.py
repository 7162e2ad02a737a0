"""The MNI ICBM152 2009a template as labelled axial slices, from files that nilearn ships."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "BLOCK_SLICES",
    "BRAIN_THRESHOLD",
    "CLASS_COLORS",
    "CLASS_NAMES",
    "SLICE_SIZE",
    "Slices",
    "Split",
    "load_slices",
    "split_of",
]

Split = Literal["train", "test", "all"]

CLASS_NAMES = ("background", "cerebrospinal fluid", "grey matter", "white matter")
"""The name of each class id."""

CLASS_COLORS = ((0, 0, 0), (64, 156, 255), (214, 84, 72), (250, 220, 120))
"""The colour of each class id, RGB."""

BLOCK_SLICES = 10
"""Axial slices in a row that belong to one side of the split; 1 slice is 1 mm."""

SLICE_SIZE = (240, 200)
"""Height and width of a slice: the template's 233 and 197 with a black margin.

The coarsest stage of the network is at 1/8. With multiples of 8 its grids cover the slice exactly;
other sizes work too, but features are then stretched by up to a pixel at the right and the bottom.
"""

BRAIN_THRESHOLD = 0.2
"""Gray values in 0..1 above this are brain: the default of nilearn's load_mni152_brain_mask."""


@dataclass(frozen=True, slots=True)
class Slices:
    """Axial slices, front of the head up, with what is known of every pixel.

    Attributes:
        indices: position of each slice in the template, from the neck up.
        images: gray values, uint8 [S, H, W].
        grey: probability of grey matter, float32 [S, H, W] in 0..1.
        white: probability of white matter, float32 [S, H, W] in 0..1.
        labels: class ids, uint8 [S, H, W].
    """

    indices: tuple[int, ...]
    images: NDArray[np.uint8]
    grey: NDArray[np.float32]
    white: NDArray[np.float32]
    labels: NDArray[np.uint8]

    def __len__(self) -> int:
        """Return the number of slices."""
        return len(self.indices)

    def __getitem__(self, some: slice) -> Slices:
        """Return views of some of the slices."""
        return Slices(
            indices=self.indices[some],
            images=self.images[some],
            grey=self.grey[some],
            white=self.white[some],
            labels=self.labels[some],
        )

    def __repr__(self) -> str:
        """Name the slices and their size."""
        height, width = self.images.shape[1:]
        return f"Slices({len(self)} of {height}x{width}, {self.indices[0]}..{self.indices[-1]})"


def split_of(index: int) -> Literal["train", "test"]:
    """Return the side of the split that a slice is on: blocks of BLOCK_SLICES alternate."""
    return "train" if index // BLOCK_SLICES % 2 == 0 else "test"


def load_slices(split: Split) -> Slices:
    """Read the slices of one side of the split, or all of them, that have brain in them.

    Inside the brain mask the label is the most probable of grey matter, white matter and the rest;
    the rest is cerebrospinal fluid. Outside it is background.

    Returns:
        Arrays of their own, owned by the caller.
    """
    from nilearn import datasets

    template = _volume(datasets.load_mni152_template(resolution=1))
    grey = np.clip(_volume(datasets.load_mni152_gm_template(resolution=1)), 0, 1)
    white = np.clip(_volume(datasets.load_mni152_wm_template(resolution=1)), 0, 1)
    mask = datasets.load_mni152_brain_mask(resolution=1, threshold=BRAIN_THRESHOLD)
    brain = _volume(mask) > 0

    fluid = 1 - grey - white
    tissue = 1 + np.argmax(np.stack([fluid, grey, white]), axis=0)
    labels = np.where(brain, tissue, 0)
    indices = [
        int(index)
        for index in np.flatnonzero(brain.any(axis=(1, 2)))
        if split in ("all", split_of(int(index)))
    ]
    return Slices(
        indices=tuple(indices),
        images=np.rint(template[indices] * 255).astype(np.uint8),  # stored in 8 bits: exact
        grey=grey[indices],
        white=white[indices],
        labels=labels[indices].astype(np.uint8),
    )


def _volume(image: Any) -> NDArray[np.float32]:
    """Return a NIfTI image's voxels as float32 [Z, H, W], each slice with the front of the head up.

    Raises:
        ValueError: the voxels are not 1 mm, or not ordered left-right, back-front, foot-head.
    """
    if not np.array_equal(image.affine[:3, :3], np.eye(3)):
        raise ValueError(
            f"The template's axes are {image.affine[:3, :3].tolist()}; expected 1 mm voxels "
            "ordered left to right, back to front, foot to head. Install nilearn 0.14 or newer."
        )
    voxels = np.asarray(image.dataobj, dtype=np.float32)  # [X, Y, Z]
    upright = voxels.transpose(2, 1, 0)[:, ::-1]  # [Z, 233, 197]
    margins = [size - have for size, have in zip(SLICE_SIZE, upright.shape[1:], strict=True)]
    return np.pad(upright, ((0, 0), *((margin // 2, margin - margin // 2) for margin in margins)))
