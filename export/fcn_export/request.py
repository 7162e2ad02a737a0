"""What a user asks of an export, checked before anything expensive is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fcn_deploy.artifact.manifest import Preprocess
from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.names import NETWORK_COLORS, ColorOrder, NetworkColor, Precision
from fcn_deploy.opening.options import ASKED_ACTIVATIONS
from fcn_deploy.preprocess import default_preprocess
from fcn_export.graph_spec import HEADS, Head

__all__ = ["MIN_OPSET", "ExportRequest"]

_USUAL_PRECISIONS = (Precision.FP32, Precision.FP16)

MIN_OPSET = 18  # the oldest that torch's dynamo exporter writes


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """All options of an export; `export_model` says what each means.

    Attributes:
        precisions: names; None means fp32 and fp16, and int8 where `calibrate` is given. The fp32
            graph is always in the artifact: it is the one that is verified.
        calibrate: images folder, image list or video, for INT8 ranges.
        samples: images folder, image list or video to measure fidelity on, where `eval_folders` is
            None; None means images of `calibrate` that no range is taken from, else photographs.
        allow_broken: keep variants that lose more than 1 % of the labels.
        max_miou_drop: with `eval_folders`, the most that a variant may lose, in points.
        activation: what the network's output is; ``"auto"``: found in its graph, checked by values.
        threshold: probability above which a single class is there; None means 0.5.
        engine: what builds plans: ``"auto"`` takes whichever library is installed and able, and
            leaves plans out where none is; ``"none"`` builds none.
        profiles: image, images folder or video whose sizes decide the plans' profiles; None means
            one profile of the whole range.
        compute_capabilities, workspace_mb, optimization_level, timing_cache, tf32,
            hardware_compatible, version_compatible: see `fcn_export.engine.BuildConfig`.

    Raises:
        ValueError: a value is none of its choices, or sizes contradict each other.
    """

    arch: str | None = None
    arch_args: Mapping[str, Any] = field(default_factory=dict)
    output_key: str | None = None
    precisions: Sequence[str] | None = None
    calibrate: Path | None = None
    eval_folders: tuple[Path, Path] | None = None
    samples: Path | None = None
    allow_broken: bool = False
    max_miou_drop: float = 1.0
    size: tuple[int, int] = (512, 512)
    min_size: tuple[int, int] | None = None
    max_size: tuple[int, int] | None = None
    batch: tuple[int, int, int] = (1, 1, 8)
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    color: NetworkColor | None = None
    input_color: ColorOrder = "bgr"
    classes_file: Path | None = None
    head: Head = "labels"
    activation: str = "auto"
    threshold: float | None = None
    engine: str = "auto"
    compute_capabilities: Sequence[str] | None = None
    profiles: Path | None = None
    workspace_mb: int | None = None
    optimization_level: int | None = None
    timing_cache: Path | None = None
    tf32: bool = True
    hardware_compatible: bool = False
    version_compatible: bool = False
    opset: int = 21
    trust_code: bool = False
    force: bool = False
    verify_max: bool = False

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("color", self.color or "rgb", NETWORK_COLORS),
            ("input_color", self.input_color, ("bgr", "rgb")),
            ("head", self.head, HEADS),
            ("activation", self.activation, ASKED_ACTIVATIONS),
            ("engine", self.engine, ("auto", "none", "tensorrt", "tensorrt-rtx")),
        ):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(choices)}")
        if self.opset < MIN_OPSET:
            raise ValueError(f"opset is {self.opset}; {MIN_OPSET} or later can be written")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise ValueError(
                f"threshold is {self.threshold:g}; expected a probability between 0 and 1"
            )
        if not self.max_miou_drop >= 0:
            raise ValueError(f"max_miou_drop is {self.max_miou_drop}; expected 0 points or more")
        self._check_precisions()
        self._check_engine_options()
        self.shapes()
        self.preprocess()

    def wanted_precisions(self) -> tuple[Precision, ...]:
        """Give what was asked for, each once, in the order of `Precision`."""
        wanted: Sequence[str]
        if self.precisions is not None:
            wanted = self.precisions
        elif self.calibrate is not None:
            wanted = (*_USUAL_PRECISIONS, Precision.INT8)
        else:
            wanted = _USUAL_PRECISIONS
        return tuple(precision for precision in Precision if precision in wanted)

    def _check_precisions(self) -> None:
        if self.precisions is not None and not self.precisions:
            raise ValueError("precisions is empty; expected fp32 at least")
        for name in self.precisions or ():
            if name not in list(Precision):
                raise ValueError(f"precision is {name!r}; expected one of {', '.join(Precision)}")
        if Precision.INT8 in self.wanted_precisions() and self.calibrate is None:
            raise ValueError(
                "precision int8 takes its ranges from images; name them with calibrate "
                "(--calibrate PATH)"
            )

    def _check_engine_options(self) -> None:
        from fcn_export.engine.config import BuildConfig

        BuildConfig(
            library="tensorrt-rtx",
            compute_capabilities=self.compute_capabilities,
            optimization_level=self.optimization_level,
        )
        if self.workspace_mb is not None and self.workspace_mb < 1:
            raise ValueError(f"workspace_mb is {self.workspace_mb}; it must be 1 or more")
        given = {
            "compute_capabilities": self.compute_capabilities is not None,
            "profiles": self.profiles is not None,
            "workspace_mb": self.workspace_mb is not None,
            "optimization_level": self.optimization_level is not None,
            "timing_cache": self.timing_cache is not None,
            "tf32": not self.tf32,
            "hardware_compatible": self.hardware_compatible,
            "version_compatible": self.version_compatible,
        }
        useless = [name for name, is_given in given.items() if is_given]
        if self.engine == "none" and useless:
            raise ValueError(f"{useless[0]} is given, but engine is 'none': no plan is built")

    def preprocess(self) -> Preprocess:
        """Give what the network expects: what was asked for, ImageNet's where nothing was.

        Raises:
            ValueError: mean or std has the wrong number of values, or a std is not above 0.
        """
        color = self.color or "rgb"
        usual = default_preprocess(color)
        mean = usual.mean if self.mean is None else tuple(self.mean)
        std = usual.std if self.std is None else tuple(self.std)
        channels = len(usual.mean)
        if len(mean) != channels or len(std) != channels:
            raise ValueError(
                f"mean has {len(mean)} and std {len(std)} values; a {color} network takes "
                f"{channels}"
            )
        if not all(value > 0 for value in std):
            raise ValueError(f"std is {std}; every value must be above 0")
        return Preprocess(mean, std, color)

    def completed(self, stated: Preprocess | None) -> ExportRequest:
        """Give the request with what a checkpoint states, where nothing was asked for.

        Args:
            stated: what its network expects; None where it says nothing.
        """
        if stated is None or self.color not in (None, stated.color):
            return self
        return replace(
            self,
            color=stated.color,
            mean=stated.mean if self.mean is None else self.mean,
            std=stated.std if self.std is None else self.std,
        )

    def shapes(self) -> ShapeRange:
        """Give the range of shapes as asked for: 64x64 to 2048x2048, widened to hold `size`."""
        low = self.min_size or (min(64, self.size[0]), min(64, self.size[1]))
        high = self.max_size or (max(2048, self.size[0]), max(2048, self.size[1]))
        smallest, usual, largest = self.batch
        return ShapeRange((smallest, *low), (usual, *self.size), (largest, *high))
