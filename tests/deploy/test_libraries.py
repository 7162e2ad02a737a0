"""Installed versions are replaced by a table: the rules are what is tested."""

from __future__ import annotations

from importlib.machinery import ModuleSpec

import pytest

from fcn_deploy import libraries
from fcn_deploy.libraries import LibraryStatus


def check(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], *, importable: tuple[str, ...] = ()
) -> dict[str, LibraryStatus]:
    monkeypatch.setattr(libraries, "distribution_version", versions.get)
    packages = {name.partition(".")[0] for name in importable}
    found = {name: ModuleSpec(name, None) for name in (*packages, *importable)}
    monkeypatch.setattr(libraries, "find_spec", found.get)
    return {status.library.distribution: status for status in libraries.check_libraries()}


def test_everything_that_ci_installs_is_up_to_date() -> None:
    found = {status.distribution: status.state for status in libraries.check_libraries()}

    assert {name for name, state in found.items() if state != "ok"} <= {
        "tensorrt",
        "pycuda",
    }


def test_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    found = check(monkeypatch, {})

    assert found["openvino"].state == "missing"
    assert found["openvino"].advice == "pip install -U 'fcn-deploy[cpu]'"
    assert found["torch"].advice == "pip install -U 'fcn-deploy[export]'"
    assert found["numpy"].advice == "pip install -U fcn-deploy"


def test_nobody_is_told_to_install_what_other_libraries_bring(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = check(monkeypatch, {})

    assert found["pillow"].advice is None


def test_gpu_libraries_are_advised_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "nvidia_gpus", tuple)
    without = check(monkeypatch, {})
    monkeypatch.setattr(libraries, "nvidia_gpus", lambda: ("RTX 4090",))
    with_gpu = check(monkeypatch, {})

    assert {name: without[name].advice for name in ("tensorrt", "tensorrt-rtx", "pycuda")} == {
        "tensorrt": None,
        "tensorrt-rtx": None,
        "pycuda": None,
    }
    assert with_gpu["tensorrt"].advice == "pip install -U 'fcn-deploy[gpu]'"
    assert with_gpu["tensorrt-rtx"].advice == "pip install -U 'fcn-deploy[rtx]'"


def test_release_that_works_but_is_unsafe_is_outdated(monkeypatch: pytest.MonkeyPatch) -> None:
    found = check(monkeypatch, {"tensorrt": "10.13.3.9"})

    assert found["tensorrt"].state == "outdated"
    assert "CVE-2026-24227" in str(found["tensorrt"].advice)


@pytest.mark.parametrize(
    ("distribution", "version", "state"),
    [
        ("torch", "2.10.0", "outdated"),
        ("torch", "2.11.0+cpu", "ok"),
        ("onnxruntime", "1.30.0", "outdated"),
        ("onnxruntime", "1.30.1", "ok"),
        ("opencv-python-headless", "4.13.0.92", "outdated"),
        ("opencv-python-headless", "4.14.0.94", "ok"),
        ("opencv-python-headless", "5.0.0.93", "outdated"),
        ("opencv-python-headless", "5.0.1.95", "ok"),
    ],
)
def test_release_with_a_known_hole_is_outdated(
    monkeypatch: pytest.MonkeyPatch, distribution: str, version: str, state: str
) -> None:
    found = check(monkeypatch, {distribution: version})

    assert found[distribution].state == state


def test_outdated_library_says_why_and_how(monkeypatch: pytest.MonkeyPatch) -> None:
    found = check(monkeypatch, {"pillow": "12.3.0"})

    assert found["pillow"].advice == (
        "crafted images corrupt its memory (CVE-2026-40192 and later); use 13.0 or later: "
        "pip install -U 'pillow>=13.0'"
    )


def test_other_distribution_of_a_module_counts_and_keeps_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = check(monkeypatch, {"opencv-python": "4.13.0.92"})["opencv-python-headless"]

    assert (found.distribution, found.state) == ("opencv-python", "outdated")
    assert found.advice is not None
    assert found.advice.endswith("pip install -U opencv-python")


def test_two_distributions_of_a_module_are_a_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"opencv-python-headless": "4.14.0.94", "opencv-python": "4.14.0.94"}

    found = check(monkeypatch, versions)["opencv-python-headless"]

    assert found.state == "conflict"
    assert found.advice == (
        "pip uninstall opencv-python; then pip install --force-reinstall opencv-python-headless"
    )


def test_library_without_pips_record_is_not_called_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = check(monkeypatch, {}, importable=("cv2",))["opencv-python-headless"]

    assert (found.state, found.version) == ("ok", None)
