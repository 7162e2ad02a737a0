"""Parse untrusted JSON strictly; messages name the place of the fault."""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from fcn_deploy.errors import ManifestError

__all__ = ["load_strict", "read_strict"]

T = TypeVar("T")


def read_strict(content: bytes, kind: type[T], *, where: str, max_bytes: int) -> T:
    """Read JSON into a value of a type, such as a dataclass; keys it does not have are ignored.

    Args:
        where: names the document in messages, as in ``the manifest``.

    Raises:
        ManifestError: too large, not UTF-8, not JSON, a key twice, or not of this type.
    """
    document = load_strict(content, where=where, max_bytes=max_bytes)
    try:  # from the bytes: it refuses numbers out of range, too
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$")
        path = path.rstrip("`")
        if problem.startswith("Invalid enum value"):
            problem = f"Expected {', '.join(map(str, _choices(inspect.type_info(kind), path)))}"
        for key, index in re.findall(r"\.(\w+)|\[(\d+)\]", path.partition("[...]")[0]):
            document = document[key or int(index)]
        at = f" at '{path.lstrip('.')}'" if path else ""
        found = json.dumps(document)[:60]
        raise ManifestError(f"{where} is malformed{at}: {problem}; found {found}.") from error
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{where} is not JSON: {error}.") from error


def _choices(kind: Any, path: str) -> list[str | int]:
    """Give what is allowed at a path of msgspec's, such as ``.variants[0].precision``."""
    for name in re.findall(r"\.(\w+)|\[", path):
        if isinstance(kind, inspect.UnionType):  # of a record and null
            kind = next(one for one in kind.types if not isinstance(one, inspect.NoneType))
        if name:
            kind = next(field.type for field in kind.fields if field.encode_name == name)
        else:
            kind = kind.value_type if isinstance(kind, inspect.DictType) else kind.item_type
    if isinstance(kind, inspect.UnionType):  # of a choice and null
        kind = next(one for one in kind.types if not isinstance(one, inspect.NoneType))
    return list(kind.cls if isinstance(kind, inspect.EnumType) else kind.values)


def load_strict(content: bytes, *, where: str, max_bytes: int) -> Any:
    """Parse JSON, refusing what json.loads lets through: duplicate keys, NaN, unbounded size.

    Args:
        where: names the document in messages, as in ``the manifest``.

    Raises:
        ManifestError: too large, not UTF-8, not JSON, or with one of the above.
    """
    if len(content) > max_bytes:
        raise ManifestError(f"{where} has {len(content)} bytes; at most {max_bytes}.")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ManifestError(f"{where} has a key twice among {sorted(k for k, _ in pairs)}.")
        return result

    def refuse(constant: str) -> Any:
        raise ManifestError(f"{where} holds {constant}, which is not JSON.")

    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors are both ValueError
        raise ManifestError(f"{where} is not JSON: {error}.") from error
