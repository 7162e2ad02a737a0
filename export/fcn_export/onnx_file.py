"""Hold an ONNX model as bytes, and write weights beyond protobuf's limit to a file beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fcn_deploy.artifact.partial_files import partial_name
from fcn_deploy.backends import get_backend
from fcn_deploy.backends.base import ExecutionContext, ModelSource
from fcn_deploy.errors import UnsupportedModelError
from fcn_deploy.graph.scan import with_extra_outputs
from fcn_deploy.names import Precision
from fcn_export.release_memory import release_freed_memory
from fcn_models.foreign_errors import first_line

if TYPE_CHECKING:
    import onnx

__all__ = ["MAX_SINGLE_FILE_BYTES", "MIN_EXTERNAL_BYTES", "OnnxFile", "write_onnx"]

MAX_SINGLE_FILE_BYTES = 1_800_000_000
"""Above this, weights go to a file of their own: protobuf cannot hold 2 GiB."""

MIN_EXTERNAL_BYTES = 1024
"""Smaller tensors stay in the model, where its weights go to a file of their own."""


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """An ONNX model that was written to a folder.

    Attributes:
        path: the file.
        data: its content.
        weights: the file beside it that holds the weights, or None where `data` does.
    """

    path: Path
    data: bytes = field(repr=False)
    weights: Path | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes on disk, with the weights."""
        return len(self.data) + (self.weights.stat().st_size if self.weights else 0)

    def load(self) -> onnx.ModelProto:
        """Parse the model, with its weights; the caller owns it."""
        import onnx

        if self.weights is not None:
            return onnx.load_model(self.path)
        return onnx.load_model_from_string(self.data)

    @contextmanager
    def opened(
        self,
        backend: str,
        *,
        precision: Precision = Precision.FP32,
        inner: tuple[str, ...] = (),
    ) -> Iterator[ExecutionContext]:
        """Load the model into a backend.

        Args:
            inner: tensors to give out as well. The model's own bytes are not rewritten for it.

        Raises:
            BackendUnavailableError: the backend or the precision is not available here.
            ArtifactError: the backend refuses the model.
        """
        beside = partial_name(self.path)
        context = None
        try:
            # the rewritten bytes are dropped here: they are as large as the model
            context = get_backend(backend).open(self._source(inner, beside), precision=precision)
            yield context
        finally:
            if context is not None:
                context.close()
                del context
            release_freed_memory()
            beside.unlink(missing_ok=True)

    def _source(self, inner: tuple[str, ...], beside: Path) -> ModelSource:
        data = with_extra_outputs(self.data, inner)
        if self.weights is None:
            return ModelSource(self.path, data)
        with beside.open("xb") as file:  # a library finds the weights only from a file beside them
            file.write(data)
        return ModelSource(beside)


def write_onnx(
    model: onnx.ModelProto,
    path: Path,
    *,
    max_single_file_bytes: int | None = None,
) -> OnnxFile:
    """Check a model with onnx's checker and write it; `model` loses its weights if they go apart.

    Args:
        path: of the model; weights beside it are called ``<name>.data``.
        max_single_file_bytes: None means `MAX_SINGLE_FILE_BYTES`.

    Raises:
        UnsupportedModelError: the checker refuses the model; its own error is chained.
    """
    import onnx
    from onnx.external_data_helper import (
        convert_model_to_external_data,
        write_external_data_tensors,
    )

    weights = None
    limit = MAX_SINGLE_FILE_BYTES if max_single_file_bytes is None else max_single_file_bytes
    if model.ByteSize() > limit:
        weights = path.with_name(f"{path.name}.data")
        convert_model_to_external_data(
            model, location=weights.name, size_threshold=MIN_EXTERNAL_BYTES
        )
        write_external_data_tensors(model, str(path.parent))
    data = model.SerializeToString()
    path.write_bytes(data)
    try:
        onnx.checker.check_model(data if weights is None else str(path))
    except (onnx.checker.ValidationError, ValueError) as error:
        raise UnsupportedModelError(
            f"'{path.name}' is no valid ONNX model: {first_line(error)}",
            hint="Another --opset may help.",
        ) from error
    return OnnxFile(path, data, weights)
