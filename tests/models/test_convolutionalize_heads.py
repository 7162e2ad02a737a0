"""What lies between a classifier's features and its scores: it slides, or it is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcn_deploy.errors import UnsupportedModelError
from fcn_models.fcn import FCN
from fcn_models.linear_to_conv import convolutionalize
from tests.export.tiny_networks import seeded

# a convolution sums in another order than a matrix product: a few float32 roundings
ROUNDING = 1e-5

Head = Callable[[Any, Tensor], Tensor]


class WithHead(nn.Module):
    """Four channels of an unpadded convolution, and a head that makes `seen` numbers of them."""

    def __init__(self, head: Head, seen: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout2d()
        self.narrow = nn.Conv2d(4, 4, 1)
        self.wide = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(seen, 5)
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc(self.head(self, F.relu(self.stem(x)))))


def _average(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1)


def _both(x: Tensor) -> Tensor:
    return torch.cat([F.adaptive_max_pool2d(x, 1), F.adaptive_avg_pool2d(x, 1)], 1)


def _generalised_mean(x: Tensor) -> Tensor:
    return F.avg_pool2d(x.clamp(min=1e-6).pow(3.0), (x.size(-2), x.size(-1))).pow(1 / 3)


HEADS: dict[str, tuple[Head, int]] = {
    "mean with its axes kept": (lambda _, x: x.mean((2, 3), keepdim=True).flatten(1), 4),
    "amax": (lambda _, x: x.amax((2, 3)), 4),
    "mean along one axis after the other": (lambda _, x: x.mean(3).mean(2), 4),
    "mean of flat cells": (lambda _, x: x.flatten(2).mean(-1), 4),
    "dropout behind the pool": (lambda n, x: n.drop(_average(x)).flatten(1), 4),
    "norm behind the pool": (lambda n, x: n.norm(_average(x)).flatten(1), 4),
    "convolution behind the pool": (lambda n, x: F.relu(n.narrow(_average(x))).flatten(1), 4),
    "norm behind a pool of four cells": (
        lambda n, x: n.norm(F.adaptive_avg_pool2d(x, 2)).flatten(1),
        16,
    ),
    "average and maximum": (lambda _, x: _both(x).flatten(1), 8),
    "window of the features' size": (lambda _, x: F.avg_pool2d(x, x.size()[2:]).flatten(1), 4),
    "maximum of the features' size": (lambda _, x: F.max_pool2d(x, x.size()[2:]).flatten(1), 4),
    "generalised mean": (lambda _, x: _generalised_mean(x).flatten(1), 4),
    "fixed window over all": (lambda _, x: F.avg_pool2d(x, 8).view(-1, 4), 4),
    "flat in two steps": (
        lambda _, x: (y := _average(x).flatten(1)).view(x.size(0), y.size(1)),
        4,
    ),
    "squeezed twice": (lambda _, x: _average(x).squeeze(-1).squeeze(-1), 4),
    "indexed": (lambda _, x: _average(x)[:, :, 0, 0], 4),
}


def made(name: str) -> nn.Module:
    classifier: WithHead = seeded(WithHead, *HEADS[name]).eval()
    nn.init.constant_(classifier.norm.bias, 0.3)
    return classifier


@pytest.mark.parametrize("name", HEADS)
def test_every_form_of_pooling_slides(name: str) -> None:
    classifier = made(name)
    image = torch.randn(1, 3, 14, 13, generator=torch.Generator().manual_seed(3))

    converted = convolutionalize(classifier, input_size=(10, 10))

    with torch.no_grad():
        scores = converted(image)
        assert scores.shape == (1, 5, 5, 4)
        for row in range(5):
            for column in range(4):
                expected = classifier(image[:, :, row : row + 10, column : column + 10])
                torch.testing.assert_close(
                    scores[:, :, row, column], expected, atol=ROUNDING, rtol=ROUNDING
                )


class Strided(nn.Module):
    """Features in steps of 16 px, and a head."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.down = nn.Sequential(*(nn.Conv2d(3, 3, 3, stride=2, padding=1) for _ in range(4)))
        self.classify = made(name)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.classify(self.down(x)))


@pytest.mark.parametrize("name", HEADS)
def test_an_fcn_has_scores_for_every_pixel_whatever_the_head(name: str) -> None:
    model = FCN(seeded(Strided, name), "8s", 3, input_size=(160, 160)).eval()

    for size in ((96, 128), (33, 17), (1, 70)):
        assert model(torch.zeros(1, 3, *size)).shape == (1, 3, *size)
    # the pooling over all cells is gone: each sees no more than the convolutions do
    if HEADS[name][1] < 16:
        assert model.named_levels()[16].grid.receptive_field == 31 + 16 * 2


def test_two_pools_of_the_same_class_slide_apart() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.pool = nn.Conv2d(3, 4, 3), nn.AvgPool2d(2)
            self.fc = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return cast(Tensor, self.fc(self.pool(self.pool(self.stem(x))).flatten(1)))

    converted = convolutionalize(seeded(Shared), input_size=(6, 6))

    # the first pool steps by two, the last by one
    assert converted(torch.zeros(1, 3, 12, 10)).shape == (1, 5, 4, 3)


