"""What an exported graph is held against: the model itself, with its own preprocessing in NumPy.

Nothing here is shared with the graph's own code, so that a mistake there does not cancel out. What
the model's output means is held against its values here, too: the graph and its reference would
otherwise take probabilities for logits together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from fcn_deploy.backends.base import ExecutionContext
from fcn_deploy.errors import ParityError
from fcn_deploy.graph.meaning import FoundMeaning, check_values, probabilities
from fcn_deploy.names import Array
from fcn_export.check.sample_frames import varied_batches
from fcn_export.graph_spec import GraphSpec

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "OnnxReference",
    "Reference",
    "TorchReference",
    "confidence_of",
    "labels_of",
    "meaning_of",
    "network_input",
]

_LUMINANCE_RGB = (0.299, 0.587, 0.114)  # ITU-R BT.601


class Reference(Protocol):
    """A model whose answer counts as right."""

    name: str

    def scores(self, images: Array) -> Array:
        """Give scores at the input's size.

        Args:
            images: uint8 [N, H, W, 3], in the order of the graph's input.

        Returns:
            float32 [N, C, H, W]; of a model that gives class ids, 1 where the class is.
        """
        ...


class _Checked:
    """Holds the model's own output against what is said of it, before the first answer."""

    def __init__(self, spec: GraphSpec) -> None:
        self._spec = spec
        self._checked = False

    def raw(self, images: Array) -> Array:
        """Give what the model gives for uint8 [N, H, W, 3]: [N, C, h, w], or as `spec` says."""
        raise NotImplementedError

    def scores(self, images: Array) -> Array:
        """Give scores at the input's size, as `Reference.scores`.

        Raises:
            ParityError: the model's values contradict what its output is taken for.
        """
        if not self._checked:
            size = (images.shape[1], images.shape[2])
            batches = varied_batches(*size, count=self._spec.fixed[0] or 1)
            outputs = [self.raw(batch) for batch in batches]
            check_values(meaning_of(self._spec), outputs, error=ParityError)
            self._checked = True
        return _at_input_size(self.raw(images), self._spec, (images.shape[1], images.shape[2]))


class TorchReference(_Checked):
    """The user's module, evaluated by PyTorch in float32 on the CPU."""

    name = "PyTorch"

    def __init__(self, module: nn.Module, spec: GraphSpec) -> None:
        super().__init__(spec)
        self._module = module

    def raw(self, images: Array) -> Array:
        """Give the module's own output [N, C, h, w] for uint8 [N, H, W, 3]."""
        import torch

        from fcn_export.load.torch_model import select_output

        with torch.inference_mode():
            tensor = torch.from_numpy(network_input(images, self._spec))
            scores = select_output(self._module(tensor), self._spec.output_key)
            found: Array = (scores.float() if scores.is_floating_point() else scores).numpy()
            return found


class OnnxReference(_Checked):
    """Somebody's ONNX file, as it was given.

    Args:
        scores: the tensor in it that holds scores or class ids, as `spec` says.
    """

    name = "the ONNX file as given"

    def __init__(self, context: ExecutionContext, spec: GraphSpec, *, scores: str) -> None:
        super().__init__(spec)
        self._context = context
        self._scores = scores

    def raw(self, images: Array) -> Array:
        """Give that tensor for uint8 [N, H, W, 3]."""
        taken = self._context.inputs[0]
        complete = taken.dtype == "uint8"  # it has preprocessing of its own
        feeds = {taken.name: images if complete else network_input(images, self._spec)}
        return self._context.execute(feeds, outputs=[self._scores])[self._scores]


def meaning_of(spec: GraphSpec) -> FoundMeaning:
    """Give what a specification says of the network's output, to hold values against."""
    ids = spec.activation == "ids"
    single = spec.num_classes == 1 and spec.activation in ("logits", "sigmoid")
    return FoundMeaning(
        output=spec.output_key or "output",
        kind="labels" if ids else "scores",
        activation=spec.activation,
        class_axis=spec.class_axis,
        num_classes=spec.num_classes,
        threshold=spec.threshold if single else None,
        evidence="as the graph was made",
        asked=spec.asked,
    )


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


def labels_of(scores: Array, spec: GraphSpec) -> Array:
    """Give each pixel's class: the best score, or whether a single class's is above its threshold.

    Args:
        scores: float32 [N, C, H, W].

    Returns:
        Integers [N, H, W].
    """
    import torch

    if scores.shape[1] == 1:
        limit = np.float32(spec.score_threshold)
        positive: Array = (scores[:, 0] > limit).astype(np.uint8)
        return positive
    labels: Array = torch.from_numpy(scores).argmax(dim=1).numpy()
    return labels.astype(np.uint8 if scores.shape[1] <= 256 else np.int32)


def confidence_of(scores: Array, spec: GraphSpec) -> Array:
    """Give the probability of each pixel's label.

    Args:
        scores: float32 [N, C, H, W].

    Returns:
        float32 [N, H, W].
    """
    shares = np.stack([probabilities(one, meaning_of(spec)) for one in scores])
    if shares.shape[1] == 1:
        return np.where(labels_of(scores, spec) == 1, shares[:, 0], 1 - shares[:, 0])
    best: Array = shares.max(axis=1)
    return best


def _at_input_size(raw: Array, spec: GraphSpec, size: tuple[int, int]) -> Array:
    """Bring a model's output to [N, C, H, W]: bilinear scores, or 1 where a class id is."""
    import torch
    from torch.nn import functional

    scores = raw[:, None] if raw.ndim == 3 else raw
    if spec.class_axis == 3 and raw.ndim == 4:
        scores = scores.transpose(0, 3, 1, 2)  # [N, C, h, w]
    tensor = torch.from_numpy(np.ascontiguousarray(scores, np.float32))
    ids = spec.activation == "ids"
    if tuple(tensor.shape[-2:]) != size:
        how = {"mode": "nearest"} if ids else {"mode": "bilinear", "align_corners": False}
        tensor = functional.interpolate(tensor, size=size, **how)
    if ids:
        whole = tensor[:, 0].long()
        count = max(2, int(whole.max()) + 1)
        tensor = functional.one_hot(whole, count).permute(0, 3, 1, 2).float()
    full: Array = np.ascontiguousarray(tensor.numpy())
    return full
