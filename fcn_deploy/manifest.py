"""The artifact's manifest: schema, reader and writer in one place, so that they cannot drift.

`manifest.json` is JSON with sorted keys. Unknown keys are ignored, so that a later release may add
some; what changes the meaning of a known key raises `FORMAT_VERSION`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from fcn_deploy.errors import ManifestError
from fcn_deploy.profile import BatchShape, ShapeRange
from fcn_deploy.strict_json import JsonObject, load_strict
from fcn_deploy.tensors import NETWORK_COLORS, NetworkColor, Precision

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST_NAME",
    "ClassInfo",
    "Fidelity",
    "FileEntry",
    "Manifest",
    "Preprocess",
    "SeenByNetwork",
    "Source",
    "TensorInfo",
    "Variant",
    "WorstImage",
    "check_file_name",
]

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Windows opens these as devices, with any ending
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of the artifact: plain name, size in bytes, SHA-256 in lower-case hexadecimal."""

    name: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        check_file_name(self.name)
        if self.size < 0 or not _SHA256.fullmatch(self.sha256):
            raise ManifestError(f"'{self.name}' has size {self.size} and SHA-256 {self.sha256!r}.")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or output of the artifact's graphs.

    Attributes:
        shape: None where any size is taken.
        layout: one letter a dimension: N batch, H height, W width, C channels or classes.
        color: order of the channels of a frame; None for outputs.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    layout: str
    color: str | None = None

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.layout):
            raise ManifestError(f"'{self.name}' has shape {self.shape} but layout {self.layout!r}.")


