"""What a user asks of an export, checked before anything expensive is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fcn_deploy.errors import BackendUnavailableError, UnsupportedModelError
from fcn_deploy.manifest import Preprocess
from fcn_deploy.profile import ShapeRange
from fcn_deploy.tensors import NETWORK_COLORS, ColorOrder, NetworkColor, Precision
from fcn_export.graph_spec import HEADS, Head, default_preprocess

__all__ = ["BUILT_PRECISIONS", "MIN_OPSET", "ExportRequest"]

BUILT_PRECISIONS = (Precision.FP32, Precision.BF16)
"""bf16 adds no file: backends compute in it from the fp32 graph."""

MIN_OPSET = 18  # the oldest that torch's dynamo exporter writes


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """All options of an export; `export_model` says what each means.

    Raises:
        ValueError: a value is none of its choices, or sizes contradict each other.
        UnsupportedModelError: a precision that this version does not make.
        BackendUnavailableError: an engine that this version does not build.
    """

    arch: str | None = None
    arch_args: Mapping[str, Any] = field(default_factory=dict)
    output_key: str | None = None
    precisions: Sequence[str] = ("fp32",)
    eval_folders: tuple[Path, Path] | None = None
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
    engine: str = "auto"
    opset: int = 21
    trust_code: bool = False
    force: bool = False
    verify_max: bool = False

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("color", self.color or "rgb", NETWORK_COLORS),
            ("input_color", self.input_color, ("bgr", "rgb")),
            ("head", self.head, HEADS),
            ("engine", self.engine, ("auto", "none", "tensorrt", "tensorrt-rtx")),
        ):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(choices)}")
        if self.opset < MIN_OPSET:
            raise ValueError(f"opset is {self.opset}; {MIN_OPSET} or later can be written")
        self._check_precisions()
        if self.engine not in ("auto", "none"):
            raise BackendUnavailableError(
                f"engine '{self.engine}' cannot be built by this version.",
                hint="Use --engine none: the artifact then runs on the CPU backends.",
            )
        self.shapes()
        self.preprocess()

    def _check_precisions(self) -> None:
        if not self.precisions:
            raise ValueError("precisions is empty; expected fp32 at least")
        for name in self.precisions:
            if name not in list(Precision):
                raise ValueError(f"precision is {name!r}; expected one of {', '.join(Precision)}")
            if name not in BUILT_PRECISIONS:
                raise UnsupportedModelError(
                    f"precision {name} is not in this version; it makes "
                    f"{' and '.join(BUILT_PRECISIONS)}.",
                    hint="Use --precision fp32: bf16 is then measured too, where the CPU has it.",
                )

    def preprocess(self) -> Preprocess:
        """Give what the network expects: what was asked for, ImageNet's where nothing was."""
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
