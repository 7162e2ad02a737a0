"""Known networks are recognised from names and shapes, and built without a download."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import segmentation

from fcn_deploy.errors import UnsupportedModelError
from fcn_export.load.architectures import (
    Recognised,
    architecture_names,
    build_architecture,
    recognise,
)

KNOWN = (
    "fcn_resnet50",
    "fcn_resnet101",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "deeplabv3_mobilenet_v3_large",
    "lraspp_mobilenet_v3_large",
)


def _state(name: str, *, num_classes: int = 21, aux: bool = False) -> dict[str, Tensor]:
    """Give torchvision's own weights' names and shapes, without memory behind them."""
    options = {"aux_loss": True} if aux else {}
    with torch.device("meta"):
        network: nn.Module = getattr(segmentation, name)(
            weights=None, weights_backbone=None, num_classes=num_classes, **options
        )
    return network.state_dict()


def test_the_known_networks_are_those_that_are_promised() -> None:
    assert set(architecture_names()) == set(KNOWN)


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("num_classes", [1, 300])
@pytest.mark.parametrize("aux", [False, True])
def test_each_network_is_recognised_with_its_classes_and_heads(
    name: str, num_classes: int, aux: bool
) -> None:
    aux = aux and not name.startswith("lraspp")

    recognised = recognise(_state(name, num_classes=num_classes, aux=aux))

    assert recognised == Recognised(name, num_classes, num_classes if aux else None)


def test_unknown_weights_say_what_was_seen_and_what_is_known() -> None:
    state = {"encoder.0.weight": torch.ones(1), "decoder.0.weight": torch.ones(1)}

    with pytest.raises(
        UnsupportedModelError,
        match=r"its 2 weights \('encoder\.0\.weight', 'decoder\.0\.weight'.*known are "
        r"fcn_resnet50.*lraspp_mobilenet_v3_large.*--arch package\.module:factory",
    ):
        recognise(state)


def test_a_deeper_resnet_is_not_taken_for_its_relative() -> None:
    state = _state("fcn_resnet101")
    state["backbone.layer3.23.conv3.weight"] = state["backbone.layer3.22.conv3.weight"]

    with pytest.raises(UnsupportedModelError, match="not recognised"):
        recognise(state)


def test_a_changed_input_layer_is_told_by_its_shape() -> None:
    state = _state("fcn_resnet50")
    state["backbone.conv1.weight"] = torch.empty(64, 1, 7, 7)

    with pytest.raises(
        UnsupportedModelError,
        match=r"torchvision's fcn_resnet50, but backbone\.conv1\.weight is \[64, 1, 7, 7\], "
        r"expected \[64, 3, 7, 7\].*--arch",
    ):
        recognise(state)


@pytest.mark.parametrize("name", KNOWN)
def test_the_built_network_has_the_weights_names_and_shapes(name: str) -> None:
    state: Mapping[str, Tensor] = _state(name, num_classes=3, aux=not name.startswith("lraspp"))

    network = build_architecture(recognise(state))

    built = {key: tensor.shape for key, tensor in network.state_dict().items()}
    assert built == {key: tensor.shape for key, tensor in state.items()}
    assert not network.training
    assert {tensor.device.type for tensor in network.state_dict().values()} == {"cpu"}


def test_an_auxiliary_head_with_other_classes_is_built_as_it_is() -> None:
    # the usual recipe replaces classifier[4] alone, and the auxiliary head keeps 21 classes
    network = build_architecture(Recognised("fcn_resnet50", num_classes=7, aux_classes=21))

    assert network.get_parameter("classifier.4.weight").shape == (7, 512, 1, 1)
    assert network.get_parameter("aux_classifier.4.weight").shape == (21, 256, 1, 1)
    assert network.get_parameter("aux_classifier.4.bias").shape == (21,)
