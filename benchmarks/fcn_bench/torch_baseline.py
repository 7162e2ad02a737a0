"""Run the baseline: PyTorch on the CPU, in the modes that a careful user would try.

`compute` is the module alone: normalised float tensor in, scores out, with whatever upsampling
the module does itself. `frame` adds what an artifact's graph has inside: uint8 BGR frame to float
tensor, normalisation, upsampling where the module leaves it out, argmax, uint8 labels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.errors import BenchmarkError
from fcn_deploy.names import Array
from fcn_deploy.preprocess import pad_frame
from fcn_models.foreign_errors import first_line

if TYPE_CHECKING:
    import torch

    from fcn_export.graph_spec import GraphSpec

__all__ = ["TORCH_MODES", "TorchMode", "TorchNetwork"]

TorchMode = Literal["eager", "channels_last", "bf16-autocast", "compile"]
"""How PyTorch runs the module; the same module and weights in all of them."""

TORCH_MODES: tuple[TorchMode, ...] = get_args(TorchMode)


class TorchNetwork:
    """A PyTorch module behind the protocol `fcn_bench.network.Network`.

    Args:
        module: in evaluation mode, float32, on the CPU.
        spec: what the network expects; the same values that an export would take.
        threads: of PyTorch, for this whole process.
    """

    def __init__(
        self, module: torch.nn.Module, spec: GraphSpec, *, mode: TorchMode, threads: int
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        self._torch = torch
        self._spec = spec
        self._mode = mode
        self._multiple = ShapeRange((1, 1, 1), (1, 1, 1), (1, 1, 1), spec.multiple_of)
        factor, offset = spec.affine()
        self._factor = torch.tensor(factor).view(1, -1, 1, 1)
        self._offset = torch.tensor(offset).view(1, -1, 1, 1)
        self._order = list(spec.channel_order)
        if mode == "channels_last":
            module = module.to(memory_format=torch.channels_last)
        self._run: Any = torch.compile(module) if mode == "compile" else module

    @property
    def num_classes(self) -> int | None:
        return max(2, self._spec.num_classes)  # one class is binary: labels 0 and 1

    def prepare(self, frames_bgr: Sequence[Array]) -> Any:
        torch = self._torch
        size = self._multiple.padded_size(*frames_bgr[0].shape[:2])
        stacked = np.stack([pad_frame(frame, size) for frame in frames_bgr])
        with torch.inference_mode():
            frame = torch.from_numpy(stacked).permute(0, 3, 1, 2).float()  # [N, 3, H, W]
            if self._spec.preprocess.color == "gray":
                tensor = (frame * self._factor).sum(dim=1, keepdim=True) + self._offset
            else:
                tensor = frame[:, self._order] * self._factor + self._offset
            if self._mode == "channels_last":
                return tensor.contiguous(memory_format=torch.channels_last)
            return tensor.contiguous()

    def compute(self, prepared: Any) -> Any:
        from fcn_export.load.torch_model import select_output

        torch = self._torch
        autocast = (
            torch.autocast("cpu", dtype=torch.bfloat16)
            if self._mode == "bf16-autocast"
            else contextlib.nullcontext()
        )
        with torch.inference_mode(), autocast:
            try:
                return select_output(self._run(prepared), self._spec.output_key)
            except torch._dynamo.exc.TorchDynamoException as error:
                raise BenchmarkError(
                    f"torch.compile failed: {first_line(error)}",
                    hint="Run without --compile; it needs a C++ compiler on the CPU.",
                ) from error

    def finish(self, computed: Any, frames_bgr: Sequence[Array]) -> list[Array]:
        height, width = frames_bgr[0].shape[:2]
        with self._torch.inference_mode():
            scores = self._at_frame_size(computed, height, width)
            if self._spec.activation == "ids":
                labels = scores[:, 0]
            elif self._spec.num_classes == 1:
                labels = scores[:, 0] > self._spec.score_threshold
            else:
                labels = scores.argmax(dim=1)
            dtype = self._torch.uint8 if self._spec.num_classes <= 256 else self._torch.int32
            array: Array = labels.to(dtype).numpy()  # [N, H, W]
        return [labels[:height, :width] for labels in array]

    def labels_and_scores(self, frame_bgr: Array) -> tuple[Array, Array | None]:
        height, width = frame_bgr.shape[:2]
        computed = self.compute(self.prepare([frame_bgr]))
        with self._torch.inference_mode():
            scores = self._at_frame_size(computed, height, width)
            array: Array = scores[0, :, :height, :width].float().numpy()
        if self._spec.activation == "ids":  # as sure of one class as can be
            count = max(2, int(array.max()) + 1)
            array = (array[0] == np.arange(count)[:, None, None]).astype(np.float32)
        elif self._spec.num_classes == 1 and self._spec.score_threshold:
            # what the score has to exceed, and the score
            array = np.concatenate([np.full_like(array, self._spec.score_threshold), array])
        return self.finish(computed, [frame_bgr])[0], array

    def close(self) -> None:
        self._run = None

    def _at_frame_size(self, scores: Any, height: int, width: int) -> Any:
        """Enlarge scores to the padded frame, where the module did not."""
        size = self._multiple.padded_size(height, width)
        if tuple(scores.shape[-2:]) == size:
            return scores
        if self._spec.activation == "ids":
            return self._torch.nn.functional.interpolate(scores.float(), size=size, mode="nearest")
        return self._torch.nn.functional.interpolate(
            scores, size=size, mode="bilinear", align_corners=False
        )
