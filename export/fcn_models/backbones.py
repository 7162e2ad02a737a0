"""Make the classifiers that an FCN is built on: torchvision's, at full width or narrower."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from fcn_deploy.errors import BackendUnavailableError, UnsupportedModelError

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "BACKBONE_NAMES",
    "FIRST_WIDTH",
    "RESNET_BLOCKS",
    "WINDOWS",
    "Backbone",
    "convolution_places",
    "torchvision_models",
]

_VGG_CONVOLUTIONS = {
    "vgg11": (0, 3, 6, 8, 11, 13, 16, 18),
    "vgg13": (0, 2, 5, 7, 10, 12, 15, 17, 20, 22),
    "vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    "vgg19": (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34),
    "vgg11_bn": (0, 4, 8, 11, 15, 18, 22, 25),
    "vgg13_bn": (0, 3, 7, 10, 14, 17, 21, 24, 28, 31),
    "vgg16_bn": (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40),
    "vgg19_bn": (0, 3, 7, 10, 14, 17, 20, 23, 27, 30, 33, 36, 40, 43, 46, 49),
}
_ALEXNET_CONVOLUTIONS = (0, 3, 6, 8, 10)
RESNET_BLOCKS = {
    "resnet18": ((2, 2, 2, 2), 2),
    "resnet34": ((3, 4, 6, 3), 2),
    "resnet50": ((3, 4, 6, 3), 3),
}
"""Blocks in each of the four layers, and convolutions in a block."""

BACKBONE_NAMES = ("alexnet", *_VGG_CONVOLUTIONS, "googlenet", *RESNET_BLOCKS)
"""The classifiers that are known by name."""

WINDOWS = {"alexnet": 6, **dict.fromkeys(_VGG_CONVOLUTIONS, 7)}
"""Cells along an axis that fc6 sees, of those that have one."""

FIRST_WIDTH = 64
"""Channels of the first convolution, in every one of them."""

_FC_WIDTH = 4096


@dataclass(frozen=True, slots=True)
class Backbone:
    """A classifier of torchvision, by name, full or narrower.

    Attributes:
        name: one of `BACKBONE_NAMES`.
        width: share of the channels of every convolution; of 64, 48, 24 and so on, it must leave
            whole numbers, as 1/2, 1/4 and 1/8 do.
        window: cells along an axis that fc6 sees; None for 7 in VGG and 6 in AlexNet. GoogLeNet
            and ResNet have no such layer.
        fc_width: channels of fc6 and fc7; None for 4096 times `width`.
        transform_input: torchvision's pretrained GoogLeNet takes images that are normalised as the
            others' are, and normalises them anew.

    Raises:
        UnsupportedModelError: a value is not possible.
    """

    name: str
    width: float = 1.0
    window: int | None = None
    fc_width: int | None = None
    transform_input: bool = False

    def __post_init__(self) -> None:
        if self.name not in BACKBONE_NAMES:
            raise UnsupportedModelError(
                f"the backbone {self.name!r} is not known by name; known are "
                f"{', '.join(BACKBONE_NAMES)}.",
                hint="Any other classifier can be given as a module.",
            )
        if not 0 < self.width <= 1 or (FIRST_WIDTH * Fraction(self.width)).denominator != 1:
            raise UnsupportedModelError(
                f"the backbone's width is {self.width}; expected a share such as 1, 0.5 or 0.125."
            )
        if self.transform_input and self.name != "googlenet":
            raise UnsupportedModelError(f"{self.name} does not normalise images itself.")
        usual = WINDOWS.get(self.name)
        if usual is None and (self.window is not None or self.fc_width is not None):
            raise UnsupportedModelError(
                f"{self.name} has no fc6 and fc7, whose window or width could be chosen."
            )
        if usual is not None:
            object.__setattr__(self, "window", self.window or usual)
            object.__setattr__(self, "fc_width", self.fc_width or round(_FC_WIDTH * self.width))

    @property
    def input_size(self) -> tuple[int, int]:
        """Give the (height, width) in px at which the classifier gives one vector of scores."""
        if self.window is None:
            return 224, 224
        # AlexNet's unpadded pools leave out the last cell
        side = 32 * (self.window + 1 if self.name == "alexnet" else self.window)
        return side, side

    @property
    def first_taps(self) -> bool:
        """Say whether skips leave from the pools, as in the paper, not from the layers behind."""
        return self.name in WINDOWS

    def classifier(self, num_classes: int = 1000) -> nn.Module:
        """Build the classifier with random weights, in training mode; downloads nothing.

        Raises:
            BackendUnavailableError: torchvision is not installed.
        """
        models = torchvision_models(self.name)
        options: dict[str, Any] = {"weights": None, "num_classes": num_classes}
        if self.name == "googlenet":
            options |= {"aux_logits": False, "init_weights": True}
            options["transform_input"] = self.transform_input
        if self.width == 1 and not self._has_another_head():
            built: nn.Module = getattr(models, self.name)(**options)
            return built
        import torch

        with torch.device("meta"):  # the full layers are replaced, so they need no memory
            module: nn.Module = getattr(models, self.name)(**options)
        _resize(module, self)
        return module

    def _has_another_head(self) -> bool:
        return self.window is not None and (self.window, self.fc_width) != (
            WINDOWS[self.name],
            _FC_WIDTH,
        )


def convolution_places(name: str) -> tuple[int, ...]:
    """Give the indices of the convolutions in `features`, of AlexNet and VGG."""
    return _ALEXNET_CONVOLUTIONS if name == "alexnet" else _VGG_CONVOLUTIONS[name]


def _resize(module: nn.Module, backbone: Backbone) -> None:
    """Replace all layers by narrower ones, and fc6 by one of another window."""
    from torch import nn

    share = Fraction(backbone.width)
    layers = [(name, x) for name, x in module.named_modules() if not list(x.children())]
    linear = [name for name, x in layers if isinstance(x, nn.Linear)]
    channels = 3
    for name, layer in layers:
        made: nn.Module | None = None
        if isinstance(layer, nn.Conv2d):
            inward = 3 if layer.in_channels == 3 else _share(layer.in_channels, share)
            channels = _share(layer.out_channels, share)
            made = nn.Conv2d(
                inward,
                channels,
                layer.kernel_size,  # type: ignore[arg-type] # torch says tuple[int, ...]
                layer.stride,  # type: ignore[arg-type]
                layer.padding,  # type: ignore[arg-type]
                bias=layer.bias is not None,
            )
            nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.BatchNorm2d):
            made = nn.BatchNorm2d(_share(layer.num_features, share), eps=layer.eps)
        elif isinstance(layer, nn.Linear):
            made = _narrow_linear(
                layer, name=name, linear=linear, channels=channels, backbone=backbone
            )
        elif isinstance(layer, nn.AdaptiveAvgPool2d) and backbone.window is not None:
            made = nn.AdaptiveAvgPool2d((backbone.window, backbone.window))
        if made is not None:
            module.set_submodule(name, made)


def _narrow_linear(
    layer: nn.Linear, name: str, linear: list[str], channels: int, backbone: Backbone
) -> nn.Linear:
    from torch import nn

    if backbone.window is None or backbone.fc_width is None:
        return nn.Linear(_share(layer.in_features, Fraction(backbone.width)), layer.out_features)
    inward = channels * backbone.window**2 if name == linear[0] else backbone.fc_width
    outward = layer.out_features if name == linear[-1] else backbone.fc_width
    return nn.Linear(inward, outward)


def _share(channels: int, share: Fraction) -> int:
    return int(channels * share)


def torchvision_models(network: str) -> Any:
    """Give `torchvision.models`.

    Args:
        network: to be built, for the message.

    Raises:
        BackendUnavailableError: torchvision is not installed.
    """
    try:
        from torchvision import models
    except ImportError as exc:
        raise BackendUnavailableError(
            f"building {network} needs torchvision, which is not installed.",
            hint="pip install 'fcn-deploy[export]'",
        ) from exc
    return models
