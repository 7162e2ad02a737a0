"""Check from the manifest that a plan can run here, before any library parses the plan."""

from __future__ import annotations

from dataclasses import dataclass

from fcn_deploy.artifact.manifest import Manifest, Variant
from fcn_deploy.backends.tensorrt.api import TensorRT
from fcn_deploy.backends.tensorrt.device import DeviceInfo
from fcn_deploy.errors import EngineMismatchError
from fcn_deploy.machine import version_numbers

__all__ = ["PlanRecord", "check_plan"]


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """The facts about a plan that the manifest gives before the plan is read.

    Attributes:
        library: the backend that built it, and alone can run it.
        version: of that library; None where it was not recorded.
        compute_capabilities: of the GPUs that it was built for, such as ``"8.6"``; ``"8.0+"``
            means that one and all later; empty where it was not recorded.
        version_compatible: it was built for later releases of the library, too.
    """

    library: str
    version: str | None = None
    compute_capabilities: tuple[str, ...] = ()
    version_compatible: bool = False

    @classmethod
    def of(cls, variant: Variant, manifest: Manifest) -> PlanRecord:
        """Read what the manifest says of a plan."""
        backend = variant.backend or ""
        return cls(
            library=backend,
            version=variant.library_version or manifest.provenance.get(backend),
            compute_capabilities=variant.compute_capabilities,
            version_compatible=variant.version_compatible,
        )


def check_plan(record: PlanRecord, library: TensorRT, device: DeviceInfo, *, name: str) -> None:
    """Refuse a plan that was built for another library, release or GPU.

    Raises:
        EngineMismatchError: it was; the message has both sides.
    """
    if record.library != library.library:
        raise EngineMismatchError(
            f"'{name}' was built by {record.library}; {library.library} cannot run it.",
            hint=f"Open it with --backend {record.library}.",
        )
    capability = ".".join(map(str, device.compute_capability))
    here = f"this process has {library} on compute capability {capability} ({device.name})"
    built = f"'{name}' was built with {library.title} {record.version or 'of unknown release'}"
    if record.compute_capabilities:
        built += f" for compute capability {', '.join(record.compute_capabilities)}"
    if record.version is not None and not _release_fits(record, library):
        raise EngineMismatchError(
            f"{built}; {here}.",
            hint=f"Install {record.library} {record.version}, or export the model again here.",
        )
    wanted = record.compute_capabilities
    if wanted and not any(_serves(each, device.compute_capability) for each in wanted):
        raise EngineMismatchError(
            f"{built}; {here}.", hint="Export the model again for this GPU or on it."
        )


def _release_fits(record: PlanRecord, library: TensorRT) -> bool:
    built = version_numbers(record.version or "")[:3]
    here = library.version[: len(built)]
    if record.version_compatible:  # within one major release, from the older to the newer
        return built[:1] == here[:1] and built <= here
    return built == here


def _serves(target: str, capability: tuple[int, int]) -> bool:
    numbers = version_numbers(target.removesuffix("+"))
    return capability >= numbers[:2] if target.endswith("+") else capability == numbers[:2]
