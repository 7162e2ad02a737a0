"""Compute the cross-entropy of every labelled pixel, for any number of classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fcn_deploy.errors import ShapeError
from fcn_deploy.names import IGNORE_LABEL

__all__ = ["pixel_loss"]

AUX_WEIGHT = 0.5
"""Weight of an auxiliary output's loss, as in torchvision's references/segmentation/train.py."""


def pixel_loss(found: Tensor | dict[str, Tensor], labels: Tensor) -> Tensor:
    """Give the mean cross-entropy of the pixels whose label is not 255.

    One score a pixel is that of class 1 against class 0, as everywhere in this project. Where no
    pixel counts the loss is zero, and so are its gradients.

    Args:
        found: scores [N, C, H, W], or a dict with them as ``out`` and perhaps ``aux``.
        labels: int64 [N, H, W].

    Returns:
        One number, float32 or wider, also of scores in less; not a number where scores are not.

    Raises:
        ShapeError: labels and scores differ in size, or labels name classes that do not exist.
    """
    if isinstance(found, dict):
        loss = pixel_loss(found["out"], labels)
        return loss + AUX_WEIGHT * pixel_loss(found["aux"], labels) if "aux" in found else loss
    scores = found.to(torch.promote_types(found.dtype, torch.float32))
    _check(scores, labels)
    counts = labels != IGNORE_LABEL
    if not counts.any():
        return (scores * 0).sum()
    if scores.shape[1] > 1:
        return functional.cross_entropy(scores, labels, ignore_index=IGNORE_LABEL)
    return functional.binary_cross_entropy_with_logits(
        scores[:, 0][counts], labels[counts].to(scores.dtype)
    )


def _check(scores: Tensor, labels: Tensor) -> None:
    if scores.ndim < 2 or scores[:, 0].shape != labels.shape:
        raise ShapeError(
            f"scores are {list(scores.shape)} but labels {list(labels.shape)}; "
            "expected [N, C, H, W] and [N, H, W].",
            hint="A network that scores fewer pixels than its image has must enlarge its scores.",
        )
    classes = max(2, scores.shape[1])  # one score is binary
    unknown = labels[(labels != IGNORE_LABEL) & ((labels < 0) | (labels >= classes))].unique()
    if unknown.numel():
        raise ShapeError(
            f"labels name class {unknown.tolist()[:5]}; the network gives 0..{classes - 1}.",
            hint=f"Pixels to leave out are {IGNORE_LABEL}.",
        )
