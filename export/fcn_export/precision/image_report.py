"""Check that calibration images are like those that will be served, and warn where not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fcn_deploy.names import Array

__all__ = ["ImageReport", "ImageStatistics"]

_FEW_IMAGES = 16
_HARDLY_SEEN_SHARE = 1e-3
"""Share of all pixels. Below it, a few patches set the ranges of a class's features."""
_HARDLY_SEEN_IMAGES = 2
_LOW_SPREAD = 4.0
"""Spread of the images' mean brightness, in grey levels. Below it, there is one exposure only."""
_DUPLICATE_DIFFERENCE = 0.02
"""Of two thumbnails' spread, on average: one picture saved twice, or a camera that sees no motion.
Neighbouring slices of a scan, 1 mm apart, differ by 0.03 to 0.05."""
_MANY_DUPLICATES = 0.25
_THUMBNAIL_PX = 32
_NAMED = 6  # classes of many, in a sentence


@dataclass(frozen=True, slots=True)
class ImageReport:
    """Statistics of the calibration images.

    Attributes:
        used: images that were run; `total` of them there were.
        class_pixels: share of the pixels of the predicted class, 0..1, by class id.
        class_images: images that each class was predicted in.
        brightness_mean, brightness_spread: of the images' mean grey level, 0..255.
        near_duplicates: images that resemble an earlier one.
        sizes: smallest, median and largest (height, width) in px, by area.
        served: usual (height, width) in px.
    """

    used: int
    total: int
    class_pixels: tuple[float, ...]
    class_images: tuple[int, ...]
    brightness_mean: float
    brightness_spread: float
    near_duplicates: int
    sizes: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    served: tuple[int, int]

    def summary(self, class_names: Sequence[str]) -> str:
        """Describe the images in a sentence."""
        most_first = sorted(
            zip(self.class_pixels, class_names, strict=True), key=lambda entry: -entry[0]
        )
        seen = ", ".join(f"{name} {share:.1%}" for share, name in most_first[:_NAMED])
        more = len(most_first) - _NAMED
        return (
            f"{self.used} of {self.total} images, brightness {self.brightness_mean:.0f} ± "
            f"{self.brightness_spread:.0f} of 255, {self.near_duplicates} near duplicates; "
            f"predicted: {seen}{f' and {more} more' if more > 0 else ''}."
        )

    def warnings(self, class_names: Sequence[str]) -> tuple[str, ...]:
        """Say in a sentence each what may make the ranges wrong, and what to do."""
        found = []
        if self.used < _FEW_IMAGES:
            found.append(
                f"Only {self.used} calibration images: ranges of rare values are uncertain. "
                f"Give {_FEW_IMAGES} or more."
            )
        rare = [
            f"{name} ({share:.2%} of the pixels, in {images} images)"
            for name, share, images in zip(
                class_names, self.class_pixels, self.class_images, strict=True
            )
            if share < _HARDLY_SEEN_SHARE or images < min(_HARDLY_SEEN_IMAGES, self.used)
        ]
        if rare:
            found.append(
                f"Calibration hardly saw {', '.join(rare)}. Add images that show "
                f"{'it' if len(rare) == 1 else 'them'}."
            )
        if self.used > 1 and self.brightness_spread < _LOW_SPREAD:
            found.append(
                f"The calibration images are all of one brightness ({self.brightness_mean:.0f} "
                f"± {self.brightness_spread:.1f} of 255). Add darker and brighter ones."
            )
        if self.near_duplicates > _MANY_DUPLICATES * self.used:
            found.append(
                f"{self.near_duplicates} of {self.used} calibration images resemble an earlier "
                "one. Choose them from different scenes."
            )
        low, median, high = (height * width for height, width in self.sizes)
        served = self.served[0] * self.served[1]
        if not served / 2 <= median <= served * 2:
            found.append(
                f"Half of the calibration images are {'below' if median < served else 'above'} "
                f"{_size(self.sizes[1])} px, but --size says {_size(self.served)}. Calibrate on "
                "images of the size to be served."
            )
        elif high > 4 * low:
            found.append(
                f"Calibration images are from {_size(self.sizes[0])} to {_size(self.sizes[2])} px; "
                f"--size says {_size(self.served)}."
            )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Give plain values for a JSON document."""
        return {
            "used": self.used,
            "total": self.total,
            "class_pixels": list(self.class_pixels),
            "class_images": list(self.class_images),
            "brightness": {"mean": self.brightness_mean, "spread": self.brightness_spread},
            "near_duplicates": self.near_duplicates,
            "sizes": [list(size) for size in self.sizes],
            "served": list(self.served),
        }


@dataclass(slots=True)
class ImageStatistics:
    """Gathers an `ImageReport`, one image at a time."""

    num_labels: int
    _pixels: list[Array] = field(default_factory=list)
    _brightness: list[float] = field(default_factory=list)
    _thumbnails: list[Array] = field(default_factory=list)
    _sizes: list[tuple[int, int]] = field(default_factory=list)

    def add_frame(self, frame: Array) -> None:
        """Count one image as it was read: uint8 [H, W, 3]."""
        grey = frame.mean(axis=2, dtype=np.float32)  # [H, W]
        self._brightness.append(float(grey.mean()))
        self._sizes.append((frame.shape[0], frame.shape[1]))
        self._thumbnails.append(_thumbnail(grey))

    def add_labels(self, labels: Array) -> None:
        """Count the classes that the network predicts for one image: class ids of any shape."""
        self._pixels.append(np.bincount(labels.reshape(-1), minlength=self.num_labels))

    def report(self, *, total: int, served: tuple[int, int]) -> ImageReport:
        """Give what was gathered of one image or more.

        Args:
            total: images that the source has.
            served: usual (height, width) in px.
        """
        pixels = np.array(self._pixels)  # [images, classes]
        shares = pixels.sum(axis=0) / pixels.sum()
        by_area = sorted(self._sizes, key=lambda size: size[0] * size[1])
        return ImageReport(
            used=len(self._sizes),
            total=total,
            class_pixels=tuple(float(share) for share in shares),
            class_images=tuple(int(count) for count in (pixels > 0).sum(axis=0)),
            brightness_mean=float(np.mean(self._brightness)),
            brightness_spread=float(np.std(self._brightness)),
            near_duplicates=_near_duplicates(self._thumbnails),
            sizes=(by_area[0], by_area[len(by_area) // 2], by_area[-1]),
            served=served,
        )


def _thumbnail(grey: Array) -> Array:
    """Shrink a picture to few cells, of mean 0 and spread 1."""
    import cv2

    small = cv2.resize(grey, (_THUMBNAIL_PX, _THUMBNAIL_PX), interpolation=cv2.INTER_AREA)
    normal: Array = (small - small.mean()) / max(float(small.std()), 1.0)
    return normal.ravel()


def _near_duplicates(thumbnails: Sequence[Array]) -> int:
    stacked = np.array(thumbnails)
    return sum(
        bool((np.abs(stacked[:index] - later).mean(axis=1) < _DUPLICATE_DIFFERENCE).any())
        for index, later in enumerate(stacked)
        if index
    )


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
