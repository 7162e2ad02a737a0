"""Train the network on the training slices and write the checkpoint."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch.nn import functional

from examples.brain_tissue.augment import TrainingCrops
from examples.brain_tissue.data import load_slices
from examples.brain_tissue.evaluate import CHECKPOINT, predict_labels, score
from examples.brain_tissue.network import MEAN, STD, BrainTissueFCN, brain_tissue_fcn

__all__ = ["main", "train"]

PEAK_LEARNING_RATE = 4e-3
WEIGHT_DECAY = 1e-2
AVERAGE_DECAY = 0.99
"""Each step keeps this share of the averaged weights, which are the ones saved."""


def train(*, steps: int, batch: int, seed: int) -> BrainTissueFCN:
    """Return a network trained for `steps` batches of `batch` crops, in evaluation mode.

    The same seed, thread count, library versions and kind of CPU give the same weights.
    """
    torch.manual_seed(seed)
    crops = TrainingCrops(load_slices("train"), seed=seed)
    network = brain_tissue_fcn().to(memory_format=torch.channels_last)
    average = torch.optim.swa_utils.AveragedModel(
        network,
        multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGE_DECAY),
        use_buffers=True,
    )
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=PEAK_LEARNING_RATE, total_steps=steps, pct_start=0.15
    )
    began = time.monotonic()
    recent_loss = 0.0
    for step in range(1, steps + 1):
        images, targets = crops.sample(batch)
        inputs = ((images - MEAN) / STD).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            scores = network(inputs)
        loss = _loss(scores.float(), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        average.update_parameters(network)
        recent_loss += (loss.item() - recent_loss) / min(step, 50)
        if step % 100 == 0 or step == steps:
            seconds = time.monotonic() - began
            print(f"step {step}/{steps}  loss {recent_loss:.4f}  {seconds:.0f} s", flush=True)
    trained = average.module
    if not isinstance(trained, BrainTissueFCN):
        raise TypeError(f"The averaged network is a {type(trained)}; expected BrainTissueFCN.")
    return trained.to(memory_format=torch.contiguous_format).eval()


def main() -> None:
    """Train, measure on the test slices, and write the weights as a plain state dict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=CHECKPOINT)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    network = train(steps=arguments.steps, batch=arguments.batch, seed=arguments.seed)
    torch.save(network.state_dict(), arguments.output)
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e6:.2f} MB")

    test = load_slices("test")
    for name, value in score(predict_labels(network, test.images), test).items():
        print(f"{name:<24}{value:.4f}")


def _loss(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy against the tissue probabilities, plus soft Dice against the labels.

    The first learns how mixed a pixel is, which one-hot labels hide; the second weighs the small
    classes as the mean IoU does.

    Args:
        scores: float32 [N, C, H, W].
        targets: probability of each class, float32 [N, C, H, W].
    """
    entropy = functional.cross_entropy(scores, targets)
    predicted = scores.softmax(dim=1)
    labels = functional.one_hot(targets.argmax(dim=1), scores.shape[1]).movedim(-1, 1)
    overlap = (predicted * labels).sum(dim=(0, 2, 3))
    total = (predicted + labels).sum(dim=(0, 2, 3))
    dice = 2 * overlap / total.clamp_min(1)
    return entropy + (1 - dice).mean()


if __name__ == "__main__":
    main()
