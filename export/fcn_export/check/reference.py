"""What an exported graph is held against: the model itself, with its own preprocessing in NumPy.

Nothing here is shared with the graph's own code, so that a mistake there does not cancel out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from fcn_deploy.backends.base import ExecutionContext
from fcn_deploy.names import Array
from fcn_export.graph_spec import GraphSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["OnnxReference", "Reference", "TorchReference", "labels_of", "network_input"]

_LUMINANCE_RGB = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Reference(Protocol):
    """A model whose answer counts as right."""

    name: str

    def scores(self, images: Array) -> Array:
        """Give scores at the input's size.

        Args:
            images: uint8 [N, H, W, 3], in the order of the graph's input.

        Returns:
            float32 [N, C, H, W].
        """
        ...


class TorchReference:
    """The user's module, evaluated by PyTorch in float32 on the CPU."""

    name = "PyTorch"

    def __init__(self, module: nn.Module, spec: GraphSpec) -> None:
        self._module = module
        self._spec = spec

    def scores(self, images: Array) -> Array:
        import torch

        from fcn_export.load.torch_model import select_output

        with torch.inference_mode():
            tensor = torch.from_numpy(network_input(images, self._spec))
            scores = select_output(self._module(tensor), self._spec.output_key)
            return _enlarge(scores.float(), images.shape[1], images.shape[2])


class OnnxReference:
    """Somebody's ONNX file, as it was given."""

    name = "the ONNX file as given"

    def __init__(
        self, context: ExecutionContext, spec: GraphSpec, *, scores: str, threshold: float = 0.0
    ) -> None:
        self._context = context
        self._spec = spec
        self._scores = scores
        self._threshold = threshold

    def scores(self, images: Array) -> Array:
        import torch

        taken = self._context.inputs[0]
        complete = taken.dtype == "uint8"  # it has preprocessing of its own
        feeds = {taken.name: images if complete else network_input(images, self._spec)}
        scores = self._context.execute(feeds, outputs=[self._scores])[self._scores]
        if self._spec.num_classes == 1:
            scores = scores - np.float32(self._threshold)
        return _enlarge(torch.from_numpy(scores), images.shape[1], images.shape[2])


def network_input(images: Array, spec: GraphSpec) -> Array:
    """Do in NumPy what the graph does before the network.

    Args:
        images: uint8 [N, H, W, 3] in the order of the graph's input.

    Returns:
        float32 [N, C, H, W], C-contiguous.
    """
    rgb = images if spec.input_color == "rgb" else images[..., ::-1]
    values = rgb.astype(np.float32) / 255.0
    color = spec.preprocess.color
    if color == "gray":
        values = (values @ np.array(_LUMINANCE_RGB, np.float32))[..., None]  # [N, H, W, 1]
    elif color == "bgr":
        values = values[..., ::-1]
    mean = np.array(spec.preprocess.mean, np.float32)
    std = np.array(spec.preprocess.std, np.float32)
    return np.ascontiguousarray(((values - mean) / std).transpose(0, 3, 1, 2))  # [N, C, H, W]


def labels_of(scores: Array) -> Array:
    """Give each pixel's class: the best score, or score above 0 where there is one class.

    Args:
        scores: float32 [N, C, H, W].

    Returns:
        Integers [N, H, W].
    """
    import torch

    if scores.shape[1] == 1:
        positive: Array = (scores[:, 0] > 0).astype(np.uint8)
        return positive
    labels: Array = torch.from_numpy(scores).argmax(dim=1).numpy()
    return labels.astype(np.uint8 if scores.shape[1] <= 256 else np.int32)


def _enlarge(scores: torch.Tensor, height: int, width: int) -> Array:
    from torch.nn import functional

    if tuple(scores.shape[-2:]) != (height, width):
        scores = functional.interpolate(
            scores, size=(height, width), mode="bilinear", align_corners=False
        )
    full: Array = np.ascontiguousarray(scores.numpy())
    return full
