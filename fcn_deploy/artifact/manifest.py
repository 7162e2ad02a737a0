"""Define the manifest's records; each is checked when it is made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from fcn_deploy.artifact.output_meaning import Activation, OutputMeaning
from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.errors import ManifestError
from fcn_deploy.names import NETWORK_COLORS, NetworkColor, Precision

__all__ = [
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
        if any(size is not None and size < 0 for size in self.shape):
            raise ManifestError(f"'{self.name}' has shape {self.shape}; expected sizes or null.")


@dataclass(frozen=True, slots=True)
class Preprocess:
    """The preprocessing that the network expects, which the artifact's graphs do themselves.

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
    """The measured image that keeps the smallest share, 0..1, of PyTorch's labels.

    Attributes:
        worst_class_iou: as in `Fidelity`, of this image alone.
    """

    name: str
    label_agreement: float
    worst_class_iou: float | None = None


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How near one variant on one backend comes to PyTorch in fp32, measured at export.

    Only natural images count on which PyTorch finds more than one class. Artifacts of earlier
    releases do not say on how many: theirs count as no evidence.

    Attributes:
        label_agreement: share of pixels with PyTorch's label, 0..1; where no image counts, over
            those on which PyTorch finds one class alone.
        near_tie_share: share of pixels that disagree where PyTorch's two best scores are closer
            than the variant's measured score error and than 1 % of the spread of PyTorch's scores,
            0..1.
        miou: mean IoU against the labels given at export, 0..1; None where none were given.
        miou_drop: PyTorch's mean IoU less this one, in percentage points.
        miou_vs_baseline: mean IoU with PyTorch's labels as the reference, 0..1.
        boundary_share: share, 0..1, of the pixels that disagree which are within 2 px of a class
            border of PyTorch's labels; None where none disagree.
        worst_class_iou: lowest IoU, 0..1, with PyTorch's labels as the reference, of the classes
            with at least 0.1 % of the pixels; None where fewer than two have.
        images, pixels: how many counted.
        relative_score_error: largest difference of a score, of the largest score of its image.
        status: ``"ok"``; ``"below"`` what `auto` asks of a reduced precision; ``"no evidence"``
            for one, as too few images count; ``"differs"``, fp32 by more than rounding explains;
            ``"broken"``, below 99 % label agreement. None of artifacts of earlier releases.
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
    worst_class_iou: float | None = None
    images: int = 0
    pixels: int = 0
    relative_score_error: float | None = None
    status: str | None = None


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
        output: of a graph, where it is not as the manifest's; None where it is.
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
    output: OutputMeaning | None = None


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
        activation: what that output is; None of artifacts of earlier releases, where it is logits.
        threshold: probability above which a single class is there.
    """

    file: str
    sha256: str | None
    arch: str | None
    path: str | None = None
    arch_args: Mapping[str, str] = field(default_factory=dict)
    output_key: str | None = None
    activation: Activation | None = None
    threshold: float = 0.5


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
    """The content of `manifest.json`. Writing the artifact fills in `files` and digests.

    Attributes:
        receptive_field: None where it could not be told, and of artifacts of earlier releases.
        output: what the graphs' first output means; None of artifacts of earlier releases.

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
    output: OutputMeaning | None = None

    def __post_init__(self) -> None:
        names = [entry.name for entry in self.files]
        if len(set(names)) != len(names):
            raise ManifestError("the manifest lists a file twice.")
        for variant in self.variants:
            check_file_name(variant.file)
            if self.files and variant.file not in names:
                raise ManifestError(f"variant '{variant.file}' is not among the listed files.")


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
