"""How commands end: statuses, one-line errors, signals, pipes."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fcn_deploy.cli.run import Parser, add_common_options, parse_size, run_command, write_json
from fcn_deploy.errors import BudgetError, FcnDeployError, ParityError, ShapeError

ROOT = Path(__file__).parents[3]


def parser() -> Parser:
    made = Parser(prog="fcn-test")
    add_common_options(made)
    return made


@pytest.mark.parametrize(
    ("error", "status"),
    [(ParityError("off."), 1), (BudgetError("over."), 1), (ShapeError("small."), 2)],
)
def test_an_error_is_one_line_and_its_status(
    error: FcnDeployError, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    error.hint = "Do\nthis."

    def run(args: argparse.Namespace) -> int:
        raise error

    assert run_command(run, parser(), []) == status
    assert capsys.readouterr().err == f"fcn-test: {error.message} Do this.\n"


def test_a_programming_mistake_keeps_its_traceback() -> None:
    def run(args: argparse.Namespace) -> int:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        run_command(run, parser(), [])


def test_a_usage_error_is_status_2_and_names_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run_command(lambda args: 0, parser(), ["--nonsense"])

    assert capsys.readouterr().err == (
        "fcn-test: unrecognized arguments: --nonsense. See fcn-test --help.\n"
    )


CHILD = """
import argparse, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
from fcn_deploy.cli.run import Parser, add_common_options, run_command
from fcn_deploy.errors import ShapeError
def run(args):
    if sys.argv[1] == "fail":
        raise ShapeError("too small.")
    if sys.argv[1] == "flood":
        for n in range(100_000):
            print(n)
        return 0
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleaned", flush=True)
parser = Parser(prog="fcn-test")
add_common_options(parser)
sys.exit(run_command(run, parser, sys.argv[2:]))
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_cleans_up_and_gives_its_status(number: signal.Signals, status: int) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, "sleep"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"

    child.send_signal(number)
    out, err = child.communicate(timeout=30)

    assert child.returncode == status
    assert out == "cleaned\n"
    assert "Traceback" not in err


@pytest.mark.parametrize("debug", [False, True])
def test_a_traceback_is_shown_with_debug_only(debug: bool) -> None:
    child = subprocess.run(
        [sys.executable, "-c", CHILD, "fail", *(["--debug"] if debug else [])],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip

    assert child.returncode == 2
    assert ("Traceback" in child.stderr) is debug
    assert child.stderr.endswith("fcn-test: too small.\n")


def test_a_closed_pipe_ends_quietly() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, "flood"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.readline()

    child.stdout.close()

    assert child.stderr.read() == ""
    child.stderr.close()
    assert child.wait() == 141


@pytest.mark.parametrize(("text", "size"), [("720x1280", (720, 1280)), ("1X1", (1, 1))])
def test_a_size_is_height_by_width(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "720", "0x5", "-1x5", "axb", "1x2x3", "1.5x2"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="not HEIGHTxWIDTH"):
        parse_size(text)


def test_json_is_written_whole_or_not_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(str(tmp_path / "a.json"), {"b": 1, "a": [2]})
    write_json("-", {"b": 1})

    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [2], "b": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert json.loads(capsys.readouterr().out) == {"b": 1}
    with pytest.raises(FcnDeployError, match=r"cannot write .*writable folder"):
        write_json(str(tmp_path / "nowhere" / "a.json"), {})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(str(tmp_path / "a.json"), {"nan": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [2], "b": 1}


def test_a_name_that_is_not_utf8_is_printed_and_written_as_valid_text(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from fcn_deploy.cli.run import Parser, add_common_options, run_command, write_json\n"
        "from fcn_deploy.cli.run import write_text\n"
        "from fcn_deploy.errors import ShapeError\n"
        "name = os.fsdecode(b'clip\\xff')\n"
        "def run(args):\n"
        "    print(name)\n"
        "    write_json(sys.argv[1] + '/a.json', {name: [name, (1, {'é': name})]})\n"
        "    write_json('-', {name: 1})\n"
        "    write_text(Path(sys.argv[1]) / 'a.md', name)\n"
        "    raise ShapeError(name)\n"
        "parser = Parser(prog='fcn-test')\n"
        "add_common_options(parser)\n"
        "sys.exit(run_command(run, parser, []))\n"
    )

    child = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, cwd=ROOT, check=False
    )

    name = r"clip\udcff"
    assert (child.returncode, child.stderr) == (2, b"fcn-test: clip\\udcff\n")
    printed, document = child.stdout.decode().split("\n", 1)
    assert (printed, json.loads(document)) == (name, {name: 1})
    assert json.loads((tmp_path / "a.json").read_bytes()) == {name: [name, [1, {"é": name}]]}
    assert (tmp_path / "a.md").read_text(encoding="utf-8") == name