REFUSED: dict[str, tuple[Head, int, str]] = {
    "a wide convolution behind the pool": (
        lambda n, x: n.wide(_average(x)).flatten(1),
        4,
        "adaptive_avg_pool2d '.*' makes 1x1 cells of a larger image, too, and does not slide",
    ),
    "pools of unequal windows": (
        lambda n, x: torch.cat([_average(x), _average(F.max_pool2d(x, 2))], 1).flatten(1),
        8,
        "adaptive_avg_pool2d '.*' and adaptive_avg_pool2d '.*' have windows of unequal size",
    ),
    "pooled twice": (
        lambda n, x: F.adaptive_avg_pool2d(x, 2).mean((2, 3)),
        4,
        "mean 'mean' pools what adaptive_avg_pool2d has pooled",
    ),
    "one cell of many": (
        lambda n, x: x[:, :, 0, 0],
        4,
        r"does not read flattened features, but \[2, 4\] that getitem 'getitem' makes",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_head_that_does_not_slide_is_refused_by_name(name: str) -> None:
    head, seen, message = REFUSED[name]

    with pytest.raises(UnsupportedModelError, match=message):
        convolutionalize(seeded(WithHead, head, seen), input_size=(10, 10))


def test_an_fcn_is_not_made_of_what_stands_for_the_whole_image() -> None:
    classifier = WithHead(lambda n, x: n.wide(_average(x)).flatten(1))

    with pytest.raises(UnsupportedModelError, match="makes one cell of the whole image"):
        FCN(classifier, "8s", 3, input_size=(10, 10))


class Gated(nn.Module):
    """Squeeze and excitation: what the whole image says weighs the channels of each cell."""

    def __init__(self, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.pool = pool
        self.stem = nn.Conv2d(3, 4, 3, stride=8, padding=1)
        self.gate = nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x * torch.sigmoid(self.gate(self.pool(x)))
        return cast(Tensor, self.fc(x.mean((2, 3))))


@pytest.mark.parametrize(
    "pool",
    [
        _average,
        lambda x: x.mean((2, 3), keepdim=True),
        lambda x: F.avg_pool2d(x, x.size()[2:]),
    ],
)
def test_a_gate_of_the_whole_image_stays_as_it_is(pool: Callable[[Tensor], Tensor]) -> None:
    classifier = seeded(Gated, pool)

    assert convolutionalize(classifier, input_size=(32, 32))(torch.ones(1, 3, 48, 40)).shape == (
        *(1, 5, 3, 2),
    )
    assert FCN(classifier, "8s", 2, input_size=(32, 32))(torch.ones(1, 3, 37, 41)).shape == (
        *(1, 2, 37, 41),
    )


class GatedByLinear(Gated):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = self.fc(_average(x).view(x.size(0), -1)).view(x.size(0), 4, 1, 1)
        return cast(Tensor, self.fc((x * gate).mean((2, 3))))


def test_a_gate_of_linear_layers_is_refused_by_name() -> None:
    classifier = GatedByLinear(_average)
    classifier.fc = nn.Linear(4, 4)

    for make in (convolutionalize, FCN):
        with pytest.raises(UnsupportedModelError, match="view 'view_1' reads flattened features"):
            make(classifier)


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=8, padding=1)
        self.fc1, self.norm, self.fc2 = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout2d(self.stem(x), 0.25, self.training).mean((2, 3))
        x = F.dropout(self.norm(self.fc1(x)), training=self.training)
        return cast(Tensor, self.fc2(x))


def test_dropout_that_is_called_as_a_function_drops_in_training_and_only_there() -> None:
    classifier = seeded(Dropping)

    converted = convolutionalize(classifier, input_size=(32, 32))
    model = FCN(classifier, "8s", 2, input_size=(32, 32))

    for network in (converted, model.backbone):
        drops = [m for m in network.modules() if isinstance(m, nn.Dropout | nn.Dropout2d)]
        assert [(type(m), m.p) for m in drops] == [(nn.Dropout2d, 0.25), (nn.Dropout, 0.5)]
        assert not any(m.training for m in drops)
        assert all(m.training for m in network.train().modules())


def test_what_is_frozen_stays_frozen_and_nothing_is_written_to_the_classifier() -> None:
    classifier = seeded(Dropping).train()
    classifier.norm.eval()
    for parameter in (*classifier.fc1.parameters(), classifier.norm.weight):
        parameter.requires_grad_(False)
    modes = {name: module.training for name, module in classifier.named_modules()}

    converted = convolutionalize(classifier, input_size=(32, 32))

    assert {name: m.training for name, m in classifier.named_modules()} == modes
    frozen = [name for name, value in converted.named_parameters() if not value.requires_grad]
    assert frozen == ["fc1.weight", "fc1.bias", "norm.weight"]
