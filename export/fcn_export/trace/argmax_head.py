"""Put preprocessing before a network, and upsampling and argmax behind it, as one module."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from fcn_export.graph_spec import GraphSpec
from fcn_export.load.torch_model import select_output

__all__ = ["FrameNetwork"]


class FrameNetwork(nn.Module):
    """What is traced: uint8 [N, H, W, 3] to the outputs that `spec` names.

    `network` is used as it is, not copied.

    Attributes:
        for_torchscript: avoid a squeeze, of which the TorchScript exporter makes an If.
    """

    scale: torch.Tensor
    shift: torch.Tensor
    order: torch.Tensor

    def __init__(self, network: nn.Module, spec: GraphSpec) -> None:
        super().__init__()
        self.network = network
        self.spec = spec
        self.for_torchscript = False
        factor, offset = spec.affine()
        self.register_buffer("scale", torch.tensor(factor).view(1, -1, 1, 1))
        self.register_buffer("shift", torch.tensor(offset).view(1, -1, 1, 1))
        self.register_buffer("order", torch.tensor(spec.channel_order))

    def forward(self, image: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Segment frames, uint8 [N, H, W, 3].

        Returns:
            Labels [N, H, W], uint8, or int32 above 256 classes; scores float32 [N, C, H, W]; or
            labels and their confidence, float32 [N, H, W]: what the head's name says.
        """
        # TensorRT takes uint8 as input of a Cast and nowhere else
        frame = image.to(torch.float32).permute(0, 3, 1, 2)  # [N, 3, H, W]
        scores = select_output(self.network(self._prepare(frame)), self.spec.output_key)
        if self.spec.activation == "ids":
            return self._ids(scores, frame)
        if self.spec.upsample:
            scores = functional.interpolate(
                scores, size=frame.shape[-2:], mode="bilinear", align_corners=False
            )  # [N, C, H, W]
        if self.spec.head == "scores":
            return scores
        if self.spec.head == "labels":
            return self._labels(scores)
        return self._labels(scores), self._confidence(scores)

    def _prepare(self, frame: torch.Tensor) -> torch.Tensor:
        if self.spec.preprocess.color == "gray":
            return (frame * self.scale).sum(dim=1, keepdim=True) + self.shift  # [N, 1, H, W]
        if self.spec.channel_order != (0, 1, 2):
            frame = torch.index_select(frame, 1, self.order)
        return frame * self.scale + self.shift

    def _ids(self, ids: torch.Tensor, frame: torch.Tensor) -> torch.Tensor:
        """Pass on class ids [N, 1, h, w]; what is between two of them is neither."""
        if self.spec.upsample:
            ids = functional.interpolate(ids.float(), size=frame.shape[-2:], mode="nearest")
        return self._without_classes(ids).to(self._label_type())  # [N, H, W]

    def _labels(self, scores: torch.Tensor) -> torch.Tensor:
        if self.spec.num_classes == 1:
            above = scores > self.spec.score_threshold
            return self._without_classes(above).to(torch.uint8)  # [N, H, W]
        return torch.argmax(scores, dim=1).to(self._label_type())  # [N, H, W]

    def _without_classes(self, single: torch.Tensor) -> torch.Tensor:
        return single[:, 0] if self.for_torchscript else single.squeeze(1)

    def _label_type(self) -> torch.dtype:
        return torch.uint8 if self.spec.num_classes <= 256 else torch.int32

    def _confidence(self, scores: torch.Tensor) -> torch.Tensor:
        """Probability of the predicted label, [N, H, W], activated where the network did not."""
        logits = self.spec.activation == "logits"
        if self.spec.num_classes > 1:
            return torch.amax(torch.softmax(scores, dim=1) if logits else scores, dim=1)
        single = scores[:, 0]
        if logits and self.spec.threshold == 0.5:
            return torch.sigmoid(torch.abs(single))
        share = torch.sigmoid(single) if logits else single
        return torch.where(single > self.spec.score_threshold, share, 1 - share)
