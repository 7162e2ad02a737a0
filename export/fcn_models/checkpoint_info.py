"""Read and write the facts that an FCN's checkpoint holds beside its weights, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fcn_deploy.artifact.manifest import ClassInfo, Preprocess
from fcn_deploy.artifact.strict_json import read_strict
from fcn_deploy.errors import ManifestError, UnsupportedModelError

__all__ = ["METADATA_KEY", "CheckpointInfo", "parse_info"]

METADATA_KEY = "fcn_deploy"
"""Under which name the facts stand: beside the state dict, or in safetensors' header."""

_VERSION = 1
_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Versioned:
    version: int


@dataclass(frozen=True, slots=True)
class _Stored:
    classes: tuple[ClassInfo, ...]
    preprocess: Preprocess
    architecture: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """The facts that a checkpoint holds beside its weights.

    Attributes:
        architecture: how to build the network, as `fcn_models.checkpoints` describes it.
        preprocess: what the network expects: mean and std of values in 0..1, order of colours.
        classes: name and colour of each class; None where they were not given.
    """

    architecture: Mapping[str, Any]
    preprocess: Preprocess
    classes: tuple[ClassInfo, ...] | None = None

    def to_json(self) -> str:
        """Give the facts as they stand in the file."""
        document = {
            "version": _VERSION,
            "architecture": dict(self.architecture),
            "preprocess": asdict(self.preprocess),
            "classes": [asdict(one) for one in self.classes or ()],
        }
        return json.dumps(document, sort_keys=True, allow_nan=False)


def parse_info(text: str, *, where: str) -> CheckpointInfo:
    """Read the facts of a checkpoint.

    Raises:
        UnsupportedModelError: they are malformed, or of another version.
    """
    content = text.encode()
    try:
        version = read_strict(content, _Versioned, where="metadata", max_bytes=_MAX_BYTES).version
        if version != _VERSION:
            raise UnsupportedModelError(
                f"{where} has metadata of version {version}; this release reads {_VERSION}.",
                hint="Install the fcn-deploy that wrote it.",
            )
        stored = read_strict(content, _Stored, where="metadata", max_bytes=_MAX_BYTES)
    except ManifestError as exc:
        raise UnsupportedModelError(
            f"{where} has malformed metadata: {exc.message}",
            hint="Write the checkpoint again with fcn_models.save_checkpoint.",
        ) from exc
    return CheckpointInfo(
        architecture=stored.architecture or {},
        preprocess=stored.preprocess,
        classes=stored.classes or None,
    )
