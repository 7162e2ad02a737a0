"""Train a classifier of digits, make FCNs of it, compare them, and write the best as checkpoint."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
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
from fcn_deploy.machine import usable_cores
from fcn_models import FCN, Backbone, Recipe, fine_tune, save_checkpoint
from fcn_models.fcn import VARIANTS, Variant

__all__ = ["BACKBONE", "STARTS", "Start", "main", "make_start", "train_classifier", "train_start"]

BACKBONE = Backbone("vgg11_bn", width=0.125, window=2, fc_width=256)
"""VGG11 with an eighth of the channels, whose fc6 sees 2x2 cells: it classifies 64x64 px."""

CLASSIFIER_RECIPE = Recipe(learning_rate=3e-3)
RECIPE = Recipe(learning_rate=1e-2)

SCENES_PER_SEED = 4000


@dataclass(frozen=True, slots=True)
class Start:
    """One of the networks that are compared: its variant, and whose weights it begins with."""

    name: str
    variant: Variant
    from_classifier: bool


STARTS = (
    *(Start(f"FCN-{variant}", variant, from_classifier=True) for variant in VARIANTS),
    Start("FCN-8s, random start", "8s", from_classifier=False),
)


def train_classifier(steps: int, *, seed: int) -> nn.Module:
    """Return a classifier of single digits, in evaluation mode."""
    torch.manual_seed(seed)
    classifier = _classifier()
    crops = DigitCrops("train", seed=seed)
    fine_tune(classifier, crops, steps=steps, batch=32, recipe=CLASSIFIER_RECIPE, seed=seed)
    return classifier


def make_start(classifier: nn.Module, start: Start, *, seed: int) -> FCN:
    """Return an FCN as it is before its training."""
    torch.manual_seed(1000 + seed)
    return FCN(classifier if start.from_classifier else _classifier(), start.variant, NUM_CLASSES)


def train_start(
    classifier: nn.Module, start: Start, seed: int, steps: int
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train an FCN at once; return its four metrics and its weights.

    What torch.fx made cannot leave a process while others run it, so the network does not.
    """
    network = make_start(classifier, start, seed=seed)
    fine_tune(network, _scenes(seed + 1), steps=steps, seed=seed, recipe=RECIPE, progress=False)
    return score_network(network), network.state_dict()


def main() -> None:
    """Train everything, print the table, and write picture and checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=CHECKPOINT)
    parser.add_argument("--picture", type=Path, metavar="PNG", help="of 32s, 16s and 8s")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--classifier-steps", type=int, default=1000, help="of 32 single digits")
    parser.add_argument("--steps", type=int, default=400, help="of 8 scenes, each network compared")
    parser.add_argument("--more-steps", type=int, default=500, help="of the checkpoint's network")
    arguments = parser.parse_args()

    torch.set_num_threads(usable_cores())
    classifier = train_classifier(arguments.classifier_steps, seed=0)
    print(f"classifier: {classifier_accuracy(classifier):.3f} of single test digits", flush=True)
    tasks = [(start, seed) for seed in range(arguments.seeds) for start in STARTS]
    # a process a core, each with one thread: networks this narrow gain little from a second
    with ProcessPoolExecutor(
        usable_cores(), get_context("spawn"), torch.set_num_threads, (1,)
    ) as pool:
        waiting = [
            pool.submit(train_start, classifier, start, seed, arguments.steps)
            for start, seed in tasks
        ]
        runs: dict[str, list[list[float]]] = {}
        weights = {}
        for (start, seed), task in zip(tasks, waiting, strict=True):
            values, weights[start, seed] = task.result()
            runs.setdefault(start.name, []).append(values)
            print(f"seed {seed}  {_row(start.name, values)}", flush=True)
    print(f"\n{arguments.steps} steps each, {arguments.seeds} seeds: mean and largest deviation")
    print("\n".join(_table(runs)))
    networks = [make_start(classifier, start, seed=0).eval() for start in STARTS[:3]]
    for start, network in zip(STARTS, networks, strict=False):
        network.load_state_dict(weights[start, 0])
    if arguments.picture is not None:
        draw(networks, arguments.picture)
    best = networks[-1]
    fine_tune(best, _scenes(101), steps=arguments.more_steps, recipe=RECIPE)
    print(f"\n{_row(f'FCN-8s, {arguments.more_steps} steps more', score_network(best))}")
    save_checkpoint(best, arguments.output, preprocess=PREPROCESS, classes=CLASSES)
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e6:.2f} MB")


@cache
def _scenes(seed: int) -> Scenes:
    """Give a seed's scenes, which are drawn once in each process."""
    return Scenes(SCENES_PER_SEED, seed=seed)


def _table(runs: Mapping[str, Sequence[Sequence[float]]]) -> Iterator[str]:
    yield f"{'':<24}" + "".join(f"{name:>18}" for name in METRICS)
    for name, values in runs.items():
        every = 100 * np.array(values)
        mean, spread = every.mean(axis=0), np.abs(every - every.mean(axis=0)).max(axis=0)
        cells = (f"{m:>11.1f} ± {s:<4.1f}" for m, s in zip(mean, spread, strict=True))
        yield f"{name:<24}" + "".join(cells)


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