@dataclass(frozen=True, slots=True)
class Preprocess:
    """What the network expects; done inside the artifact's graphs.

    Attributes:
        mean, std: of values in 0..1, one entry a channel of the network.
        color: channels that the network takes.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    color: NetworkColor

    def __post_init__(self) -> None:
        channels = 1 if self.color == "gray" else 3
        if self.color not in NETWORK_COLORS:
            raise ManifestError(f"color is {self.color!r}; expected one of {NETWORK_COLORS}.")
        if len(self.mean) != channels or len(self.std) != channels:
            raise ManifestError(
                f"mean has {len(self.mean)} and std {len(self.std)} entries; "
                f"a {self.color} network takes {channels}."
            )
        if not all(value > 0 for value in self.std):
            raise ManifestError(f"std is {self.std}; every entry must be above 0.")


@dataclass(frozen=True, slots=True)
class ClassInfo:
    """A class: its name and its colour, (red, green, blue) in 0..255."""

    name: str
    color: tuple[int, int, int]

    def __post_init__(self) -> None:
        if len(self.color) != 3 or not all(0 <= value <= 255 for value in self.color):
            raise ManifestError(f"class '{self.name}' has color {self.color}; expected 0..255 x 3.")


@dataclass(frozen=True, slots=True)
class WorstImage:
    """The measured image that keeps the smallest share, 0..1, of PyTorch's labels."""

    name: str
    label_agreement: float


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How near one variant on one backend comes to PyTorch in fp32, measured at export.

    Attributes:
        label_agreement: share of pixels with PyTorch's label, 0..1.
        near_tie_share: share of pixels that disagree where PyTorch's two best scores are closer
            than the variant's measured score error, 0..1.
        miou: mean IoU against the labels given at export, 0..1; None where none were given.
        miou_drop: PyTorch's mean IoU less this one, in percentage points.
        miou_vs_baseline: mean IoU with PyTorch's labels as the reference, 0..1.
        boundary_share: share, 0..1, of the pixels that disagree which are within 2 px of a class
            border of PyTorch's labels; None where none disagree.
    """

    backend: str
    precision: Precision
    label_agreement: float
    near_tie_share: float
    miou: float | None = None
    miou_drop: float | None = None
    miou_vs_baseline: float | None = None
    boundary_share: float | None = None
    worst_image: WorstImage | None = None


@dataclass(frozen=True, slots=True)
class Variant:
    """One file of the artifact, of one precision.

    Attributes:
        backend, compute_capabilities, profiles: of plans only. ``"8.0+"`` means that compute
            capability and all later ones.
        fidelity: one entry for each backend and precision that ran this file at export.
        library_version: of what built a plan; None of graphs.
        version_compatible: later releases of the library can run the plan, too.
        graph, graph_sha256: file that a plan was built from, and its digest; None of graphs.
    """

    file: str
    precision: Precision
    backend: str | None = None
    compute_capabilities: tuple[str, ...] = ()
    profiles: tuple[ShapeRange, ...] = ()
    fidelity: tuple[Fidelity, ...] = ()
    library_version: str | None = None
    version_compatible: bool = False
    graph: str | None = None
    graph_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """The model that the artifact was made from.

    Attributes:
        file: its name, without folders.
        sha256: of the file; None for a module given from Python.
        arch: a known name or ``package.module:factory``; None where the file needs none.
        path: where it was at export, absolute, so that the benchmark finds its baseline.
        arch_args: keyword arguments of the factory, as literals.
        output_key: the output that was exported, where the model has several.
    """

    file: str
    sha256: str | None
    arch: str | None
    path: str | None = None
    arch_args: Mapping[str, str] = field(default_factory=dict)
    output_key: str | None = None


@dataclass(frozen=True, slots=True)
class SeenByNetwork:
    """Which pixels of the image a network's results depend on; pairs are (height, width).

    Attributes:
        stride: px from one score to the next, before the last upsampling.
        offset: pixel on which what the first score sees is centred.
        size: px that a score depends on, the receptive field.
        before, behind: px beyond its own that a label depends on, to either side.
        alignment: px; an image that is cut at multiples of these has all its scores where the
            whole image has them.
        whole_image: phrases that name what reads the whole image all the same; the numbers above
            leave it out.
    """

    stride: tuple[float, float]
    offset: tuple[float, float]
    size: tuple[int, int]
    before: tuple[int, int]
    behind: tuple[int, int]
    alignment: tuple[int, int]
    whole_image: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        pairs = (self.stride, self.offset, self.size, self.before, self.behind, self.alignment)
        if any(len(pair) != 2 for pair in pairs):
            raise ManifestError(f"the receptive field is {self}; expected height and width each.")
        positive = (*self.stride, *self.size, *self.alignment)
        if min(positive) <= 0 or min(*self.before, *self.behind) < 0:
            raise ManifestError(f"the receptive field is {self}; expected sizes above 0.")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `manifest.json` says. `files` and digests are filled in when the artifact is written.

    Attributes:
        receptive_field: None where it could not be told, and of artifacts of earlier releases.

    Raises:
        ManifestError: an entry is malformed, or entries contradict each other.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    shapes: ShapeRange
    preprocess: Preprocess
    classes: tuple[ClassInfo, ...]
    variants: tuple[Variant, ...]
    source: Source
    provenance: Mapping[str, str]
    files: tuple[FileEntry, ...] = ()
    receptive_field: SeenByNetwork | None = None

    def __post_init__(self) -> None:
        names = [entry.name for entry in self.files]
        if len(set(names)) != len(names):
            raise ManifestError("the manifest lists a file twice.")
        for variant in self.variants:
            check_file_name(variant.file)
            if self.files and variant.file not in names:
                raise ManifestError(f"variant '{variant.file}' is not among the listed files.")

    def output_names(self) -> tuple[str, ...]:
        """Give the names of the graphs' outputs, in order."""
        return tuple(output.name for output in self.outputs)

    def to_json(self) -> bytes:
        """Give the file's content: UTF-8 JSON with sorted keys, the same for equal manifests."""
        seen = self.receptive_field
        document = {
            "format_version": FORMAT_VERSION,
            "files": [_plain(entry) for entry in self.files],
            "inputs": [_plain(tensor) for tensor in self.inputs],
            "outputs": [_plain(tensor) for tensor in self.outputs],
            "shapes": _shapes_to_json(self.shapes),
            "preprocess": _plain(self.preprocess),
            "classes": [_plain(entry) for entry in self.classes],
            "variants": [_variant_to_json(variant) for variant in self.variants],
            "source": {**_plain(self.source), "arch_args": dict(self.source.arch_args)},
            "provenance": dict(self.provenance),
            "receptive_field": None if seen is None else _plain(seen),
        }
        return (json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes) -> Manifest:
        """Read a manifest.

        Raises:
            ManifestError: not JSON, of another format version, or of another form; the message
                names the place.
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
        return cls(
            files=top.each(
                "files", lambda n: FileEntry(n.text("name"), n.get("size", int), n.text("sha256"))
            ),
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


def check_file_name(name: str) -> None:
    """Refuse a name that could leave the artifact's folder.

    Raises:
        ManifestError: not a plain file name of letters, digits, ``.``, ``_`` and ``-``.
    """
    if not _FILE_NAME.fullmatch(name) or _RESERVED.fullmatch(name) or name.endswith("."):
        raise ManifestError(
            f"{name!r} is not a plain file name.",
            hint="Names have letters, digits, '.', '_' and '-' only, and no folders.",
        )


def _plain(value: Any) -> dict[str, Any]:
    """Give a flat dataclass as a JSON object (asdict would also deep-copy mappings)."""
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def _shapes_to_json(shapes: ShapeRange) -> dict[str, Any]:
    return {**_plain(shapes)}


def _variant_to_json(variant: Variant) -> dict[str, Any]:
    return {
        **_plain(variant),
        "profiles": [_shapes_to_json(profile) for profile in variant.profiles],
        "fidelity": [_fidelity_to_json(entry) for entry in variant.fidelity],
    }


def _fidelity_to_json(fidelity: Fidelity) -> dict[str, Any]:
    worst = fidelity.worst_image
    return {**_plain(fidelity), "worst_image": None if worst is None else _plain(worst)}


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
