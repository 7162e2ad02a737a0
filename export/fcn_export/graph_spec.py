"""Describe what an exported graph takes and gives: colours, head, classes, size rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, cast, get_args

from fcn_deploy.artifact.manifest import Preprocess, TensorInfo
from fcn_deploy.artifact.output_meaning import Activation, ClassAxis, OutputMeaning
from fcn_deploy.errors import UnsupportedModelError
from fcn_deploy.graph.meaning import FoundMeaning
from fcn_deploy.names import Array, ColorOrder

__all__ = [
    "HEADS",
    "INPUT_NAME",
    "LOW_RESOLUTION_SCORES",
    "SCORES",
    "GraphSpec",
    "Head",
    "check_head",
    "decided",
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

_MOST_BYTE_IDS = 256
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
        activation: what the network's output is; ``"ids"`` are labels already.
        threshold: probability above which a single class is there.
        class_axis: of the network's output: 1 for [N, C, h, w], 3 for [N, h, w, C], None for
            [N, h, w] of a single class or of ids.
        asked: the user said what the output is, not the graph.
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
    activation: Activation = "logits"
    threshold: float = 0.5
    class_axis: ClassAxis | None = 1
    asked: bool = False
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
    def score_threshold(self) -> float:
        """The network's score above which a single class is there."""
        return OutputMeaning(self.activation, threshold=self.threshold).score_threshold

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


def check_head(head: str) -> None:
    """Refuse to make other heads than labels of a network that gives class ids.

    Raises:
        UnsupportedModelError: scores or confidence are asked for.
    """
    if head != "labels":
        raise UnsupportedModelError(
            f"--head {head} needs the network's scores; it gives class ids.",
            hint="Export it with --head labels, or without its last argmax.",
        )


def decided(spec: GraphSpec, found: FoundMeaning, outputs: Sequence[Array]) -> GraphSpec:
    """Write down what a network's output was found to mean.

    Args:
        found: as `check_values` gives it.
        outputs: that it was held against, [N, C, h, w] or as `found` says.

    Raises:
        UnsupportedModelError: class ids have no scores or confidence to give out.
    """
    ids = found.activation == "ids"
    if ids:
        check_head(spec.head)
    classes = found.num_classes or spec.num_classes
    if ids:
        most = max(int(output.max()) for output in outputs) + 1
        # without a word of the graph's, as many as a byte holds
        classes = max(2, most, found.num_classes or _MOST_BYTE_IDS)
    activation = "logits" if found.activation == "log_softmax" else found.activation
    return replace(
        spec,
        num_classes=classes,
        activation=cast(Activation, activation),
        threshold=0.5 if found.threshold is None else found.threshold,
        class_axis=cast("ClassAxis | None", found.class_axis),
        asked=found.asked,
    )


def label_dtype(num_classes: int) -> str:
    """Give the type of the graph's labels: uint8 where it can hold them, else int32."""
    return "uint8" if num_classes <= 256 else "int32"
