"""Write the type and shape of every tensor into a graph, found without copying its weights.

Needs operators of ONNX's own. Nodes and weights stay. onnx_ir's own pass for this only logs what
does not fit together; here it is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import onnx_ir as ir

from fcn_deploy.errors import UnsupportedModelError
from fcn_export.onnx_values import tensors_by_name
from fcn_models.foreign_errors import first_line

__all__ = ["InferTypes"]

_SMALL_BYTES = 1024
"""Initialisers up to this size are kept where types are inferred: shapes are computed of them."""

_INVENTED = "unk__"  # names that onnx gives to sizes that it does not know


class InferTypes(ir.passes.InPlacePass):
    """See the module.

    Args:
        keep_described: False where inner tensors are described anew, in place of what the graph
            says of them.
    """

    def __init__(self, *, keep_described: bool = True) -> None:
        self._keep_described = keep_described

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Describe every tensor of the main graph.

        Raises:
            UnsupportedModelError: types do not fit together, or onnx cannot tell a tensor's; its
                node is named.
        """
        modified = False
        inferred = tensors_by_name(_infer(model, self._keep_described))
        for node in model.graph:
            for value in node.outputs:
                found = inferred.get(value.name or "")
                if found is not None and not value.is_graph_output():
                    shape = None if found.shape is None else _without_invented(found.shape)
                    modified |= (value.type, value.shape) != (found.type, shape)
                    value.type, value.shape = found.type, shape
                if value.name and not value.dtype:
                    raise UnsupportedModelError(
                        f"the type of '{value.name}' is unknown, which node '{node.name}' "
                        f"({node.op_type}) makes.",
                        hint="Only ONNX's own operators can be typed.",
                    )
        return ir.passes.PassResult(model, modified)


def _without_invented(shape: ir.Shape) -> ir.Shape:
    sizes = [size if isinstance(size, int) else size.value for size in shape]
    return ir.Shape([None if str(size).startswith(_INVENTED) else size for size in sizes])


def _infer(model: ir.Model, keep_described: bool) -> ir.Graph:
    with _weights_declared(model.graph):
        proto = ir.to_proto(model)
    if not keep_described:
        del proto.graph.value_info[:]
    try:
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True)).graph
    except onnx.shape_inference.InferenceError as error:
        raise UnsupportedModelError(
            f"the graph's types do not fit together: {first_line(error)}"
        ) from error


@contextmanager
def _weights_declared(graph: ir.Graph) -> Iterator[None]:
    """Turn large initialisers into inputs for a while: protobuf would copy them."""
    inputs, initializers = list(graph.inputs), list(graph.initializers.values())
    for value in initializers:
        if value.const_value is not None and value.const_value.nbytes > _SMALL_BYTES:
            del graph.initializers[value.name or ""]
            if value not in inputs:
                graph.inputs.append(value)
    try:
        yield
    finally:
        del graph.inputs[len(inputs) :]
        graph.initializers.clear()
        for value in initializers:
            graph.initializers.add(value)
