"""Hold one network in the forms that are compared: checkpoint, artifact and plain ONNX."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcn_deploy.graph.scan import scan_onnx, with_outputs
from fcn_deploy.graph.tail import find_tail
from fcn_deploy.libraries import check_libraries
from fcn_deploy.names import Array
from fcn_deploy.telemetry import import_onnxruntime

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Subject", "fixed_graph", "make_subject", "network_alone"]

Say = Callable[[str], None]

_TRACED = (2, 3, 96, 160)  # torch.export freezes a dimension whose example is 1


@dataclass(frozen=True, slots=True)
class Subject:
    """A network to compare on.

    Attributes:
        checkpoint: state dict that `fcn_export.load_model` recognises, or with `arch`.
        artifact: made of it by `fcn_export.export_model`.
        graph: ONNX as a user exports it: `image` float32 [N, 3, H, W] to labels uint8 [N, H, W].
        arch: factory of the network, where its keys do not tell.
    """

    name: str
    checkpoint: Path
    artifact: Path
    graph: Path
    arch: str | None = None


def make_subject(name: str, module: nn.Module, *, folder: Path, say: Say) -> Subject:
    """Write the three forms of a torchvision network into a folder, or take what is there.

    Args:
        folder: of the cache; what is in it is known by the weights and the libraries' versions.
    """
    place = folder / f"{name}-{_digest(module)}"
    subject = Subject(name, place / "model.pt", place / "model.fcn", place / "user.onnx")
    place.mkdir(parents=True, exist_ok=True)
    if not subject.checkpoint.is_file():
        import torch

        _write(subject.checkpoint, lambda path: torch.save(module.state_dict(), path))
    if not subject.artifact.is_dir():
        from fcn_export.export import ExportRequest, export_model

        say(f"exporting {name} with fcn-export, once")
        # what is raced has random weights, too: labels of near ties that anything may tip
        request = ExportRequest(size=(256, 320), allow_broken=True)
        export_model(subject.checkpoint, subject.artifact, request=request)
    if not subject.graph.is_file():
        say(f"exporting {name} with torch.onnx.export, once")
        _write(subject.graph, lambda path: export_as_a_user(module, path))
    return subject


def export_as_a_user(module: nn.Module, path: Path) -> None:
    """Export as PyTorch's documentation says, with ArgMax in the graph and free N, H and W."""
    import torch

    from fcn_export.trace.exporter_messages import quiet_exporters

    class Labels(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = module

        def forward(self, image: Tensor) -> Tensor:
            found = self.network(image)
            scores = found["out"] if isinstance(found, dict) else found
            if scores.shape[-2:] != image.shape[-2:]:
                scores = torch.nn.functional.interpolate(
                    scores, size=image.shape[-2:], mode="bilinear", align_corners=False
                )
            labels: Tensor = scores.argmax(1).to(torch.uint8)
            return labels

    free: Any = torch.export.Dim.DYNAMIC
    with quiet_exporters():
        torch.onnx.export(
            Labels().eval(),
            (torch.rand(_TRACED),),
            path,
            dynamo=True,
            external_data=False,
            input_names=["image"],
            output_names=["labels"],
            dynamic_shapes=({0: free, 2: free, 3: free},),
            verbose=False,
        )


def fixed_graph(graph: Path, shape: tuple[int, int, int], *, target: Path) -> Path:
    """Bind a graph's input to one (batch, height, width) and fold what follows from it.

    ONNX Runtime folds constants and saves the result, as its documentation says; without that
    OpenCV does not take the sizes that the exporter computes from the input's shape.
    """
    import onnx

    onnxruntime = import_onnxruntime()
    model = onnx.load(graph)
    batch, height, width = shape
    for value, sizes in (
        (model.graph.input[0], (batch, 3, height, width)),
        (model.graph.output[0], shape),
    ):
        for dim, size in zip(value.type.tensor_type.shape.dim, sizes, strict=True):
            dim.Clear()
            dim.dim_value = size
    del model.graph.value_info[:]  # they name the sizes that were free
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return target


def network_alone(graph: Path, *, target: Path) -> Path:
    """Cut the labels off a graph: what is left ends in the scores before the last Resize."""
    import onnx

    data = graph.read_bytes()
    tail = find_tail(scan_onnx(data, name=f"'{graph}'", folder=graph.parent))
    if tail is None or tail.low_scores is None:
        raise ValueError(f"'{graph}' does not end in Resize and ArgMax")
    cut = onnx.load_model_from_string(with_outputs(data, [tail.low_scores]))
    onnx.save(cut, target)  # in the usual order of fields: OpenVINO knows ONNX files by it
    return target


def _digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        array: Array = tensor.numpy()
        digest.update(f"{name} {array.shape}".encode())
        digest.update(array.tobytes())
    versions = {status.distribution: status.version for status in check_libraries()}
    digest.update(f"{versions.get('torch')} {versions.get('onnx')}".encode())
    return digest.hexdigest()[:16]


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Let a file appear when it is whole."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
        partial = Path(folder) / path.name
        write(partial)
        os.replace(partial, path)
