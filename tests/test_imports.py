"""Importing is cheap: heavy libraries are loaded when they are used, and not before."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("fcn_deploy", "fcn_models", "fcn_export", "fcn_bench")
COMMANDS = {
    "fcn-export": "fcn_export.cli",
    "fcn-bench": "fcn_bench.cli",
    "fcn-segment": "fcn_deploy.cli.segment",
    "fcn-doctor": "fcn_deploy.cli.doctor",
}
HEAVY = (
    "av",
    "cv2",
    "numba",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "torch",
    "torchvision",
)


def loaded_by(code: str) -> tuple[set[str], str]:
    """Run code in a new interpreter; give the heavy libraries that it loaded, and its output."""
    report = f"import sys; sys.stderr.write(' '.join(set(sys.modules) & set({HEAVY!r})))"
    path = os.pathsep.join(str(ROOT / folder) for folder in ("", "export", "benchmarks"))
    result = subprocess.run(
        [sys.executable, "-c", f"try:\n    {code}\nfinally:\n    {report}"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return set(result.stderr.split()), result.stdout


@pytest.mark.parametrize("package", [*PACKAGES, "fcn_deploy.testing"])
def test_importing_a_package_loads_no_heavy_library(package: str) -> None:
    loaded, _ = loaded_by(f"import {package}")

    assert loaded == set()


def test_heavy_library_that_is_imported_is_noticed() -> None:
    loaded, _ = loaded_by("import fcn_deploy, cv2")

    assert loaded == {"cv2"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_no_heavy_library(command: str) -> None:
    code = f"from {COMMANDS[command]} import main; main(['--help'])"

    loaded, output = loaded_by(code)

    assert loaded == set()
    assert output.startswith(f"usage: {command}")


@pytest.mark.parametrize("package", PACKAGES)
def test_no_public_name_is_a_module(package: str) -> None:
    # a submodule of the same name takes the name's place as soon as it is loaded
    names = importlib.import_module(package).__all__
    code = (
        f"from {package} import {', '.join(names)}; print([type(x) for x in ({', '.join(names)})])"
    )

    _, output = loaded_by(code)

    assert output.count(",") == len(names) - 1
    assert "module" not in output


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there(package: str) -> None:
    module = importlib.import_module(package)

    missing = [name for name in module.__all__ if not hasattr(module, name)]

    assert module.__all__
    assert missing == []


@pytest.mark.parametrize("package", PACKAGES)
def test_unknown_name_is_refused_with_the_packages_name(package: str) -> None:
    module = importlib.import_module(package)

    with pytest.raises(AttributeError, match=f"'{package}' has no attribute 'no_such_name'"):
        _ = module.no_such_name
