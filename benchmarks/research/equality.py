"""Compare convolutionalised classifiers with the classifiers, full-size; print the largest errors.

    python -m benchmarks.research.equality
    python -m benchmarks.research.equality --backbone vgg16 resnet50

At the classifier's own size its scores and the map's only cell are compared; on an image twice as
large, the map must have the size that kernels, strides and padding give. Further, an FCN-16s made
of an FCN-32s, and an FCN-8s of that, are compared with the nets they were made of, at an odd size
in both geometries. In the paper's, those whose cells lie between pixels (VGG, GoogLeNet) must
differ.

Weights are random, from one seed; batch normalisation is given the statistics of random images,
without which features all but vanish. Errors are relative to how much scores differ: between
images, or between pixels. A network that saw nothing of its image would have an error of about 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from fcn_models import FCN, Backbone
from fcn_models.backbones import BACKBONE_NAMES
from fcn_models.fcn import GEOMETRIES, VARIANTS, Geometry
from fcn_models.linear_to_conv import convolutionalize
from research.peers.random_networks import random_classifier, random_fcn, randomize_scores

_SEED = 0
_IMAGES = 4
_CLASSES = 21
_ODD_SIZE = (229, 283)
_FORM = "{:<12}{:>12}{:>12}{:>8}  {}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; give its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.research.equality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--backbone", nargs="+", choices=BACKBONE_NAMES, default=BACKBONE_NAMES, metavar="NAME"
    )
    options = parser.parse_args(arguments)
    steps = [
        f"{geometry} {finer} from {coarser}"
        for geometry in GEOMETRIES
        for coarser, finer in pairwise(VARIANTS)
    ]
    sys.stdout.write(_FORM.format("backbone", "input", "error", "map", ", ".join(steps)))
    for name in options.backbone:
        backbone = Backbone(name)
        torch.manual_seed(_SEED)
        error, cells = classifier_error(backbone)
        finer = [step for geometry in GEOMETRIES for step in refinement_errors(name, geometry)]
        size, grid = ("x".join(map(str, sides)) for sides in (backbone.input_size, cells))
        errors = ", ".join(f"{one:.1e}" for one in finer)
        sys.stdout.write(_FORM.format(name, size, f"{error:.1e}", grid, errors))
        sys.stdout.flush()
    return 0


def classifier_error(backbone: Backbone) -> tuple[float, tuple[int, int]]:
    """Give the largest relative error of the scores, and the map's (height, width) at twice it."""
    classifier = random_classifier(backbone)
    height, width = backbone.input_size
    converted = convolutionalize(classifier, input_size=(height, width))
    images = torch.randn(_IMAGES, 3, height, width)
    expected = _scores(classifier, images)
    error = _relative(_scores(converted, images).flatten(1), expected, over=(0,))
    larger = _scores(converted, torch.randn(1, 3, 2 * height, 2 * width))
    return error, (larger.shape[2], larger.shape[3])


def refinement_errors(name: str, geometry: Geometry) -> list[float]:
    """Give how far each finer variant's scores are from those of the variant it was made of."""
    model = random_fcn(name, "32s", _CLASSES, geometry=geometry)
    image = torch.randn(1, 3, *_ODD_SIZE)
    errors = []
    for _ in VARIANTS[1:]:
        finer = FCN.from_coarser(model)
        errors.append(_relative(_scores(finer, image), _scores(model, image), over=(2, 3)))
        randomize_scores(finer)
        model = finer
    return errors


def _scores(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.as_tensor(network(images))


def _relative(found: Tensor, expected: Tensor, *, over: tuple[int, ...]) -> float:
    """Give the largest error as a share of how far scores are from their mean over some axes."""
    varied = expected - expected.mean(over, keepdim=True)
    return float((found - expected).abs().max() / varied.abs().max())


if __name__ == "__main__":
    sys.exit(main())
