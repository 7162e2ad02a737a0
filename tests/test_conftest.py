"""The ban on skips is tried on tests that skip, in a pytest of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")

SKIPPING = {
    "by_mark": "@pytest.mark.skip(reason='too lazy')\ndef test_it() -> None: ...",
    "in_the_body": "def test_it() -> None:\n    pytest.skip('too lazy')",
    "in_a_fixture": (
        "@pytest.fixture\ndef it() -> None:\n    pytest.skip('too lazy')\n"
        "def test_it(it: None) -> None: ..."
    ),
    "whole_module": "pytest.importorskip('no_such_module', reason='too lazy')",
}
TOLERATED = {
    "allowed": "@pytest.mark.skip(reason='needs an NVIDIA GPU, 8.6')\ndef test_it() -> None: ...",
    "expected": "@pytest.mark.xfail(strict=True)\ndef test_it() -> None:\n    raise ValueError",
}


def run_pytest(folder: Path, tests: dict[str, str], *, forbid: bool) -> tuple[int, str]:
    (folder / "conftest.py").write_text(CONFTEST.read_text())
    for name, code in tests.items():
        (folder / f"test_{name}.py").write_text(f"import pytest\n{code}\n")
    environment = {name: text for name, text in os.environ.items() if name != "FCN_FORBID_SKIPS"}
    if forbid:
        environment["FCN_FORBID_SKIPS"] = "1"
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA"),
            *("--continue-on-collection-errors", "--import-mode=importlib", str(folder)),
        ],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return run.returncode, run.stdout


def test_every_skip_without_an_allowed_reason_fails_where_skips_are_forbidden(
    tmp_path: Path,
) -> None:
    status, output = run_pytest(tmp_path, SKIPPING | TOLERATED, forbid=True)

    assert status == 1
    for name in SKIPPING:
        message = f"test_{name}.py.*: skipping is forbidden here, and this skips: too lazy"
        assert re.search(message, output), name
    assert "1 failed, 1 skipped, 1 xfailed, 3 errors" in output  # errors: failures in the set-up


def test_skips_are_fine_elsewhere(tmp_path: Path) -> None:
    status, output = run_pytest(tmp_path, SKIPPING, forbid=False)

    assert status in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    assert "4 skipped" in output
