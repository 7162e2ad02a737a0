"""Make full-size networks with random weights whose features and scores do not vanish."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from fcn_models import FCN, Backbone

if TYPE_CHECKING:
    from fcn_models.fcn import Geometry, Variant

__all__ = ["random_classifier", "random_fcn", "randomize_scores"]

_IMAGES = 4


def random_classifier(backbone: Backbone) -> nn.Module:
    """Build a classifier, for inference, from torch's seed.

    Batch normalisation gets the statistics of random images: with those that it begins with, the
    features of torchvision's GoogLeNet shrink layer by layer, and the scores are the bias.
    """
    classifier = backbone.classifier().eval()
    for layer in classifier.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
            layer.train()
    with torch.no_grad():
        classifier(torch.randn(_IMAGES, 3, *backbone.input_size))
    return classifier.eval()


def random_fcn(
    name: str, variant: Variant, num_classes: int, *, geometry: Geometry = "aligned"
) -> FCN:
    """Build a network of the family, for inference, from torch's seed."""
    network = FCN(random_classifier(Backbone(name)), variant, num_classes, geometry=geometry)
    randomize_scores(network)
    return network.eval()


def randomize_scores(network: FCN) -> None:
    """Give the scoring layers, which begin at zero, random weights."""
    for name, layer in network.named_modules():
        if name.startswith("score") and isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
