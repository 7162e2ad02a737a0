"""Describe what this machine offers: instructions, usable cores, GPUs, library versions."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

__all__ = [
    "CpuAbilities",
    "CpuFeature",
    "Machine",
    "abilities_of",
    "cpu_abilities",
    "cpu_features",
    "cpu_identity",
    "describe_machine",
    "distribution_version",
    "nvidia_gpus",
    "physical_cores",
    "process_quota",
    "throughput_streams",
    "usable_cores",
    "version_numbers",
]


@dataclass(frozen=True, slots=True)
class CpuFeature:
    """A group of CPU instructions that decides which arithmetic is fast.

    Attributes:
        name: the vendor's usual name, such as ``"AVX-512"``.
        present: None where this system does not say.
        purpose: what a network gains by it.
    """

    name: str
    present: bool | None
    purpose: str


@dataclass(frozen=True, slots=True)
class CpuAbilities:
    """The reduced arithmetic that a CPU has instructions for: what the rules of precision ask.

    There is no fp16 here: graphs of fp16 are computed in fp32, whatever the CPU could do.

    Attributes:
        bf16: it multiplies bf16 without conversion; elsewhere bf16 is slower than fp32.
        int8: it multiplies int8 faster than fp32; without, it depends on the network.
    """

    bf16: bool
    int8: bool


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine as this process sees it.

    Attributes:
        cpu: the model's name, or None where the system does not say.
        features: the instructions that matter on this architecture.
        logical_cores: as the operating system counts them.
        physical_cores: without hyper-threads; None where the system does not say.
        affinity_cores: logical cores that this process may be scheduled on.
        quota_cores: CPU time that the control groups allow, in cores; None means no limit.
        usable_cores: how many threads can run at once without being held back.
        gpus: NVIDIA GPUs that the kernel driver lists.
    """

    system: str
    architecture: str
    python: str
    cpu: str | None
    features: tuple[CpuFeature, ...]
    logical_cores: int
    physical_cores: int | None
    affinity_cores: int
    quota_cores: float | None
    usable_cores: int
    gpus: tuple[str, ...]


# name, purpose, and the flags of /proc/cpuinfo of which one is enough
_X86_FEATURES = (
    ("AVX2", "fp32, 8 values at a time", ("avx2",)),
    ("AVX-512", "fp32, 16 values at a time", ("avx512f",)),
    ("VNNI", "int8 at full speed", ("avx512_vnni", "avx_vnni")),
    ("BF16", "bf16 without conversion", ("avx512_bf16", "amx_bf16")),
    ("AMX", "bf16 and int8 matrix tiles", ("amx_tile",)),
)
_ARM_FEATURES = (
    ("NEON", "fp32, 4 values at a time", ("asimd", "neon")),
    ("DotProd", "int8 at full speed", ("asimddp",)),
    ("FP16", "fp16 without conversion", ("asimdhp",)),
    ("BF16", "bf16 without conversion", ("bf16",)),
    ("I8MM", "int8 matrix products", ("i8mm",)),
    ("SVE", "vectors longer than NEON's", ("sve",)),
)
_FEATURES = {
    "x86_64": _X86_FEATURES,
    "amd64": _X86_FEATURES,
    "aarch64": _ARM_FEATURES,
    "arm64": _ARM_FEATURES,
}
_BF16_FEATURES = frozenset(("BF16", "AMX"))
_INT8_FEATURES = frozenset(("VNNI", "AMX", "DotProd", "I8MM"))

_MOST_STREAMS = 4


def describe_machine() -> Machine:
    """Look at this machine. Reads files of /proc and /sys where there are any; starts nothing."""
    cpuinfo = _read(Path("/proc/cpuinfo"))
    architecture = platform.machine()
    return Machine(
        system=platform.system(),
        architecture=architecture,
        python=platform.python_version(),
        cpu=_cpu_name(cpuinfo),
        features=cpu_features(cpuinfo, architecture),
        logical_cores=os.cpu_count() or 1,
        physical_cores=physical_cores(cpuinfo),
        affinity_cores=_affinity_cores(),
        quota_cores=process_quota(),
        usable_cores=usable_cores(),
        gpus=nvidia_gpus(),
    )


def cpu_abilities() -> CpuAbilities:
    """Say which reduced arithmetic this CPU has instructions for.

    Rules call it as ``machine.cpu_abilities()``, so that their tests replace it in one place.
    """
    return abilities_of(cpu_features(_read(Path("/proc/cpuinfo")), platform.machine()))


def abilities_of(features: tuple[CpuFeature, ...]) -> CpuAbilities:
    """Say what these instructions compute in; one that is not known of counts as absent."""
    present = {feature.name for feature in features if feature.present}
    return CpuAbilities(
        bf16=not present.isdisjoint(_BF16_FEATURES), int8=not present.isdisjoint(_INT8_FEATURES)
    )


