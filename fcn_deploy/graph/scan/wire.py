"""Protobuf's wire format, read strictly and without copies, and written as far as needed.

Stricter than protobuf itself: a field that the message's table does not list (but in a format newer
than the table), a known field of another wire type, a group, an over-long number or text that is
not UTF-8 ends the reading. Two parsers that disagree on such bytes would let a file show one model
to the check and another to the library behind it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from fcn_deploy.errors import ArtifactError, UntrustedArtifactError

__all__ = [
    "Kind",
    "Message",
    "Reader",
    "Span",
    "encode_delimited",
    "encode_int",
    "encode_key",
    "encode_varint",
]

Span = tuple[int, int]
"""First byte and the byte after the last one, counted from the file's start."""

_MAX_TAG_BYTES = 5
_MAX_VARINT_BYTES = 10
_CHUNK_BYTES = 1 << 20
_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5


class Kind(Enum):
    """How a field's value is written."""

    INT64 = "int64"
    INT32 = "int32"  # enums too
    UINT64 = "uint64"
    FLOAT = "float"
    DOUBLE = "double"
    STRING = "string"
    BYTES = "bytes"
    MESSAGE = "message"
    PACKABLE_INT = "repeated int"  # one number a field, or many in one delimited field
    PACKABLE_FLOAT = "repeated float"
    PACKABLE_DOUBLE = "repeated double"


_WIRE_TYPES: dict[Kind, tuple[int, ...]] = {
    Kind.INT64: (_VARINT,),
    Kind.INT32: (_VARINT,),
    Kind.UINT64: (_VARINT,),
    Kind.FLOAT: (_FIXED32,),
    Kind.DOUBLE: (_FIXED64,),
    Kind.STRING: (_DELIMITED,),
    Kind.BYTES: (_DELIMITED,),
    Kind.MESSAGE: (_DELIMITED,),
    Kind.PACKABLE_INT: (_VARINT, _DELIMITED),
    Kind.PACKABLE_FLOAT: (_FIXED32, _DELIMITED),
    Kind.PACKABLE_DOUBLE: (_FIXED64, _DELIMITED),
}
_UNKNOWN = {
    _VARINT: ("", Kind.UINT64),
    _FIXED64: ("", Kind.DOUBLE),
    _DELIMITED: ("", Kind.BYTES),
    _FIXED32: ("", Kind.FLOAT),
}


@dataclass(frozen=True, slots=True)
class Message:
    """The fields that a message may have.

    Attributes:
        name: as in onnx.proto.
        fields: number to the field's name and kind.
        children: for each field of kind MESSAGE, its name to the message it holds.
    """

    name: str
    fields: Mapping[int, tuple[str, Kind]]
    children: Mapping[str, Message]

    def __repr__(self) -> str:  # tables refer to themselves
        return f"Message({self.name})"


