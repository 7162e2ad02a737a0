"""FCN-32s, 16s and 8s: sizes, alignment, the paper's offsets, and each made from the coarser."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcn_deploy.errors import UnsupportedModelError
from fcn_models.backbones import BACKBONE_NAMES, Backbone
from fcn_models.fcn import FCN, GEOMETRIES, VARIANTS, Geometry, Variant
from fcn_models.recognition import recognise_backbone
from fcn_models.upsampling import UPSAMPLINGS, Enlarge, Upsampling, bilinear_kernel
from tests.export.tiny_networks import seeded
from tests.models.networks import with_scores

# the same structure with an eighth of the channels and a small fc6
NARROW = {
    "alexnet": Backbone("alexnet", 0.125, fc_width=32),
    "vgg11": Backbone("vgg11", 0.125, fc_width=32),
    "googlenet": Backbone("googlenet", 0.125),
    "resnet18": Backbone("resnet18", 0.125),
}
SIZES = {"32s": (131, 70), "16s": (64, 97), "8s": (99, 75)}


def network(
    name: str,
    variant: Variant = "8s",
    *,
    upsampling: Upsampling = "learned",
    geometry: Geometry = "aligned",
) -> FCN:
    """Build a narrow network whose scores are not zero."""

    def make() -> FCN:
        return with_scores(FCN(NARROW[name], variant, 4, upsampling=upsampling, geometry=geometry))

    made: FCN = seeded(make)
    return made


def scores_of(model: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(image))


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_scores_have_the_images_size_whatever_it_is(name: str, geometry: Geometry) -> None:
    ways: tuple[Upsampling, ...] = ("learned", "interpolate")
    for variant, upsampling in itertools.product(VARIANTS, ways):
        model = network(name, variant, upsampling=upsampling, geometry=geometry)

        scores = scores_of(model, torch.zeros(1, 3, *SIZES[variant]))

        assert scores.shape == (1, 4, *SIZES[variant]), (variant, upsampling)


@pytest.mark.parametrize("name", BACKBONE_NAMES)
def test_every_backbone_is_recognised_by_its_weights_and_has_strides_of_8_16_and_32(
    name: str,
) -> None:
    with torch.device("meta"):
        backbone = Backbone(name, 0.25)

        model = FCN(backbone.classifier(), "8s", 2)

    assert model.backbone_spec == backbone
    assert list(model.named_levels()) == [32, 16, 8]
    assert model.grid.stride == 8


def test_scores_begin_at_zero_and_upsampling_as_bilinear_interpolation() -> None:
    model = FCN(NARROW["vgg11"], "8s", 4).eval()
    kernel = model.get_parameter("up_16.weight")

    assert not scores_of(model, torch.ones(1, 3, 64, 64)).any()
    expected = torch.tensor([0.25, 0.75, 0.75, 0.25])
    torch.testing.assert_close(kernel[2, 2], torch.outer(expected, expected))
    assert not kernel[0, 1].any()


@pytest.mark.parametrize("factor", [2, 8, 32])
def test_a_bilinear_transposed_convolution_interpolates_inside(factor: int) -> None:
    scores = torch.randn(1, 3, 5, 6, generator=torch.Generator().manual_seed(4))
    layer = Enlarge(3, factor, (factor - 1) / 2, kind="fixed", spare=False)

    found = layer(scores)

    expected = F.interpolate(scores, scale_factor=float(factor), mode="bilinear")
    inside = slice(factor // 2, -(factor // 2))
    assert found.shape == expected.shape
    torch.testing.assert_close(
        found[..., inside, inside], expected[..., inside, inside], atol=1e-5, rtol=0
    )
    # beyond the outermost cells the scores of all classes fade alike: their ratios stay
    torch.testing.assert_close(
        found * expected[:, :1], found[:, :1] * expected, atol=1e-5, rtol=1e-5
    )
    assert torch.equal(found.argmax(1), expected.argmax(1))


@pytest.mark.parametrize(
    ("factor", "first"), [(2, 0.0), (2, 0.5), (2, -1.0), (8, 0.0), (8, 3.5), (32, 8.0), (32, 15.5)]
)
@pytest.mark.parametrize("kind", ["learned", "fixed"])
def test_cells_are_put_where_the_image_has_them(
    factor: int, first: float, kind: Upsampling
) -> None:
    # a ramp that says where each coarse cell lies must say the same in every finer cell
    places = first + factor * torch.arange(9.0)
    layer = Enlarge(1, factor, first, kind=kind, spare=False)

    with torch.no_grad():
        found = layer(places.expand(1, 1, 9, 9))

    from_, until = factor, 7 * factor  # between the outermost cells
    expected = torch.arange(from_, until, dtype=torch.float32)
    rows = found[0, 0, from_:until, from_:until]
    torch.testing.assert_close(rows, expected.expand_as(rows), atol=1e-3, rtol=0)


def test_the_papers_geometry_has_its_offsets() -> None:
    # the crops in the networks that the authors published: voc-fcn32s, 16s, 8s and fcn-alexnet
    vgg = {v: network("vgg11", v, geometry="paper") for v in VARIANTS}
    alexnet = network("alexnet", "32s", geometry="paper")

    def first_cut(model: FCN) -> int:
        return model.up.cut

    assert [first_cut(vgg[v]) for v in VARIANTS] == [19, 27, 31]
    assert first_cut(alexnet) == 18
    assert vgg["8s"].get_submodule("up_16").skipped == 5
    assert vgg["8s"].get_submodule("up_8").skipped == 9
    assert alexnet.up.weight.shape[-1] == 63
    assert vgg["32s"].up.weight.shape[-1] == 64


def test_both_geometries_agree_far_from_the_borders() -> None:
    # fc6 sees 6x6 cells of 32 px and the trunk 195 px more: only the middle of 640 px is inside
    image = torch.randn(1, 3, 640, 640, generator=torch.Generator().manual_seed(5))
    aligned = network("alexnet", "32s")
    paper = network("alexnet", "32s", geometry="paper")

    found = scores_of(aligned, image)
    expected = scores_of(paper, torch.roll(image, (-3, -3), (2, 3)))

    # the paper's cells are centred 3 px before ours: at 13 instead of 16
    middle = slice(256, 384)
    torch.testing.assert_close(
        found[..., 259:387, 259:387], expected[..., middle, middle], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("size", [(160, 128), (131, 99), (33, 257)])
@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_finer_variants_begin_with_the_very_output_of_the_coarser_ones(
    upsampling: Upsampling, name: str, size: tuple[int, int]
) -> None:
    coarse = trained(network(name, "32s", upsampling=upsampling))
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(6))
    expected = scores_of(coarse, image)

    middle = FCN.from_coarser(coarse)
    assert_same_scores(scores_of(middle, image), expected)
    trained(middle)
    expected = scores_of(middle, image)
    fine = FCN.from_coarser(middle)

    assert_same_scores(scores_of(fine, image), expected)
    assert (middle.variant, fine.variant) == ("16s", "8s")


def trained(model: FCN) -> FCN:
    """Change all that training changes: a fixed kernel is a buffer, and stays."""
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def assert_same_scores(found: Tensor, expected: Tensor) -> None:
    largest = float(expected.abs().max())
    assert float(expected.std()) > largest / 100  # not the same everywhere
    # sums of the same products, in another order
    torch.testing.assert_close(found, expected, atol=1e-6 * largest, rtol=0)


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_in_the_papers_geometry_one_step_more_cuts_the_corner_at_each_centre(
    upsampling: Upsampling,
) -> None:
    coarse = network("vgg11", "32s", upsampling=upsampling, geometry="paper")
    image = torch.randn(1, 3, 160, 128, generator=torch.Generator().manual_seed(6))
    expected = scores_of(coarse, image)

    middle = FCN.from_coarser(coarse)
    fine = FCN.from_coarser(middle)

    # by an eighth of the second difference along each axis; a corner of 8s is cut once more, on
    # half the cells
    with torch.no_grad():
        cells = coarse.score(coarse.backbone(image)[0])
    mode = "replicate" if upsampling == "interpolate" else "constant"
    padded = F.pad(cells, (1, 1, 1, 1), mode=mode)
    bend = sum(float(padded.diff(n=2, dim=axis).abs().max()) for axis in (2, 3))
    for model, allowed in ((middle, bend / 8), (fine, bend / 4)):
        error = float((scores_of(model, image) - expected).abs().max())
        assert allowed / 100 < error <= allowed * 1.01


@pytest.mark.parametrize("name", ["alexnet", "resnet18"])
def test_in_the_papers_geometry_centres_on_pixels_need_no_exception(name: str) -> None:
    coarse = network(name, "32s", geometry="paper")
    image = torch.randn(1, 3, 160, 131, generator=torch.Generator().manual_seed(7))

    fine = FCN.from_coarser(FCN.from_coarser(coarse))

    assert_same_scores(scores_of(fine, image), scores_of(coarse, image))


def test_a_finer_variant_has_weights_of_its_own() -> None:
    coarse = network("vgg11", "32s")
    fine = FCN.from_coarser(coarse)

    with torch.no_grad():
        for parameter in fine.parameters():
            parameter.zero_()

    assert coarse.score.weight.abs().sum() > 0
    assert next(coarse.backbone.parameters()).abs().sum() > 0


@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", torch.float64), ("cpu", torch.bfloat16), ("meta", torch.float16)]
)
def test_a_finer_variant_is_where_the_coarser_is_and_as_precise(
    device: str, dtype: torch.dtype
) -> None:
    coarse = network("vgg11", "32s").to(device, dtype)
    with torch.no_grad():
        coarse.score.weight.add_(1e-12)  # lost in float32

    fine = FCN.from_coarser(coarse)

    floating = [x for x in fine.state_dict().values() if x.is_floating_point()]
    assert {x.dtype for x in floating} == {dtype}
    assert {x.device.type for x in fine.state_dict().values()} == {device}
    if device != "meta":
        assert torch.equal(fine.score.weight, coarse.score.weight)


def test_there_is_nothing_finer_than_8s() -> None:
    with pytest.raises(UnsupportedModelError, match="FCN-8s has no finer variant"):
        FCN.from_coarser(network("vgg11", "8s"))


class Shallow(nn.Module):
    """A user's own classifier: stride 16, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Conv2d(3 if i == 0 else 6, 6, 3, padding=1) for i in range(4)
        )
        self.fc = nn.Linear(6 * 3 * 3, 5)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = F.max_pool2d(F.relu(stage(x)), 2)
        scores: Tensor = self.fc(torch.flatten(x, 1))
        return scores


