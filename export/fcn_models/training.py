"""Train on labelled pixels with the paper's recipe or a current one; resume where interrupted."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sized
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from fcn_deploy.errors import (
    ExecutionError,
    InputError,
    ShapeError,
    SinkError,
    UnsupportedModelError,
)
from fcn_models.pixel_loss import pixel_loss
from fcn_models.training_state import TrainingState

__all__ = ["Recipe", "fine_tune"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How weights are changed.

    Attributes:
        optimizer: ``sgd`` with momentum, or ``adamw``.
        learning_rate: of weights; the peak with `one_cycle`.
        bias_rate: learning rate of biases over that of weights. Biases are not decayed where it
            is not 1, as in Caffe's networks.
        momentum: of ``sgd``.
        one_cycle: let the rate rise and fall over the steps; otherwise it stays.
    """

    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    bias_rate: float = 1.0
    momentum: float = 0.9
    one_cycle: bool = True

    @classmethod
    def paper(cls, *, learning_rate: float = 1e-4) -> Recipe:
        """Give the paper's: SGD with momentum 0.9, weight decay 5e-4, biases at the double rate.

        Args:
            learning_rate: fixed; the paper took 1e-3 for FCN-AlexNet, 1e-4 for FCN-VGG16 and 5e-5
                for FCN-GoogLeNet, with 20 images a step (CVPR 2015, section 4.3).
        """
        return cls(
            optimizer="sgd",
            learning_rate=learning_rate,
            weight_decay=5e-4,
            bias_rate=2.0,
            one_cycle=False,
        )


def fine_tune(
    model: nn.Module,
    data: Dataset[tuple[Tensor, Tensor]],
    *,
    steps: int,
    batch: int = 8,
    recipe: Recipe | None = None,
    seed: int = 0,
    state_file: str | os.PathLike[str] | None = None,
    state_every: int = 200,
    progress: bool = True,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train a network on labelled images; per-pixel cross-entropy, label 255 left out.

    The same seed, threads and libraries give the same weights on the CPU, also where the training
    was interrupted and taken up again.

    Args:
        model: takes [N, channels, H, W], gives scores [N, C, H, W], or as torchvision's networks a
            dict with them as ``out`` and perhaps ``aux``; one score a pixel is binary, for labels 0
            and 1. Changed in place, where it is and in its own precision, and left in evaluation
            mode. Any network will do, such as a classifier's, with labels [N].
        data: items of one size: image, float32 [channels, H, W], and labels, int64 [H, W].
        steps: batches in all, also those done before.
        recipe: None means AdamW with a one-cycle rate.
        state_file: where to keep the state of the training; one that is there is taken up. At a
            constant rate a training may go on to more steps than it was begun with.
        state_every: steps between two writings of it.
        progress: show a bar on the terminal.
        on_step: told the step, from 1 on, and its loss.

    Returns:
        The loss of each step since this call began; 0 where no pixel of the batch counts.

    Raises:
        ExecutionError: the loss is not a number any more.
        InputError: there are no data.
        ShapeError: the items of a batch, or scores and labels, differ in size, or labels name
            classes that do not exist.
        SinkError: the state file's folder does not exist.
        UnsupportedModelError: no parameter is to be trained, or the state file is that of another
            training; the network is as it was.
    """
    recipe = recipe or Recipe()
    count = len(cast(Sized, data))
    if count == 0:
        raise InputError("the data set is empty.", hint="Give at least one labelled image.")
    optimizer = _optimizer(model, recipe)
    schedule = _schedule(optimizer, recipe, steps)
    settings = {**asdict(recipe), "batch": batch, "seed": seed, "items": count}
    settings["steps"] = steps if recipe.one_cycle else "any"  # the one-cycle rate depends on them
    state = TrainingState(settings, model, optimizer, schedule)
    path = None if state_file is None else Path(state_file)
    if path is not None and not path.parent.is_dir():
        raise SinkError(
            f"there is no folder '{path.parent}' to keep the training's state in.",
            hint="Make it first.",
        )
    first = next(model.parameters())
    losses: list[float] = []
    with torch.random.fork_rng([first.device] if first.is_cuda else []):
        torch.manual_seed(seed)
        done = 0 if path is None or not path.exists() else state.read(path, at_most=steps)
        model.train()
        try:
            with _Bar(steps, done) if progress else nullcontext(_no_bar) as advance:
                for step in range(done + 1, steps + 1):
                    images, labels = _collated(
                        [data[i] for i in _indices(count, step - 1, batch=batch, seed=seed)]
                    )
                    value = _take_step(state, images.to(first), labels.to(first.device), step)
                    losses.append(value)
                    advance(step, value)
                    if on_step is not None:
                        on_step(step, value)
                    if path is not None and (step % state_every == 0 or step == steps):
                        state.write(path, step)
        finally:
            model.eval()
    return losses


def _take_step(state: TrainingState, images: Tensor, labels: Tensor, step: int) -> float:
    loss = pixel_loss(state.model(images), labels)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise ExecutionError(
            f"the loss is {value} at step {step}.", hint="Lower the learning rate."
        )
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    state.optimizer.step()
    state.schedule.step()
    return value


def _collated(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    for what, values in zip(("images", "labels"), zip(*items, strict=True), strict=True):
        sizes = sorted({tuple(np.shape(value)) for value in values})
        if len(sizes) > 1:
            raise ShapeError(
                f"the {what} of a batch are of several sizes: "
                f"{', '.join(str(list(size)) for size in sizes[:3])}.",
                hint="Cut them to one size, as FolderDataset(crop=(height, width)), or train with "
                "batch=1.",
            )
    images, labels = default_collate(items)
    return images, labels


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    weights: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (biases if name.endswith("bias") else weights).append(parameter)
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": biases}]
    rates = (recipe.learning_rate, recipe.learning_rate * recipe.bias_rate)
    decays = (recipe.weight_decay, recipe.weight_decay if recipe.bias_rate == 1 else 0.0)
    for group, rate, decay in zip(groups, rates, decays, strict=True):
        group |= {"lr": rate, "weight_decay": decay}
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise UnsupportedModelError(
            "there is nothing to train: no parameter of the network requires a gradient.",
            hint="Call requires_grad_(True) on the layers to train.",
        )
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum)
    return torch.optim.AdamW(groups, lr=recipe.learning_rate)


def _schedule(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    if not recipe.one_cycle:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    rates = [group["lr"] for group in optimizer.param_groups]
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=rates,
        total_steps=max(steps, 1) + 1,
        pct_start=0.15,
        cycle_momentum=False,
    )


def _indices(count: int, step: int, *, batch: int, seed: int) -> Iterator[int]:
    """Give a step's items: each once an epoch, in an order that is the epoch's own."""
    for place in range(step * batch, (step + 1) * batch):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + place // count)
        yield int(torch.randperm(count, generator=generator)[place % count])


def _no_bar(step: int, loss: float) -> None:
    del step, loss


class _Bar:
    """A progress bar with the mean loss of the last steps."""

    def __init__(self, steps: int, done: int) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeRemainingColumn(),
        )
        self._task = self._progress.add_task("", total=steps, completed=done, loss="-")
        self._mean: float | None = None

    def __enter__(self) -> Callable[[int, float], None]:
        self._progress.start()
        return self._advance

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _advance(self, step: int, loss: float) -> None:
        self._mean = loss if self._mean is None else 0.95 * self._mean + 0.05 * loss
        self._progress.update(self._task, completed=step, loss=f"{self._mean:.3f}")
