"""Networks of the family whose scores are not zero."""

from __future__ import annotations

from torch import nn

from fcn_models.fcn import FCN


def with_scores(model: FCN) -> FCN:
    """Give the scoring layers, which begin at zero, random weights; return the network."""
    for name, parameter in model.named_parameters():
        if name.startswith("score"):
            nn.init.normal_(parameter)
    return model.eval()
