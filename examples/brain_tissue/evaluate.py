"""Measure the checkpoint on the test slices: IoU of each class and their mean."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from examples.brain_tissue.data import CLASS_NAMES, Slices, load_slices
from examples.brain_tissue.network import MEAN, STD, BrainTissueFCN, brain_tissue_fcn
from fcn_export.fidelity import confusion_matrix, mean_iou

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
    """Print a table of IoU on the test slices: the checkpoint, and gray values alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    arguments = parser.parse_args()

    train, test = load_slices("train"), load_slices("test")
    network = load_network(arguments.checkpoint)
    by_network = score(predict_labels(network, test.images), test)
    by_gray_value = score(predict_by_gray_value(train, test.images), test)
    print(f"IoU on {len(test)} test slices   network   gray value alone")
    for name in by_network:
        print(f"{name:<24}{by_network[name]:>11.4f}{by_gray_value[name]:>19.4f}")


if __name__ == "__main__":
    main()