def cpu_identity() -> str:
    """Give the CPU's model and instructions in one line: machine code for one may not suit another.

    Empty where the system does not say.
    """
    lines = _read(Path("/proc/cpuinfo")).splitlines()
    telling = ("vendor_id", "cpu family", "model", "stepping", "flags", "CPU part", "Features")
    found = {line for line in lines if line.partition(":")[0].strip() in (*telling, "model name")}
    return " | ".join(" ".join(line.split()) for line in sorted(found))


def throughput_streams(cores: int) -> int:
    """Give how many frames to run at once for the most frames a second: one a core, four at most.

    Several streams of one thread beat one of several, and each takes a frame's memory of its own:
    `benchmarks/NOTES.md`.
    """
    return min(cores, _MOST_STREAMS)


def usable_cores() -> int:
    """Count the threads that can run at once here: CPU affinity and container limits respected.

    A limit of 1.5 cores counts as 1, since a second thread would spend half its time suspended.
    """
    quota = process_quota()
    cores = _affinity_cores()
    return cores if quota is None else max(1, min(cores, int(quota)))


def process_quota(root: Path = Path("/")) -> float | None:
    """Give the CPU time, in cores, that the control groups of this process allow.

    Args:
        root: where ``proc`` and ``sys`` are.

    Returns:
        The tightest limit from the process's own group up to the root; None without any.
    """
    limits = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        names = controllers.split(",")
        if controllers and "cpu" not in names:
            continue
        # version 2 has no controllers in this file, and may be mounted beside version 1
        mounts = ("cpu", "cpu,cpuacct") if controllers else (".", "unified")
        for mount in mounts:
            limits += _limits_upward(root / "sys/fs/cgroup" / mount, path)
    return min(limits, default=None)


def cpu_features(cpuinfo: str, architecture: str) -> tuple[CpuFeature, ...]:
    """Find the instructions that matter.

    Args:
        cpuinfo: text of ``/proc/cpuinfo``; empty where there is none.
        architecture: as `platform.machine` names it.

    Returns:
        One entry a feature; `present` is None where the text holds no flags. Empty for an
        architecture that is not known here.
    """
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    flags = set(line[1].split()) if line else None
    return tuple(
        CpuFeature(name, None if flags is None else not flags.isdisjoint(enough), purpose)
        for name, purpose, enough in _FEATURES.get(architecture.lower(), ())
    )


def physical_cores(cpuinfo: str) -> int | None:
    """Count cores without hyper-threads in the text of ``/proc/cpuinfo``; None if it is silent."""
    sockets = re.findall(r"^physical id\s*:\s*(\d+)$", cpuinfo, re.MULTILINE)
    cores = re.findall(r"^core id\s*:\s*(\d+)$", cpuinfo, re.MULTILINE)
    if not cores or len(cores) != len(sockets):
        return None
    return len(set(zip(sockets, cores, strict=True)))


def nvidia_gpus(root: Path = Path("/")) -> tuple[str, ...]:
    """Name the NVIDIA GPUs that the kernel driver lists; empty without the driver.

    Args:
        root: where ``proc`` is.
    """
    names = []
    for file in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        model = re.search(r"^Model:\s*(.+?)\s*$", _read(file), re.MULTILINE)
        names.append(model[1] if model else "NVIDIA GPU of unknown model")
    return tuple(names)


def distribution_version(name: str) -> str | None:
    """Give the version of an installed distribution without importing it; None if it is absent."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def version_numbers(version: str) -> tuple[int, ...]:
    """Give a release's numbers for comparison: ``"2.14.1+cpu"`` is (2, 14, 1).

    Raises:
        ValueError: the text does not begin with a number.
    """
    release = re.match(r"v?(\d+(?:\.\d+)*)", version)
    if release is None:
        raise ValueError(f"{version!r} is not a version; expected numbers such as 1.2.3")
    return tuple(int(number) for number in release[1].split("."))


def _affinity_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _limits_upward(mount: Path, path: str) -> list[float]:
    """Read the limits of a control group and of every group around it."""
    group = mount / path.strip("/")
    # inside a container the path may be the host's; the walk then ends at the container's own mount
    folders = [mount] if ".." in path else [group, *group.parents]
    limits = [_limit(folder) for folder in folders if folder.is_relative_to(mount)]
    return [limit for limit in limits if limit is not None]


def _limit(folder: Path) -> float | None:
    """Read one group's limit in cores: ``cpu.max`` (version 2) or the two ``cpu.cfs`` files."""
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    if not quota:
        quota = _read(folder / "cpu.cfs_quota_us")
        period = _read(folder / "cpu.cfs_period_us")
    try:
        cores = float(quota) / float(period)
    except (ValueError, ZeroDivisionError):  # "max", or the files are not there
        return None
    return cores if cores > 0 else None  # -1: no limit


def _cpu_name(cpuinfo: str) -> str | None:
    name = re.search(r"^(?:model name|Model)\s*:\s*(.+?)\s*$", cpuinfo, re.MULTILINE)
    return name[1] if name else platform.processor() or None


def _read(path: Path) -> str:
    """Read a text file of the kernel's; empty where it is missing or may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
