"""Build a user's own network from ``package.module:factory`` and its arguments."""

from __future__ import annotations

import ast
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fcn_deploy.errors import UnsupportedModelError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build_from_factory", "is_factory", "parse_arch_args"]

_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_factory(arch: str) -> bool:
    """Say whether a name is of the form ``package.module:factory``."""
    return _FACTORY.fullmatch(arch) is not None


def parse_arch_args(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse ``key=value`` texts; a value is a Python literal, or else a string.

    Raises:
        UnsupportedModelError: no ``=``, a key that is no argument's name, or a key twice.
    """
    parsed: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals or not key.isidentifier():
            raise UnsupportedModelError(
                f"--arch-arg '{pair}' is not of the form key=value.",
                hint="Write for instance --arch-arg num_classes=7.",
            )
        if key in parsed:
            raise UnsupportedModelError(f"--arch-arg '{key}' is given twice.")
        parsed[key] = _literal(text.strip())
    return parsed


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def build_from_factory(arch: str, arch_args: Mapping[str, Any]) -> nn.Module:
    """Import a factory, from the environment or the working directory, and call it.

    This runs the user's code. The working directory is importable during the call alone.

    Args:
        arch: ``package.module:factory``; a class is a factory too.
        arch_args: keyword arguments of the factory.

    Raises:
        UnsupportedModelError: the module or the factory is not there, the call fails (its own
            error is chained), or it gives something else than an `nn.Module`.
    """
    from torch import nn

    module_name, _, factory_name = arch.partition(":")
    with _working_directory_importable():
        factory = _find_factory(module_name, factory_name)
        try:
            built = factory(**arch_args)
        except (Exception, SystemExit) as exc:  # a user's code may raise anything
            given = ", ".join(f"{key}={value!r}" for key, value in arch_args.items())
            raise UnsupportedModelError(
                f"{arch}({given}) raised {type(exc).__name__}: {exc}.",
                hint=f"It takes {factory_name}{_signature(factory)}; "
                "pass arguments with --arch-arg key=value.",
            ) from exc
    if not isinstance(built, nn.Module):
        raise UnsupportedModelError(
            f"{arch} gave a {type(built).__name__}; expected a torch.nn.Module.",
            hint="Name a function or class that returns the network itself.",
        )
    return built


def _find_factory(module_name: str, factory_name: str) -> Callable[..., Any]:
    found: Any = _import(module_name)
    for part in factory_name.split("."):
        if not hasattr(found, part):
            public = [name for name in vars(found) if not name.startswith("_")]
            raise UnsupportedModelError(
                f"module '{module_name}' has no '{factory_name}'; "
                f"it has {', '.join(sorted(public)[:8]) or 'nothing public'}.",
                hint="Check the name behind the colon of --arch.",
            )
        found = getattr(found, part)
    if not callable(found):
        raise UnsupportedModelError(
            f"'{module_name}:{factory_name}' is a {type(found).__name__}, which cannot be called.",
            hint="Name a function or class that returns the network.",
        )
    factory: Callable[..., Any] = found
    return factory


def _import(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (name == exc.name or name.startswith(f"{exc.name}.")):
            raise UnsupportedModelError(
                f"module '{name}' was not found: there is no '{exc.name}' in this Python "
                f"environment or in the working directory '{os.getcwd()}'.",
                hint="Run the command from the folder that holds it, or install it.",
            ) from exc
        raise UnsupportedModelError(
            f"module '{name}' needs '{exc.name}', which is not installed.",
            hint=f"pip install {exc.name}, or whatever package provides it.",
        ) from exc
    except (Exception, SystemExit) as exc:  # a user's code may raise anything
        raise UnsupportedModelError(
            f"importing module '{name}' raised {type(exc).__name__}: {exc}.",
            hint="A module that trains when imported needs `if __name__ == '__main__':`.",
        ) from exc


def _signature(factory: Callable[..., Any]) -> str:
    try:
        return str(inspect.signature(factory))
    except (TypeError, ValueError):
        return "(...)"


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    """Put the working directory on the import path, as `python -m` does, and take it off again."""
    folder = os.getcwd()
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:  # the imported code may have changed the path itself
            sys.path.remove(folder)
