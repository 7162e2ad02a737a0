"""Recognise a network of torchvision from the names and shapes of its weights, and build it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fcn_deploy.errors import UnsupportedModelError
from fcn_models.backbones import torchvision_models

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "Recognised",
    "architecture_names",
    "build_architecture",
    "is_family_name",
    "materialised",
    "recognise",
]

_Shape = tuple[int | None, ...]

_FACTORY_HINT = "For another network pass --arch package.module:factory (arch='...')."


@dataclass(frozen=True, slots=True)
class Recognised:
    """A known network, with what its weights say of it.

    Attributes:
        name: of the factory in torchvision.models.segmentation.
        num_classes: scores a pixel.
        aux_classes: scores a pixel of the auxiliary head, None without one. It differs from
            `num_classes` where only the main head was replaced before fine-tuning.
    """

    name: str
    num_classes: int
    aux_classes: int | None = None


@dataclass(frozen=True, slots=True)
class _Signature:
    """What the weights of one network have that no other's have.

    Attributes:
        shapes: by name, in PyTorch's order of dimensions; None where any size is taken.
        absent: a name that only a deeper relative has.
        classes: name of the last layer's weight; its first dimension counts the classes.
    """

    shapes: Mapping[str, _Shape]
    absent: str
    classes: str


_AUX = "aux_classifier.4.weight"

_RESNET50: Mapping[str, _Shape] = {
    "backbone.conv1.weight": (64, 3, 7, 7),
    "backbone.layer1.0.conv3.weight": (256, 64, 1, 1),
    "backbone.layer3.5.conv3.weight": (1024, 256, 1, 1),
    "backbone.layer4.2.conv3.weight": (2048, 512, 1, 1),
}
_RESNET101: Mapping[str, _Shape] = {
    **_RESNET50,
    "backbone.layer3.22.conv3.weight": (1024, 256, 1, 1),
}
_MOBILENET_V3_LARGE: Mapping[str, _Shape] = {
    "backbone.0.0.weight": (16, 3, 3, 3),
    "backbone.4.block.0.0.weight": (72, 24, 1, 1),
    "backbone.16.0.weight": (960, 160, 1, 1),
}
_DEEPER_THAN_50 = "backbone.layer3.6.conv3.weight"
_DEEPER_THAN_101 = "backbone.layer3.23.conv3.weight"  # ResNet-152
_LONGER_MOBILENET = "backbone.17.0.weight"


def _fcn_head(channels: int) -> Mapping[str, _Shape]:
    middle = channels // 4
    return {
        "classifier.0.weight": (middle, channels, 3, 3),
        "classifier.4.weight": (None, middle, 1, 1),
    }


def _deeplab_head(channels: int) -> Mapping[str, _Shape]:
    return {
        "classifier.0.convs.0.0.weight": (256, channels, 1, 1),
        "classifier.0.project.0.weight": (256, 1280, 1, 1),
        "classifier.4.weight": (None, 256, 1, 1),
    }


_LRASPP_HEAD: Mapping[str, _Shape] = {
    "classifier.cbr.0.weight": (128, 960, 1, 1),
    "classifier.scale.1.weight": (128, 960, 1, 1),
    "classifier.low_classifier.weight": (None, 40, 1, 1),
    "classifier.high_classifier.weight": (None, 128, 1, 1),
}

_SIGNATURES: Mapping[str, _Signature] = {
    "fcn_resnet50": _Signature(
        {**_RESNET50, **_fcn_head(2048)}, _DEEPER_THAN_50, "classifier.4.weight"
    ),
    "fcn_resnet101": _Signature(
        {**_RESNET101, **_fcn_head(2048)}, _DEEPER_THAN_101, "classifier.4.weight"
    ),
    "deeplabv3_resnet50": _Signature(
        {**_RESNET50, **_deeplab_head(2048)}, _DEEPER_THAN_50, "classifier.4.weight"
    ),
    "deeplabv3_resnet101": _Signature(
        {**_RESNET101, **_deeplab_head(2048)}, _DEEPER_THAN_101, "classifier.4.weight"
    ),
    "deeplabv3_mobilenet_v3_large": _Signature(
        {**_MOBILENET_V3_LARGE, **_deeplab_head(960)}, _LONGER_MOBILENET, "classifier.4.weight"
    ),
    "lraspp_mobilenet_v3_large": _Signature(
        {**_MOBILENET_V3_LARGE, **_LRASPP_HEAD},
        _LONGER_MOBILENET,
        "classifier.high_classifier.weight",
    ),
}


def architecture_names() -> tuple[str, ...]:
    """Give the names of the networks that are recognised."""
    return tuple(_SIGNATURES)


def is_family_name(name: str) -> bool:
    """Say whether a name is one of this project's own networks, such as ``fcn8s_vgg16``."""
    from fcn_models.backbones import BACKBONE_NAMES

    variant, _, backbone = name.partition("_")
    return variant in ("fcn32s", "fcn16s", "fcn8s") and backbone in BACKBONE_NAMES


