"""Measure the checkpoint on the test slices: IoU of each class and their mean."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from examples.brain_tissue.data import CLASS_NAMES, Slices, load_slices
from examples.brain_tissue.network import MEAN, STD, BrainTissueFCN, brain_tissue_fcn
from fcn_export.check.fidelity import confusion_matrix, mean_iou

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "CHECKPOINT",
    "load_network",
    "main",
    "predict_by_gray_value",
    "predict_labels",
    "score",
]

CHECKPOINT = Path(__file__).with_name("brain_tissue.pt")

DARKER = 0.9
"""Gray values times this are what a slightly different scan would give."""


def load_network(checkpoint: Path = CHECKPOINT) -> BrainTissueFCN:
    """Return the network with a checkpoint's weights, on the CPU, in evaluation mode."""
    import torch

    network = brain_tissue_fcn()
    network.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
    return network.eval()


def predict_labels(network: BrainTissueFCN, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Label slices one by one.

    Args:
        network: in evaluation mode.
        images: gray values, uint8 [S, H, W].

    Returns:
        Class ids, uint8 [S, H, W].
    """
    import torch

    labels = np.empty_like(images)
    with torch.inference_mode():
        for number, image in enumerate(images):
            gray = torch.from_numpy(image.astype(np.float32) / 255)
            scores = network(((gray - MEAN) / STD)[None, None])  # [1, C, H, W]
            labels[number] = scores[0].argmax(dim=0).numpy()
    return labels


def predict_by_gray_value(train: Slices, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Label each pixel with the class that its gray value most often has in the training slices.

    It looks at no neighbours: what a network must beat to be worth its time.
    """
    pairs = train.images.astype(np.int64) * len(CLASS_NAMES) + train.labels
    counts = np.bincount(pairs.ravel(), minlength=256 * len(CLASS_NAMES))
    table = counts.reshape(256, len(CLASS_NAMES)).argmax(axis=1).astype(np.uint8)
    labels: NDArray[np.uint8] = table[images]
    return labels


def score(predicted: NDArray[np.uint8], slices: Slices) -> dict[str, float]:
    """Return the IoU of each class by name, and their mean as `mean`.

    One confusion matrix counts the pixels of all slices. Classes that the labels lack are NaN and
    not in the mean.
    """
    confusion = confusion_matrix(predicted, slices.labels, len(CLASS_NAMES))
    mean, by_class = mean_iou(confusion)
    return {**dict(zip(CLASS_NAMES, by_class.tolist(), strict=True)), "mean": mean}


def main() -> None:
    """Print a table of IoU on the test slices, by the network and by gray values alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    arguments = parser.parse_args()

    train, test = load_slices("train"), load_slices("test")
    network = load_network(arguments.checkpoint)
    darker = replace(test, images=np.rint(test.images * DARKER).astype(np.uint8))
    columns = [
        score(labels, test)
        for slices in (test, darker)
        for labels in (
            predict_labels(network, slices.images),
            predict_by_gray_value(train, slices.images),
        )
    ]
    print(f"IoU on {len(test)} test slices    as they are          10 % darker")
    print(f"{'':<22}" + f"{'network':>10}{'gray value':>12}" * 2)
    for name in (*CLASS_NAMES, "mean"):
        values = [column[name] for column in columns]
        print(f"{name:<22}" + "{:>10.4f}{:>12.4f}{:>10.4f}{:>12.4f}".format(*values))


if __name__ == "__main__":
    main()
