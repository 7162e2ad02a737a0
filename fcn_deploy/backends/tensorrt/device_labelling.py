"""Label an engine's scores on the GPU, behind its execution and in the same stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fcn_deploy.backends.tensorrt.execution import Shapes
from fcn_deploy.backends.tensorrt.head_kernel import (
    TAINTED,
    HeadKernel,
    check_tainted,
    head_tables,
    label_dtype,
)
from fcn_deploy.errors import ExecutionError
from fcn_deploy.names import Array, TensorSpec

__all__ = ["DeviceLabelling", "LabellingRun"]


@dataclass(frozen=True, slots=True)
class DeviceLabelling:
    """How an engine's scores become labels of the input's size.

    Attributes:
        scores: the output that holds them, float32 [N, C, h, w].
        image: the input whose size the labels have.
        axes: of the input: height and width.
        threshold: of a single class's score, above which the label is 1.
    """

    kernel: HeadKernel
    scores: str
    image: str
    axes: tuple[int, int]
    threshold: float = 0.0

    @property
    def labels(self) -> str:
        """The name that the labels have among a run's outputs."""
        return f"labels of {self.scores}"

    def prepare(self, shapes: Shapes) -> LabellingRun:
        """Prepare one run, of these shapes of inputs and outputs.

        Raises:
            ExecutionError: the scores have another rank.
        """
        shape = shapes[self.scores]
        if len(shape) != 4:
            raise ExecutionError(f"the scores are {list(shape)}; expected [N, C, h, w].")
        height, width = (shapes[self.image][axis] for axis in self.axes)
        return LabellingRun(self, shape, (height, width), head_tables(shape[2:], (height, width)))


@dataclass(frozen=True, slots=True)
class LabellingRun:
    """The labels of one run: its copies in, its buffers and its copies out.

    Attributes:
        shape: of the scores.
        size: (height, width) of the labels in px.
        tables: what is copied in as `tables_name`.
    """

    labelling: DeviceLabelling
    shape: tuple[int, ...]
    size: tuple[int, int]
    tables: Array = field(repr=False)

    @property
    def tables_name(self) -> str:
        return f"tables for {self.labelling.scores}"

    @property
    def buffers(self) -> tuple[TensorSpec, TensorSpec]:
        """The buffers that need memory on the device."""
        return TensorSpec(self.tables_name, "uint8", (None,)), self._labels

    @property
    def outputs(self) -> tuple[TensorSpec, TensorSpec]:
        """What is copied out: the labels, and the mark at the beginning of the tables."""
        return self._labels, TensorSpec(self._mark, TAINTED.dtype.name, TAINTED.shape)

    @property
    def shapes(self) -> Shapes:
        """Shapes of `buffers` and `outputs`."""
        return {
            self.tables_name: self.tables.shape,
            self.labelling.labels: (self.shape[0], *self.size),
            self._mark: TAINTED.shape,
        }

    def places(self, room: Mapping[str, int]) -> dict[str, int]:
        """Give addresses of `buffers` and `outputs`, of the addresses of `buffers`."""
        return {**room, self._mark: room[self.tables_name]}

    def enqueue(self, places: Mapping[str, int], stream: int) -> None:
        """Enqueue the kernel.

        Args:
            places: addresses of the scores, of `buffers` and of `outputs`.
        """
        self.labelling.kernel.enqueue(
            places[self.labelling.scores],
            self.shape,
            self.size,
            tables=places[self.tables_name],
            labels=places[self.labelling.labels],
            threshold=self.labelling.threshold,
            stream=stream,
        )

    def finish(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Check what was copied out and give it without the mark: labels, uint8 [N, H, W].

        Raises:
            NonFiniteOutputError: a score is NaN or infinite.
        """
        check_tainted(arrays[self._mark])
        return {name: array for name, array in arrays.items() if name != self._mark}

    @property
    def _labels(self) -> TensorSpec:
        return TensorSpec(
            self.labelling.labels, label_dtype(self.shape[1]).name, (None, *self.size)
        )

    @property
    def _mark(self) -> str:
        return f"mark of {self.labelling.scores}"
