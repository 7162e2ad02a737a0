"""Read labelled images from two folders: the same stems, single-channel PNGs of class ids."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcn_deploy.errors import DTypeError, ShapeError, SourceError, SourceOpenError
from fcn_deploy.names import IGNORE_LABEL, Array, ColorOrder
from fcn_deploy.video.files import read_image

__all__ = ["EvalItem", "EvalSet"]

_MAX_PIXELS = 1 << 30  # OpenCV's own limit
_LABEL_MODES = frozenset({"L", "P", "I;16"})
_IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True, slots=True)
class EvalItem:
    """One labelled image.

    Attributes:
        name: the stem that image and labels share.
        frame: uint8 [H, W, 3], in the order that was asked for.
        labels: uint8 or uint16 [H, W] class ids; 255 counts for nothing.
    """

    name: str
    frame: Array
    labels: Array


class EvalSet:
    """Pairs of images and labels, read one at a time."""

    def __init__(self, pairs: tuple[tuple[Path, Path], ...]) -> None:
        self._pairs = pairs

    @classmethod
    def find(cls, images: Path, labels: Path) -> EvalSet:
        """Pair the files of two folders by their stems.

        Raises:
            SourceOpenError: a folder is missing or empty, or both are one, two files of a folder
                have one stem, or an image has no labels.
        """
        if images.exists() and labels.exists() and images.samefile(labels):
            raise SourceOpenError(
                f"'{images}' is the folder of images and that of labels, too.",
                hint="Put the labels into a folder of their own.",
            )
        found = _files(images, _IMAGE_SUFFIXES)
        masks = _files(labels, frozenset({".png"}))
        missing = sorted(found.keys() - masks.keys())
        if missing:
            raise SourceOpenError(
                f"{len(missing)} of {len(found)} images in '{images}' have no labels in "
                f"'{labels}', the first is '{found[missing[0]].name}'.",
                hint=f"Add '{missing[0]}.png', one channel of class ids.",
            )
        return cls(tuple((found[stem], masks[stem]) for stem in sorted(found)))

    def __len__(self) -> int:
        return len(self._pairs)

    def items(self, *, color: ColorOrder, num_labels: int) -> Iterator[EvalItem]:
        """Read the pairs in the order of their names.

        Raises:
            SourceOpenError: a file cannot be read as an image.
            DTypeError: labels are not one channel of 8 or 16 bits.
            ShapeError: image and labels differ in size, or labels name classes that do not exist.
        """
        for index in range(len(self)):
            yield self.read(index, color=color, num_labels=num_labels)

    def read(self, index: int, *, color: ColorOrder, num_labels: int) -> EvalItem:
        """Read one pair, by its place in the order of names.

        Raises:
            SourceOpenError, DTypeError, ShapeError: as for `items`.
        """
        image, mask = self._pairs[index]
        frame, labels = _read_frame(image, color), _read_labels(mask)
        if frame.shape[:2] != labels.shape:
            raise ShapeError(
                f"'{image}' is {frame.shape[0]}x{frame.shape[1]} px but its labels "
                f"'{mask}' are {labels.shape[0]}x{labels.shape[1]}.",
                hint="Labels must have their image's size.",
            )
        unknown = np.unique(labels[(labels >= num_labels) & (labels != IGNORE_LABEL)])
        if unknown.size:
            raise ShapeError(
                f"'{mask}' names class {unknown.tolist()[:5]}; the network gives "
                f"0..{num_labels - 1}.",
                hint=f"Pixels to leave out are {IGNORE_LABEL}.",
            )
        return EvalItem(image.stem, frame, labels)


def _files(folder: Path, suffixes: frozenset[str]) -> dict[str, Path]:
    if not folder.is_dir():
        raise SourceOpenError(f"there is no folder '{folder}'.")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes:
            continue
        if (other := files.setdefault(path.stem, path)) != path:
            raise SourceOpenError(
                f"'{folder}' holds both '{other.name}' and '{path.name}'.",
                hint="Remove or rename one of them: images and labels are paired by their stems.",
            )
    if not files:
        raise SourceOpenError(
            f"'{folder}' holds no images.", hint=f"Expected {', '.join(sorted(suffixes))}."
        )
    return files


def _read_frame(path: Path, color: ColorOrder) -> Array:
    try:
        frame = read_image(path, max_pixels=_MAX_PIXELS)
    except SourceError as error:
        raise SourceOpenError(f"'{path}' cannot be read as an image: {error}") from error
    return np.ascontiguousarray(frame if color == "bgr" else frame[..., ::-1])


def _read_labels(path: Path) -> Array:
    # Pillow, as OpenCV gives a palette's colours instead of its indices, which VOC's labels are
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            mode, labels = image.mode, np.asarray(image)
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise SourceOpenError(f"'{path}' cannot be read as an image: {error}.") from error
    if mode not in _LABEL_MODES:
        raise DTypeError(
            f"labels '{path}' are an image of mode {mode!r}; "
            "expected one channel of class ids, 8 or 16 bits.",
            hint="Save the class ids themselves, not their colours.",
        )
    return labels
