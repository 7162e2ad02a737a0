"""A classifier is known by name only where it computes what the one of that name computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from fcn_deploy.errors import UnsupportedModelError
from fcn_deploy.preprocess import default_preprocess
from fcn_export import load_fcn
from fcn_models.backbones import BACKBONE_NAMES, Backbone
from fcn_models.checkpoints import describe_fcn, recognise_fcn, save_checkpoint
from fcn_models.fcn import FCN
from fcn_models.recognition import identify_classifier
from tests.export.tiny_networks import seeded

NARROW = Backbone("resnet18", 0.125)
TRANSFORMING = Backbone("googlenet", 0.125, transform_input=True)


def other_activation(classifier: nn.Module) -> None:
    classifier.relu = nn.LeakyReLU()


def gray(classifier: nn.Module) -> None:
    classifier.conv1 = nn.Conv2d(1, 8, 7, 2, 3, bias=False)


def another_head(classifier: nn.Module) -> None:
    classifier.fc = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def no_head(classifier: nn.Module) -> None:
    classifier.fc = nn.Identity()


def no_pool(classifier: nn.Module) -> None:
    classifier.maxpool = nn.Identity()


def other_norm(classifier: nn.Module) -> None:
    classifier.bn1.eps = 0.1  # type: ignore[union-attr] # a BatchNorm2d


def other_stem(classifier: nn.Module) -> None:
    classifier.conv1 = nn.Conv2d(3, 80, 7, 2, 3, bias=False)


@pytest.mark.parametrize(
    "change", [other_activation, gray, another_head, no_head, no_pool, other_norm, other_stem]
)
def test_a_changed_classifier_is_not_the_known_one(change: Callable[[nn.Module], None]) -> None:
    classifier = NARROW.classifier()
    assert identify_classifier(classifier) == NARROW
    change(classifier)

    assert identify_classifier(classifier) is None


@pytest.mark.parametrize("name", ["resnext50_32x4d", "wide_resnet50_2"])
def test_relatives_of_known_classifiers_are_not_known(name: str) -> None:
    with torch.device("meta"):
        assert identify_classifier(torchvision.models.get_model(name)) is None


@pytest.mark.parametrize("name", BACKBONE_NAMES)
def test_torchvisions_own_are_known_however_many_classes_they_have(name: str) -> None:
    options = {"init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        classifier = torchvision.models.get_model(name, num_classes=7, **options)

    assert identify_classifier(classifier) == Backbone(name)


def test_what_inference_does_not_know_may_differ_and_modes_stay() -> None:
    backbone = Backbone("vgg11_bn", 0.125, window=2, fc_width=8)
    classifier = backbone.classifier()
    for layer in classifier.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
            layer.eval()
    modes = [layer.training for layer in classifier.modules()]

    assert identify_classifier(classifier) == backbone
    assert [layer.training for layer in classifier.modules()] == modes


def test_an_fcn_of_a_changed_classifier_is_not_saved_as_the_known_one(tmp_path: Path) -> None:
    classifier = NARROW.classifier()
    other_activation(classifier)
    model = FCN(classifier, "8s", 3)

    assert recognise_fcn(model.state_dict()) is None
    with pytest.raises(UnsupportedModelError, match="not known by name"):
        save_checkpoint(model, tmp_path / "model.pt", preprocess=default_preprocess())


def test_an_image_that_the_classifier_normalises_anew_stays_so_in_a_checkpoint(
    tmp_path: Path,
) -> None:
    model = seeded(lambda: FCN(TRANSFORMING.classifier(), "32s", 3)).eval()
    nn.init.normal_(model.score.weight)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(9))

    save_checkpoint(model, tmp_path / "model.pt", preprocess=default_preprocess())

    with torch.no_grad():
        scores = model(image)
        assert torch.equal(load_fcn(tmp_path / "model.pt")(image), scores)
        plain = FCN(Backbone("googlenet", 0.125), "32s", 3).eval()
        plain.load_state_dict(model.state_dict(), strict=False)
        assert not torch.allclose(plain(image), scores)
    assert recognise_fcn(model.state_dict()) == describe_fcn(model)


def test_another_size_makes_another_window(tmp_path: Path) -> None:
    backbone = Backbone("vgg11", 0.125, window=2, fc_width=8)

    assert FCN(backbone.classifier(), "8s", 3, input_size=(64, 64)).backbone_spec == backbone
    assert FCN(backbone.classifier(), "8s", 3).backbone_spec == backbone
    assert FCN(backbone.classifier(), "8s", 3, input_size=(128, 128)).backbone_spec is None
    assert FCN(NARROW.classifier(), "8s", 3, input_size=(96, 96)).backbone_spec == NARROW


def test_only_googlenet_normalises_images() -> None:
    with pytest.raises(UnsupportedModelError, match="resnet18 does not normalise images itself"):
        Backbone("resnet18", transform_input=True)
