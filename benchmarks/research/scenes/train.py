"""Train a network on scenes for a few minutes, so that its scores have real margins."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fcn_deploy.artifact.partial_files import partial_of
from fcn_deploy.machine import usable_cores
from fcn_deploy.names import Array
from research.scenes.generate import GENERATOR_VERSION, NUM_CLASSES, make_scenes

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["ARCHES", "Accuracy", "Recipe", "cache_folder", "measure", "trained", "untrained"]

ARCHES = ("lraspp_mobilenet_v3_large", "fcn_resnet50")
"""torchvision's networks that are trained here, from random weights."""

_MEAN = (0.485, 0.456, 0.406)  # ImageNet's, as torchvision's own weights expect them
_STD = (0.229, 0.224, 0.225)
_SCENE_PX = 352  # crops come from larger scenes, so that leaves are cut at their borders
_HELD_OUT_SEED = 1_000_000

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the weights, apart from the library that computes them."""

    arch: str
    steps: int
    batch: int
    crop_px: int
    learning_rate: float
    seed: int = 0
    generator: int = GENERATOR_VERSION
    classes: int = NUM_CLASSES

    def digest(self) -> str:
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


RECIPES = {
    "lraspp_mobilenet_v3_large": Recipe(
        "lraspp_mobilenet_v3_large", steps=300, batch=8, crop_px=160, learning_rate=4e-3
    ),
    "fcn_resnet50": Recipe("fcn_resnet50", steps=160, batch=4, crop_px=128, learning_rate=1e-3),
}


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Pixel accuracy on scenes that the training never saw.

    Attributes:
        ground: what a network would reach that says "ground" everywhere.
    """

    pixels: float
    ground: float


def cache_folder() -> Path:
    """Give the folder of trained networks, by the XDG base directory rules."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fcn-deploy" / "benchmarks"


def untrained(arch: str, *, classes: int = NUM_CLASSES) -> nn.Module:
    """Build one of `ARCHES` with seeded random weights, in evaluation mode."""
    import torch
    from torchvision.models import segmentation

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RECIPES[arch].seed)
        module: nn.Module = getattr(segmentation, arch)(
            weights=None, weights_backbone=None, num_classes=classes
        )
    return module.eval()


def trained(
    arch: str, *, say: Say, folder: Path | None = None, settling_steps: int = 16
) -> nn.Module:
    """Give a trained network in evaluation mode, from the cache or by training it now.

    Args:
        folder: of the cache; None means `cache_folder()`.
        settling_steps: batches that the final normalisation statistics are averaged over.
    """
    import torch

    recipe = RECIPES[arch]
    place = (folder or cache_folder()) / f"{arch}-{recipe.digest()}.pt"
    module = untrained(arch)
    if place.is_file():
        module.load_state_dict(torch.load(place, weights_only=True))
        return module
    say(f"training {arch} for {recipe.steps} steps, once: kept as {place}")
    _fit(module, recipe, say, settling_steps)
    place.parent.mkdir(parents=True, exist_ok=True)
    with partial_of(place) as partial:
        torch.save(module.state_dict(), partial)
    return module


def measure(module: nn.Module, *, scenes: int = 8, size: tuple[int, int] = (360, 640)) -> Accuracy:
    """Measure on held-out scenes of another size than the crops of the training."""
    import torch

    frames, labels = make_scenes(scenes, *size, _HELD_OUT_SEED)
    right = 0
    with torch.inference_mode():
        for frame, wanted in zip(frames, labels, strict=True):
            found = module(_as_input(frame[None]))["out"].argmax(1)[0].numpy()
            right += int((found == wanted).sum())
    return Accuracy(right / labels.size, float(np.mean(labels == 0)))


def _fit(module: nn.Module, recipe: Recipe, say: Say, settling_steps: int) -> None:
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(usable_cores())
    rng = np.random.default_rng(recipe.seed)
    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=recipe.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.15
    )
    start = time.monotonic()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)  # of the dropout
        for step in range(recipe.steps):
            frames, labels = _crops(rng, recipe, step)
            scores = module(_as_input(frames))["out"]
            loss = F.cross_entropy(scores, torch.from_numpy(labels).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if (step + 1) % 10 == 0:
                say(
                    f"{recipe.arch}: step {step + 1} of {recipe.steps}, loss {loss.item():.3f}, "
                    f"{time.monotonic() - start:.0f} s"
                )
        _settle_statistics(module, recipe, rng, settling_steps)
    module.eval()


def _settle_statistics(
    module: nn.Module, recipe: Recipe, rng: np.random.Generator, steps: int
) -> None:
    """Average the normalisation statistics of the final weights: the running ones lag behind."""
    import torch
    from torch import nn

    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
    with torch.no_grad():
        for step in range(steps):
            module(_as_input(_crops(rng, recipe, recipe.steps + step)[0]))
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum


def _crops(rng: np.random.Generator, recipe: Recipe, step: int) -> tuple[Array, Array]:
    """Cut a batch out of two new scenes: frames and labels."""
    frames, labels = make_scenes(2, _SCENE_PX, _SCENE_PX, 2 * step)
    crop = recipe.crop_px
    cut_frames, cut_labels = [], []
    for index in range(recipe.batch):
        top, left = rng.integers(_SCENE_PX - crop, size=2)
        place = (index % 2, slice(top, top + crop), slice(left, left + crop))
        flip = slice(None, None, -1 if rng.integers(2) else 1)
        cut_frames.append(frames[place][:, flip])
        cut_labels.append(labels[place][:, flip])
    return np.stack(cut_frames), np.stack(cut_labels)


def _as_input(frames_bgr: Array) -> torch.Tensor:
    """Normalise frames, uint8 [N, H, W, 3], as the networks expect: float32 [N, 3, H, W]."""
    import torch

    rgb = torch.from_numpy(np.ascontiguousarray(frames_bgr[..., ::-1])).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _STD))
    return (rgb.float() / 255 - mean) / std
