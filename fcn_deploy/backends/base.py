"""Define the protocols between the runtime and an inference library."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

import numpy as np

from fcn_deploy.artifact.manifest import Manifest, Variant
from fcn_deploy.artifact.name_text import is_utf8
from fcn_deploy.errors import (
    ArtifactError,
    ClosedError,
    DTypeError,
    ForkedProcessError,
    NonFiniteInputError,
    ShapeError,
)
from fcn_deploy.graph.scan import with_outputs
from fcn_deploy.names import Array, Precision, TensorSpec

__all__ = [
    "Backend",
    "ContextManaged",
    "ExecutionContext",
    "LabellingContext",
    "ModelSource",
    "PlanBackend",
    "RunTimes",
    "TimedContext",
    "check_feeds",
]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that is safe to hand to a parser.

    Attributes:
        path: where it was read; for messages, and for external data beside it.
        data: the bytes that were checked, or None where the library must open `path` itself
            (external data, an OpenVINO `.xml`).
        outputs: tensors to give out, inner ones or outputs, in place of the graph's own; None
            keeps these. Only of models that come as `data`.
        digest: SHA-256 of `data`, where the library may keep what it makes of it in the user's
            cache; None where nothing is to be kept.
        manifest: of the artifact that the file is from; None for a bare file.
    """

    path: Path
    data: bytes | None = field(default=None, repr=False)
    outputs: tuple[str, ...] | None = None
    digest: str | None = None
    manifest: Manifest | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.data is None and not is_utf8(str(self.path)):
            raise ArtifactError(
                f"'{self.path}' is not named in UTF-8, and its weights lie beside it: no backend"
                " can open it.",
                hint="Rename the file or its folder.",
            )

    def cut_data(self) -> bytes:
        """Give the bytes of the model that makes `outputs`.

        Raises:
            ValueError: the model is not an ONNX graph held in memory.
        """
        if self.data is None:
            raise ValueError(f"'{self.path}' is opened by path")
        return self.data if self.outputs is None else with_outputs(self.data, self.outputs)


class ExecutionContext(Protocol):
    """A loaded network. `execute` may be called from several threads at once."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def execute(
        self, feeds: Mapping[str, Array], /, *, outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Run the network once.

        Args:
            feeds: one array for each input, of the dtype and shape of its spec, with any strides,
                writable or not; not modified. One that is not C-contiguous is copied.
            outputs: names to compute; None means all.

        Returns:
            One array for each name, owned by the caller.

        Raises:
            ShapeError: a feed is missing, unknown, or of the wrong rank or fixed size.
            DTypeError: a feed is of another dtype.
            ExecutionError: the library failed; its own error is chained.
            ClosedError: after close().
        """
        ...

    def close(self) -> None:
        """Free the network. May be called twice."""
        ...


@runtime_checkable
class LabellingContext(ExecutionContext, Protocol):
    """A loaded network whose scores its own device can label: they need not leave it."""

    def labelling(
        self, scores: str, *, axes: tuple[int, int], threshold: float, give_scores: bool = False
    ) -> ExecutionContext:
        """Give the same network with labels of the input's size as its first output.

        Args:
            scores: an output, float32 [N, C, h, w]; upsampled bilinearly, corners not aligned.
            axes: of the input: height and width.
            threshold: of a single class's score, above which the label is 1.
            give_scores: have the scores as an output, too.

        Returns:
            What is closed with this context, and closes it. Its `execute` raises
            NonFiniteOutputError where a score is NaN or infinite.

        Raises:
            BackendUnavailableError: what this takes is not installed.
        """
        ...


@dataclass(frozen=True, slots=True)
class RunTimes:
    """What one run took on its device, in ms, by the device's own clock.

    Attributes:
        compute_ms: execution alone, trtexec's "GPU Compute Time".
        transfer_ms: copy in, execution and copy out added up, as trtexec's "Latency"; the host's
            filling of page-locked memory is not in it.
    """

    compute_ms: float
    transfer_ms: float


