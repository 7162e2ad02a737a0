"""Compare what the code uses of TensorRT with snapshots of the real libraries' APIs.

`scripts/dump_tensorrt_api.py` writes the snapshots from NVIDIA's own bindings.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fcn_export.engine.config import COMPUTE_CAPABILITIES

__all__ = ["SNAPSHOTS", "library_of", "member_lookups", "module_names", "problems"]

ROOT = Path(__file__).resolve().parents[3]

Snapshot = Mapping[str, Mapping[str, Any]]

SNAPSHOTS: dict[str, Snapshot] = {
    file.stem: json.loads(file.read_text(encoding="utf-8"))
    for file in sorted((ROOT / "tests" / "data" / "tensorrt_api").glob("*.json"))
}

_COMPARED = {
    bool: ("bool",),
    int: ("int",),
    float: ("float",),
    str: ("str",),
    type(None): ("None",),
    list[str]: ("list[str]", "List[str]"),
}


def library_of(snapshot: str) -> str:
    """Give the library that a snapshot is of."""
    return "tensorrt-rtx" if snapshot.startswith("rtx") else "tensorrt"


def problems(protocol: type, cls: str, snapshot: Snapshot) -> list[str]:
    """Say in what a protocol differs from the real class; empty where code may rely on it."""
    if cls not in snapshot:
        return [f"there is no class {cls}"]
    found = []
    for name in sorted(_declared(protocol)):
        real = snapshot[cls].get(name)
        where = f"{cls}.{name}"
        if real is None:
            found.append(f"{where} is missing")
            continue
        ours = inspect.getattr_static(protocol, name, None)
        if inspect.isfunction(ours):
            found += _compare_method(where, ours, real)
        elif real not in ("property", "read-only property"):
            found.append(f"{where} is no property but {real}")
        elif ours is None and real != "property":  # an attribute, which code may set
            found.append(f"{where} cannot be set")
    return found


def member_lookups(*folders: str) -> Iterator[tuple[str, str, str]]:
    """Find every enum member that code asks an adapter for: (place, enum, member)."""
    for place, call in _calls(folders, "member"):
        (enum,) = _literals(call.args[0])
        for name in _literals(call.args[1]):
            yield place, enum, name


def module_names(file: str) -> set[str]:
    """Find what a module takes from TensorRT's module itself: `module.Name` and `_make("Name")`."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in (
            "module",
            "self._module",
        ):
            names.add(node.attr)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "self._make":
            names.update(_literals(node.args[0]))
    return names - {"__name__"}


def _declared(protocol: type) -> set[str]:
    classes = [cls for cls in protocol.__mro__ if cls.__module__ == protocol.__module__]
    names = {name for cls in classes for name in (*vars(cls), *cls.__annotations__)}
    return {name for name in names if not name.startswith("_")}


def _compare_method(where: str, ours: Any, overloads: list[str]) -> list[str]:
    if not isinstance(overloads, list):
        return [f"{where} is no method but a {overloads}"]
    attempts = [_compare_signature(where, ours, text) for text in overloads]
    return [] if [] in attempts else min(attempts, key=len, default=[f"{where} is undocumented"])


def _compare_signature(where: str, ours: Any, text: str) -> list[str]:
    match = re.fullmatch(r"\((.*)\)(?: -> (.*))?", text)
    assert match is not None, text
    theirs = [_parameter(part) for part in _split(match[1])][1:]  # without self
    hints = typing.get_type_hints(ours)
    declared = list(inspect.signature(ours).parameters.values())[1:]
    found = []
    for mine, real in zip(declared, theirs, strict=False):
        if mine.name != real[0]:
            found.append(f"{where} takes {real[0]}, not {mine.name}")
        elif real[1] not in _COMPARED.get(hints[mine.name], (real[1],)):
            found.append(f"{where} takes {real[0]}: {real[1]}, not {hints[mine.name]}")
        elif mine.default is not mine.empty and not real[2]:
            found.append(f"{where} needs {real[0]}")
    found += [f"{where} takes no {extra.name}" for extra in declared[len(theirs) :]]
    found += [f"{where} needs {name}" for name, _, given in theirs[len(declared) :] if not given]
    result = match[2] or "None"
    if result not in _COMPARED.get(hints["return"], (result,)):
        found.append(f"{where} returns {result}, not {hints['return']}")
    return found


def _parameter(text: str) -> tuple[str, str, bool]:
    """Split ``name: type = default`` in name, type and whether there is a default."""
    name, _, rest = text.partition(": ")
    kind, equals, _ = rest.partition(" = ")
    return name, kind, bool(equals)


def _split(text: str) -> list[str]:
    """Split at commas outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[(<") - (letter in "])>")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _calls(folders: tuple[str, ...], name: str) -> Iterator[tuple[str, ast.Call]]:
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and node.func.attr == name
                    and len(node.args) == 2
                ):
                    yield f"{file.relative_to(ROOT)}:{node.lineno}", node


def _literals(node: ast.expr) -> tuple[str, ...]:
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "COMPUTE_CAPABILITIES":
        return tuple(COMPUTE_CAPABILITIES.values())
    if isinstance(node, ast.IfExp):
        return *_literals(node.body), *_literals(node.orelse)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return (node.value,)
    raise AssertionError(f"'{ast.unparse(node)}' is no literal: this name cannot be checked")
