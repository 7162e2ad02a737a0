"""Constants: shape, element type and bytes of a TensorProto must fit each other exactly."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fcn_deploy.errors import ArtifactError, UntrustedArtifactError
from fcn_deploy.graph.scan.limits import ScanLimits
from fcn_deploy.graph.scan.onnx_graph import ExternalData, StoredTensor
from fcn_deploy.graph.scan.schema import ELEMENT_TYPES, ENTRY, TENSOR, ElementType
from fcn_deploy.graph.scan.wire import Reader, Span
from fcn_deploy.names import Array

__all__ = ["read_tensor", "shown"]

_MAX_DIM = (1 << 31) - 1
_MAX_RANK = 32  # half of what NumPy takes
_EXTERNAL_KEYS = ("location", "offset", "length", "checksum")
_DECIMAL = re.compile(r"[0-9]{1,18}", re.ASCII)
_TYPED_FIELDS = (
    "float_data",
    "int32_data",
    "int64_data",
    "uint64_data",
    "double_data",
    "string_data",
)
_STORAGE: dict[str, np.dtype[Any]] = {
    "float_data": np.dtype("<f4"),
    "double_data": np.dtype("<f8"),
}


def shown(text: str) -> str:
    """Quote a name from a file for a message: escaped, and cut where it is long."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


@dataclass(slots=True)
class _Parts:
    """A TensorProto's fields before they are compared with each other."""

    name: str = ""
    code: int = 0
    dims: list[int] = field(default_factory=list)
    raw: Span | None = None
    typed: dict[str, list[Any]] = field(default_factory=dict)
    external: list[tuple[str, str]] = field(default_factory=list)
    is_external: bool = False