@runtime_checkable
class TimedContext(ExecutionContext, Protocol):
    """A loaded network whose device has a clock."""

    def execute_timed(self, feeds: Mapping[str, Array], /) -> tuple[dict[str, Array], RunTimes]:
        """Run as `execute` does, on the same shapes and dtypes, and say what it took."""
        ...


class Backend(Protocol):
    """One inference library, found by name. Making one imports nothing heavy."""

    @property
    def name(self) -> str: ...

    @property
    def suffixes(self) -> tuple[str, ...]:
        """File names' endings that `open` takes, such as ``".onnx"``."""
        ...

    def available(self) -> bool:
        """Say whether the library can be imported here."""
        ...

    def version(self) -> str:
        """Give the library's version.

        Raises:
            BackendUnavailableError: the library is not installed.
        """
        ...

    def precisions(self) -> tuple[Precision, ...]:
        """Give the precisions that this machine can run an artifact in; see `arithmetic`.

        Raises:
            BackendUnavailableError: the library is not installed.
        """
        ...

    def arithmetic(self, precision: Precision) -> str:
        """Say in a phrase what it computes with, where the file is of this precision.

        Two libraries may run one fp16 or int8 graph differently, and on a CPU without such
        instructions both fall back on fp32 inside: that is never hidden.
        """
        ...

    def open(
        self,
        source: ModelSource,
        /,
        *,
        precision: Precision = Precision.FP32,
        num_threads: int | None = None,
        num_streams: int = 1,
    ) -> ExecutionContext:
        """Load a network.

        Args:
            precision: fp32 and bf16: arithmetic to compute an fp32 graph in, never silently
                replaced by another. fp16 and int8: what the graph was made in; see `arithmetic`.
            num_threads: CPU threads in all; None means the cores this process may use.
            num_streams: how many runs may go on at once, sharing the threads.

        Raises:
            BackendUnavailableError: the library or the precision is not available here.
            ArtifactError: the library's parser refused the file.
        """
        ...


class PlanBackend(Backend, Protocol):
    """A backend that runs plans. A plan is for one library, one release of it and some GPUs."""

    def obstacle(self, variant: Variant, manifest: Manifest, /) -> str | None:
        """Say why a plan of an artifact cannot run here, a phrase, or None."""
        ...


class ContextManaged:
    """`with` for anything that has `close()`, and refusal to work after it or after a fork."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._closed = False

    def close(self) -> None:
        """Refuse further use. May be called twice."""
        self._closed = True

    def _require_usable(self, what: str) -> None:
        if self._closed:
            raise ClosedError(f"{what} is closed.", hint="Open it again.")
        if os.getpid() != self._process:
            raise ForkedProcessError(
                f"{what} was opened in process {self._process} and is used in its fork "
                f"{os.getpid()}, which lacks the threads it needs.",
                hint="Open it in the child, or start the child with the 'spawn' method.",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def check_feeds(inputs: Sequence[TensorSpec], feeds: Mapping[str, Array]) -> None:
    """Compare the shapes and dtypes of arrays with the inputs that a network declares.

    Raises:
        ShapeError: one is missing, unknown, empty, or of the wrong rank or fixed size.
        DTypeError: one is of another dtype.
        NonFiniteInputError: one holds NaN or infinity.
    """
    names = [spec.name for spec in inputs]
    if sorted(names) != sorted(feeds):
        raise ShapeError(f"the network takes {names}; got {sorted(feeds)}.")
    for spec in inputs:
        array = feeds[spec.name]
        found = list(array.shape)
        if array.dtype != spec.dtype:
            raise DTypeError(f"input '{spec.name}' is {array.dtype}; expected {spec.dtype}.")
        fits = len(found) == len(spec.shape) and all(
            size > 0 and want in (None, size) for size, want in zip(found, spec.shape, strict=True)
        )
        if not fits:
            raise ShapeError(f"input '{spec.name}' has shape {found}; expected {spec}.")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise NonFiniteInputError(
                f"input '{spec.name}' holds NaN or infinity; expected finite values.",
                hint="Replace them, as with numpy.nan_to_num, or leave the frame out.",
            )
