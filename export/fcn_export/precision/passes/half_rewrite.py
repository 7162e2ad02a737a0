"""Retype the nodes that were chosen for float16, and put a Cast wherever two types meet."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from fcn_export.graph_spec import LOW_RESOLUTION_SCORES, SCORES
from fcn_export.precision.passes.half_slots import HalfSlots
from fcn_export.precision.passes.half_weights import HalfWeights, half_tensor
from fcn_export.precision.passes.quantized import DEQUANTIZE, QUANTIZE

if TYPE_CHECKING:
    import onnx

__all__ = ["HalfRewrite"]

_FLOAT, _HALF = 1, 10  # onnx.TensorProto.FLOAT, FLOAT16
_SUFFIX = {_FLOAT: "__fp32", _HALF: "__fp16"}


class HalfRewrite:
    """Rewrites one graph in place.

    A tensor has a name in each of the two types that somebody asks for; the type that it is made
    in keeps the tensor's own name, but for outputs and scores, whose names stay float32.

    Args:
        types: element type of every tensor.
        slots: of every node.
        half: indexes of the nodes that become float16; no Q or DQ is among them.
        float_scales: indexes of Q and DQ nodes whose scales float16 cannot hold.
    """

    def __init__(
        self,
        graph: onnx.GraphProto,
        types: Mapping[str, int],
        slots: Sequence[HalfSlots | None],
        half: Collection[int],
        float_scales: Collection[int],
    ) -> None:
        self.weights = HalfWeights()
        self.casts = 0
        self._graph = graph
        self._types = types
        self._slots = slots
        self._half = half
        self._float_scales = float_scales
        self._kept = {value.name for value in graph.output} | {SCORES, LOW_RESOLUTION_SCORES}
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._used_as_float: set[str] = set()
        self._names: dict[tuple[str, int], str] = {
            (value.name, _FLOAT): value.name for value in graph.input
        }
        self._made: list[onnx.NodeProto] = []
        self._wanted = self._dequantized_types()

    def run(self) -> None:
        """Replace the graph's nodes and weights."""
        for index, node in enumerate(list(self._graph.node)):
            if node.op_type == QUANTIZE:
                self._quantize(index, node)
            elif node.op_type == DEQUANTIZE:
                self._dequantize(index, node)
            else:
                self._node(index, node)
        self._take_back_names()
        nodes = self._made
        del self._graph.node[:]
        self._graph.node.extend(nodes)

    def _node(self, index: int, node: onnx.NodeProto) -> None:
        slots = self._slots[index]
        half = index in self._half and slots is not None
        for position, name in enumerate(node.input):
            if self._types.get(name) == _FLOAT:
                as_half = half and slots is not None and slots.inputs[position]
                node.input[position] = self._as(name, _HALF if as_half else _FLOAT)
        made_half = [
            half
            and slots is not None
            and self._types.get(name) == _FLOAT
            and (slots.outputs[position] or node.op_type == "Cast")
            for position, name in enumerate(node.output)
        ]
        if node.op_type == "Cast" and made_half[0]:
            to = next(attribute for attribute in node.attribute if attribute.name == "to")
            to.i = _HALF
        self._emit(node, made_half)

    def _quantize(self, index: int, node: onnx.NodeProto) -> None:
        """Let it take what it is given: int8 comes out of either type."""
        given_half = (node.input[0], _HALF) in self._names and index not in self._float_scales
        kind = _HALF if given_half else _FLOAT
        for position in (0, 1):
            node.input[position] = self._as(node.input[position], kind)
        self._made.append(node)

    def _dequantize(self, index: int, node: onnx.NodeProto) -> None:
        """Let it give what is asked for; a second one where both types are asked for.

        A Cast between it and its layer would keep TensorRT from computing that layer in int8.
        """
        scale, output = node.input[1], node.output[0]
        kinds = {_FLOAT} if index in self._float_scales else self._wanted[output]
        if output in self._kept:
            kinds = {_FLOAT}
        for kind in sorted(kinds):
            part = type(node).FromString(node.SerializeToString())
            part.input[1] = self._as(scale, kind)
            if len(kinds) == 2 and kind == _HALF:
                part.name, part.output[0] = f"{node.name}_fp16", self._fresh(output, _HALF)
            self._names[output, kind] = part.output[0]
            self._made.append(part)

    def _emit(self, node: onnx.NodeProto, made_half: Sequence[bool]) -> None:
        """Add a node, note the type of what it makes, and give kept names back their float32."""
        after = []
        for position, name in enumerate(node.output):
            if self._types.get(name) != _FLOAT:
                continue
            if not made_half[position]:
                self._names[name, _FLOAT] = name
            elif name in self._kept:
                node.output[position] = self._fresh(name, _HALF)
                self._names[name, _HALF] = node.output[position]
                after.append(name)
            else:
                self._names[name, _HALF] = name
        self._made.append(node)
        for name in after:
            self._cast(self._names[name, _HALF], name, _FLOAT)
            self._names[name, _FLOAT] = name

    def _as(self, name: str, kind: int) -> str:
        """Give the name of a tensor in a type, with a Cast in front where there is none yet."""
        if name in self._initializers:
            if kind == _FLOAT:
                self._used_as_float.add(name)
                return name
            if (name, _HALF) not in self._names:
                self._names[name, _HALF] = self._fresh(name, _HALF)
            return self._names[name, _HALF]
        known = self._names.get((name, kind))
        if known is None:
            known = self._fresh(name, kind)
            self._cast(self._names[name, _FLOAT if kind == _HALF else _HALF], known, kind)
            self._names[name, kind] = known
        return known

    def _cast(self, source: str, target: str, kind: int) -> None:
        import onnx

        name = f"cast_{source}_to{_SUFFIX[kind]}"
        self._made.append(onnx.helper.make_node("Cast", [source], [target], name=name, to=kind))
        self.casts += 1

    def _fresh(self, name: str, kind: int) -> str:
        free = f"{name}{_SUFFIX[kind]}"
        while free in self._types:
            free += "_"
        return free

    def _dequantized_types(self) -> dict[str, set[int]]:
        """Give the types that the readers of each tensor ask for; float32 where none does."""
        wanted: dict[str, set[int]] = {}
        for index, node in enumerate(self._graph.node):
            if node.op_type == QUANTIZE:
                continue
            slots = self._slots[index]
            for position, name in enumerate(node.input):
                half = index in self._half and slots is not None and slots.inputs[position]
                wanted.setdefault(name, set()).add(_HALF if half else _FLOAT)
        for value in self._graph.output:
            wanted.setdefault(value.name, set()).add(_FLOAT)
        dequantized = [n.output[0] for n in self._graph.node if n.op_type == DEQUANTIZE]
        return {name: wanted.get(name, {_FLOAT}) for name in dequantized}

    def _take_back_names(self) -> None:
        """Replace weights; those that are float16 only keep the name that they had."""
        renamed: dict[str, str] = {}
        kept = []
        for tensor in self._graph.initializer:
            half = self._names.get((tensor.name, _HALF))
            if half is None or tensor.name in self._used_as_float:
                kept.append(tensor)
            if half is not None:
                alone = tensor.name not in self._used_as_float
                name = tensor.name if alone else half
                renamed[half] = name
                kept.append(half_tensor(tensor, name, self.weights))
        for node in self._made:
            for position, name in enumerate(node.input):
                node.input[position] = renamed.get(name, name)
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)