def recognise(state: Mapping[str, Tensor]) -> Recognised:
    """Tell which known network the weights belong to, from their names and shapes alone.

    Args:
        state: weights by name, of any dtype, prefixes of wrappers removed.

    Raises:
        UnsupportedModelError: none fits, or one fits but for some shapes, which are listed.
    """
    by_names = [
        name
        for name, signature in _SIGNATURES.items()
        if signature.absent not in state and signature.shapes.keys() <= state.keys()
    ]
    if not by_names:
        seen = ", ".join(repr(key) for key in list(state)[:4])
        raise UnsupportedModelError(
            f"the network was not recognised from its {len(state)} weights ({seen}, ...); "
            f"known are {', '.join(_SIGNATURES)}, and the networks of fcn_models.",
            hint=_FACTORY_HINT,
        )
    name = by_names[0]  # the signatures exclude one another
    signature = _SIGNATURES[name]
    wrong = [
        f"{key} is {list(state[key].shape)}, expected {_shape_text(shape)}"
        for key, shape in signature.shapes.items()
        if not _fits(tuple(state[key].shape), shape)
    ]
    if wrong:
        raise UnsupportedModelError(
            f"the weights are named as torchvision's {name}, but {'; '.join(wrong[:4])}.",
            hint="A modified network must be built by its own code. " + _FACTORY_HINT,
        )
    return Recognised(
        name,
        num_classes=state[signature.classes].shape[0],
        aux_classes=state[_AUX].shape[0] if _AUX in state else None,
    )


def build_architecture(recognised: Recognised) -> nn.Module:
    """Build a known network, in fp32 on the CPU, in eval mode; downloads nothing.

    Returns:
        A module whose parameters are not initialised: fill all of them.

    Raises:
        BackendUnavailableError: torchvision is not installed.
    """
    segmentation = torchvision_models(recognised.name).segmentation
    import torch

    options = {"weights": None, "weights_backbone": None, "num_classes": recognised.num_classes}
    if recognised.aux_classes is not None:
        options["aux_loss"] = True
    # on the meta device nothing is allocated twice, and no time goes into random weights
    with torch.device("meta"):
        module: nn.Module = getattr(segmentation, recognised.name)(**options)
        if recognised.aux_classes not in (None, recognised.num_classes):
            head = module.get_submodule("aux_classifier")
            inner = head.get_parameter("4.weight").shape[1]
            last = torch.nn.Conv2d(inner, recognised.aux_classes or 0, 1)
            head.register_module("4", last)
    return materialised(module)


def materialised(module: nn.Module) -> nn.Module:
    """Give a module that was built on the meta device memory, on the CPU, and set it to eval."""
    module = module.to_empty(device="cpu").eval()
    for buffer in module.buffers():
        buffer.zero_()  # old checkpoints lack num_batches_tracked, which must not stay garbage
    return module


def _fits(shape: tuple[int, ...], expected: _Shape) -> bool:
    return len(shape) == len(expected) and all(
        want is None or have == want for have, want in zip(shape, expected, strict=True)
    )


def _shape_text(shape: _Shape) -> str:
    return "[" + ", ".join("classes" if size is None else str(size) for size in shape) + "]"