class Reader:
    """Reads messages out of one file; counts the fields so that time and memory stay bounded.

    Args:
        data: the whole file; not copied.
        name: what to call the file in errors.
        max_fields: how many fields may be read before the file is refused.
        max_depth: how deep messages may nest below one given to `check`.
        skip_unknown: leave out fields that a message's table does not list, as protobuf does.
    """

    __slots__ = ("_fields_left", "_max_depth", "_max_fields", "_skip_unknown", "data", "name")

    def __init__(
        self,
        data: memoryview,
        *,
        name: str,
        max_fields: int,
        max_depth: int,
        skip_unknown: bool = False,
    ) -> None:
        self.data = data
        self.name = name
        self._max_fields = max_fields
        self._fields_left = max_fields
        self._max_depth = max_depth
        self._skip_unknown = skip_unknown

    def fields(self, message: Message, spans: Iterable[Span]) -> Iterator[tuple[str, Any]]:
        """Walk a message's fields in the file's order.

        Several spans of one message mean what protobuf says they mean: their concatenation.

        Yields:
            The field's name and its value: int, float or str; a Span for BYTES and MESSAGE, and
            for a PACKABLE kind either one number or the Span of many.

        Raises:
            ArtifactError: the bytes do not follow the message's table.
            UntrustedArtifactError: more fields than `max_fields`.
        """
        data, table = self.data, message.fields
        for position, end in spans:
            while position < end:
                self._fields_left -= 1
                if self._fields_left < 0:
                    self.spend(0)
                at = position
                tag = data[position]
                position += 1
                if tag >= 0x80:
                    tag, position = self._varint(message, at, end, _MAX_TAG_BYTES)
                wire_type = tag & 7
                entry = table.get(tag >> 3)
                if entry is None and self._skip_unknown and tag >> 3:
                    entry = _UNKNOWN.get(wire_type)
                if entry is None or wire_type not in _WIRE_TYPES[entry[1]]:
                    raise self._unknown(message, at, tag)
                name, kind = entry
                if wire_type == _VARINT:
                    number = data[position] if position < end else 0x80
                    if number < 0x80:
                        position += 1
                    else:
                        number, position = self._varint(message, position, end, _MAX_VARINT_BYTES)
                        number = self._signed(message, at, kind, number)
                    if name:
                        yield name, number
                elif wire_type == _DELIMITED:
                    size, start = self._varint(message, position, end, _MAX_TAG_BYTES)
                    position = start + size
                    if position > end:
                        raise self.damaged(
                            message,
                            at,
                            f"field '{name}' should have {size} bytes, {end - start} are left",
                        )
                    if kind is Kind.STRING:
                        yield name, self.text(message, (start, position))
                    elif name:
                        yield name, (start, position)
                else:
                    width, code = (4, "<f") if wire_type == _FIXED32 else (8, "<d")
                    if position + width > end:
                        raise self.damaged(message, at, f"field '{name}' is cut")
                    if name:
                        yield name, struct.unpack_from(code, data, position)[0]
                    position += width

    def spend(self, count: int) -> None:
        """Count numbers that become Python objects as if each were a field of its own.

        Raises:
            UntrustedArtifactError: there are no more than that left.
        """
        self._fields_left -= count
        if self._fields_left < 0:
            raise UntrustedArtifactError(
                f"{self.name} has more than {self._max_fields} fields, "
                "far more than a segmentation network needs.",
                hint="Strip descriptions such as value_info and metadata.",
            )

    def check(self, message: Message, span: Span, *, depth: int = 0) -> None:
        """Read a message and all below it for nothing but its form.

        Raises:
            UntrustedArtifactError: its messages nest too deep, or a form is wrong.
        """
        if depth > self._max_depth:
            raise UntrustedArtifactError(
                f"{self.name} nests more than {self._max_depth} levels at byte {span[0]}, "
                f"in {message.name}."
            )
        for name, value in self.fields(message, (span,)):
            child = message.children.get(name)
            if child is not None:
                self.check(child, value, depth=depth + 1)

    def text(self, message: Message, span: Span) -> str:
        """Decode UTF-8."""
        try:
            return str(self.data[span[0] : span[1]], "utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(message, span[0], "text is not UTF-8") from error

    def count_packed_ints(self, message: Message, span: Span) -> int:
        """Count the numbers in a packed field, in bounded memory."""
        count, last_end = 0, span[0] - 1
        for start in range(span[0], span[1], _CHUNK_BYTES):
            chunk = np.frombuffer(self.data[start : min(start + _CHUNK_BYTES, span[1])], np.uint8)
            ends = np.flatnonzero(chunk < 0x80) + start
            if ends.size:
                longest = int(np.diff(ends, prepend=last_end).max())
                last_end = int(ends[-1])
            else:
                longest = 0
            if max(longest, start + chunk.size - 1 - last_end) > _MAX_VARINT_BYTES:
                raise self.damaged(message, start, "a packed number is too long")
            count += ends.size
        if last_end != span[1] - 1:
            raise self.damaged(message, span[1], "a packed number is cut")
        return count

    def packed_ints(self, message: Message, span: Span) -> npt.NDArray[np.int64]:
        """Decode the numbers of a packed field, as int64 (uint64 wraps); each counts as a field."""
        self.spend(self.count_packed_ints(message, span))
        raw = np.frombuffer(self.data[span[0] : span[1]], np.uint8)
        ends = np.flatnonzero(raw < 0x80)
        starts = np.concatenate(([0], ends[:-1] + 1)) if ends.size else ends
        values = np.zeros(ends.size, np.uint64)
        for index in range(_MAX_VARINT_BYTES):
            there = starts + index <= ends
            if not there.any():
                break
            piece = raw[(starts + index)[there]].astype(np.uint64) & np.uint64(0x7F)
            values[there] |= piece << np.uint64(7 * index)
        return values.view(np.int64)

    def damaged(self, message: Message, at: int, what: str) -> ArtifactError:
        """Make the error for bytes that are not a valid model."""
        return ArtifactError(
            f"{self.name} is not a valid ONNX file: {message.name} near byte {at}: {what}.",
            hint="It may be cut or damaged: copy it or export it again.",
        )

    def _varint(self, message: Message, position: int, end: int, limit: int) -> tuple[int, int]:
        value = shift = 0
        for index in range(position, min(end, position + limit)):
            byte = self.data[index]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >> (64 if limit == _MAX_VARINT_BYTES else 32):
                    break
                return value, index + 1
            shift += 7
        what = "the file ends inside a number" if end - position < limit else "a number is too long"
        raise self.damaged(message, position, what)

    def _signed(self, message: Message, at: int, kind: Kind, number: int) -> int:
        if kind is Kind.UINT64:
            return number
        number = number - (1 << 64) if number >> 63 else number
        if kind is Kind.INT32 and not -(1 << 31) <= number < 1 << 31:
            raise self.damaged(message, at, f"{number} does not fit in 32 bits")
        return number

    def _unknown(self, message: Message, at: int, tag: int) -> ArtifactError:
        return self.damaged(
            message, at, f"field {tag >> 3} with wire type {tag & 7} is not part of the format"
        )


def encode_varint(value: int) -> bytes:
    """Write a number in 0..2^64-1."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_int(field: int, value: int) -> bytes:
    """Write a number field; a negative value as protobuf's int64."""
    return encode_varint(field << 3 | _VARINT) + encode_varint(value & (1 << 64) - 1)


def encode_key(field: int, size: int) -> bytes:
    """Write what stands before the content of a string, bytes or message field."""
    return encode_varint(field << 3 | _DELIMITED) + encode_varint(size)


def encode_delimited(field: int, content: bytes) -> bytes:
    """Write a string, bytes or message field."""
    return encode_key(field, len(content)) + content
