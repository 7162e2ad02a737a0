"""What an ONNX file holds, as plain values: tensors, nodes and how they are joined."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fcn_deploy.errors import UnsupportedOpError
from fcn_deploy.graph.scan.schema import ELEMENT_TYPES
from fcn_deploy.names import Array, TensorSpec

__all__ = ["AttributeValue", "ExternalData", "GraphTensor", "Node", "OnnxGraph", "StoredTensor"]

_NATIVE = frozenset(kind.name for kind in ELEMENT_TYPES.values() if kind.native)


@dataclass(frozen=True, slots=True)
class GraphTensor:
    """A tensor that flows through the graph, as far as the file describes it.

    Attributes:
        name: as in the graph.
        dtype: NumPy's name, or ml_dtypes' where NumPy has none (``"bfloat16"``); None if not said.
        dims: a size, the name of a symbolic one, or None for each dimension; None if not said.
    """

    name: str
    dtype: str | None
    dims: tuple[int | str | None, ...] | None

    def spec(self) -> TensorSpec:
        """Give the same with every symbolic dimension as None.

        Raises:
            UnsupportedOpError: NumPy has no such element type, or dtype or rank is not given.
        """
        if self.dtype not in _NATIVE or self.dims is None:
            raise UnsupportedOpError(
                f"tensor {self.name!r} has element type {self.dtype} and "
                f"{'unknown' if self.dims is None else 'known'} rank; "
                "expected a type that NumPy has and a known rank."
            )
        shape = tuple(size if isinstance(size, int) else None for size in self.dims)
        return TensorSpec(self.name, self.dtype, shape)


@dataclass(frozen=True, slots=True)
class ExternalData:
    """Where a tensor's bytes lie outside the model file.

    Attributes:
        location: as written in the model.
        offset: first byte in that file.
        length: bytes from there; None where the model leaves it to shape and element type.
    """

    location: str
    offset: int = 0
    length: int | None = None


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A constant: an initializer, or the tensor in a node's attribute.

    Attributes:
        name: as in the graph; may be empty in an attribute.
        dtype: as in GraphTensor.
        dims: its shape.
        nbytes: size in raw form; 0 for strings.
        external: set where the bytes are in another file.
        value: read-only array of a small tensor that is stored inline and that NumPy can hold;
            None for every other one.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    nbytes: int
    external: ExternalData | None = None
    value: Array | None = field(default=None, repr=False, compare=False)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)


AttributeValue = (
    int | float | str | tuple[int | float | str, ...] | StoredTensor | tuple[StoredTensor, ...]
)
"""What a node's attribute can be; text that is not UTF-8 has its bytes escaped (`\\xff`)."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operator.

    Attributes:
        op_type: such as ``"Conv"``.
        domain: empty for the standard operators, ``"ai.onnx"`` too.
        name: may be empty.
        inputs: tensor names; empty where an optional input is left out.
        outputs: tensor names; empty where an optional output is left out.
        attributes: by name.
    """

    op_type: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, AttributeValue]

    @property
    def label(self) -> str:
        """Name for messages: the node's own, or its first output's; cut and escaped."""
        name = self.name or next(iter(self.outputs), "")
        return repr(name if len(name) <= 80 else name[:77] + "...")


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """A model's graph, without its large weights.

    Attributes:
        ir_version: of the file format.
        opset: version of the standard operators.
        inputs: what must be fed; initializers that are listed as inputs are left out.
        outputs: what it gives, in order.
        nodes: in an order in which they can run.
        initializers: constants by name.
        value_infos: inner tensors that the file describes, by name.
        external_files: names of the files beside the model that hold weights.
    """

    ir_version: int
    opset: int
    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]
    nodes: tuple[Node, ...] = field(repr=False)
    initializers: Mapping[str, StoredTensor] = field(repr=False)
    value_infos: Mapping[str, GraphTensor] = field(repr=False)
    external_files: frozenset[str] = frozenset()
    _producers: dict[str, Node] = field(init=False, repr=False, compare=False)
    _consumers: dict[str, list[Node]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        producers: dict[str, Node] = {}
        consumers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in filter(None, node.outputs):
                producers[name] = node
            for name in filter(None, dict.fromkeys(node.inputs)):
                consumers.setdefault(name, []).append(node)
        object.__setattr__(self, "_producers", producers)
        object.__setattr__(self, "_consumers", consumers)

    def producer(self, name: str) -> Node | None:
        """Give the node that makes a tensor; None for inputs, initializers and unknown names."""
        return self._producers.get(name)

    def consumers(self, name: str) -> tuple[Node, ...]:
        """Give the nodes that read a tensor, in order."""
        return tuple(self._consumers.get(name, ()))

    def tensor(self, name: str) -> GraphTensor | None:
        """Give what the file says of an input, an output or an inner tensor."""
        for known in (*self.inputs, *self.outputs):
            if known.name == name:
                return known
        return self.value_infos.get(name)

    def constant(self, name: str) -> Array | None:
        """Give a small constant's value, whether an initializer or a Constant node holds it.

        Returns:
            The value in its own shape and dtype; None for large and computed ones.
        """
        stored = self.initializers.get(name)
        if stored is not None:
            return stored.value
        node = self._producers.get(name)
        return constant_value(node) if node is not None else None


def constant_value(node: Node) -> Array | None:
    """Give the value that a Constant node makes, in its own shape and dtype.

    None for other nodes and large values.
    """
    import numpy as np

    if node.op_type != "Constant":
        return None
    tensor = node.attributes.get("value")
    if isinstance(tensor, StoredTensor):
        return tensor.value
    for name, dtype in (
        ("value_int", np.int64),
        ("value_ints", np.int64),
        ("value_float", np.float32),
        ("value_floats", np.float32),
    ):
        if name in node.attributes:
            return np.asarray(node.attributes[name], dtype=dtype)
    return None
