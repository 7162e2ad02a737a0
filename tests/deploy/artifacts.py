"""Artifacts and bare graphs of a small network, and frames for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fcn_deploy.artifact.folder import ArtifactWriter
from fcn_deploy.artifact.manifest import ClassInfo
from fcn_deploy.names import Array
from tests.deploy.graphs import segmentation_graph
from tests.deploy.manifests import MANIFEST

__all__ = ["frame", "write_artifact", "write_graph"]


def write_artifact(folder: Path, graph: bytes | None = None, **changes: Any) -> Path:
    classes = tuple(ClassInfo(name, (n, n, n)) for n, name in enumerate(("sky", "road", "car")))
    path = folder / "model.fcn"
    with ArtifactWriter(path, force=True) as writer:
        writer.add("model.onnx", graph if graph is not None else segmentation_graph())
        writer.commit(replace(MANIFEST, classes=classes, **changes))
    return path


def write_graph(folder: Path, **options: Any) -> Path:
    path = folder / "bare.onnx"
    path.write_bytes(segmentation_graph(**options))
    return path


def frame(height: int = 24, width: int = 32, *, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
