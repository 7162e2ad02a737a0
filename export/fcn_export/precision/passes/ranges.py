"""Find the largest value that each inner tensor of a graph takes on real frames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from fcn_deploy.names import Array
from fcn_export.graph_spec import INPUT_NAME
from fcn_export.onnx_file import OnnxFile
from fcn_export.onnx_values import name_of, take_proto
from fcn_export.precision.passes.element_types import InferTypes
from fcn_export.precision.passes.graph_sections import find_sections
from fcn_export.precision.passes.inner_outputs import ExtentOutputs
from fcn_export.release_memory import release_freed_memory

if TYPE_CHECKING:
    import onnx

__all__ = ["largest_values", "nodes_beyond"]

_BACKEND = "onnxruntime"


def largest_values(file: OnnxFile, batches: Iterable[Array]) -> Mapping[str, float]:
    """Run a graph with its maxima as further outputs.

    Args:
        file: a float32 graph with the input of an artifact.
        batches: uint8 [N, H, W, 3] each.

    Returns:
        Largest absolute value of every float32 tensor between frame and head.

    Raises:
        ArtifactError, ExecutionError: ONNX Runtime does not run the graph.
    """
    names, outputs, data = _with_extents(file)
    release_freed_memory()  # the graph was there twice
    beside = file.path.with_name(f".{file.path.name}.ranges")
    found: dict[str, float] = dict.fromkeys(names, 0.0)
    with OnnxFile(beside, data, file.weights).opened(_BACKEND) as context:
        for images in batches:
            for name, (low, high, _) in outputs.read(context.execute({INPUT_NAME: images})).items():
                value = max(abs(low), abs(high)) if np.isfinite(low + high) else np.inf
                found[name] = max(found[name], value)
    return found


def nodes_beyond(
    graph: onnx.GraphProto, largest: Mapping[str, float], limit: float
) -> tuple[str, ...]:
    """Name the nodes that make or read a tensor with values above a limit."""
    beyond = {name for name, value in largest.items() if value > limit}
    return tuple(
        node.name
        for node in graph.node
        if beyond.intersection(node.output) or beyond.intersection(node.input)
    )


def _with_extents(file: OnnxFile) -> tuple[list[str], ExtentOutputs, bytes]:
    """Give inner tensors, the pass that gives them out, and the graph with their extents."""
    import onnx

    # weights of their own file stay there, but for those that are looked at
    model = ir.from_proto(onnx.load_model_from_string(file.data))
    ir.external_data.set_base_dir(model.graph, file.path.parent)
    InferTypes()(model)
    names = [
        name_of(value)
        for node in find_sections(model.graph).between(model.graph)
        for value in node.outputs
        if value.dtype == ir.DataType.FLOAT and not value.is_graph_output()
    ]
    outputs = ExtentOutputs(names)
    outputs(model)
    return names, outputs, take_proto(model).SerializeToString()
