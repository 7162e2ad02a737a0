"""The machine is described from files of the kernel, so the tests bring their own files."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from fcn_deploy import machine

ZEN_5 = """\
processor\t: 0
model name\t: AMD EPYC
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse2 avx2 avx512f avx_vnni avx512_bf16 avx512_vnni

processor\t: 1
model name\t: AMD EPYC
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu sse2 avx2 avx512f avx_vnni avx512_bf16 avx512_vnni

processor\t: 2
model name\t: AMD EPYC
physical id\t: 1
core id\t\t: 0
flags\t\t: fpu sse2 avx2 avx512f avx_vnni avx512_bf16 avx512_vnni
"""


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_x86_flags_give_the_features_that_matter() -> None:
    features = machine.cpu_features(ZEN_5, "x86_64")

    assert {feature.name: feature.present for feature in features} == {
        "AVX2": True,
        "AVX-512": True,
        "VNNI": True,
        "BF16": True,
        "AMX": False,
    }


def test_one_of_two_vnni_flags_is_enough() -> None:
    features = machine.cpu_features("flags\t\t: avx2 avx_vnni\n", "x86_64")

    assert {f.name for f in features if f.present} == {"AVX2", "VNNI"}


def test_arm_features_are_read_under_their_own_names() -> None:
    features = machine.cpu_features("Features\t: fp asimd asimddp bf16\n", "aarch64")

    assert {f.name for f in features if f.present} == {"NEON", "DotProd", "BF16"}
    assert {f.name for f in features if f.present is False} == {"FP16", "I8MM", "SVE"}


@pytest.mark.parametrize(
    ("architecture", "flags", "bf16", "int8"),
    [
        ("x86_64", "avx2", False, False),
        ("x86_64", "avx2 avx512f", False, False),
        ("x86_64", "avx2 avx_vnni", False, True),
        ("x86_64", "avx2 avx512f avx512_vnni", False, True),
        ("x86_64", "avx2 avx512f avx512_bf16", True, False),
        ("x86_64", "avx2 avx512f avx512_fp16", False, False),
        ("x86_64", "avx2 avx512f avx512_vnni amx_tile amx_int8 amx_bf16", True, True),
        ("aarch64", "asimd asimdhp", False, False),
        ("aarch64", "asimd asimddp", False, True),
        ("aarch64", "asimd i8mm bf16", True, True),
        ("riscv64", "avx512_bf16 avx512_vnni", False, False),
    ],
)
def test_abilities_follow_from_the_instructions(
    architecture: str, flags: str, bf16: bool, int8: bool
) -> None:
    features = machine.cpu_features(f"flags\t\t: {flags}\n", architecture)

    assert machine.abilities_of(features) == machine.CpuAbilities(bf16=bf16, int8=int8)


def test_an_ability_that_is_not_known_of_counts_as_absent() -> None:
    features = machine.cpu_features("", "x86_64")

    assert machine.abilities_of(features) == machine.CpuAbilities(bf16=False, int8=False)


def test_abilities_are_those_of_this_machine() -> None:
    assert machine.cpu_abilities() == machine.abilities_of(machine.describe_machine().features)


def test_without_cpuinfo_features_are_unknown_and_not_absent() -> None:
    features = machine.cpu_features("", "arm64")

    assert features
    assert all(feature.present is None for feature in features)


def test_unknown_architecture_has_no_features_to_report() -> None:
    assert machine.cpu_features(ZEN_5, "riscv64") == ()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_features_agree_with_what_numpy_detects_on_this_cpu() -> None:
    simd = np.show_config(mode="dicts")["SIMD Extensions"]

    here = {feature.name: feature.present for feature in machine.describe_machine().features}

    assert here.get("AVX2", False) == any(
        name in {"AVX2", "X86_V3"} for name in (*simd["found"], *simd["baseline"])
    )


def test_hyper_threads_do_not_count_as_physical_cores() -> None:
    assert machine.physical_cores(ZEN_5) == 2
    assert machine.physical_cores("processor : 0\n") is None


def test_version_2_limit_of_the_own_group_is_found(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/box\n",
            "sys/fs/cgroup/pod/box/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/pod/cpu.max": "max 100000\n",
        },
    )

    assert machine.process_quota(root) == 1.5


def test_limit_of_an_outer_group_counts_if_it_is_tighter(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/box\n",
            "sys/fs/cgroup/pod/box/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/pod/cpu.max": "200000 100000\n",
        },
    )

    assert machine.process_quota(root) == 2.0


def test_version_1_limit_is_found_where_the_container_hides_the_hosts_path(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/1f\n2:cpu,cpuacct:/docker/1f\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/cpu.cfs_quota_us": "1\n",
        },
    )

    assert machine.process_quota(root) == 3.0


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"},
        {
            "proc/self/cgroup": "1:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        {"proc/self/cgroup": "0::/../../elsewhere\n", "sys/fs/elsewhere/cpu.max": "1 100\n"},
    ],
    ids=["no control groups", "version 2 without limit", "version 1 without limit", "outside"],
)
def test_no_limit_is_none(tmp_path: Path, files: dict[str, str]) -> None:
    assert machine.process_quota(write(tmp_path, files)) is None


@pytest.mark.parametrize(
    ("quota", "expected"), [(None, 4), (0.5, 1), (1.5, 1), (2.0, 2), (3.99, 3), (64.0, 4)]
)
def test_usable_cores_are_limited_by_affinity_and_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 7}, raising=False)
    monkeypatch.setattr(machine, "process_quota", lambda: quota)

    assert machine.usable_cores() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_usable_cores_follow_the_affinity_of_this_process() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})

        assert machine.usable_cores() == 1
        assert machine.describe_machine().affinity_cores == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_gpus_are_named_from_the_drivers_files(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA L4\nIRQ: 1\n",
            "proc/driver/nvidia/gpus/0000:02:00.0/information": "IRQ: 2\n",
        },
    )

    assert machine.nvidia_gpus(root) == ("NVIDIA L4", "NVIDIA GPU of unknown model")
    assert machine.nvidia_gpus(tmp_path / "nothing") == ()


def test_streams_are_one_a_core_up_to_four() -> None:
    assert [machine.throughput_streams(cores) for cores in (1, 2, 4, 64)] == [1, 2, 4, 4]


def test_versions_are_compared_by_number_and_not_by_text() -> None:
    numbers = machine.version_numbers

    assert numbers("2.14.1+cpu") == (2, 14, 1)
    assert numbers("4.14.0.94") > numbers("4.9.0.80")
    assert numbers("v1.2.3rc1") == (1, 2, 3)


def test_text_that_is_no_version_is_refused() -> None:
    with pytest.raises(ValueError, match="'unknown' is not a version"):
        machine.version_numbers("unknown")


def test_absent_distribution_has_no_version() -> None:
    assert machine.distribution_version("numpy") == np.__version__
    assert machine.distribution_version("no-such-distribution-at-all") is None
