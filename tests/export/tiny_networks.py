"""Networks of a few layers, each with one trait that an export has to cope with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "BakedHeight",
    "BakedWidth",
    "BranchOnData",
    "HalfResolution",
    "Patches",
    "PoolingBranch",
    "PyramidPooling",
    "RoundingUp",
    "UNet",
    "seeded",
]


def seeded(make: Any, *args: Any, **kwargs: Any) -> Any:
    """Make a network with the same random weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return make(*args, **kwargs)


class HalfResolution(nn.Module):
    """Scores at half the input's size, given out in the way that `form` names."""

    def __init__(self, classes: int = 5, *, channels: int = 3, form: str = "tensor") -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.classifier = nn.Conv2d(8, classes, 1)
        self.form = form

    def forward(self, x: Tensor) -> Any:
        features = F.relu(self.norm(self.stem(x)))
        scores = self.classifier(features)
        if self.form == "dict":
            return {"out": scores, "aux": features}
        if self.form == "tuple":
            return features.mean(), scores
        return scores


class PoolingBranch(nn.Module):
    """As in DeepLab: the mean of the image, spread again by bilinear upsampling from 1x1."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.classifier = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = F.relu(self.stem(x))
        mean = F.adaptive_avg_pool2d(features, 1)
        spread = F.interpolate(mean, size=features.shape[-2:], mode="bilinear", align_corners=False)
        scores = self.classifier(torch.cat([features, spread], dim=1))
        return F.interpolate(scores, size=x.shape[-2:], mode="bilinear", align_corners=False)


class Patches(nn.Module):
    """As a vision transformer: takes whole patches only, and says so itself."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Conv2d(3, 8, patch, patch)
        self.classifier = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        assert height % self.patch == 0, f"height {height} is not a multiple of {self.patch}"
        assert width % self.patch == 0, f"width {width} is not a multiple of {self.patch}"
        return torch.as_tensor(self.classifier(F.gelu(self.embed(x))))


class RoundingUp(nn.Sequential):
    """Halves an odd side upwards and doubles it again: 97 px give 98 px of scores."""

    def __init__(self, classes: int) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, classes, 4, 2, 1)
        )


class PyramidPooling(nn.Module):
    """As PSPNet: means of a grid of bins, that of bins which no size divides included."""

    def __init__(self, bins: tuple[int, ...] = (1, 2, 3, 6)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.pools = nn.ModuleList(nn.AdaptiveAvgPool2d(each) for each in bins)
        self.reduce = nn.ModuleList(nn.Conv2d(8, 4, 1) for _ in bins)
        self.classifier = nn.Conv2d(8 + 4 * len(bins), 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = F.relu(self.stem(x))
        parts = [features]
        for pool, reduce in zip(self.pools, self.reduce, strict=True):
            part = reduce(pool(features))
            parts.append(F.interpolate(part, features.shape[-2:], mode="bilinear"))
        scores = self.classifier(torch.cat(parts, dim=1))
        return F.interpolate(scores, size=x.shape[-2:], mode="bilinear")


class UNet(nn.Module):
    """Skips by plain concatenation: fails unless both sides are multiples of 2**depth."""

    def __init__(self, depth: int = 3, classes: int = 4) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            nn.Conv2d(3 if level == 0 else 6, 6, 3, padding=1) for level in range(depth)
        )
        self.up = nn.ModuleList(nn.Conv2d(12, 6, 3, padding=1) for _ in range(depth))
        self.classifier = nn.Conv2d(6, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for layer in self.down:
            x = F.relu(layer(x))
            skips.append(x)
            x = F.max_pool2d(x, 2)
        for layer, skip in zip(self.up, reversed(skips), strict=True):
            x = F.relu(layer(torch.cat([F.interpolate(x, scale_factor=2.0), skip], dim=1)))
        return torch.as_tensor(self.classifier(x))


class BakedHeight(nn.Module):
    """Makes sizes `int`, which torch.export takes for constants unless it reads the bytecode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = int(x.shape[2]), int(x.shape[3])
        return F.interpolate(self.stem(x), size=(height, width), mode="bilinear")


class BakedWidth(nn.Module):
    """A branch on data and a size made `int`: only the TorchScript tracer takes it, and bakes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.stem(x)
        if float(scores.abs().mean()) < 0:
            scores = scores * 2
        return F.interpolate(scores, size=(x.shape[2], int(x.shape[3])), mode="bilinear")


class BranchOnData(nn.Module):
    """Its path depends on values: torch.export refuses it, the TorchScript tracer takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.as_tensor(self.stem(x))
        if float(scores.abs().mean()) < 0:
            scores = scores * 2
        return scores
