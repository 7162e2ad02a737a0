"""Write and read `calibration.json`, the thresholds of every tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcn_deploy.artifact.strict_json import load_strict
from fcn_deploy.errors import ManifestError
from fcn_export.precision.image_report import ImageReport
from fcn_export.precision.thresholds import METHODS, Method

__all__ = ["TABLE_NAME", "CalibrationKey", "CalibrationTable", "read_table"]

TABLE_NAME = "calibration.json"

_SCHEMA_VERSION = 1
_MAX_BYTES = 64_000_000


@dataclass(frozen=True, slots=True)
class CalibrationKey:
    """What a table depends on. Tables with equal keys are equal.

    Attributes:
        model_sha256: of the fp32 graph that was run.
        data_sha256: of the images that were chosen.
        shapes: of the network, as text.
    """

    model_sha256: str
    data_sha256: str
    shapes: str


@dataclass(frozen=True, slots=True)
class CalibrationTable:
    """The result of a calibration.

    Attributes:
        tensors: threshold of each method, by tensor; a tensor that was 0 throughout is absent.
        outputs: pixels of each convolution's output at the largest image, by node.
        images: what the ranges were taken from.
    """

    key: CalibrationKey
    tensors: Mapping[str, Mapping[Method, float]]
    outputs: Mapping[str, int]
    images: ImageReport

    def to_bytes(self, *, method: str) -> bytes:
        """Give the file's content.

        Args:
            method: that the INT8 graph was made with; for readers, it is not read back.
        """
        document = {
            "schema_version": _SCHEMA_VERSION,
            "model_sha256": self.key.model_sha256,
            "data_sha256": self.key.data_sha256,
            "shapes": self.key.shapes,
            "method": method,
            "tensors": {name: dict(values) for name, values in self.tensors.items()},
            "output_elements": dict(self.outputs),
            "images": self.images.to_json(),
        }
        return (json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def read_table(path: Path, key: CalibrationKey) -> CalibrationTable | None:
    """Read a table that was made for the same graph and images; None for any other, or none."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    try:
        document = load_strict(content, where=f"'{path}'", max_bytes=_MAX_BYTES)
        return _parse(document, key)
    except (ManifestError, KeyError, TypeError, ValueError, IndexError):
        return None  # a cache: what cannot be read is made again


def _parse(document: Any, key: CalibrationKey) -> CalibrationTable | None:
    found = CalibrationKey(document["model_sha256"], document["data_sha256"], document["shapes"])
    if document["schema_version"] != _SCHEMA_VERSION or found != key:
        return None
    tensors = {
        str(name): {method: _positive(values[method]) for method in METHODS}
        for name, values in document["tensors"].items()
    }
    outputs = {str(name): int(count) for name, count in document["output_elements"].items()}
    return CalibrationTable(key, tensors, outputs, _parse_images(document["images"]))


def _parse_images(values: Mapping[str, Any]) -> ImageReport:
    sizes = tuple((int(height), int(width)) for height, width in values["sizes"])
    if len(sizes) != 3:
        raise ValueError(f"sizes has {len(sizes)} entries; expected 3")
    height, width = values["served"]
    return ImageReport(
        used=int(values["used"]),
        total=int(values["total"]),
        class_pixels=tuple(float(share) for share in values["class_pixels"]),
        class_images=tuple(int(count) for count in values["class_images"]),
        brightness_mean=float(values["brightness"]["mean"]),
        brightness_spread=float(values["brightness"]["spread"]),
        near_duplicates=int(values["near_duplicates"]),
        sizes=sizes,
        served=(int(height), int(width)),
    )


def _positive(value: Any) -> float:
    number = float(value)
    if not 0 < number < float("inf"):
        raise ValueError(f"a threshold is {number}")
    return number
