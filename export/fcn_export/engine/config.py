"""Hold how a plan is built, and refuse at once what the library cannot build."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fcn_deploy.backends.tensorrt.api import TensorRT
from fcn_deploy.backends.tensorrt.surface import LibraryName
from fcn_deploy.errors import BuildError
from fcn_deploy.names import Precision
from fcn_export.engine.profiles import EngineProfile

__all__ = ["COMPUTE_CAPABILITIES", "DEFAULT_COMPUTE_CAPABILITIES", "BuildConfig"]

COMPUTE_CAPABILITIES = {
    "7.5": "SM75",
    "8.0": "SM80",
    "8.6": "SM86",
    "8.9": "SM89",
    "12.0": "SM120",
    "12.1": "SM121",
}
"""The compute capabilities that TensorRT-RTX builds for, with its own names for them."""

DEFAULT_COMPUTE_CAPABILITIES = ("8.6", "8.9")

_MAX_OPTIMIZATION_LEVEL = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildConfig:
    """How a plan is built.

    Attributes:
        library: which of the two builds it.
        profiles: ranges of input shapes; empty where the graph has fixed shapes only.
        precision: that the graph is in; the finished plan is checked against it.
        compute_capabilities: GPUs that the plan is for; of tensorrt-rtx only. None means 8.6
            and 8.9 there, and the GPU of this machine with tensorrt.
        workspace_bytes: most memory that a layer may take for intermediate results.
        optimization_level: 0 builds fastest, 5 searches longest.
        tf32: whether float32 layers may round their factors to 10 bits, as both libraries do
            unless told otherwise.
        timing_cache: file of measured kernel times, read and updated; of tensorrt only.
        hardware_compatible: the plan also serves other GPUs of Ampere's generation and newer ones,
            at some cost in speed; of tensorrt only.
        version_compatible: the plan also serves later releases of the library; of tensorrt only.

    Raises:
        ValueError: a value is none of its choices.
    """

    library: LibraryName
    profiles: Sequence[EngineProfile] = ()
    precision: Precision = Precision.FP32
    compute_capabilities: Sequence[str] | None = None
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    tf32: bool = True
    timing_cache: Path | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.compute_capabilities or () if _unknown(name)]
        if unknown:
            raise ValueError(
                f"compute capability is {unknown[0]!r}; TensorRT-RTX builds for "
                f"{', '.join(COMPUTE_CAPABILITIES)}"
            )
        if self.compute_capabilities is not None and not self.compute_capabilities:
            raise ValueError("compute_capabilities is empty; expected one at least")
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise ValueError(f"workspace_bytes is {self.workspace_bytes}; it must be 1 or more")
        level = self.optimization_level
        if level is not None and not 0 <= level <= _MAX_OPTIMIZATION_LEVEL:
            raise ValueError(f"optimization_level is {level}; expected 0 to 5")

    @property
    def targets(self) -> tuple[str, ...]:
        """Compute capabilities to build for, once each, ascending; empty with tensorrt."""
        if self.library != "tensorrt-rtx":
            return ()
        names = self.compute_capabilities or DEFAULT_COMPUTE_CAPABILITIES
        return tuple(name for name in COMPUTE_CAPABILITIES if name in names)

    def check_against(self, tensorrt: TensorRT) -> None:
        """Refuse what this library would ignore, or fail at after a long build.

        Raises:
            BuildError: it says what the library does with the option.
        """
        can = tensorrt.capabilities
        refused = (
            (
                self.compute_capabilities is not None and not can.compute_capabilities,
                "--compute-capability",
                "builds for the GPU of the machine it runs on",
                "Leave it out, or use --engine tensorrt-rtx.",
            ),
            (
                self.timing_cache is not None and not can.timing_cache,
                "--timing-cache",
                "compiles kernels where the plan runs, so it ignores timings",
                "Leave it out.",
            ),
            (
                self.hardware_compatible and not can.hardware_compatibility,
                "--hardware-compatible",
                "ignores it",
                "Name the GPUs with --compute-capability: one plan holds all of them.",
            ),
            (
                self.version_compatible and not can.version_compatibility,
                "--version-compatible",
                "lacks the library that such plans need (libnvinfer_lean)",
                "Leave it out, and build again with the release that will run the plan.",
            ),
        )
        for is_refused, option, reason, hint in refused:
            if is_refused:
                raise BuildError(f"{tensorrt} takes no {option}: it {reason}.", hint=hint)


def _unknown(name: str) -> bool:
    return name not in COMPUTE_CAPABILITIES
