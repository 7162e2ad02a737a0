"""What the wheel promises, read from the repository itself."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fcn_deploy
from fcn_deploy.libraries import LIBRARIES

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT_TEXT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PYPROJECT: dict[str, Any] = tomllib.loads(PYPROJECT_TEXT)
PROJECT: dict[str, Any] = PYPROJECT["project"]
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
)


# extras whose libraries come from NVIDIA's index, are compiled with CUDA's headers, or exclude
# what CI installs
NEEDS_CUDA = {"gpu", "ort-gpu"}


def requirements() -> list[Requirement]:
    """Give everything that CI installs of others, groups and extras included."""
    listed = PROJECT["optional-dependencies"]
    extras = [texts for extra, texts in listed.items() if extra not in NEEDS_CUDA]
    groups = PYPROJECT["dependency-groups"].values()
    texts = [
        *PYPROJECT["build-system"]["requires"],
        *PROJECT["dependencies"],
        *(text for extra in extras for text in extra),
        *(text for group in groups for text in group if isinstance(text, str)),
    ]
    parsed = [Requirement(text) for text in texts]
    return [requirement for requirement in parsed if requirement.name != PROJECT["name"]]


@pytest.mark.parametrize("folder", ["export", "benchmarks"])
def test_folder_around_a_package_is_no_package(folder: str) -> None:
    # with an __init__.py, `export.fcn_export` would be a second copy of every module
    assert not (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize(
    "package", PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
)
def test_package_says_that_it_is_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()
    assert (ROOT / package / "__init__.py").is_file()


def test_version_is_written_in_one_place() -> None:
    assert "version" in PROJECT["dynamic"]
    assert "version" not in PROJECT
    assert PYPROJECT["tool"]["hatch"]["version"]["path"] == "fcn_deploy/__init__.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+", fcn_deploy.__version__)


def test_version_has_its_place_in_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

    assert re.search(rf"^## \[(Unreleased|{re.escape(fcn_deploy.__version__)})\]", changelog, re.M)


@pytest.mark.parametrize("command", PROJECT["scripts"])
def test_command_leads_to_a_function(command: str) -> None:
    module, _, name = PROJECT["scripts"][command].partition(":")

    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_pin_lies_in_the_range_that_users_get(requirement: Requirement) -> None:
    pins = {canonicalize_name(name): version for name, version in PINS.items()}

    assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


def test_torch_and_torchvision_are_pinned_to_the_pair_that_was_tried() -> None:
    assert (PINS["torch"], PINS["torchvision"]) == ("2.14.1", "0.29.1")


@pytest.mark.parametrize(
    "library",
    [library for library in LIBRARIES if library.required or library.extra],
    ids=lambda library: str(library.distribution),
)
def test_doctor_and_pyproject_agree_on_the_oldest_release(library: Any) -> None:
    listed = PROJECT["dependencies"] if library.required else PROJECT["optional-dependencies"]
    texts = listed if library.required else listed[library.extra]
    found = {r.name: r.specifier for r in map(Requirement, texts)}

    specifier = found[library.distribution]

    assert {str(part) for part in specifier if part.operator != "<"} == {
        f">={library.usable_from or library.floor}",
        *(f"!={version}" for version in library.refused),
    }


def test_doctor_knows_every_library_that_users_get() -> None:
    extras = PROJECT["optional-dependencies"].values()
    texts = [*PROJECT["dependencies"], *(text for extra in extras for text in extra)]
    names = {Requirement(text).name for text in texts} - {PROJECT["name"]}

    assert names <= {
        name for library in LIBRARIES for name in (library.distribution, *library.alternatives)
    }


def test_all_is_every_extra_that_needs_no_cuda() -> None:
    extras = PROJECT["optional-dependencies"]

    (everything,) = map(Requirement, extras["all"])

    assert everything.extras == set(extras) - {"all"} - NEEDS_CUDA


def test_every_lint_exception_has_its_reason_beside_it() -> None:
    section = PYPROJECT_TEXT.split("[tool.ruff.lint]", 1)[1].split("[tool.ruff.lint.flake8", 1)[0]
    exceptions = section.split("ignore = [", 1)[1]

    codes = re.findall(r'^ *"[A-Z]+\d*",.*$', exceptions, re.MULTILINE)

    assert codes
    assert [line for line in codes if not re.search(r"# \w+", line)] == []


def test_inline_exceptions_name_their_rule() -> None:
    bare = re.compile(r"#\s*(noqa(?!: ?[A-Z])|type:\s*ignore(?!\[))")
    folders = ("fcn_deploy", "export", "benchmarks", "examples", "scripts", "tests")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]

    found = [file for file in files if bare.search(file.read_text(encoding="utf-8"))]

    assert files
    assert [file.relative_to(ROOT) for file in found] == []


# of other libraries, which have no public name for it
FOREIGN_PRIVATE = {"_didModify", "_exit", "_forward_hooks", "_metadata"}


def is_private(name: object) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__")


def private_reaches(tree: ast.AST) -> Iterator[str]:
    """Give each private name that code takes from another object or module than its own."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(ast.Name("self" | "cls")):
                pass
            case ast.Attribute(attr=name) if is_private(name):
                yield name
            case ast.ImportFrom(names=names):
                yield from (alias.name for alias in names if is_private(alias.name))
            # monkeypatch.setattr(module, "_name", ...), and of "package.module._name"
            case ast.Call(ast.Attribute(attr="setattr" | "delattr"), args):
                texts = [arg.value for arg in args[:2] if isinstance(arg, ast.Constant)]
                last = (text.rpartition(".")[2] for text in texts if isinstance(text, str))
                yield from filter(is_private, last)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("session._ring.close()", ["_ring"]),
        ("from fcn_deploy.machine import _read, usable_cores", ["_read"]),
        ('monkeypatch.setattr(device, "_probe", None)', ["_probe"]),
        ('patch.setattr("fcn_deploy.machine._read", None)', ["_read"]),
        ('self._own = cls._shared; x.__name__; patch.setattr(x, "__init__", f)', []),
    ],
)
def test_reach_into_private_parts_is_noticed(code: str, found: list[str]) -> None:
    assert list(private_reaches(ast.parse(code))) == found


def test_no_test_reaches_into_private_parts() -> None:
    files = sorted((ROOT / "tests").rglob("*.py"))

    reaches = {
        str(file.relative_to(ROOT)): names
        for file in files
        if (names := set(private_reaches(ast.parse(file.read_text("utf-8")))) - FOREIGN_PRIVATE)
    }

    assert files
    assert reaches == {}