def read_tensor(
    reader: Reader, spans: Sequence[Span], *, owner: str, limits: ScanLimits
) -> StoredTensor:
    """Read a constant.

    Args:
        owner: what holds it, for messages about a tensor without a name.
        limits: say up to how many elements the value is kept.

    Raises:
        ArtifactError: shape, element type and stored bytes do not fit each other.
        UntrustedArtifactError: it says in an unusual way that its bytes are elsewhere.
    """
    parts = _read_parts(reader, spans)
    label = f"tensor {shown(parts.name)}" if parts.name else f"the tensor of {owner}"
    kind = ELEMENT_TYPES.get(parts.code)
    if kind is None:
        raise ArtifactError(f"{label} has the unknown element type {parts.code}.")
    if len(parts.dims) > _MAX_RANK or any(not 0 <= size <= _MAX_DIM for size in parts.dims):
        raise ArtifactError(
            f"{label} has {len(parts.dims)} dimensions, of the sizes {parts.dims[:8]}; "
            f"expected at most {_MAX_RANK}, each in 0..{_MAX_DIM}."
        )
    count = math.prod(parts.dims)
    nbytes = -(-count * kind.bits // 8)
    stored = [name for name in _TYPED_FIELDS if parts.typed.get(name)]
    external = None
    if parts.is_external or parts.external:
        external = _read_external(parts, label, nbytes)
        if parts.raw is not None or stored or kind.name == "string":
            raise UntrustedArtifactError(
                f"{label} has bytes in the model and also names the file "
                f"{shown(external.location)}."
            )
    elif parts.raw is not None:
        found = parts.raw[1] - parts.raw[0]
        if stored or found != nbytes or kind.name == "string":
            raise _misfit(label, parts.dims, kind, f"{nbytes} bytes", f"{found}")
    else:
        _check_typed(reader, parts, label, kind, count, stored)
    value = None
    kept = limits.max_value_elements
    if len(parts.dims) == 4 and parts.dims[1] == 1 and parts.dims[2] == parts.dims[3] > 1:
        kept = limits.max_kernel_elements
    if external is None and kind.native and count <= kept:
        value = _read_value(reader, parts, kind).reshape(parts.dims)
        value.setflags(write=False)
    return StoredTensor(parts.name, kind.name, tuple(parts.dims), nbytes, external, value)


def _read_parts(reader: Reader, spans: Iterable[Span]) -> _Parts:
    parts = _Parts()
    for name, value in reader.fields(TENSOR, spans):
        if name == "name":
            parts.name = value
        elif name == "data_type":
            parts.code = value
        elif name == "dims":
            packed = isinstance(value, tuple)
            parts.dims += reader.packed_ints(TENSOR, value).tolist() if packed else [value]
        elif name == "raw_data":
            parts.raw = value
        elif name in _TYPED_FIELDS:
            parts.typed.setdefault(name, []).append(value)
        elif name == "external_data":
            parts.external.append(_read_entry(reader, value))
        elif name == "data_location":
            if value not in (0, 1):
                raise UntrustedArtifactError(
                    f"tensor {shown(parts.name)} has the unknown data location {value}."
                )
            parts.is_external = value == 1
        elif name == "metadata_props":
            reader.check(ENTRY, value)
        elif name == "segment":
            raise ArtifactError(f"tensor {shown(parts.name)} is stored in segments.")
    return parts


def _read_entry(reader: Reader, span: Span) -> tuple[str, str]:
    entry = {"key": "", "value": ""}
    entry.update(reader.fields(ENTRY, (span,)))
    return entry["key"], entry["value"]


def _read_external(parts: _Parts, label: str, nbytes: int) -> ExternalData:
    entries = dict(parts.external)
    where = shown(entries.get("location", ""))
    unknown = [key for key in entries if key not in _EXTERNAL_KEYS]
    if not parts.is_external or unknown or len(entries) != len(parts.external):
        raise UntrustedArtifactError(
            f"{label} at {where} describes its bytes by the keys "
            f"{[shown(key) for key, _ in parts.external[:8]]}"
            f"{'' if parts.is_external else ' although they are in the model'}; "
            f"expected each of {', '.join(_EXTERNAL_KEYS)} at most once."
        )
    if "location" not in entries:
        raise UntrustedArtifactError(f"{label} names no file that holds its bytes.")
    for key in ("offset", "length"):
        if key in entries and not _DECIMAL.fullmatch(entries[key]):
            raise UntrustedArtifactError(
                f"{label} at {where} has the {key} {shown(entries[key])}; "
                "expected a number of bytes, 0 or more."
            )
    length = int(entries["length"]) if "length" in entries else None
    if length is not None and length != nbytes:
        raise UntrustedArtifactError(
            f"{label} at {where} has {length} bytes; its shape needs {nbytes}."
        )
    return ExternalData(entries["location"], int(entries.get("offset", "0")), length)


def _check_typed(
    reader: Reader, parts: _Parts, label: str, kind: ElementType, count: int, stored: list[str]
) -> None:
    if kind.field == "int32_data" and kind.bits in (2, 4):  # several elements in each number
        expected = -(-count * kind.bits // 8)
    else:
        expected = count * (2 if kind.name.startswith("complex") else 1)
    found = sum(_count(reader, kind.field, chunk) for chunk in parts.typed.get(kind.field, ()))
    others = [name for name in stored if name != kind.field]
    if others or found != expected:
        seen = f"{found}{' and ' + ', '.join(others) if others else ''}"
        raise _misfit(label, parts.dims, kind, f"{expected} values in {kind.field}", seen)


def _count(reader: Reader, name: str, chunk: Any) -> int:
    if not isinstance(chunk, tuple) or name == "string_data":
        return 1
    if name not in _STORAGE:
        return reader.count_packed_ints(TENSOR, chunk)
    count: int
    count, rest = divmod(chunk[1] - chunk[0], _STORAGE[name].itemsize)
    if rest:
        raise reader.damaged(TENSOR, chunk[0], f"'{name}' has {rest} bytes too many")
    return count


def _read_value(reader: Reader, parts: _Parts, kind: ElementType) -> Array:
    dtype = np.dtype(kind.name).newbyteorder("<")
    if parts.raw is not None:
        return np.frombuffer(reader.data[slice(*parts.raw)], dtype).astype(kind.name)
    storage = _STORAGE.get(kind.field)
    chunks: list[Array] = []
    for chunk in parts.typed.get(kind.field, ()):
        if not isinstance(chunk, tuple):
            chunks.append(np.array([chunk], dtype=storage or np.int64))
        elif storage is not None:
            chunks.append(np.frombuffer(reader.data[slice(*chunk)], storage))
        else:
            chunks.append(reader.packed_ints(TENSOR, chunk))
    values = np.concatenate(chunks) if chunks else np.zeros(0, storage or np.int64)
    if storage is not None:  # complex numbers lie there as pairs
        return values.view(dtype).astype(kind.name)
    if kind.name == "float16":  # the bits, as a number
        return values.astype(np.uint16).view(np.float16)
    return values.astype(kind.name)


def _misfit(
    label: str, dims: list[int], kind: ElementType, expected: str, found: str
) -> ArtifactError:
    return ArtifactError(
        f"{label} of shape {dims[:8]} and type {kind.name} needs {expected}; found {found}.",
        hint="The file is damaged: copy it or export it again.",
    )
