"""Check frames and convert them to the tensor that a graph takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fcn_deploy.artifact.manifest import Preprocess
from fcn_deploy.errors import ArtifactError, DTypeError, FrameTooLargeError, ShapeError
from fcn_deploy.names import Array, ColorOrder, NetworkColor, TensorSpec

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MAX_FRAME_PIXELS",
    "InputFormat",
    "check_frame",
    "default_preprocess",
    "input_format",
    "pad_frame",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of ImageNet's values in 0..1, by channel: red, green, blue."""
IMAGENET_STD = (0.229, 0.224, 0.225)
_IMAGENET_GRAY_MEAN = (0.449,)
"""Usual for networks of one channel that were pretrained on ImageNet: the mean of the three."""
_IMAGENET_GRAY_STD = (0.226,)

MAX_FRAME_PIXELS = 1 << 31
"""Frames above two gigapixels are refused: OpenCV counts in 32 bits."""

_CONVERSIONS = {
    1: "Convert it with cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR).",
    2: "Convert it to BGR.",
    4: "Convert it with cv2.cvtColor(frame, cv2.COLOR_BGRA2BGR).",
}


def default_preprocess(color: NetworkColor = "rgb") -> Preprocess:
    """Give ImageNet's statistics, in the network's own order of channels."""
    if color == "gray":
        return Preprocess(_IMAGENET_GRAY_MEAN, _IMAGENET_GRAY_STD, color)
    if color == "bgr":
        return Preprocess(IMAGENET_MEAN[::-1], IMAGENET_STD[::-1], color)
    return Preprocess(IMAGENET_MEAN, IMAGENET_STD, color)


def check_frame(frame: Any, *, max_pixels: int = MAX_FRAME_PIXELS) -> None:
    """Refuse what is no frame, naming the conversion that makes it one.

    Args:
        frame: expected to be uint8 [H, W, 3].

    Raises:
        DTypeError: no NumPy array, or not uint8.
        ShapeError: not three channels last, or empty.
        FrameTooLargeError: more than `max_pixels`.
    """
    if not isinstance(frame, np.ndarray):
        raise DTypeError(
            f"the frame is a {type(frame).__name__}; expected a NumPy array.",
            hint="Convert it with numpy.asarray(frame)."
            if frame is not None
            else "The image was probably not read: check its path.",
        )
    shape = list(frame.shape)
    if frame.dtype != np.uint8:
        raise DTypeError(
            f"the frame is {frame.dtype} {shape}; expected uint8 in 0..255.",
            hint="Convert it with (frame >> 8).astype(numpy.uint8)."
            if frame.dtype == np.uint16
            else "Scale it to 0..255 and convert it with frame.astype(numpy.uint8).",
        )
    expected = f"the frame has shape {shape}; expected [height, width, 3]"
    if frame.ndim == 2:
        raise ShapeError(f"{expected}.", hint=_CONVERSIONS[1])
    if frame.ndim != 3:
        raise ShapeError(f"{expected}.", hint="Give one frame, or a list of them to batch().")
    if 0 in frame.shape:
        raise ShapeError(f"{expected}, none of them zero.")
    if frame.shape[2] != 3:
        hint = _CONVERSIONS.get(frame.shape[2])
        if hint is None and frame.shape[0] in (1, 3):
            hint = "Put the channels last with frame.transpose(1, 2, 0)."
        raise ShapeError(f"{expected}.", hint=hint)
    if frame.shape[0] * frame.shape[1] > max_pixels:
        raise FrameTooLargeError(
            f"the frame is {shape[0]}x{shape[1]}; at most {max_pixels} pixels are taken.",
            hint="Scale it down.",
        )


