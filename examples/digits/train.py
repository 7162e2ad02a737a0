"""Train a classifier of digits, make FCNs of it, compare them, and write the best as checkpoint."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from examples.digits.data import CLASSES, NUM_CLASSES, PREPROCESS, DigitCrops, Scenes
from examples.digits.evaluate import (
    CHECKPOINT,
    METRICS,
    classifier_accuracy,
    draw,
    score_network,
)
from fcn_export.models import FCN, Backbone, Recipe, fine_tune, save_checkpoint
from fcn_export.models.fcn import VARIANTS, Variant

__all__ = ["BACKBONE", "Budget", "compare", "main", "train_classifier", "train_on"]

BACKBONE = Backbone("vgg11_bn", width=0.125, window=2, fc_width=256)
"""VGG11 with an eighth of the channels, whose fc6 sees 2x2 cells: it classifies 64x64 px."""

CLASSIFIER_RECIPE = Recipe(learning_rate=3e-3)
RECIPE = Recipe(learning_rate=1e-2)

SCENES_PER_SEED = 4000


@dataclass(frozen=True, slots=True)
class Budget:
    """Steps of each training; a step has 8 scenes, or 32 single digits."""

    classifier: int
    compared: int
    more: int


def train_classifier(steps: int, *, seed: int) -> nn.Module:
    """Return a classifier of single digits, in evaluation mode."""
    torch.manual_seed(seed)
    classifier = _classifier()
    crops = DigitCrops("train", seed=seed)
    fine_tune(classifier, crops, steps=steps, batch=32, recipe=CLASSIFIER_RECIPE, seed=seed)
    return classifier


def compare(classifier: nn.Module, steps: int, *, seed: int) -> dict[str, tuple[list[float], FCN]]:
    """Train each variant at once, and FCN-8s from random weights, for the same number of steps.

    Returns:
        The four metrics and the network, by name.
    """
    scenes = Scenes(SCENES_PER_SEED, seed=seed + 1)
    found: dict[str, tuple[list[float], FCN]] = {}
    starts: list[tuple[str, Variant, nn.Module]] = [
        (f"FCN-{variant}", variant, classifier) for variant in VARIANTS
    ]
    torch.manual_seed(1000 + seed)
    starts.append(("FCN-8s, random start", "8s", _classifier()))
    for name, variant, start in starts:
        network = FCN(start, variant, NUM_CLASSES)
        fine_tune(network, scenes, steps=steps, seed=seed, recipe=RECIPE)
        found[name] = score_network(network), network
        print(f"seed {seed}  {_row(name, found[name][0])}", flush=True)
    return found


def train_on(network: FCN, steps: int, *, seed: int) -> None:
    """Go on with a network, on other scenes."""
    scenes = Scenes(SCENES_PER_SEED, seed=seed + 101)
    fine_tune(network, scenes, steps=steps, seed=seed, recipe=RECIPE)


def main() -> None:
    """Train everything, print the tables, and write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=CHECKPOINT)
    parser.add_argument("--picture", type=Path, metavar="PNG", help="of 32s, 16s and 8s")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--classifier-steps", type=int, default=500)
    parser.add_argument("--steps", type=int, default=250, help="of each network compared")
    parser.add_argument("--more-steps", type=int, default=600, help="of the checkpoint's network")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    budget = Budget(arguments.classifier_steps, arguments.steps, arguments.more_steps)

    torch.set_num_threads(arguments.threads)
    classifier = train_classifier(budget.classifier, seed=0)
    print(f"classifier: {classifier_accuracy(classifier):.3f} of single test digits", flush=True)
    results: dict[str, list[list[float]]] = {}
    best: FCN | None = None
    for seed in range(arguments.seeds):
        found = compare(classifier, budget.compared, seed=seed)
        for name, (values, _) in found.items():
            results.setdefault(name, []).append(values)
        if seed == 0:
            networks = {variant: found[f"FCN-{variant}"][1] for variant in VARIANTS}
            best = networks["8s"]
            if arguments.picture is not None:
                draw(list(networks.values()), arguments.picture)
    print(f"\n{budget.compared} steps each, {arguments.seeds} seeds: mean and largest deviation")
    print(f"{'':<24}" + "".join(f"{name:>18}" for name in METRICS))
    for name, runs in results.items():
        table = np.array(runs)
        mean, spread = table.mean(axis=0), np.abs(table - table.mean(axis=0)).max(axis=0)
        print(
            f"{name:<24}"
            + "".join(
                f"{100 * m:>11.1f} ± {100 * s:<4.1f}" for m, s in zip(mean, spread, strict=True)
            )
        )
    if best is None:
        return
    train_on(best, budget.more, seed=0)
    print(f"\n{_row(f'FCN-8s, {budget.more} steps more', score_network(best))}")
    save_checkpoint(best, arguments.output, preprocess=PREPROCESS, classes=CLASSES)
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e6:.2f} MB")


def _classifier() -> nn.Module:
    """Build the classifier without dropout, which so narrow a network learns nothing with."""
    classifier = BACKBONE.classifier(10)
    for layer in classifier.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return classifier


def _row(name: str, values: list[float]) -> str:
    return f"{name:<24}" + "".join(f"{100 * value:>8.1f}" for value in values)


if __name__ == "__main__":
    main()
