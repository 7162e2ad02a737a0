"""Give every node a name of its own.

Needs nothing. Nodes without a name get one of their operator and output, and of equal names the
first stays. Values keep their names, and so do outputs that are left out, unlike with onnx_ir's
own NameFixPass.
"""

from __future__ import annotations

import onnx_ir as ir

from fcn_export.onnx_values import free_name, name_of

__all__ = ["NameNodes"]


class NameNodes(ir.passes.InPlacePass):
    """See the module."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Name the nodes of the main graph."""
        taken: set[str] = set()
        modified = False
        for node in model.graph:
            first = next(iter(node.outputs), None)
            base = node.name or f"{node.op_type}_{name_of(first) if first else ''}"
            name = free_name(base, taken)
            taken.add(name)
            modified |= name != node.name
            node.name = name
        return ir.passes.PassResult(model, modified)
