"""The network that gives its class scores as well, loaded when they are first asked for."""

from __future__ import annotations

import threading

from fcn_deploy.backends.base import ExecutionContext
from fcn_deploy.errors import ArtifactError
from fcn_deploy.opening.load import OpenedModel

__all__ = ["ScoresNetwork"]


class ScoresNetwork:
    """Loads an opened model once more where its own network keeps the scores to itself.

    Several threads may share one.
    """

    def __init__(self, model: OpenedModel) -> None:
        self._model = model
        self._loaded: ExecutionContext | None = None
        self._lock = threading.Lock()

    def context(self) -> ExecutionContext:
        """Give what to run for scores: the model's own context, or one that is loaded now.

        Raises:
            ArtifactError: the scores were not found, or the file opens with its own outputs only.
        """
        model, scores = self._model, self._model.reader.scores
        if model.scores_context is not None:
            return model.scores_context
        if any(spec.name == scores for spec in model.context.outputs):
            return model.context
        if scores is None or model.file.source().data is None:
            raise ArtifactError(
                f"the class scores were not found in '{model.file.path}'.",
                hint="Export the model again with --head scores.",
            )
        with self._lock:
            if self._loaded is None:
                wanted = [*(spec.name for spec in model.context.outputs), scores]
                source = model.file.source(outputs=wanted)
                self._loaded = model.backend.open(
                    source,
                    precision=model.precision,
                    num_threads=model.options.num_threads,
                    num_streams=model.options.num_streams,
                )
            return self._loaded

    def close(self) -> None:
        """Free what was loaded. May be called twice."""
        with self._lock:
            if self._loaded is not None:
                self._loaded.close()
