"""Give out the smallest and the largest value of inner tensors, and how many values they have.

Needs float32 tensors, each made once. The graph's own nodes and outputs stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import onnx_ir as ir

from fcn_export.onnx_values import tensors_by_name

if TYPE_CHECKING:
    from fcn_deploy.names import Array

__all__ = ["ExtentOutputs", "deepest_first"]

_PARTS = MappingProxyType(
    {
        "low": ("ReduceMin", ir.DataType.FLOAT),
        "high": ("ReduceMax", ir.DataType.FLOAT),
        "elements": ("Size", ir.DataType.INT64),
    }
)


class ExtentOutputs(ir.passes.InPlacePass):
    """See the module.

    Args:
        tensors: names; a result is found by the position of its tensor among them.
    """

    def __init__(self, tensors: Sequence[str]) -> None:
        self._positions = {name: index for index, name in enumerate(tensors)}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Add the outputs."""
        graph = model.graph
        values = tensors_by_name(graph)
        for name in deepest_first(graph, self._positions):
            for part, (op, dtype) in _PARTS.items():
                output = ir.val(_output(part, self._positions[name]), dtype, [])
                keep = {} if op == "Size" else {"keepdims": 0}
                node = ir.node(op, [values[name]], keep, outputs=[output], name=output.name)
                graph.append(node)
                graph.outputs.append(output)
        return ir.passes.PassResult(model, bool(self._positions))

    def read(self, results: Mapping[str, Array]) -> dict[str, tuple[float, float, int]]:
        """Give lowest value, highest value and number of elements by tensor, of one run.

        Args:
            results: a run's outputs; each that this pass adds is a scalar, float32 or int64.
        """
        return {
            name: (
                float(results[_output("low", index)]),
                float(results[_output("high", index)]),
                int(results[_output("elements", index)]),
            )
            for name, index in self._positions.items()
        }


def deepest_first(graph: ir.Graph, names: Iterable[str]) -> list[str]:
    """Sort tensors by the node that makes them, the last node first; a graph's inputs come last.

    ONNX Runtime computes the last of a graph's outputs first. Reductions added in this order are
    computed as the network goes, and each tensor is freed behind it; added the other way round,
    the whole network runs first, with every tensor held.
    """
    position = {value.name: index for index, node in enumerate(graph) for value in node.outputs}
    return sorted(names, key=lambda name: position.get(name, -1), reverse=True)


def _output(part: str, index: int) -> str:
    return f"extent_{part}_{index}"
