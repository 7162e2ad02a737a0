"""Read labelled images for training, from folders or from PASCAL VOC."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fcn_deploy.artifact.manifest import Preprocess
from fcn_deploy.errors import SourceOpenError
from fcn_deploy.names import IGNORE_LABEL, Array
from fcn_models.foreign_errors import first_line
from fcn_models.labelled_images import EvalSet

__all__ = ["FolderDataset", "VocDataset", "normalised"]

VOC_CLASSES = 21


def normalised(image_rgb: Array, preprocess: Preprocess) -> Tensor:
    """Give an image as a network expects it.

    Args:
        image_rgb: uint8 [H, W, 3]; not modified.

    Returns:
        float32 [channels, H, W], owned by the caller.
    """
    values = torch.from_numpy(np.array(image_rgb)).permute(2, 0, 1).float() / 255
    if preprocess.color == "gray":
        values = (values * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0, keepdim=True)
    elif preprocess.color == "bgr":
        values = values.flip(0)
    mean = torch.tensor(preprocess.mean).view(-1, 1, 1)
    return (values - mean) / torch.tensor(preprocess.std).view(-1, 1, 1)


class FolderDataset(Dataset[tuple[Tensor, Tensor]]):
    """A folder of images and one of label maps with the same stems.

    Items are the image, float32 [channels, H, W], and its labels, int64 [H, W].

    Raises:
        SourceOpenError: a folder is missing or empty, or both are one, two images have one stem, or
            an image has no labels.
    """

    def __init__(
        self,
        images: str | os.PathLike[str],
        labels: str | os.PathLike[str],
        *,
        num_classes: int,
        preprocess: Preprocess,
        crop: tuple[int, int] | None = None,
    ) -> None:
        """Find the pairs.

        Args:
            labels: of single-channel PNGs of class ids; 255 is left out.
            num_classes: scores a pixel; one is binary, for labels 0 and 1.
            crop: (height, width) in px of a random part, so that images of several sizes make a
                batch; smaller images are padded with pixels that are left out. None for whole
                images.
        """
        self._pairs = EvalSet.find(Path(images), Path(labels))
        self._num_labels, self._preprocess, self._crop = max(2, num_classes), preprocess, crop

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        item = self._pairs.read(index, color="rgb", num_labels=self._num_labels)
        return _example(item.frame, item.labels, self._preprocess, self._crop)


class VocDataset(Dataset[tuple[Tensor, Tensor]]):
    """PASCAL VOC's segmentation, as torchvision reads it; nothing is downloaded.

    Items are as those of `FolderDataset`.

    Raises:
        SourceOpenError: the folder does not hold it, or there is no such year or image set.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        preprocess: Preprocess,
        year: str = "2012",
        image_set: str = "train",
        crop: tuple[int, int] | None = None,
    ) -> None:
        """Open the data set.

        Args:
            root: holds ``VOCdevkit/VOC2012``.
        """
        from torchvision.datasets import VOCSegmentation

        try:
            self._data: Any = VOCSegmentation(
                os.fspath(root), year=year, image_set=image_set, download=False
            )
        except ValueError as exc:
            raise SourceOpenError(
                f"PASCAL VOC has no '{image_set}' of {year}: {first_line(exc)}"
            ) from exc
        except (RuntimeError, OSError) as exc:
            raise SourceOpenError(
                f"'{root}' does not hold VOCdevkit/VOC{year} and its list '{image_set}': "
                f"{first_line(exc)}.",
                hint="Unpack the archive of PASCAL VOC there.",
            ) from exc
        self._preprocess, self._crop = preprocess, crop

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, labels = self._data[index]
        return _example(
            np.asarray(image.convert("RGB")), np.asarray(labels), self._preprocess, self._crop
        )


def _example(
    image_rgb: Array, labels: Array, preprocess: Preprocess, crop: tuple[int, int] | None
) -> tuple[Tensor, Tensor]:
    pixels = normalised(image_rgb, preprocess)
    ids = torch.from_numpy(labels.astype(np.int64))
    if crop is None:
        return pixels, ids
    missing = [max(0, want - have) for want, have in zip(crop, ids.shape, strict=True)]
    padding = (0, missing[1], 0, missing[0])
    pixels = torch.nn.functional.pad(pixels, padding)  # zero is the mean
    ids = torch.nn.functional.pad(ids, padding, value=IGNORE_LABEL)
    top, left = (
        int(torch.randint(have - want + 1, ())) for have, want in zip(ids.shape, crop, strict=True)
    )
    height, width = crop
    return (
        pixels[:, top : top + height, left : left + width],
        ids[top : top + height, left : left + width],
    )
