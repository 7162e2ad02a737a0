"""List the libraries that the project uses: purpose, install command, releases that are too old."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from fcn_deploy.machine import distribution_version, nvidia_gpus, version_numbers

__all__ = ["LIBRARIES", "Library", "LibraryState", "LibraryStatus", "check_libraries"]

LibraryState = Literal["ok", "outdated", "conflict", "missing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """A library, and the oldest release of it that should be used.

    Attributes:
        distribution: the name that pip knows.
        module: the name that Python imports; None for what it does not import.
        purpose: what it does here.
        floor: the first release to use.
        reason: what is wrong with older ones.
        extra: extra of fcn-deploy that installs it; None for what every installation has, and for
            what comes with other libraries.
        required: whether an installation without it is incomplete.
        refused: later releases that must not be used all the same.
        alternatives: other distributions of the same module.
        usable_from: the first release that works at all, where a later one is the first to use.
        gpu: whether it is useful with an NVIDIA GPU only.
    """

    distribution: str
    module: str | None
    purpose: str
    floor: str
    reason: str
    extra: str | None = None
    required: bool = False
    refused: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()
    usable_from: str | None = None
    gpu: bool = False

    @property
    def install(self) -> str:
        """The command that installs it, or brings it up to date."""
        if self.extra is not None:
            return f"pip install -U 'fcn-deploy[{self.extra}]'"
        if self.required:
            return "pip install -U fcn-deploy"
        return f"pip install -U '{self.distribution}>={self.floor}'"


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryStatus:
    """A library as found here.

    Attributes:
        distribution: the one that is installed, or the one to install.
        version: None where it is missing, or was installed without pip's record.
        state: ``"outdated"`` also where a known fault makes a newer release unusable;
            ``"conflict"`` where two distributions overwrite each other's files.
        advice: what to do, with the command; None where nothing is to be done.
    """

    library: Library
    distribution: str
    version: str | None
    state: LibraryState
    advice: str | None


_API = "this project uses functions that came with it"

# The floors of what fcn-deploy requires are those of pyproject.toml; a test compares them.
LIBRARIES = (
    Library(
        distribution="msgspec",
        module="msgspec",
        purpose="reads JSON into typed values",
        floor="0.20",
        reason=_API,
        required=True,
    ),
    Library(
        distribution="numba",
        module="numba",
        purpose="compiles the step from scores to labels",
        floor="0.61",
        reason=_API,
        required=True,
    ),
    Library(
        distribution="numpy",
        module="numpy",
        purpose="arrays",
        floor="2.0",
        reason=_API,
        required=True,
    ),
    Library(
        distribution="opencv-python-headless",
        module="cv2",
        purpose="images and video",
        floor="4.14.0.94",
        reason="its FFmpeg writes out of bounds on crafted video (CVE-2026-8461)",
        required=True,
        refused=("5.0.0.93",),
        alternatives=("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless"),
    ),
    Library(
        distribution="rich",
        module="rich",
        purpose="tables and progress",
        floor="13",
        reason=_API,
        required=True,
    ),
    Library(
        distribution="openvino",
        module="openvino",
        purpose="runs networks on the CPU",
        floor="2026.0",
        reason=_API,
        extra="cpu",
    ),
    Library(
        distribution="onnxruntime",
        module="onnxruntime",
        purpose="runs networks on the CPU",
        floor="1.30.1",
        reason="crafted models corrupt its memory",
        extra="onnxruntime",
        alternatives=("onnxruntime-gpu",),
    ),
    Library(
        distribution="torch",
        module="torch",
        purpose="fcn-export, baselines of fcn-bench",
        floor="2.11",
        reason="crafted checkpoints execute code (CVE-2026-24747, CVE-2026-4538)",
        extra="export",
    ),
    Library(
        distribution="torchvision",
        module="torchvision",
        purpose="fcn-export, known architectures",
        floor="0.26",
        reason="it belongs to a torch before 2.11",
        extra="export",
    ),
    Library(
        distribution="onnx",
        module="onnx",
        purpose="fcn-export, checks .onnx files that are in no artifact",
        floor="1.22",
        reason=(
            "crafted models corrupt its memory or read other files (CVE-2026-44512, CVE-2026-27489)"
        ),
        extra="export",
    ),
    Library(
        distribution="onnx-ir",
        module="onnx_ir",
        purpose="fcn-export",
        floor="1.1",
        reason=_API,
        extra="export",
    ),
    Library(
        distribution="onnxscript",
        module="onnxscript",
        purpose="fcn-export",
        floor="0.7",
        reason=_API,
        extra="export",
    ),
    Library(
        distribution="safetensors",
        module="safetensors",
        purpose="fcn-export, .safetensors",
        floor="0.5",
        reason=_API,
        extra="export",
    ),
    Library(
        distribution="psutil",
        module="psutil",
        purpose="fcn-bench, memory",
        floor="6",
        reason=_API,
        extra="bench",
    ),
    Library(
        distribution="av",
        module="av",
        purpose="video, second decoder and crash-safe writer",
        floor="18.1",
        reason="its FFmpeg writes out of bounds on crafted video (CVE-2026-8461)",
        extra="video",
    ),
    Library(
        distribution="protobuf",
        module="google.protobuf",
        purpose="comes with onnx and onnxruntime",
        floor="6.33.5",
        reason="crafted messages stop it (CVE-2026-0994)",
    ),
    Library(
        distribution="pillow",
        module="PIL",
        purpose="comes with torchvision",
        floor="13.0",
        reason="crafted images corrupt its memory (CVE-2026-40192 and later)",
    ),
    Library(
        distribution="tensorrt",
        module="tensorrt",
        purpose="builds and runs plans on NVIDIA GPUs",
        floor="11.0",
        reason="crafted plans execute code (CVE-2026-24227)",
        extra="gpu",
        usable_from="10.13",
        gpu=True,
    ),
    Library(
        distribution="pycuda",
        module="pycuda",
        purpose="drives NVIDIA GPUs, for TensorRT",
        floor="2026.1",
        reason="older releases do not compile with CUDA 13",
        extra="gpu",
        gpu=True,
    ),
    Library(
        distribution="cuda-bindings",
        module="cuda.bindings",
        purpose="drives NVIDIA GPUs, with CUDA graphs",
        floor="13.0",
        reason=_API,
        extra="gpu",
        gpu=True,
    ),
    Library(
        distribution="nvidia-cuda-nvrtc",
        module=None,
        purpose="compiles the head for NVIDIA GPUs",
        floor="13.0",
        reason="it belongs to a CUDA before 13",
        extra="gpu",
        gpu=True,
    ),
    Library(
        distribution="tensorrt-rtx",
        module="tensorrt_rtx",
        purpose="builds plans for NVIDIA GPUs, without one too",
        floor="1.7",
        reason=_API,
        extra="rtx",
        gpu=True,
    ),
)


def check_libraries() -> tuple[LibraryStatus, ...]:
    """Compare what is installed with what is needed. Imports none of it."""
    return tuple(_check(library) for library in LIBRARIES)


def _check(library: Library) -> LibraryStatus:
    names = (library.distribution, *library.alternatives)
    found = {name: version for name in names if (version := distribution_version(name))}
    if not found:
        if library.module is not None and _importable(library.module):
            return LibraryStatus(
                library=library,
                distribution=library.distribution,
                version=None,
                state="ok",
                advice=None,
            )
        wanted = library.required or library.extra is not None
        worth_it = wanted and (not library.gpu or bool(nvidia_gpus()))
        advice = library.install if worth_it else None
        return LibraryStatus(
            library=library,
            distribution=library.distribution,
            version=None,
            state="missing",
            advice=advice,
        )
    name, version = next(iter(found.items()))
    if len(found) > 1:
        # they share one folder: whichever came last has overwritten the others' files
        others = " ".join(other for other in found if other != name)
        advice = f"pip uninstall {others}; then pip install --force-reinstall {name}"
        return LibraryStatus(
            library=library, distribution=name, version=version, state="conflict", advice=advice
        )
    numbers = version_numbers(version)
    too_old = numbers < version_numbers(library.floor)
    if too_old or numbers in map(version_numbers, library.refused):
        command = library.install if name == library.distribution else f"pip install -U {name}"
        advice = f"{library.reason}; use {library.floor} or later: {command}"
        return LibraryStatus(
            library=library, distribution=name, version=version, state="outdated", advice=advice
        )
    return LibraryStatus(
        library=library, distribution=name, version=version, state="ok", advice=None
    )


def _importable(module: str) -> bool:
    top = module.partition(".")[0]
    return find_spec(top) is not None and (top == module or find_spec(module) is not None)
