"""One operator, at one size of the image, as the rules for operators see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fcn_deploy.graph.receptive_field.spans import Features, UntraceableError
from fcn_deploy.graph.scan import Node
from fcn_deploy.names import Array

__all__ = ["Step"]


@dataclass(frozen=True, slots=True)
class Step:
    """An operator, what it is given, and what was found to tie far pixels together.

    Attributes:
        inputs: one for each of the node's; None where an optional one is left out.
        opset: version of the standard operators.
        broken_by: phrases; operators that read the whole image add to it.
    """

    node: Node
    inputs: Sequence[Features | None]
    opset: int
    broken_by: list[str]

    @property
    def first(self) -> Features:
        """The first input.

        Raises:
            UntraceableError: there is none.
        """
        found = self.inputs[0] if self.inputs else None
        if found is None:
            raise UntraceableError("has no input")
        return found

    def given(self, index: int) -> Features | None:
        """Give an optional input."""
        return self.inputs[index] if index < len(self.inputs) else None

    def value(self, index: int) -> Array | None:
        """Give an optional input's value, of any shape and dtype.

        Raises:
            UntraceableError: it is given, but not known before an image comes.
        """
        given = self.given(index)
        if given is None:
            return None
        if given.value is None:
            raise UntraceableError("takes sizes that are not understood")
        return given.value

    def integer(self, name: str, default: int) -> int:
        """Give an attribute that is a whole number."""
        value = self.node.attributes.get(name, default)
        return value if isinstance(value, int) else default

    def integers(self, name: str, default: Sequence[int]) -> tuple[int, ...]:
        """Give an attribute that is a list of whole numbers."""
        value = self.node.attributes.get(name, tuple(default))
        if not isinstance(value, tuple):
            return tuple(default)
        return tuple(one for one in value if isinstance(one, int))

    def text(self, name: str, default: str) -> str:
        """Give an attribute that is a word."""
        value = self.node.attributes.get(name, default)
        return value if isinstance(value, str) else default

    def axes(self, rank: int, *, index: int = 1) -> tuple[int, ...] | None:
        """Give the axes named by an input or, before opset 13 or 18, by an attribute."""
        value = self.value(index)
        named = (
            self.integers("axes", ()) if value is None else [int(one) for one in value.reshape(-1)]
        )
        return tuple(axis % rank for axis in named) if named else None

    def note_whole(self, axes: Sequence[int]) -> None:
        """Note that this operator reads the whole image, if one of these axes runs along it."""
        if any(self.first.spans[axis] is not None for axis in axes):
            self.broken_by.append(f"{self.node.op_type} {self.node.label} reads the whole image")

    def note(self, phrase: str) -> None:
        """Note what else ties the result to the image's size."""
        self.broken_by.append(f"{self.node.op_type} {self.node.label} {phrase}")