def test_any_classifier_makes_the_variants_that_it_has_strides_for() -> None:
    model = FCN(seeded(Shallow), "8s", 3, input_size=(48, 48))

    assert model.backbone_spec is None
    assert list(model.named_levels()) == [16, 8]
    assert model.score.kernel_size == (3, 3)  # what the only linear layer saw
    assert model(torch.zeros(1, 3, 83, 61)).shape == (1, 3, 83, 61)
    with pytest.raises(
        UnsupportedModelError, match=r"FCN-32s needs .* 32 px; .* those of 16, 8 px"
    ):
        FCN(seeded(Shallow), "32s", 3, input_size=(48, 48))


def test_the_kernel_is_caffes_bilinear_filler() -> None:
    torch.testing.assert_close(bilinear_kernel(3)[1], torch.tensor([0.5, 1.0, 0.5]))
    assert float(bilinear_kernel(64).sum()) == pytest.approx(32 * 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "vgg12"}, "'vgg12' is not known by name; known are alexnet, vgg11"),
        ({"name": "vgg11", "width": 0.3}, r"width is 0\.3; expected a share"),
        ({"name": "resnet18", "window": 3}, "resnet18 has no fc6 and fc7"),
    ],
)
def test_impossible_backbones_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        Backbone(**options)  # type: ignore[arg-type] # wrong on purpose


def test_foreign_weights_are_no_backbone() -> None:
    assert recognise_backbone(Shallow().state_dict()) is None
    assert recognise_backbone({"features.0.weight": torch.zeros(4, 3, 3, 3)}) is None
