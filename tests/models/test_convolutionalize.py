"""A classifier made fully convolutional gives its own scores, at its size and in every window."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcn_deploy.errors import UnsupportedModelError
from fcn_models.backbones import Backbone
from fcn_models.linear_to_conv import convolutionalize
from tests.export.tiny_networks import seeded

# a convolution sums in another order than a matrix product: a few float32 roundings
ROUNDING = 1e-5

NARROW = (
    Backbone("alexnet", 0.125),
    Backbone("vgg11", 0.125),
    Backbone("vgg16_bn", 0.125, window=2, fc_width=64),
    Backbone("googlenet", 0.125),
    Backbone("resnet18", 0.125),
    Backbone("resnet50", 0.125),
)


def classifier_of(backbone: Backbone) -> nn.Module:
    classifier: nn.Module = seeded(backbone.classifier, 10)
    with torch.no_grad():
        for layer in classifier.modules():
            if isinstance(layer, nn.BatchNorm2d):  # fresh statistics would hide a mistake
                layer.running_mean = torch.linspace(-0.1, 0.1, layer.num_features)
                layer.running_var = torch.linspace(0.5, 2, layer.num_features)
    return classifier.eval()


def scores_of(network: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.as_tensor(network(image))


@pytest.mark.parametrize("backbone", NARROW, ids=lambda backbone: backbone.name)
def test_scores_are_the_classifiers_and_a_larger_image_has_more_of_them(
    backbone: Backbone,
) -> None:
    classifier = classifier_of(backbone)
    height, width = backbone.input_size
    image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))

    converted = convolutionalize(classifier, input_size=(height, width))

    expected, found = scores_of(classifier, image), scores_of(converted, image)
    assert found.shape == (1, 10, 1, 1)
    scale = float(expected.abs().max())
    torch.testing.assert_close(found.flatten(1), expected, atol=ROUNDING * scale, rtol=0)
    # the trunk's stride is 32 px in all of them
    assert scores_of(converted, torch.zeros(1, 3, height, width + 64)).shape == (1, 10, 1, 3)


class Unpadded(nn.Module):
    """As LeNet: no padding anywhere, so that a window is a window wherever it lies."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 5), nn.MaxPool2d(2)
        )
        self.fc1 = nn.Linear(8 * 4 * 5, 16)
        self.norm = nn.BatchNorm1d(16)
        self.fc2 = nn.Linear(16, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = x.view(x.size(0), -1)
        x = F.relu(self.norm(self.fc1(x)))
        scores: Tensor = F.log_softmax(self.fc2(F.dropout(x, 0.5, self.training)), dim=-1)
        return scores


def test_without_padding_each_score_is_the_classifiers_on_its_window() -> None:
    classifier = seeded(Unpadded).eval()
    classifier.norm.running_mean += 0.3
    image = torch.randn(1, 3, 44, 52, generator=torch.Generator().manual_seed(2))

    scores = scores_of(convolutionalize(classifier, input_size=(28, 32)), image)

    assert scores.shape == (1, 7, 5, 6)
    for row in range(5):
        for column in range(6):
            top, left = 4 * row, 4 * column  # two pools of two
            window = image[:, :, top : top + 28, left : left + 32]
            torch.testing.assert_close(
                scores[:, :, row, column], scores_of(classifier, window), atol=ROUNDING, rtol=0
            )


class Pooled(nn.Module):
    """Pools to `size` in the way that is named, and classifies."""

    def __init__(self, way: str, size: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.pool = nn.AdaptiveMaxPool2d(size)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(4 if way == "mean" else 4 * size * size, 5)
        self.way, self.size = way, size

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        if self.way == "mean":
            x = x.mean(dim=(2, 3))
        elif self.way == "function":
            x = F.adaptive_avg_pool2d(x, self.size).flatten(1)
        else:
            x = self.flatten(F.relu(self.pool(x)))
        scores: Tensor = self.fc(x)
        return scores


@pytest.mark.parametrize("way", ["mean", "function", "layer"])
def test_pooling_of_several_cells_slides_over_the_features(way: str) -> None:
    classifier = seeded(Pooled, way).eval()
    image = torch.randn(1, 3, 14, 13, generator=torch.Generator().manual_seed(3))

    scores = scores_of(convolutionalize(classifier, input_size=(10, 10)), image)

    assert scores.shape == (1, 5, 5, 4)
    for row in range(5):
        for column in range(4):
            window = image[:, :, row : row + 10, column : column + 10]
            torch.testing.assert_close(
                scores[:, :, row, column], scores_of(classifier, window), atol=ROUNDING, rtol=0
            )


def test_the_classifier_is_left_as_it_was() -> None:
    classifier = seeded(Unpadded).train()
    classifier.norm.eval()
    classifier.fc1.weight.requires_grad_(False)
    modes = {name: layer.training for name, layer in classifier.named_modules()}
    before = {key: value.clone() for key, value in classifier.state_dict().items()}

    converted = convolutionalize(classifier, input_size=(28, 32))
    with torch.no_grad():
        for parameter in converted.parameters():
            parameter.zero_()

    assert {name: layer.training for name, layer in classifier.named_modules()} == modes
    assert not converted.get_parameter("fc1.weight").requires_grad
    assert all(torch.equal(value, before[key]) for key, value in classifier.state_dict().items())


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.patches(x).flatten(2).transpose(1, 2)).mean(1)
        return scores


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.fc(self.stem(x).mean((2, 3)))) if x.sum() > 0 else x


def _flat(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), *layers)


@pytest.mark.parametrize(
    ("classifier", "message"),
    [
        (_flat(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, 5)), "'1' makes 3x3 of 8x8"),
        (_flat(nn.Flatten(), nn.LayerNorm(256), nn.Linear(256, 5)), "LayerNorm '2' reads flat"),
        (_flat(nn.Flatten()), "no linear layer follows its flatten"),
        (_flat(nn.ReLU()), "its output is not one tensor of scores"),
        (_flat(nn.Flatten(), nn.Linear(99, 5)), "Linear '2' fails at 10x10"),
        (nn.Sequential(nn.Flatten(), nn.Linear(300, 5)), "it has no Conv2d"),
        (Tokens(), r"Linear 'head' does not read flattened features, but \[2, 4, 8\]"),
        (Branches(), "torch.fx cannot trace it: TraceError"),
    ],
)
def test_what_cannot_be_converted_is_named(classifier: Any, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        convolutionalize(classifier, input_size=(10, 10))
