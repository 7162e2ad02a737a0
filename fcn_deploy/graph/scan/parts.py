"""Operators and tensors as a file describes them; what no plain network needs is refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from fcn_deploy.errors import ArtifactError, UnsupportedOpError, UntrustedArtifactError
from fcn_deploy.graph.scan.limits import ScanLimits
from fcn_deploy.graph.scan.onnx_graph import AttributeValue, GraphTensor, Node, StoredTensor
from fcn_deploy.graph.scan.schema import (
    ATTRIBUTE,
    ATTRIBUTE_TYPES,
    DIMENSION,
    ELEMENT_TYPES,
    NODE,
    SHAPE,
    TENSOR_TYPE,
    TYPE,
    VALUE_INFO,
)
from fcn_deploy.graph.scan.tensor import read_tensor, shown
from fcn_deploy.graph.scan.wire import Message, Reader, Span

__all__ = ["PartsParser", "standard_domain"]

_MAX_RANK = 32


@dataclass(frozen=True, slots=True)
class PartsParser:
    """Reads the parts of a GraphProto.

    Attributes:
        reader: of the whole file.
        limits: say whose value is kept.
    """

    reader: Reader
    limits: ScanLimits

    def node(self, span: Span) -> Node:
        """Read a NodeProto."""
        texts = {"op_type": "", "domain": "", "name": "", "overload": ""}
        inputs: list[str] = []
        outputs: list[str] = []
        attribute_spans: list[Span] = []
        for name, value in self.reader.fields(NODE, (span,)):
            if name == "input":
                inputs.append(value)
            elif name == "output":
                outputs.append(value)
            elif name == "attribute":
                attribute_spans.append(value)
            elif name in texts:
                texts[name] = value
            else:
                self.check_form(NODE, name, value)
        domain = standard_domain(texts["domain"])
        plain = Node(texts["op_type"], domain, texts["name"], tuple(inputs), tuple(outputs), {})
        self._check_operator(plain, texts["overload"])
        attributes: dict[str, AttributeValue] = {}
        for attribute_span in attribute_spans:
            name, attribute = self._attribute(plain, attribute_span)
            if name in attributes:
                raise self.invalid(f"has the node {plain.label} with two attributes {shown(name)}")
            attributes[name] = attribute
        return Node(plain.op_type, domain, plain.name, plain.inputs, plain.outputs, attributes)

    def tensor(self, spans: list[Span], owner: str) -> StoredTensor:
        """Read a TensorProto that `owner` holds."""
        return read_tensor(self.reader, spans, owner=owner, limits=self.limits)

    def value_info(self, span: Span) -> GraphTensor:
        """Read a ValueInfoProto.

        Raises:
            UnsupportedOpError: it is not a dense tensor.
            ArtifactError: its element type is not known.
        """
        name = ""
        type_spans: list[Span] = []
        for key, value in self.reader.fields(VALUE_INFO, (span,)):
            if key == "name":
                name = value
            elif key == "type":
                type_spans.append(value)
            else:
                self.check_form(VALUE_INFO, key, value)
        tensor_spans: list[Span] = []
        for key, value in self.reader.fields(TYPE, type_spans):
            if key == "tensor_type":
                tensor_spans.append(value)
            elif key != "denotation":
                raise UnsupportedOpError(f"{shown(name)} is a {key}; only dense tensors are run.")
        dtype: str | None = None
        shape_spans: list[Span] = []
        for key, value in self.reader.fields(TENSOR_TYPE, tensor_spans):
            if key == "shape":
                shape_spans.append(value)
            elif value == 0:
                dtype = None
            elif value in ELEMENT_TYPES:
                dtype = ELEMENT_TYPES[value].name
            else:
                raise self.invalid(f"has {shown(name)} of the unknown element type {value}")
        return GraphTensor(name, dtype, self._dims(name, shape_spans) if shape_spans else None)

    def check_form(self, message: Message, name: str, value: Any) -> None:
        """Check a field that is of no further interest."""
        child = message.children.get(name)
        if child is not None:
            self.reader.check(child, value)

    def invalid(self, what: str, hint: str | None = None) -> ArtifactError:
        """Make the error for a model that reads but makes no sense."""
        return ArtifactError(f"{self.reader.name} {what}.", hint=hint)

    def _check_operator(self, node: Node, overload: str) -> None:
        op_type = shown(node.op_type)
        if not node.op_type or not any(node.outputs):
            raise self.invalid(f"has the node {node.label} without an operator or an output")
        if node.domain or overload:
            raise UnsupportedOpError(
                f"node {node.label} is the operator {op_type} of the domain {shown(node.domain)}; "
                "only the standard operators (domain '' or 'ai.onnx') are run.",
                hint="Export the model without custom or fused operators.",
            )

    def _attribute(self, node: Node, span: Span) -> tuple[str, AttributeValue]:
        name, code = "", 0
        values: dict[str, list[Any]] = {}
        for key, value in self.reader.fields(ATTRIBUTE, (span,)):
            if key == "name":
                name = value
            elif key == "type":
                code = value
            elif key == "ref_attr_name":
                raise UnsupportedOpError(f"node {node.label} refers to an attribute of a function.")
            elif key != "doc_string":
                values.setdefault(key, []).append(value)
        if code == 0 and len(values) == 1:  # files of IR version 1 do not say the type
            kind = next(iter(values))
        else:
            kind = ATTRIBUTE_TYPES.get(code, "")
        if not name or not kind or any(key != kind for key in values):
            raise self.invalid(
                f"has the node {node.label} whose attribute {shown(name)} has the type {code} "
                f"and the values {sorted(values)}"
            )
        return name, self._attribute_value(node, name, kind, values.get(kind, []))

    def _attribute_value(
        self, node: Node, name: str, kind: str, values: list[Any]
    ) -> AttributeValue:
        if kind in ("f", "i"):
            return values[-1] if values else (0.0 if kind == "f" else 0)
        if kind in ("floats", "ints"):
            return tuple(self._numbers(kind, values))
        if kind in ("s", "strings"):
            texts = tuple(
                str(self.reader.data[slice(*span)], "utf-8", "backslashreplace") for span in values
            )
            return texts if kind == "strings" else (texts[-1] if texts else "")
        owner = f"node {node.label}"
        if kind == "t":
            return self.tensor(values, owner)
        if kind == "tensors":
            return tuple(self.tensor([span], owner) for span in values)
        if kind.startswith("sparse"):
            raise UntrustedArtifactError(
                f"{owner} holds a sparse tensor, which can grow without bound when it is loaded.",
                hint="Store it as a dense tensor.",
            )
        raise UnsupportedOpError(
            f"{owner} ({shown(node.op_type)}) holds a graph or a type in its attribute "
            f"{shown(name)}; only numbers, texts and tensors are supported."
        )

    def _numbers(self, kind: str, values: list[Any]) -> Iterator[int | float]:
        import numpy as np

        for value in values:
            if not isinstance(value, tuple):
                yield value
            elif kind == "ints":
                yield from self.reader.packed_ints(ATTRIBUTE, value).tolist()
            elif (value[1] - value[0]) % 4:
                raise self.reader.damaged(ATTRIBUTE, value[0], "a list of floats is cut")
            else:
                floats = np.frombuffer(self.reader.data[slice(*value)], "<f4")
                self.reader.spend(floats.size)
                yield from floats.tolist()

    def _dims(self, name: str, spans: Iterable[Span]) -> tuple[int | str | None, ...]:
        dims: list[int | str | None] = []
        for _, span in self.reader.fields(SHAPE, spans):
            size: int | str | None = None
            for key, value in self.reader.fields(DIMENSION, (span,)):
                if key != "denotation":
                    size = value
            if isinstance(size, int) and size < 0:  # some exporters write -1 for any size
                size = None
            dims.append(size or None if isinstance(size, str) else size)
            if len(dims) > _MAX_RANK:
                raise self.invalid(f"has {shown(name)} with more than {_MAX_RANK} dimensions")
        return tuple(dims)


def standard_domain(domain: str) -> str:
    """Give the one spelling of the standard operators' two domain names."""
    return "" if domain == "ai.onnx" else domain
