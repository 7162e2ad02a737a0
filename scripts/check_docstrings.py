"""Check that public docstrings say the shape and dtype of arrays, and name the errors raised.

A public function that takes or returns arrays says their shape, such as ``[H, W, 3]``, and their
dtype. A function that raises an error itself names the error's class under ``Raises``. A method
without a docstring must implement a documented method of a Protocol, or declare a method of a
foreign library.

    python scripts/check_docstrings.py        exits with 1 and a line for each place that does not
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeGuard

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("fcn_deploy", "export/fcn_models", "export/fcn_export", "benchmarks/fcn_bench")

_ARRAY = re.compile(r"\b(Array|ndarray|Tensor)\b")
_SHAPE = re.compile(r"\[[\w ,.*+/-]*\]|\bshapes?\b|\bscalar\b")
_DTYPE = re.compile(r"\b(u?int(8|16|32|64)?|float(16|32|64)?|bool|dtypes?|class ids)\b")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def main() -> int:
    """Print each public function that says too little; give the exit status."""
    sources = {
        path.relative_to(ROOT): path.read_text(encoding="utf-8")
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }
    faults = faults_in(sources)
    print("\n".join(faults) or "Every public docstring says shapes, dtypes and errors.")
    return bool(faults)


def faults_in(sources: Mapping[Path, str]) -> list[str]:
    """Give a line for each place in the modules that says too little, as ``path:line: what``."""
    modules = {
        path: ast.parse(source)
        for path, source in sources.items()
        if path.name == "__init__.py" or not path.name.startswith("_")
    }
    documented = {name for tree in modules.values() for name in protocol_methods(tree)}
    return [
        f"{path}:{function.lineno}: {function.name} {fault}"
        for path, tree in modules.items()
        for function in public_functions(tree)
        if ast.get_docstring(function)
        or not (function.name in documented or _is_declaration(function))
        for fault in faults_of(function)
    ]


def public_functions(tree: ast.Module) -> Iterator[Function]:
    """Give the public functions of a module, and the public methods of its public classes."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from (item for item in node.body if _is_public(item))
        elif _is_public(node):
            yield node


def protocol_methods(tree: ast.Module) -> Iterator[str]:
    """Name the methods of a module's protocols that have a docstring."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(b) for b in node.bases):
            yield from (f.name for f in node.body if _is_public(f) and ast.get_docstring(f))


def faults_of(function: Function) -> Iterator[str]:
    """Say what a function's docstring lacks, a phrase each."""
    text = ast.get_docstring(function) or ""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    annotations = [each.annotation for each in arguments] + [function.returns]
    signature = " ".join(ast.unparse(each) for each in annotations if each is not None)
    if _ARRAY.search(signature):
        if not _SHAPE.search(text):
            yield "takes or gives arrays, but no shape is said"
        if not _DTYPE.search(text):
            yield "takes or gives arrays, but no dtype is said"
    for name in sorted(_raised(function)):
        if not re.search(rf"\b{name}\b", text):
            yield f"raises {name}, which its docstring does not name"


def _is_public(node: ast.AST) -> TypeGuard[Function]:
    return isinstance(node, Function) and not node.name.startswith("_")


def _is_declaration(function: Function) -> bool:
    return len(function.body) == 1 and ast.unparse(function.body[0]) == "..."


def _raised(function: Function) -> set[str]:
    """Name the errors that a function itself makes and raises; nested functions are left out."""
    found: set[str] = set()
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, Function | ast.Lambda | ast.ClassDef):
            continue
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            called = node.exc.func
            if isinstance(called, ast.Name) and called.id[0].isupper():
                found.add(called.id)
        waiting += ast.iter_child_nodes(node)
    return found


if __name__ == "__main__":
    sys.exit(main())
