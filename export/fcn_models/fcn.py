"""Build FCN-32s, FCN-16s and FCN-8s on any classifier: scores, skips, upsampling to every pixel.

After Long, Shelhamer and Darrell, Fully Convolutional Networks for Semantic Segmentation (CVPR
2015; with Shelhamer first in PAMI 39(4), 2017, which trains skips all at once, too).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from fcn_deploy.errors import UnsupportedModelError
from fcn_models.backbones import Backbone
from fcn_models.grid import Grid
from fcn_models.recognition import identify_classifier
from fcn_models.trunk import Level, Trunk, make_trunk
from fcn_models.upsampling import UPSAMPLINGS, Enlarge, Upsampling

__all__ = ["FCN", "GEOMETRIES", "VARIANTS", "Geometry", "Variant"]

Variant = Literal["32s", "16s", "8s"]
"""Named by the stride of the finest features that have scores."""

Geometry = Literal["aligned", "paper"]
"""How borders are treated: see `FCN`."""

_USUAL_SIZE = (224, 224)

VARIANTS: tuple[Variant, ...] = get_args(Variant)
GEOMETRIES: tuple[Geometry, ...] = get_args(Geometry)


class FCN(nn.Module):
    """A fully convolutional network made of a classifier.

    The classifier's last layer is replaced by one that scores `num_classes` in every cell of the
    coarsest features; finer features (skips) are scored too, and added after the coarser scores
    have been enlarged to their cells. Scoring layers begin at zero, and upsampling begins as
    bilinear interpolation. Image in, scores of the image's size out, whatever the size.

    Geometries:

    - ``aligned``: every cell lies where the image has it. Windows are padded by half their size
      and pools round up, so that each pixel has scores, and no more is computed than that. All
      variants enlarge in the same steps, those of the finest, so that a finer one can begin with
      the very output of a coarser one.
    - ``paper``: the image is padded by 100 px and the first window not at all; enlarged scores and
      skips are cropped to where they meet, and from the finest scores to the pixels it is one step.
      At 500x500 it computes 698x698.

    Attributes:
        backbone: the trunk: images to a tuple of features, the coarsest first.
        backbone_spec: how to build it again; None for a classifier that is not known by name.
    """

    def __init__(
        self,
        backbone: str | Backbone | nn.Module,
        variant: Variant = "8s",
        num_classes: int = 21,
        *,
        upsampling: Upsampling = "learned",
        geometry: Geometry = "aligned",
        input_size: tuple[int, int] | None = None,
    ) -> None:
        """Build the network.

        Args:
            backbone: a classifier by name or `Backbone`, which gets random weights; or the
                classifier itself, whose weights are copied.
            variant: ``"32s"``, ``"16s"`` or ``"8s"``. Where the classifier's own stride is less
                than 32, the coarsest is the one that has no skip.
            num_classes: scores a pixel.
            upsampling: ``learned``: enlargements to where a skip is added are learned, those from
                there to the pixels are fixed, as in the paper; ``fixed``: all stay bilinear;
                ``interpolate``: no convolutions. The latter is half a cell off in AlexNet,
                GoogLeNet and ResNet, whose cells are centred on pixels.
            input_size: (height, width) in px that a classifier given as a module was made for; None
                for what it is known by name for, or 224x224.

        Raises:
            UnsupportedModelError: the classifier cannot be converted, or has no features of the
                variant's stride.
        """
        super().__init__()
        _check("variant", variant, VARIANTS)
        _check("upsampling", upsampling, UPSAMPLINGS)
        _check("geometry", geometry, GEOMETRIES)
        spec, classifier = _classifier(backbone)
        if input_size is not None and spec is not None and spec.window is not None:
            # fc6 sees another share of the features then
            spec = spec if input_size == spec.input_size else None
        trunk = make_trunk(
            classifier,
            input_size=input_size or (spec.input_size if spec is not None else _USUAL_SIZE),
            paper_padding=geometry == "paper",
            first_taps=spec is not None and spec.first_taps,
        )
        self._assemble(
            trunk,
            spec=spec,
            variant=variant,
            num_classes=num_classes,
            upsampling=upsampling,
            geometry=geometry,
        )

    def _assemble(
        self,
        trunk: Trunk,
        spec: Backbone | None,
        variant: Variant,
        num_classes: int,
        upsampling: Upsampling,
        geometry: Geometry,
    ) -> None:
        self.backbone_spec = spec
        self.variant: Variant = variant
        self.num_classes = num_classes
        self.upsampling: Upsampling = upsampling
        self.geometry: Geometry = geometry
        self.backbone = trunk.module
        self._trunk_levels = trunk.levels
        self._levels = _levels_of(trunk, variant)
        spare = geometry == "paper"
        self._steps = (self._levels if spare else trunk.levels)[1:]
        beyond: Upsampling = "interpolate" if upsampling == "interpolate" else "fixed"
        coarsest, *skips = self._levels
        self.score = _score(coarsest, num_classes)
        grid = coarsest.grid
        for level in self._steps:
            finer, is_skip = level.grid, level in skips
            first = (grid.offset - finer.offset) / finer.stride
            layer = Enlarge(
                num_classes,
                grid.stride // finer.stride,
                first,
                kind=upsampling if is_skip else beyond,
                spare=spare,
            )
            self.add_module(f"up_{finer.stride}", layer)
            if is_skip:
                self.add_module(f"score_{finer.stride}", _score(level, num_classes))
            grid = Grid(
                finer.stride,
                finer.offset + finer.stride * layer.skipped,
                max(grid.receptive_field, finer.receptive_field),
            )
        self.up = Enlarge(num_classes, grid.stride, grid.offset, kind=beyond, spare=spare)
        if spec is not None:
            self._mark(spec)

    def _mark(self, spec: Backbone) -> None:
        """Let the weights say what their names and shapes do not: `recognise_fcn` reads it.

        A classifier that is not known by name has no such mark, and is not taken for another.
        """
        padding = next(m for m in self.backbone.modules() if isinstance(m, nn.Conv2d)).padding
        self.register_buffer("padding_px", torch.tensor(int(padding[0])))
        if spec.transform_input:
            self.register_buffer("transforms_input", torch.tensor(1))

    @property
    def grid(self) -> Grid:
        """Stride, offset and receptive field of the finest features that have scores."""
        finest = self._levels[-1].grid
        seen = max(level.grid.receptive_field for level in self._levels)
        return Grid(finest.stride, finest.offset, seen)

    def forward(self, image: Tensor) -> Tensor:
        """Score every class at every pixel.

        Args:
            image: float32 [N, channels, H, W], normalised as the classifier's images were.

        Returns:
            Scores before softmax, float32 [N, num_classes, H, W].
        """
        top, *features = self.backbone(image)
        scores = self.score(top)
        for level, finer in zip(self._steps, features, strict=False):
            stride = level.grid.stride
            enlarge = cast(Enlarge, self.get_submodule(f"up_{stride}"))
            lead = enlarge.skipped
            rows, columns = finer.shape[2] - lead, finer.shape[3] - lead
            scores = enlarge(scores)[:, :, :rows, :columns]
            if level in self._levels:
                skip = self.get_submodule(f"score_{stride}")(finer)
                if lead:
                    rows, columns = scores.shape[2:]
                    skip = skip[:, :, lead : lead + rows, lead : lead + columns]
                scores = scores + skip
        finest: Tensor = self.up(scores)
        return finest[:, :, : image.shape[2], : image.shape[3]]  # [N, C, H, W]

    @classmethod
    def from_coarser(cls, model: FCN) -> FCN:
        """Make the next finer variant: FCN-16s of an FCN-32s, FCN-8s of an FCN-16s.

        All weights are copied; the new skip's scores are zero, so that the output is that of
        `model`. Training goes on from there.

        In the paper's geometry the scores are enlarged in one step more than `model` does. Where
        cells are centred on pixels (AlexNet, ResNet) this makes no difference. Where they are
        centred between pixels (VGG), the scores within a quarter of a cell around each centre move
        toward the neighbours' mean, by an eighth of the scores' second difference at most.

        Raises:
            UnsupportedModelError: `model` is an FCN-8s, or has no finer features.
        """
        place = VARIANTS.index(model.variant) + 1
        if place == len(VARIANTS):
            raise UnsupportedModelError(
                "an FCN-8s has no finer variant.", hint="Start from an FCN-32s or FCN-16s."
            )
        trunk = Trunk(copy.deepcopy(model.backbone), model._trunk_levels)
        finer = cls.__new__(cls)
        nn.Module.__init__(finer)
        finer._assemble(
            trunk,
            spec=model.backbone_spec,
            variant=VARIANTS[place],
            num_classes=model.num_classes,
            upsampling=model.upsampling,
            geometry=model.geometry,
        )
        finer.to(model.score.weight)  # of its type, on its device
        # kernels that are fixed are made anew: one of them may be learned from now on
        fixed = {k for k, _ in model.named_buffers() if k.startswith("up")}
        state = {k: v for k, v in model.state_dict().items() if k not in fixed}
        finer.load_state_dict({**finer.state_dict(), **state})
        return finer.train(model.training)

    def named_levels(self) -> Mapping[int, Level]:
        """Give the features that have scores, by their stride in px, the coarsest first."""
        return {level.grid.stride: level for level in self._levels}


def _check(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UnsupportedModelError(f"{name} is {value!r}; expected one of {', '.join(choices)}.")


def _classifier(backbone: str | Backbone | nn.Module) -> tuple[Backbone | None, nn.Module]:
    if isinstance(backbone, str):
        backbone = Backbone(backbone)
    if isinstance(backbone, Backbone):
        return backbone, backbone.classifier()
    return identify_classifier(backbone), backbone


def _levels_of(trunk: Trunk, variant: Variant) -> tuple[Level, ...]:
    finest = int(variant.removesuffix("s"))
    levels = tuple(level for level in trunk.levels if level.grid.stride >= finest)
    if not levels or levels[-1].grid.stride != finest:
        strides = ", ".join(str(level.grid.stride) for level in trunk.levels)
        raise UnsupportedModelError(
            f"FCN-{variant} needs features in steps of {finest} px; the classifier has those of "
            f"{strides} px.",
            hint="Choose a variant that is among them.",
        )
    return levels


def _score(level: Level, num_classes: int) -> nn.Conv2d:
    layer = nn.Conv2d(
        level.channels,
        num_classes,
        level.kernel,
        padding=level.padding,
        dilation=level.dilation,
    )
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