def pad_frame(frame: Array, size: tuple[int, int]) -> Array:
    """Repeat the last row and column until the frame has this (height, width) in px.

    Returns:
        uint8 [height, width, 3]; the frame itself where nothing is to be added.
    """
    import cv2

    bottom, right = size[0] - frame.shape[0], size[1] - frame.shape[1]
    if bottom == right == 0:
        return frame
    padded: Array = cv2.copyMakeBorder(frame, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
    return padded


@dataclass(frozen=True, slots=True)
class InputFormat:
    """How a graph takes its frames.

    Attributes:
        spec: the graph's input.
        layout: ``"NHWC"`` or ``"NCHW"``.
        color: order of the three channels that the graph takes, or ``"gray"`` for one.
        normalise: mean and std to apply before the graph; None where the graph does it.
    """

    spec: TensorSpec
    layout: str
    color: str
    normalise: Preprocess | None

    @property
    def batch_size(self) -> int | None:
        """The only batch that the graph takes, or None where it takes any."""
        return self.spec.shape[0]

    @property
    def size(self) -> tuple[int | None, int | None]:
        """The only (height, width) that the graph takes; None where it takes any."""
        row = self.layout.index("H")
        return self.spec.shape[row], self.spec.shape[row + 1]

    def check_size(self, size: tuple[int, int], *, name: str) -> None:
        """Refuse a (height, width) in px that the graph does not take.

        Args:
            name: of the graph, for the message.

        Raises:
            ShapeError: the graph has another, fixed size.
        """
        for found, taken, what in zip(size, self.size, ("height", "width"), strict=True):
            if taken is not None and found != taken:
                raise ShapeError(
                    f"the frame is {size[0]}x{size[1]}; '{name}' has a fixed {what} of {taken}.",
                    hint="Resize the frame, or export the model with fcn-export for any size.",
                )

    def convert(self, frames_bgr: Sequence[Array]) -> Array:
        """Make one input tensor of frames of one size.

        Args:
            frames_bgr: uint8 [H, W, 3] each; not modified.

        Returns:
            As `spec` says. A single frame that needs no conversion is passed on without a copy.
        """
        converted = [self._convert_one(frame) for frame in frames_bgr]
        if len(converted) == 1:
            return np.ascontiguousarray(converted[0][None])
        return np.ascontiguousarray(np.stack(converted))  # stack keeps the order of its parts

    def _convert_one(self, frame: Array) -> Array:
        import cv2

        if self.color == "rgb":
            frame = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        elif self.color == "gray":
            frame = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)[..., None]
        if self.normalise is not None:
            scale = 1 / (255 * np.asarray(self.normalise.std, np.float32))
            offset = np.asarray(self.normalise.mean, np.float32) * 255
            frame = ((frame - offset) * scale).astype(self.spec.dtype)
        if self.layout == "NCHW":
            frame = frame.transpose(2, 0, 1)  # [C, H, W]
        return frame


def input_format(spec: TensorSpec, preprocess: Preprocess, *, color: ColorOrder) -> InputFormat:
    """Find out from a bare graph how it takes frames.

    Args:
        preprocess: what the network expects, where the graph takes floats.
        color: channel order of the graph's input, where it takes uint8.

    Raises:
        ArtifactError: the input is no image.
    """
    layout = _layout(spec)
    channels = spec.shape[layout.index("C")]
    if spec.dtype == "uint8":
        return InputFormat(spec, layout, "gray" if channels == 1 else color, None)
    if spec.dtype not in ("float32", "float16"):
        raise ArtifactError(f"the graph's input is {spec}; expected uint8 or float images.")
    if channels != len(preprocess.mean):
        raise ArtifactError(
            f"the graph's input {spec} has {channels} channel(s); a {preprocess.color} network "
            f"has {len(preprocess.mean)}.",
            hint="Say what the network expects with color, mean and std.",
        )
    return InputFormat(spec, layout, preprocess.color, preprocess)


def _layout(spec: TensorSpec) -> str:
    if len(spec.shape) == 4:
        if spec.shape[1] in (1, 3):
            return "NCHW"
        if spec.shape[3] in (1, 3):
            return "NHWC"
    raise ArtifactError(
        f"the graph's input is {spec}; expected images, [N, 3, H, W] or [N, H, W, 3].",
        hint="Export it again with fcn-export.",
    )
