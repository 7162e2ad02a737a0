"""Look at an ONNX file before any library parses it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fcn_deploy.graph.scan.constants import check_constant_sizes
from fcn_deploy.graph.scan.external import check_external_data, stored_tensors
from fcn_deploy.graph.scan.limits import ScanLimits
from fcn_deploy.graph.scan.onnx_graph import OnnxGraph
from fcn_deploy.graph.scan.parse import parse_model

__all__ = ["scan_onnx"]

_DEFAULT_LIMITS = ScanLimits()


def scan_onnx(
    data: bytes | memoryview,
    *,
    name: str = "the model",
    folder: Path | None = None,
    limits: ScanLimits = _DEFAULT_LIMITS,
) -> OnnxGraph:
    """Read a model's graph and make sure that a library may parse the same bytes.

    Weights are skipped, not read: the time depends on the number of nodes, not on their size.

    Args:
        data: the whole file.
        name: what to call it in messages.
        folder: where external data may lie, directly; None refuses external data.
        limits: how much the model may ask for.

    Raises:
        ArtifactError: it is cut, damaged or does not fit together.
        ArtifactMissingError: a file with external data is missing.
        UntrustedArtifactError: it reads outside its folder or asks for too much memory or time.
        UnsupportedOpError: it uses functions, control flow, sequences, custom operators, or a
            version of the format that is not known.
    """
    graph = parse_model(data, name=name, limits=limits)
    check_constant_sizes(graph, name=name, max_elements=limits.max_constant_elements)
    tensors = stored_tensors(graph.initializers.values(), graph.nodes)
    return replace(graph, external_files=check_external_data(tensors, folder=folder))
