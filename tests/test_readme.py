"""What the documents tell users to type is what the commands take, and what they link to exists."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from fcn_bench.cli import build_parser as bench_parser
from fcn_deploy.cli.doctor import build_parser as doctor_parser
from fcn_deploy.cli.run import Parser
from fcn_deploy.cli.segment import build_parser as segment_parser
from fcn_export.cli import build_parser as export_parser

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("examples/*/README.md")]
PARSERS: dict[str, Callable[[], Parser]] = {
    "fcn-bench": bench_parser,
    "fcn-doctor": doctor_parser,
    "fcn-export": export_parser,
    "fcn-segment": segment_parser,
}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```(?:{language})\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def command_lines() -> list[str]:
    """Give every line that begins with one of our commands, continued lines joined."""
    lines: list[str] = []
    for document in DOCUMENTS:
        for block in blocks(document.read_text(encoding="utf-8"), "console|sh|bash"):
            for line in block.replace("\\\n", " ").splitlines():
                typed = line.removeprefix("$ ").strip()
                if typed.split(" ")[0] in PARSERS:
                    lines.append(typed)
    return lines


@pytest.mark.parametrize("line", command_lines())
def test_commands_in_the_documents_are_taken(line: str) -> None:
    name, *arguments = shlex.split(line, comments=True)

    parsed = PARSERS[name]().parse_args(arguments)

    assert vars(parsed)


def test_every_command_is_shown() -> None:
    assert {line.split(" ")[0] for line in command_lines()} == PARSERS.keys()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_python_in_the_documents_is_python(document: Path) -> None:
    for block in blocks(document.read_text(encoding="utf-8"), "python"):
        ast.parse(block)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]

    assert [link for link in local if not (document.parent / link).exists()] == []
