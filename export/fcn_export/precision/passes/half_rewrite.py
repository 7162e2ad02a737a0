"""Retype the nodes that were chosen for float16, and put a Cast wherever two types meet."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

import onnx_ir as ir

from fcn_export.graph_spec import LOW_RESOLUTION_SCORES, SCORES
from fcn_export.onnx_values import array_of, name_of, tensors_by_name
from fcn_export.precision.passes.half_slots import HalfSlots
from fcn_export.precision.passes.half_weights import HalfWeights, half_weights
from fcn_export.precision.passes.quantized import DEQUANTIZE, QUANTIZE

__all__ = ["HalfRewrite"]

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
_SUFFIX = MappingProxyType({_FLOAT: "__fp32", _HALF: "__fp16"})


class HalfRewrite:
    """Rewrites one graph in place.

    A tensor exists in each of the two types that a node reads it in; the type that it is made in
    keeps the tensor's own name, but for outputs and scores, whose names stay float32.

    Args:
        graph: with the type of every tensor.
        slots: of every node.
        half: nodes that become float16; no Q or DQ is among them.
        float_scales: Q and DQ nodes whose scales float16 cannot hold.
    """

    def __init__(
        self,
        graph: ir.Graph,
        slots: Mapping[ir.Node, HalfSlots | None],
        half: Collection[ir.Node],
        float_scales: Collection[ir.Node],
    ) -> None:
        self.weights = HalfWeights()
        self.casts = 0
        self._graph = graph
        self._slots = slots
        self._half = half
        self._float_scales = float_scales
        named = tensors_by_name(graph)
        self._taken = frozenset(named)
        self._floats = frozenset(value for value in named.values() if value.dtype == _FLOAT)
        self._used_as_float: set[ir.Value] = set()
        self._in = {(value, _FLOAT): value for value in graph.inputs}
        dequantized = [node.outputs[0] for node in graph if node.op_type == DEQUANTIZE]
        self._wanted = {value: self._asked_of(value) for value in dequantized}

    def run(self) -> None:
        """Replace the graph's nodes and weights."""
        for node in list(self._graph):
            if node.op_type == QUANTIZE:
                self._quantize(node)
            elif node.op_type == DEQUANTIZE:
                self._dequantize(node)
            else:
                self._node(node)
        self._replace_weights()

    def _node(self, node: ir.Node) -> None:
        slots = self._slots[node] if node in self._half else None
        for position, value in enumerate(node.inputs):
            if value in self._floats:
                as_half = slots is not None and slots.inputs[position]
                self._read(node, position, _HALF if as_half else _FLOAT)
        for position, value in enumerate(node.outputs):
            if value not in self._floats:
                continue
            if slots is None or not (slots.outputs[position] or node.op_type == "Cast"):
                self._in[value, _FLOAT] = value
                continue
            if node.op_type == "Cast":
                node.attributes.add(ir.AttrInt64("to", _HALF))
            value.type = ir.TensorType(_HALF)
            self._in[value, _HALF] = value
            if self._is_kept(value):
                self._give_back(node, value)

    def _quantize(self, node: ir.Node) -> None:
        """Let it take what it is given: int8 comes out of either type."""
        given_half = (node.inputs[0], _HALF) in self._in and node not in self._float_scales
        for position in (0, 1):
            self._read(node, position, _HALF if given_half else _FLOAT)

    def _dequantize(self, node: ir.Node) -> None:
        """Let it give what is asked for; a second one where both types are asked for.

        A Cast between it and its layer would keep TensorRT from computing that layer in int8.
        """
        value = node.outputs[0]
        kinds = self._wanted[value]
        if node in self._float_scales or self._is_kept(value):
            kinds = {_FLOAT}
        if len(kinds) == 2:
            made = ir.val(self._fresh(value, _HALF), _HALF, value.shape)
            name = f"{node.name}_fp16"
            attributes = list(node.attributes.values())
            half = ir.Node("", DEQUANTIZE, node.inputs, attributes, outputs=[made], name=name)
            self._graph.insert_after(node, half)
            self._read(half, 1, _HALF)
            self._in[value, _HALF] = made
        kind = min(kinds)  # float32 keeps the name where both are made
        self._read(node, 1, kind)
        value.type = ir.TensorType(kind)
        self._in[value, kind] = value

    def _give_back(self, node: ir.Node, value: ir.Value) -> None:
        """Cast a float16 tensor behind the node that makes it, to float32 with its own name."""
        name = name_of(value)
        value.name = self._fresh(value, _HALF)
        cast = self._cast(value, name, _FLOAT)
        self._graph.insert_after(node, cast)
        self._in[value, _FLOAT] = cast.outputs[0]
        for index, output in enumerate(self._graph.outputs):
            if output is value:
                self._graph.outputs[index] = cast.outputs[0]

    def _read(self, node: ir.Node, position: int, kind: ir.DataType) -> None:
        """Let a node read one of its inputs in a type, with a Cast in front where there is none."""
        value = node.inputs[position]
        if value is None:
            return
        known = self._in.get((value, kind))
        if known is None and value.is_initializer():
            known = value if kind == _FLOAT else ir.val(None, _HALF, value.shape)
        elif known is None:
            other = self._in[value, _FLOAT if kind == _HALF else _HALF]
            cast = self._cast(other, self._fresh(value, kind), kind)
            self._graph.insert_before(node, cast)
            known = cast.outputs[0]
        if value.is_initializer() and kind == _FLOAT:
            self._used_as_float.add(value)
        self._in[value, kind] = known
        node.replace_input_with(position, known)

    def _cast(self, source: ir.Value, target: str, kind: ir.DataType) -> ir.Node:
        self.casts += 1
        output = ir.val(target, kind, source.shape)
        name = f"cast_{source.name}_to{_SUFFIX[kind]}"
        return ir.node("Cast", [source], {"to": kind}, outputs=[output], name=name)

    def _fresh(self, value: ir.Value, kind: ir.DataType) -> str:
        free = f"{value.name}{_SUFFIX[kind]}"
        while free in self._taken:
            free += "_"
        return free

    def _is_kept(self, value: ir.Value) -> bool:
        return value.is_graph_output() or value.name in (SCORES, LOW_RESOLUTION_SCORES)

    def _asked_of(self, value: ir.Value) -> set[ir.DataType]:
        """Give the types that the readers of a tensor ask for; float32 where none does."""
        asked = {_FLOAT} if value.is_graph_output() else set()
        for node, position in value.uses():
            if node.op_type != QUANTIZE:
                slots = self._slots[node] if node in self._half else None
                asked.add(_HALF if slots is not None and slots.inputs[position] else _FLOAT)
        return asked or {_FLOAT}

    def _replace_weights(self) -> None:
        """Register the float16 weights; those that are float16 only keep the name that they had."""
        initializers: Sequence[ir.Value] = list(self._graph.initializers.values())
        self._graph.initializers.clear()
        for value in initializers:
            half = self._in.get((value, _HALF))
            if half is None or value in self._used_as_float:
                self._graph.initializers.add(value)
            if half is not None:
                alone = value not in self._used_as_float
                half.name = name_of(value) if alone else self._fresh(value, _HALF)
                array = array_of(value)
                if array is not None:
                    array = half_weights(array, name_of(value), self.weights)
                    half.const_value = ir.tensor(array, name=half.name)
                self._graph.register_initializer(half)
