"""No library that this project imports reports anything about its user."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fcn_deploy.telemetry import import_onnxruntime, import_openvino, telemetry_settings
from tests.deploy.graphs import segmentation_graph

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("fcn_deploy", "export", "benchmarks", "scripts", "examples")
REPORTING = {"onnxruntime", "openvino"}
SEAM = "fcn_deploy/telemetry.py"
# runs in the environment of --nncf-python, which has no fcn_deploy
ALONE = "benchmarks/research/nncf_quantize.py"

NOWHERE = "http://127.0.0.1:9"  # so that a run that is meant to report reaches nobody

RUN_BACKENDS = """
import sys
import numpy as np
from fcn_deploy import Segmenter

for backend in ("onnxruntime", "openvino"):
    with Segmenter.open(sys.argv[1], backend=backend) as segmenter:
        print(backend, segmenter(np.zeros((12, 16, 3), np.uint8)).labels.shape)
"""

RUN_EVERYTHING = """
import sys
from pathlib import Path
import numpy as np
from fcn_bench.cli import main as bench
from fcn_deploy.cli.doctor import main as doctor
from fcn_deploy.segmenter import Segmenter
from fcn_export.export import ExportRequest, export_model
from tests.export.tiny_networks import HalfResolution, seeded

artifact = Path(sys.argv[1]).with_name("tiny.fcn")
request = ExportRequest(size=(48, 48), min_size=(32, 32), max_size=(96, 96), engine="none")
export_model(seeded(HalfResolution), artifact, request=request)
with Segmenter.open(artifact) as segmenter:
    segmenter(np.zeros((40, 48, 3), np.uint8))
steady = ["--rounds", "1", "--min-duration", "0.1", "--warmup", "1"]
assert bench([str(artifact), "--size", "48x48", *steady]) == 0
assert doctor([str(artifact)]) == 0
"""

IMPORT_AS_THEY_COME = "import onnxruntime, openvino"


def run_in_an_empty_home(
    folder: Path, code: str, cache: str | None = None, **environment: str
) -> set[str]:
    """Run code with a new user's home folder; give the folders and files that it leaves there.

    Args:
        cache: name of a folder for XDG_CACHE_HOME, in the home folder.
    """
    home = folder / "home"
    home.mkdir()
    model = folder / "model.onnx"
    model.write_bytes(segmentation_graph())
    # nothing else of this environment: CI and its like would hide what a user meets
    settings = {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in ("", "export", "benchmarks")),
        **dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"), NOWHERE),
        **environment,
    }
    if cache is not None:
        settings["XDG_CACHE_HOME"] = str(home / cache)
    done = subprocess.run(
        [sys.executable, "-c", code, str(model)],
        env=settings,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}


def of_others(files: set[str]) -> set[str]:
    return {file for file in files if "fcn-deploy" not in file.split("/")}


def imports_of(source: str) -> set[str]:
    """Name the top-level packages that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("cache", [None, "elsewhere"])
def test_running_both_backends_leaves_no_report_to_send(tmp_path: Path, cache: str | None) -> None:
    files = run_in_an_empty_home(tmp_path, RUN_BACKENDS, cache)

    assert of_others(files) == set()


@pytest.mark.slow
def test_export_segment_bench_and_doctor_leave_no_report_to_send(tmp_path: Path) -> None:
    files = run_in_an_empty_home(tmp_path, RUN_EVERYTHING)

    assert of_others(files) == set()


def test_the_libraries_report_where_nobody_keeps_them_from_it(tmp_path: Path) -> None:
    # the proof that the tests above can fail
    files = run_in_an_empty_home(tmp_path, IMPORT_AS_THEY_COME)

    names = {file.rpartition("/")[2] for file in files}
    assert {"onnxruntime.db", "openvino_ga_cid"} <= names


def test_a_user_who_set_the_variable_is_obeyed(tmp_path: Path) -> None:
    files = run_in_an_empty_home(tmp_path, RUN_BACKENDS, ORT_DISABLE_TELEMETRY="0")

    assert "onnxruntime.db" in {file.rpartition("/")[2] for file in files}


def test_a_process_started_afterwards_is_silent_too(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; from fcn_deploy.telemetry import import_onnxruntime;"
        "import_onnxruntime();"
        "subprocess.run([sys.executable, '-c', 'import onnxruntime'], check=True)"
    )

    files = run_in_an_empty_home(tmp_path, code)

    assert files == set()


def test_a_process_of_others_is_silent_in_the_environment_for_it(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; from fcn_deploy.telemetry import silent_environment;"
        "command = [sys.executable, '-c', 'import onnxruntime, openvino'];"
        "subprocess.run(command, check=True, env=silent_environment())"
    )

    files = run_in_an_empty_home(tmp_path, code)

    assert files == set()


def test_importing_our_packages_sets_nothing(tmp_path: Path) -> None:
    code = (
        "import os; before = dict(os.environ);"
        "import fcn_deploy.backends.onnxruntime, fcn_deploy.telemetry, fcn_export, fcn_bench;"
        "assert dict(os.environ) == before"
    )

    run_in_an_empty_home(tmp_path, code)


def test_openvinos_reporter_can_be_imported_afterwards() -> None:
    code = (
        "from fcn_deploy.telemetry import import_openvino; import sys;"
        "openvino = import_openvino(); assert 'openvino_telemetry' not in sys.modules;"
        "import openvino_telemetry; print(openvino.convert_model.__name__)"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout == "convert_model\n"


def test_the_libraries_are_the_usual_ones() -> None:
    assert import_onnxruntime() is sys.modules["onnxruntime"]
    assert import_openvino() is sys.modules["openvino"]


def test_a_library_that_is_missing_is_an_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in REPORTING:
        monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(ImportError, match="onnxruntime"):
        import_onnxruntime()
    with pytest.raises(ImportError, match="openvino"):
        import_openvino()


def test_settings_are_those_of_the_project_unless_the_user_has_his_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    ours = telemetry_settings()
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    theirs = telemetry_settings()

    assert ours == {"onnxruntime": "off", "openvino": "off"}
    assert theirs == {"onnxruntime": "as set: ORT_DISABLE_TELEMETRY=0", "openvino": "off"}


def test_every_module_imports_them_through_the_one_that_silences_them() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100

    found = {
        path.relative_to(ROOT).as_posix()
        for path in files
        if imports_of(path.read_text(encoding="utf-8")) & REPORTING
    }

    assert found == {SEAM, ALONE}


def test_tests_import_openvino_silently() -> None:
    files = list((ROOT / "tests").rglob("*.py"))
    assert len(files) > 50

    found = [path for path in files if "openvino" in imports_of(path.read_text(encoding="utf-8"))]

    assert found == []


def test_an_import_inside_a_function_is_found() -> None:
    source = "def load():\n    from onnxruntime.capi import state\n    return state\n"

    assert imports_of(source) == {"onnxruntime"}


def test_the_tests_own_imports_are_silent(users_cache: Path) -> None:
    assert import_onnxruntime().get_available_providers()
    assert not (users_cache / "Microsoft").exists()
