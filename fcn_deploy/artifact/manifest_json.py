"""Read and write `manifest.json`, in one module so that both stay alike.

It is JSON with sorted keys. Unknown keys are ignored, so that a later release may add some; what
changes the meaning of a known key raises `FORMAT_VERSION`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from fcn_deploy.artifact.manifest import Manifest
from fcn_deploy.artifact.strict_json import read_strict
from fcn_deploy.errors import ManifestError

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST_NAME",
    "MAX_MANIFEST_BYTES",
    "manifest_from_json",
    "manifest_to_json",
]

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Versioned:
    format_version: int


def manifest_to_json(manifest: Manifest) -> bytes:
    """Give the file's content: UTF-8 JSON with sorted keys, the same for equal manifests."""
    document = {"format_version": FORMAT_VERSION, **asdict(manifest)}
    return (json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def manifest_from_json(content: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        ManifestError: not JSON, of another format version, or of another form; the message names
            the place.
    """
    where, limit = "the manifest", MAX_MANIFEST_BYTES
    version = read_strict(content, _Versioned, where=where, max_bytes=limit).format_version
    if version != FORMAT_VERSION:
        raise ManifestError(
            f"the manifest has format version {version}; this release reads {FORMAT_VERSION}.",
            hint="Install the fcn-deploy that wrote it, or export the model again.",
        )
    return read_strict(content, Manifest, where=where, max_bytes=limit)
