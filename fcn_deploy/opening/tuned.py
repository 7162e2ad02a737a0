"""What `fcn-bench --tune` measured on this machine: kept in the user's state folder for `auto`.

A choice belongs to the very files of an artifact, to the CPU and the cores that may be used, and to
the libraries' versions: where one of them differs, nothing is known, and the usual rule holds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from fcn_deploy.artifact.manifest import Manifest
from fcn_deploy.artifact.partial_files import write_whole
from fcn_deploy.artifact.plain_files import read_plain_file
from fcn_deploy.artifact.strict_json import read_strict
from fcn_deploy.errors import ArtifactError, ArtifactMissingError, ManifestError
from fcn_deploy.machine import describe_machine, distribution_version
from fcn_deploy.names import Precision

__all__ = ["TunedRow", "TunedRows", "keep_rows", "kept_rows", "rows_path"]

_log = logging.getLogger(__name__)

_FORMAT_VERSION = 1
_MAX_BYTES = 1 << 16
_LIBRARIES = (
    *("openvino", "onnxruntime", "onnxruntime-gpu"),
    *("tensorrt", "tensorrt-cu13", "tensorrt-rtx", "fcn-deploy"),
)
_INDISTINCT = 1.03
"""A more precise variant is taken where it is at most this much slower."""


@dataclass(frozen=True, slots=True)
class TunedRow:
    """One way to run the artifact, as it was measured here.

    Attributes:
        latency_ms: median of a frame's whole way, frame in, labels out.
        within_budget: its labels are as near to PyTorch's as was asked for.
        reason: why it is, or is not.
    """

    backend: str
    precision: Precision
    latency_ms: float
    within_budget: bool
    reason: str


@dataclass(frozen=True, slots=True)
class TunedRows:
    """All that was measured, at one size (height, width) in px."""

    size: tuple[int, int]
    rows: tuple[TunedRow, ...]

    def best(self, *, backends: Sequence[str]) -> TunedRow | None:
        """Give the fastest within the budget; of equally fast ones the most precise.

        Args:
            backends: that may be used.

        Returns:
            None where nothing within the budget was measured of these backends.
        """
        able = [row for row in self.rows if row.within_budget and row.backend in backends]
        if not able:
            return None
        limit = _INDISTINCT * min(row.latency_ms for row in able)
        order = list(Precision)
        equal = [row for row in able if row.latency_ms <= limit]
        return min(equal, key=lambda row: (order.index(row.precision), row.latency_ms))


@dataclass(frozen=True, slots=True)
class _Versioned:
    format_version: int


def keep_rows(manifest: Manifest, tuned: TunedRows) -> Path:
    """Keep what was measured as this machine's choice, in place of what was kept before.

    Returns:
        The file that was written, whole or not at all.

    Raises:
        ArtifactError: the user's state folder cannot be written.
    """
    path = rows_path(manifest)
    document = {
        "format_version": _FORMAT_VERSION,
        "source": manifest.source.file,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "size": list(tuned.size),
        "rows": [asdict(row) for row in tuned.rows],
    }
    text = json.dumps(document, indent=2, sort_keys=True, allow_nan=False)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, text.encode())
    except OSError as error:
        raise ArtifactError(
            f"the choice cannot be kept in '{path.parent}': {error.strerror}.",
            hint="Name a folder that can be written in XDG_STATE_HOME.",
        ) from error
    return path


def kept_rows(manifest: Manifest) -> TunedRows | None:
    """Give what was kept of these files on this machine with these libraries; None if nothing.

    A file that cannot be read counts as nothing, and is told in a warning.
    """
    path = rows_path(manifest)
    try:
        content = read_plain_file(path, max_bytes=_MAX_BYTES)
        return _from_json(content)
    except ArtifactMissingError:
        return None
    except (ArtifactError, ManifestError) as error:
        _log.warning("the choice kept by fcn-bench --tune is left aside: %s", error)
        return None


def rows_path(manifest: Manifest) -> Path:
    """Give where the choice for an artifact, this machine and these libraries is kept."""
    machine = describe_machine()
    what = {
        "files": sorted(
            entry.sha256
            for entry in manifest.files
            if entry.name in {variant.file for variant in manifest.variants}
        ),
        "cpu": machine.cpu,
        "architecture": machine.architecture,
        "cores": machine.usable_cores,
        "gpus": machine.gpus,
        "libraries": {name: distribution_version(name) for name in _LIBRARIES},
    }
    key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    return _state_folder() / "fcn-deploy" / "tuned" / f"{key[:32]}.json"


def _state_folder() -> Path:
    """Give the folder for state of the XDG base directory specification; it must be absolute."""
    named = os.environ.get("XDG_STATE_HOME", "")
    return Path(named) if os.path.isabs(named) else Path.home() / ".local" / "state"


def _from_json(content: bytes) -> TunedRows:
    where, limit = "the choice", _MAX_BYTES
    version = read_strict(content, _Versioned, where=where, max_bytes=limit).format_version
    if version != _FORMAT_VERSION:
        raise ManifestError(f"it has format version {version}; expected {_FORMAT_VERSION}.")
    return read_strict(content, TunedRows, where=where, max_bytes=limit)
