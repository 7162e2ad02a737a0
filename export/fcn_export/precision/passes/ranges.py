"""The largest value that each inner tensor of a graph takes on real frames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from fcn_deploy.names import Array
from fcn_export.graph_spec import INPUT_NAME
from fcn_export.onnx_file import OnnxFile
from fcn_export.precision.passes.element_types import element_types
from fcn_export.precision.passes.inner_outputs import deepest_first
from fcn_export.precision.passes.regions import find_regions

if TYPE_CHECKING:
    import onnx

__all__ = ["largest_values", "nodes_beyond"]

_BACKEND = "onnxruntime"
_FLOAT = 1  # onnx.TensorProto.FLOAT
_PREFIX = "largest_of_"


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
    import onnx

    model = onnx.load_model_from_string(file.data)  # weights of their own file stay there
    names = _inner_floats(model)
    for name in deepest_first(model.graph, names):
        size, largest = f"{_PREFIX}{name}_size", f"{_PREFIX}{name}"
        model.graph.node.append(onnx.helper.make_node("Abs", [name], [size]))
        model.graph.node.append(onnx.helper.make_node("ReduceMax", [size], [largest], keepdims=0))
        model.graph.output.append(onnx.helper.make_tensor_value_info(largest, _FLOAT, []))
    beside = file.path.with_name(f".{file.path.name}.ranges")
    found: dict[str, float] = dict.fromkeys(names, 0.0)
    wanted = [f"{_PREFIX}{name}" for name in names]
    with OnnxFile(beside, model.SerializeToString(), file.weights).opened(_BACKEND) as context:
        for images in batches:
            results = context.execute({INPUT_NAME: images}, outputs=wanted)
            for name in names:
                value = float(results[f"{_PREFIX}{name}"])
                found[name] = max(found[name], value if np.isfinite(value) else np.inf)
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


def _inner_floats(model: onnx.ModelProto) -> list[str]:
    types = element_types(model)
    regions = find_regions(model.graph)
    inner = sorted(regions.image - regions.frame - regions.head)
    outputs = {value.name for value in model.graph.output}
    return [
        name
        for index in inner
        for name in model.graph.node[index].output
        if types.get(name) == _FLOAT and name not in outputs
    ]
