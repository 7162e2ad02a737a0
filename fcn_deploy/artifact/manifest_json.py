"""`manifest.json`: reader and writer in one place, so that they cannot drift.

It is JSON with sorted keys. Unknown keys are ignored, so that a later release may add some; what
changes the meaning of a known key raises `FORMAT_VERSION`.
"""

from __future__ import annotations

import json
from typing import Any, cast

from fcn_deploy.artifact.manifest import (
    ClassInfo,
    Fidelity,
    FileEntry,
    Manifest,
    Preprocess,
    SeenByNetwork,
    Source,
    TensorInfo,
    Variant,
    WorstImage,
)
from fcn_deploy.artifact.shape_range import BatchShape, ShapeRange
from fcn_deploy.artifact.strict_json import JsonObject, load_strict
from fcn_deploy.errors import ManifestError
from fcn_deploy.names import NetworkColor, Precision

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


def manifest_to_json(manifest: Manifest) -> bytes:
    """Give the file's content: UTF-8 JSON with sorted keys, the same for equal manifests."""
    seen = manifest.receptive_field
    document = {
        "format_version": FORMAT_VERSION,
        "files": [_plain(entry) for entry in manifest.files],
        "inputs": [_plain(tensor) for tensor in manifest.inputs],
        "outputs": [_plain(tensor) for tensor in manifest.outputs],
        "shapes": _plain(manifest.shapes),
        "preprocess": _plain(manifest.preprocess),
        "classes": [_plain(entry) for entry in manifest.classes],
        "variants": [_variant_to_json(variant) for variant in manifest.variants],
        "source": {**_plain(manifest.source), "arch_args": dict(manifest.source.arch_args)},
        "provenance": dict(manifest.provenance),
        "receptive_field": None if seen is None else _plain(seen),
    }
    return (json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def manifest_from_json(content: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        ManifestError: not JSON, of another format version, or of another form; the message names
            the place.
    """
    top = JsonObject(
        load_strict(content, where="the manifest", max_bytes=MAX_MANIFEST_BYTES), "manifest"
    )
    version = top.get("format_version", int)
    if version != FORMAT_VERSION:
        raise ManifestError(
            f"the manifest has format version {version}; this release reads {FORMAT_VERSION}.",
            hint="Install the fcn-deploy that wrote it, or export the model again.",
        )
    return Manifest(
        files=top.each("files", _file_from_json),
        inputs=top.each("inputs", _tensor_from_json),
        outputs=top.each("outputs", _tensor_from_json),
        shapes=_shapes_from_json(top.child("shapes")),
        preprocess=_preprocess_from_json(top.child("preprocess")),
        classes=top.each("classes", _class_from_json),
        variants=top.each("variants", _variant_from_json),
        source=_source_from_json(top.child("source")),
        provenance=top.child("provenance").strings(),
        receptive_field=_field_from_json(top),
    )


def _plain(value: Any) -> dict[str, Any]:
    """Give a flat dataclass as a JSON object (asdict would also deep-copy mappings)."""
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def _variant_to_json(variant: Variant) -> dict[str, Any]:
    return {
        **_plain(variant),
        "profiles": [_plain(profile) for profile in variant.profiles],
        "fidelity": [_fidelity_to_json(entry) for entry in variant.fidelity],
    }


def _fidelity_to_json(fidelity: Fidelity) -> dict[str, Any]:
    worst = fidelity.worst_image
    return {**_plain(fidelity), "worst_image": None if worst is None else _plain(worst)}


def _file_from_json(node: JsonObject) -> FileEntry:
    return FileEntry(node.text("name"), node.get("size", int), node.text("sha256"))


def _tensor_from_json(node: JsonObject) -> TensorInfo:
    dims = node.get("shape", list)
    if not all(d is None or (type(d) is int and d >= 0) for d in dims):
        raise ManifestError(f"{node.where}.shape is {dims}; expected sizes or null.")
    return TensorInfo(
        node.text("name"),
        node.text("dtype"),
        tuple(dims),
        node.text("layout"),
        node.optional_text("color"),
    )


def _batch_shape(node: JsonObject, key: str) -> BatchShape:
    values = node.items(key, int)
    if len(values) != 3:
        raise ManifestError(f"{node.where}.{key} is {list(values)}; expected batch, height, width.")
    return cast(BatchShape, values)


def _shapes_from_json(node: JsonObject) -> ShapeRange:
    try:
        return ShapeRange(
            _batch_shape(node, "min"),
            _batch_shape(node, "opt"),
            _batch_shape(node, "max"),
            node.get("multiple_of", int),
        )
    except ValueError as error:
        raise ManifestError(f"{node.where}: {error}.") from error


def _preprocess_from_json(node: JsonObject) -> Preprocess:
    color = cast(NetworkColor, node.text("color"))
    return Preprocess(node.items("mean", float), node.items("std", float), color)


def _class_from_json(node: JsonObject) -> ClassInfo:
    return ClassInfo(node.text("name"), cast("tuple[int, int, int]", node.items("color", int)))


def _precision(node: JsonObject) -> Precision:
    text = node.text("precision")
    try:
        return Precision(text)
    except ValueError:
        known = ", ".join(Precision)
        raise ManifestError(f"{node.where}.precision is {text!r}; expected {known}.") from None


def _fidelity_from_json(node: JsonObject) -> Fidelity:
    return Fidelity(
        node.text("backend"),
        _precision(node),
        node.get("label_agreement", float),
        node.get("near_tie_share", float),
        node.get("miou", float, default=None),
        node.get("miou_drop", float, default=None),
        node.get("miou_vs_baseline", float, default=None),
        node.get("boundary_share", float, default=None),
        _worst_image_from_json(node),
    )


def _worst_image_from_json(node: JsonObject) -> WorstImage | None:
    if node.get("worst_image", dict, default=None) is None:
        return None
    worst = node.child("worst_image")
    return WorstImage(worst.text("name"), worst.get("label_agreement", float))


def _variant_from_json(node: JsonObject) -> Variant:
    return Variant(
        file=node.text("file"),
        precision=_precision(node),
        backend=node.optional_text("backend"),
        compute_capabilities=node.items("compute_capabilities", str),
        profiles=node.each("profiles", _shapes_from_json),
        fidelity=node.each("fidelity", _fidelity_from_json),
        library_version=node.optional_text("library_version"),
        version_compatible=node.get("version_compatible", bool, default=False),
        graph=node.optional_text("graph"),
        graph_sha256=node.optional_text("graph_sha256"),
    )


def _field_from_json(top: JsonObject) -> SeenByNetwork | None:
    if top.get("receptive_field", dict, default=None) is None:
        return None
    node = top.child("receptive_field")
    return SeenByNetwork(
        stride=cast("tuple[float, float]", node.items("stride", float)),
        offset=cast("tuple[float, float]", node.items("offset", float)),
        size=cast("tuple[int, int]", node.items("size", int)),
        before=cast("tuple[int, int]", node.items("before", int)),
        behind=cast("tuple[int, int]", node.items("behind", int)),
        alignment=cast("tuple[int, int]", node.items("alignment", int)),
        whole_image=node.items("whole_image", str),
    )


def _source_from_json(node: JsonObject) -> Source:
    return Source(
        file=node.text("file"),
        sha256=node.optional_text("sha256"),
        arch=node.optional_text("arch"),
        path=node.optional_text("path"),
        arch_args=node.child("arch_args").strings(),
        output_key=node.optional_text("output_key"),
    )
