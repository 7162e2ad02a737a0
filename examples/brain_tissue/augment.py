"""Random crops of the training slices: moved, turned, scaled, and with another contrast."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from examples.brain_tissue.data import BRAIN_THRESHOLD, Slices

__all__ = ["TrainingCrops"]

CROP = 128
"""Height and width of a crop, in pixels."""

UNTOUCHED_SHARE = 0.3
"""Share of crops at whole pixels of one slice: resampling blurs, and test slices are sharp."""

MAX_TURN_RADIANS = math.radians(20)
MAX_LOG_SCALE = 0.2
MAX_LOG_GAMMA = 0.06
MAX_GAIN = 0.04
MAX_BIAS = 0.05
MAX_NOISE = 0.015


class TrainingCrops:
    """Draw crops of training slices together with the probability of each class.

    The template is its own mirror image, left to right, so flips would bring nothing new.
    """

    def __init__(self, slices: Slices, *, seed: int) -> None:
        gray = torch.from_numpy(slices.images).float() / 255
        self._planes = torch.stack(
            [gray, torch.from_numpy(slices.grey), torch.from_numpy(slices.white)], dim=1
        )  # [S, 3, H, W]
        following = torch.tensor([*slices.indices[1:], -1])
        self._has_next = following == torch.tensor(slices.indices) + 1
        self._generator = torch.Generator().manual_seed(seed)

    def sample(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw `count` crops.

        Returns:
            Gray values, float32 [count, 1, 128, 128] in 0..1, and the probability of each class,
            float32 [count, 4, 128, 128], adding up to 1.
        """
        resampled = self._uniform(count) > UNTOUCHED_SHARE
        planes = self._planes_between(count, resampled)
        planes = functional.grid_sample(
            planes,
            self._grid(planes, resampled),
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
        gray, grey, white = torch.chunk(planes, 3, dim=1)
        brain = (gray > BRAIN_THRESHOLD).float()
        fluid = (1 - grey - white).clamp_min(0)
        tissue = torch.cat([fluid, grey, white], dim=1)
        tissue = tissue / tissue.sum(dim=1, keepdim=True).clamp_min(1e-6)
        return self._other_contrast(gray), torch.cat([1 - brain, brain * tissue], dim=1)

    def _planes_between(self, count: int, resampled: torch.Tensor) -> torch.Tensor:
        """Draw slices, or planes between two neighbours of one block: [count, 3, H, W]."""
        chosen = torch.randint(len(self._planes), (count,), generator=self._generator)
        between = self._uniform(count) * (resampled & self._has_next[chosen])
        lower = self._planes[chosen]
        upper = self._planes[(chosen + 1).clamp_max(len(self._planes) - 1)]
        return torch.lerp(lower, upper, between[:, None, None, None])

    def _grid(self, planes: torch.Tensor, resampled: torch.Tensor) -> torch.Tensor:
        """Return where each pixel of a crop is read, as grid_sample has it: [count, h, w, 2]."""
        count, _, height, width = planes.shape
        turn = (2 * self._uniform(count) - 1) * MAX_TURN_RADIANS * resampled
        log_scale = (2 * self._uniform(2, count) - 1) * MAX_LOG_SCALE * resampled
        scale_x, scale_y = log_scale.exp()
        # the centre of a crop is anywhere in the middle of the slice, at a corner of four pixels
        centre_x = (width * (0.25 + 0.5 * self._uniform(count))).round()
        centre_y = (height * (0.25 + 0.5 * self._uniform(count))).round()
        offsets = torch.arange(CROP) - (CROP - 1) / 2
        y, x = torch.meshgrid(offsets, offsets, indexing="ij")
        cosine, sine = turn.cos()[:, None, None], turn.sin()[:, None, None]
        moved_x = (cosine * x - sine * y) * scale_x[:, None, None] + centre_x[:, None, None]
        moved_y = (sine * x + cosine * y) * scale_y[:, None, None] + centre_y[:, None, None]
        return torch.stack([2 * moved_x / width - 1, 2 * moved_y / height - 1], dim=-1)

    def _other_contrast(self, gray: torch.Tensor) -> torch.Tensor:
        """Change gamma, gain, a smooth bias field and noise, as another scanner would."""
        count = len(gray)
        gamma = ((2 * self._uniform(count, 1, 1, 1) - 1) * MAX_LOG_GAMMA).exp()
        gain = 1 + (2 * self._uniform(count, 1, 1, 1) - 1) * MAX_GAIN
        bias = functional.interpolate(
            (2 * self._uniform(count, 1, 3, 3) - 1) * MAX_BIAS,
            size=gray.shape[-2:],
            mode="bicubic",
            align_corners=True,
        )
        noise = torch.randn(gray.shape, generator=self._generator)
        noise = noise * self._uniform(count, 1, 1, 1) * MAX_NOISE
        return (gray.clamp_min(0) ** gamma * gain * (1 + bias) + noise).clamp(0, 1)

    def _uniform(self, *shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=self._generator)
