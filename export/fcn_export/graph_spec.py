"""Describe what an exported graph takes and gives: colours, head, classes, size rule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from fcn_deploy.artifact.manifest import Preprocess, TensorInfo
from fcn_deploy.names import ColorOrder

__all__ = [
    "HEADS",
    "INPUT_NAME",
    "LOW_RESOLUTION_SCORES",
    "SCORES",
    "GraphSpec",
    "Head",
    "label_dtype",
]

Head = Literal["labels", "scores", "confidence"]
"""What the graph ends in."""

HEADS: tuple[Head, ...] = get_args(Head)

INPUT_NAME = "image"
SCORES = "scores"
"""Scores at the input's size: the head's input, and the output of `--head scores`."""
LOW_RESOLUTION_SCORES = "network_scores"
"""Scores before the last upsampling, where the graph has one that a runtime may take over."""

_BT601_RGB = (0.299, 0.587, 0.114)


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """All that decides an exported graph, beside the network itself.

    Attributes:
        preprocess: what the network expects.
        input_color: order of the channels of the graph's input.
        num_classes: classes of the network; 1 means binary, labels 0 and 1.
        upsample: the network's scores are smaller than its input, so that the graph enlarges them.
        multiple_of: height and width that the network takes, in px.
        opset: of ONNX.
        fixed: batch, height and width that the graph is bound to; None where any is taken.
    """

    preprocess: Preprocess
    num_classes: int
    input_color: ColorOrder = "bgr"
    head: Head = "labels"
    output_key: str | None = None
    upsample: bool = True
    multiple_of: int = 1
    min_size: tuple[int, int] = (1, 1)
    opset: int = 21
    fixed: tuple[int | None, int | None, int | None] = (None, None, None)
    outputs: tuple[TensorInfo, ...] = field(init=False)

    def __post_init__(self) -> None:
        batch, height, width = self.fixed
        labels = TensorInfo("labels", label_dtype(self.num_classes), self.fixed, "NHW")
        full = (batch, self.num_classes, height, width)
        scores = TensorInfo(SCORES, "float32", full, "NCHW")
        confidence = TensorInfo("confidence", "float32", self.fixed, "NHW")
        by_head = {
            "labels": (labels,),
            "scores": (scores,),
            "confidence": (labels, confidence),
        }
        object.__setattr__(self, "outputs", by_head[self.head])

    @property
    def input(self) -> TensorInfo:
        """The graph's only input: uint8 [N, H, W, 3]."""
        return TensorInfo(
            INPUT_NAME, dtype="uint8", shape=(*self.fixed, 3), layout="NHWC", color=self.input_color
        )

    @property
    def num_labels(self) -> int:
        """Different labels that there are: a network with one class tells two apart."""
        return max(2, self.num_classes)

    @property
    def channel_order(self) -> tuple[int, ...]:
        """For each channel of the network, the input's channel it comes from; all for gray."""
        if self.preprocess.color in ("gray", self.input_color):
            return (0, 1, 2)
        return (2, 1, 0)

    def affine(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Fold division by 255, mean and std, and luminance, to one factor and one offset.

        Returns:
            `factor` of three entries, of values in 0..255 in `channel_order`; `offset` of three
            entries, or of one for gray, where the three products are summed first.
        """
        mean, std = self.preprocess.mean, self.preprocess.std
        offset = tuple(-m / s for m, s in zip(mean, std, strict=True))
        if self.preprocess.color == "gray":
            weights = _BT601_RGB if self.input_color == "rgb" else _BT601_RGB[::-1]
            return tuple(w / (255.0 * std[0]) for w in weights), offset
        return tuple(1.0 / (255.0 * s) for s in std), offset


def label_dtype(num_classes: int) -> str:
    """Give the type of the graph's labels: uint8 where it can hold them, else int32."""
    return "uint8" if num_classes <= 256 else "int32"
