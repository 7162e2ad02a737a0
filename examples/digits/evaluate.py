"""Measure networks on the test scenes by the paper's four metrics, and draw what they see."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from examples.digits.data import CLASSES, NUM_CLASSES, PREPROCESS, DigitCrops, Scene, make_scene
from fcn_deploy.names import IGNORE_LABEL
from fcn_export import load_fcn
from fcn_export.check.fidelity import (
    confusion_matrix,
    frequency_weighted_iou,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
)
from fcn_models.data import normalised

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

__all__ = [
    "CHECKPOINT",
    "METRICS",
    "classifier_accuracy",
    "draw",
    "four_metrics",
    "main",
    "predict_labels",
    "score_network",
    "side_by_side",
]

CHECKPOINT = Path(__file__).with_name("digits.pt")

METRICS = ("pixel acc.", "mean acc.", "mean IoU", "f.w. IoU")

TEST_SCENES = 60


@cache
def _test_scenes(count: int = TEST_SCENES) -> tuple[Scene, ...]:
    return tuple(make_scene("test", seed) for seed in range(count))


def predict_labels(network: nn.Module, scene: Scene) -> NDArray[np.uint8]:
    """Label a scene: uint8 [H, W]. The network is in evaluation mode."""
    import torch

    with torch.inference_mode():
        scores = network(normalised(scene.image_rgb, PREPROCESS)[None])  # [1, C, H, W]
    labels: NDArray[np.uint8] = scores[0].argmax(dim=0).numpy().astype(np.uint8)
    return labels


def four_metrics(confusion: NDArray[np.int64]) -> list[float]:
    """Give the paper's four metrics, 0..1, in the order of `METRICS`."""
    return [
        pixel_accuracy(confusion),
        mean_accuracy(confusion),
        mean_iou(confusion)[0],
        frequency_weighted_iou(confusion),
    ]


def score_network(network: nn.Module, *, count: int = TEST_SCENES) -> list[float]:
    """Give the four metrics over the first test scenes; pixels of all make one confusion."""
    confusion = np.zeros((NUM_CLASSES, NUM_CLASSES), np.int64)
    for scene in _test_scenes(count):
        confusion += confusion_matrix(predict_labels(network, scene), scene.labels, NUM_CLASSES)
    return four_metrics(confusion)


def classifier_accuracy(classifier: nn.Module) -> float:
    """Give the share of single test digits that a classifier recognises."""
    import torch

    crops = DigitCrops("test", seed=7)
    with torch.inference_mode():
        right = [
            int(classifier(image[None]).argmax()) == int(digit)
            for image, digit in (crops[index] for index in range(len(crops)))
        ]
    return float(np.mean(right))


def side_by_side(columns: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Put pictures and label maps of one size beside each other, as uint8 [H, W', 3] RGB.

    Label maps, [H, W], are coloured by class; what counts for nothing is white.
    """
    palette = np.full((256, 3), 255, np.uint8)
    palette[:NUM_CLASSES] = [one.color for one in CLASSES]
    palette[IGNORE_LABEL] = 255
    coloured = [one if one.ndim == 3 else palette[one] for one in columns]
    bar = np.full((coloured[0].shape[0], 4, 3), 255, np.uint8)
    joined = [part for one in coloured for part in (one, bar)]
    return np.concatenate(joined[:-1], axis=1)


def draw(networks: Sequence[nn.Module], file: Path, *, rows: int = 4) -> None:
    """Draw test scenes, one a row, into a PNG: image, truth, and each network's labels."""
    lines = []
    for scene in _test_scenes(rows):
        found = [predict_labels(network, scene) for network in networks]
        lines.append(side_by_side([scene.image_rgb, scene.labels, *found]))
        lines.append(np.full((4, lines[0].shape[1], 3), 255, np.uint8))
    cv2.imwrite(str(file), np.concatenate(lines[:-1])[..., ::-1])


def main() -> None:
    """Print the checkpoint's four metrics; draw scenes, truth and labels into a PNG."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--picture", type=Path, metavar="PNG")
    arguments = parser.parse_args()

    network = load_fcn(arguments.checkpoint)
    print("".join(f"{name:>12}" for name in METRICS))
    print("".join(f"{100 * value:>12.1f}" for value in score_network(network)))
    if arguments.picture is not None:
        draw([network], arguments.picture)


if __name__ == "__main__":
    main()
