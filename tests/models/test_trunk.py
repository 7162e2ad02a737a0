"""A trunk's cells cover an image of any size, or the layer that does not is named."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcn_deploy.errors import UnsupportedModelError
from fcn_deploy.preprocess import default_preprocess
from fcn_export.graph_spec import GraphSpec
from fcn_export.trace.argmax_head import FrameNetwork
from fcn_export.trace.to_onnx import trace
from fcn_models.backbones import BACKBONE_NAMES, Backbone
from fcn_models.fcn import FCN, VARIANTS, Geometry, Variant
from fcn_models.padding import PadToMultiple
from fcn_models.trunk import make_trunk
from tests.export.tiny_networks import seeded
from tests.models.networks import with_scores

SIZES = ((64, 96), (65, 99), (31, 70), (1, 7))


def halved(*, stem: nn.Module, times: int = 3, head: nn.Module | None = None) -> nn.Module:
    """Make a classifier of a stem and more layers of stride two."""
    return nn.Sequential(
        stem,
        nn.ReLU(),
        *(nn.Conv2d(4, 4, 3, stride=2, padding=1) for _ in range(times)),
        head or nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 if head is None else 16, 5),
    )


EVEN = {
    "patches": halved(stem=nn.Conv2d(3, 4, 4, stride=4)),
    "pairs": halved(stem=nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.Conv2d(4, 4, 2, 2))),
    "four of two": halved(stem=nn.Sequential(*(nn.Conv2d(3 + i, 4, 4, 2, 1) for i in range(2)))),
}


@pytest.mark.parametrize("name", EVEN)
def test_windows_of_an_even_side_cover_an_image_of_any_size(name: str) -> None:
    for variant in VARIANTS:
        model = FCN(EVEN[name], variant, 3)

        for size in SIZES:
            assert model(torch.zeros(1, 3, *size)).shape == (1, 3, *size), (variant, size)


def test_what_is_padded_to_a_multiple_is_as_if_the_image_were_so_large() -> None:
    model = with_scores(seeded(FCN, EVEN["patches"], "8s", 3))
    image = torch.randn(1, 3, 65, 99, generator=torch.Generator().manual_seed(1))

    with torch.no_grad():
        found = model(image)
        expected = model(F.pad(image, (0, 29, 0, 31)))

    assert torch.equal(found, expected[:, :, :65, :99])
    assert found.std() > 0.01


@pytest.mark.parametrize("name", BACKBONE_NAMES)
def test_the_known_backbones_need_no_padding(name: str) -> None:
    with torch.device("meta"):
        backbone = Backbone(name, 0.25)
        trunk = make_trunk(backbone.classifier(), input_size=backbone.input_size)

    assert not any(isinstance(m, PadToMultiple) for m in trunk.module.modules())


@pytest.mark.parametrize("cells", [2, 4])
def test_a_head_of_several_cells_takes_images_of_any_size(cells: int) -> None:
    # 8x8 cells at the classifier's size: the pool's windows are of four cells, or of two
    classifier = nn.Sequential(
        *(nn.Conv2d(3, 3, 3, stride=2, padding=1) for _ in range(4)),
        nn.AdaptiveAvgPool2d(cells),
        nn.Flatten(),
        nn.Linear(3 * cells * cells, 6),
        nn.Linear(6, 5),
    )

    variants: tuple[Variant, ...] = ("16s", "8s")
    for variant in variants:
        model = with_scores(FCN(classifier, variant, 3, input_size=(128, 128)))

        for size in SIZES:
            assert model(torch.ones(1, 3, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_papers_geometry_takes_patches_in_front_and_refuses_them_inside(
    variant: Variant,
) -> None:
    front = FCN(EVEN["patches"], variant, 3, geometry="paper")

    for size in SIZES:
        assert front(torch.zeros(1, 3, *size)).shape == (1, 3, *size)
    with pytest.raises(
        UnsupportedModelError, match=r"Conv2d '0\.1' pads by \(0, 0\), and leaves out"
    ):
        FCN(EVEN["pairs"], variant, 3, geometry="paper")


class Scaled(nn.Conv2d):
    """A convolution of someone's own, which computes as PyTorch's does."""


class Standardised(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(input, weight, self.bias, self.stride, self.padding)


@pytest.mark.parametrize("geometry", ["aligned", "paper"])
def test_a_class_derived_from_a_convolution_is_one(geometry: Geometry) -> None:
    own = seeded(halved, stem=Scaled(3, 4, 3, stride=2))
    usual = seeded(halved, stem=nn.Conv2d(3, 4, 3, stride=2))

    levels = FCN(own, "8s", 3, geometry=geometry).named_levels()

    assert levels == FCN(usual, "8s", 3, geometry=geometry).named_levels()
    assert list(levels) == [16, 8]


class Thinned(nn.Module):
    """A shortcut of every second cell, as ResNets for small images have."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=4, padding=1)
        self.down = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.down(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        return cast(Tensor, self.fc(x.mean((2, 3))))


def test_a_shortcut_of_every_second_cell_has_the_stride_of_two() -> None:
    model = FCN(seeded(Thinned), "8s", 2, input_size=(32, 32))

    assert model.named_levels()[8].grid.offset == 0
    assert model(torch.zeros(1, 3, 37, 50)).shape == (1, 2, 37, 50)


class Averaged(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=4, padding=1)
        self.fc = nn.Linear(4, 5)
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(self.stem(x), 3, 2, 1, **self.options)
        return cast(Tensor, self.fc(x.mean((2, 3))))


@pytest.mark.parametrize("options", [{"count_include_pad": False}, {"divisor_override": 5}])
def test_how_a_pool_averages_is_kept(options: dict[str, Any]) -> None:
    classifier = seeded(Averaged, **options)
    image = torch.ones(1, 3, 32, 32)

    trunk = make_trunk(classifier, input_size=(32, 32))

    expected = F.avg_pool2d(classifier.stem(image), 3, 2, 1, **options)
    torch.testing.assert_close(trunk.module(image)[0], expected)


REFUSED = {
    "no whole window": (
        halved(stem=nn.Conv2d(3, 4, 2)),
        "Conv2d '0' makes 127x191 cells of 128x192; expected 128x192",
    ),
    "a pool that is not known": (
        halved(stem=nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.LPPool2d(2, 2))),
        "LPPool2d '0.1' makes 64x96 cells of 128x192",
    ),
    "a pool inside to a fixed size": (
        halved(stem=nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveMaxPool2d(64))),
        "AdaptiveMaxPool2d '0.1' makes 64x64 cells of 128x192",
    ),
    "a reflection": (
        halved(stem=nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")),
        "Conv2d '0' pads in the mode 'reflect'; expected 'zeros'",
    ),
    "a call": (
        halved(stem=nn.Sequential(nn.Conv2d(3, 4, 3), Standardised(4, 4, 3, padding=1))),
        "conv2d 'conv2d' is a call of a function; expected a layer",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_layer_whose_cells_are_not_known_is_named(name: str) -> None:
    classifier, message = REFUSED[name]

    with pytest.raises(UnsupportedModelError, match=message):
        FCN(classifier, "8s", 3)


def test_a_finer_variant_pads_as_the_coarser_one_does() -> None:
    coarse = with_scores(seeded(FCN, EVEN["patches"], "16s", 3))
    image = torch.randn(1, 3, 65, 99, generator=torch.Generator().manual_seed(1))

    fine = FCN.from_coarser(coarse)

    # sums of the same products, in another order
    with torch.no_grad():
        torch.testing.assert_close(fine(image), coarse(image), atol=1e-5, rtol=0)


def test_the_graph_pads_images_of_every_size(rng: np.random.Generator) -> None:
    import onnxruntime

    model = with_scores(seeded(FCN, EVEN["patches"], "8s", 3))
    spec = GraphSpec(default_preprocess(), 3, head="scores", upsample=False, min_size=(64, 64))

    graph = trace(model, spec)

    assert graph.fixed == ()
    session = onnxruntime.InferenceSession(graph.model.SerializeToString())
    for size in ((64, 97), (131, 77), (160, 128)):
        frames = rng.integers(0, 256, (1, *size, 3), np.uint8)
        (found,) = session.run(None, {"image": frames})
        with torch.no_grad():
            expected = cast(Tensor, FrameNetwork(model, spec)(torch.from_numpy(frames)))
        # float32, summed in another order
        scale = float(expected.abs().max())
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4 * scale, rtol=0)
