"""Networks of the benchmarks whose weights are random: their scores depend on the image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fcn_models import Backbone
from research.peers.random_networks import random_classifier


def varied(classifier: nn.Module) -> float:
    """Give how much scores differ between images, as a share of the largest."""
    with torch.no_grad():
        scores: Tensor = classifier(torch.randn(2, 3, 224, 224))
    return float((scores[0] - scores[1]).abs().max() / scores.abs().max())


def test_scores_depend_on_the_image_which_googlenets_at_first_do_not() -> None:
    torch.manual_seed(3)

    assert varied(Backbone("googlenet").classifier().eval()) < 1e-6
    assert varied(random_classifier(Backbone("googlenet"))) > 0.01
