"""JSON that nobody vouches for: parsed strictly, read with the place in each message."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, TypeVar, cast

import msgspec
from msgspec import inspect

from fcn_deploy.errors import ManifestError

__all__ = ["JsonObject", "load_strict", "read_strict"]

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


class JsonObject:
    """A JSON object and the path that leads to it; every method raises ManifestError naming it."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise ManifestError(f"{where} is {_kind(value)}; expected an object.")
        self._value = cast(dict[str, Any], value)
        self.where = where

    def get(self, key: str, kind: type[Any], *, default: Any = ...) -> Any:
        """Give the value under a key, checked to be of this kind; float also takes an integer."""
        value = self._value.get(key, default)
        if value is ...:
            raise ManifestError(f"{self.where} has no '{key}'.")
        if value is default and default is None:
            return None
        if kind is float and type(value) is int and abs(value) < 1 << 53:
            return float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ManifestError(f"{self.where}.{key} is {_kind(value)}; expected {kind.__name__}.")
        if kind is float and not math.isfinite(value):  # 1e999 is JSON, and infinite
            raise ManifestError(f"{self.where}.{key} is not finite.")
        return value

    def text(self, key: str) -> str:
        """Give the string under a key."""
        return cast(str, self.get(key, str))

    def optional_text(self, key: str) -> str | None:
        """Give the string under a key, or None where it is missing or null."""
        return cast("str | None", self.get(key, str, default=None))

    def child(self, key: str) -> JsonObject:
        """Give the object under a key."""
        return JsonObject(self.get(key, dict), f"{self.where}.{key}")

    def each(self, key: str, read: Callable[[JsonObject], T]) -> tuple[T, ...]:
        """Read a list of objects."""
        items = self.get(key, list)
        return tuple(read(JsonObject(v, f"{self.where}.{key}[{i}]")) for i, v in enumerate(items))

    def items(self, key: str, kind: type[Any]) -> tuple[Any, ...]:
        """Read a list of scalars of one kind."""
        values = self.get(key, list)
        box = JsonObject({str(i): v for i, v in enumerate(values)}, f"{self.where}.{key}")
        return tuple(box.get(str(i), kind) for i in range(len(values)))

    def strings(self) -> dict[str, str]:
        """Give all entries, which must be strings."""
        return {key: self.text(key) for key in self._value}


def _kind(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
