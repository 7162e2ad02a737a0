"""Look at an ONNX file before any library parses it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fcn_deploy.graph.scan.external import check_external_data, stored_tensors
from fcn_deploy.graph.scan.library_check import check_with_onnx
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
    foreign: bool = False,
) -> OnnxGraph:
    """Read a model's graph and make sure that a library may parse the same bytes.

    Weights are skipped, not read: the time depends on the number of nodes, not on their size.

    Args:
        data: the whole file.
        name: what to call it in messages.
        folder: where external data may lie, directly; None refuses external data.
        limits: how much the model may ask for.
        foreign: no artifact vouches for it, so that the `onnx` library must check it, too.

    Raises:
        ArtifactError: it is cut, damaged or does not fit together.
        ArtifactMissingError: a file with external data is missing.
        UntrustedArtifactError: it reads outside its folder or asks for too much memory or time.
        UnsupportedOpError: it uses functions, control flow, custom operators; a foreign one also:
            sequences, or operators or a version that the installed `onnx` does not know.
        BackendUnavailableError: it is foreign, and `onnx` is not installed.
    """
    graph = parse_model(data, name=name, limits=limits)
    tensors = stored_tensors(graph.initializers.values(), graph.nodes)
    graph = replace(graph, external_files=check_external_data(tensors, folder=folder))
    if foreign:
        check_with_onnx(data, graph, name=name, limits=limits)
    return graph
