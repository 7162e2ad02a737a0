"""Train torchvision's FCN-ResNet50 on the same slices: a network of 33 M parameters to export.

    python -m examples.brain_tissue.larger --data build/demo/brain --output build/larger/brain.pt

It starts from random weights, and stays short of what longer training would give: enough for the
margins between its classes to be real ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn
from torchvision.models.segmentation import fcn_resnet50

from examples.brain_tissue.data import CLASS_NAMES
from examples.brain_tissue.network import MEAN, STD
from fcn_deploy.artifact.manifest import Preprocess
from fcn_models import FolderDataset, Recipe, fine_tune

__all__ = ["larger_network", "main"]

PREPROCESS = Preprocess(mean=(MEAN,) * 3, std=(STD,) * 3, color="rgb")
CROP_PX = (128, 128)
LEARNING_RATE = 1e-3


def larger_network(seed: int) -> nn.Module:
    """Build FCN-ResNet50 for the tissue classes, with seeded random weights and no aux head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = fcn_resnet50(
            weights=None, weights_backbone=None, num_classes=len(CLASS_NAMES)
        )
    return network


def main() -> None:
    """Train on the folders that `make_data` writes, and save a plain state dict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of make_data")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    slices = FolderDataset(
        arguments.data / "train_images",
        arguments.data / "train_labels",
        num_classes=len(CLASS_NAMES),
        preprocess=PREPROCESS,
        crop=CROP_PX,
    )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    state = arguments.output.with_suffix(".state")  # an interrupted training goes on from it
    network = larger_network(arguments.seed)
    fine_tune(
        network,
        slices,
        steps=arguments.steps,
        batch=arguments.batch,
        seed=arguments.seed,
        recipe=Recipe(learning_rate=LEARNING_RATE),
        state_file=state,
        state_every=25,
    )
    torch.save(network.state_dict(), arguments.output)
    state.unlink()
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
