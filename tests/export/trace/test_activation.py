"""Probabilities are not taken for logits: by the graph, by values, and for the confidence."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import parser
from torch import Tensor, nn
from torch.nn import functional as F

from fcn_deploy.errors import UnsupportedModelError
from fcn_deploy.segmenter import Segmenter
from fcn_export.check.sample_frames import natural_frame
from fcn_export.export import ExportRequest, export_model
from fcn_export.staged import Staged
from fcn_export.steps import Steps
from fcn_export.trace.activation import find_activation
from fcn_export.trace.stage_module import stage_module
from tests.export.tiny_networks import seeded
from tests.export.trace.test_stage_onnx import network as foreign_network


def enlarged(scores: Tensor, x: Tensor) -> Tensor:
    return F.interpolate(scores, x.shape[2:], mode="bilinear", align_corners=False)


def softmax_by_hand(scores: Tensor) -> Tensor:
    grown = scores.exp()
    return grown / grown.sum(dim=1, keepdim=True)


SMALL: dict[str, Any] = {
    "size": (64, 80),
    "min_size": (32, 32),
    "max_size": (96, 96),
    "engine": "none",
    "precisions": ("fp32",),
}
ENDS: dict[str, Any] = {
    "logits": lambda y, x: y,
    "sigmoid": lambda y, x: torch.sigmoid(y),
    "enlarged, sigmoid": lambda y, x: torch.sigmoid(enlarged(y, x)),
    "sigmoid, enlarged": lambda y, x: enlarged(torch.sigmoid(y), x),
    "sigmoid, enlarged, clamped": lambda y, x: enlarged(torch.sigmoid(y), x).clamp(1e-6, 1 - 1e-6),
    "sigmoid, squeezed": lambda y, x: torch.sigmoid(y).squeeze(1).unsqueeze(1),
    "hard sigmoid": lambda y, x: F.hardsigmoid(y),
    "second of a softmax": lambda y, x: torch.cat([-y, y], 1).softmax(1)[:, 1:],
    "sigmoid by hand": lambda y, x: 1 / (1 + torch.exp(-y)),
    "shifted tanh": lambda y, x: torch.tanh(y) * 0.5 + 0.5,
    "tanh": lambda y, x: torch.tanh(y),
    "zeros": lambda y, x: y * 0,
    "softmax": lambda y, x: y.softmax(1),
    "softmax, enlarged": lambda y, x: enlarged(y.softmax(1), x),
    "softmax by hand": lambda y, x: softmax_by_hand(y),
    "softmax of rows": lambda y, x: y.softmax(3),
    "log softmax": lambda y, x: y.log_softmax(1),
}


class Ending(nn.Module):
    """Scores at half the input's size, at first logits of both signs; then what `end` names."""

    def __init__(self, end: str, classes: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.classifier = nn.Conv2d(8, classes, 1, bias=False)
        self.end = end
        with torch.no_grad():
            self.classifier.weight *= 4

    def forward(self, x: Tensor) -> Tensor:
        logits = self.classifier(torch.tanh(self.stem(x)))
        scores: Tensor = ENDS[self.end](logits, x)
        return scores


def stage(folder: Path, end: str, classes: int = 1, **options: Any) -> Staged:
    """Trace a network and write its graph, without what follows."""
    request = ExportRequest(**{**SMALL, **options})
    with ExitStack() as stack:
        return stage_module(seeded(Ending, end, classes), folder, request, Steps(None), stack)


@pytest.mark.parametrize(
    ("end", "found"),
    [
        ("sigmoid", "come from Sigmoid '"),
        ("enlarged, sigmoid", "come from Sigmoid '"),
        ("sigmoid, enlarged", "come from Sigmoid '"),
        ("sigmoid, enlarged, clamped", "come from Sigmoid '"),
        ("sigmoid, squeezed", "come from Sigmoid '"),
        ("hard sigmoid", "come from HardSigmoid '"),
        ("second of a softmax", "come from Softmax '"),
        ("sigmoid by hand", r"lie in 0\.\d+\.\.(0\.\d+|1) on 6 varied frames"),
        ("shifted tanh", r"lie in 0\.\d+\.\.(0\.\d+|1) on 6 varied frames"),
    ],
)
def test_probabilities_of_a_single_class_are_refused(tmp_path: Path, end: str, found: str) -> None:
    expected = rf"only class {found}.*expected are logits"

    with pytest.raises(UnsupportedModelError, match=expected) as caught:
        stage(tmp_path, end)

    assert "without its last sigmoid" in (caught.value.hint or "")


@pytest.mark.parametrize("head", ["scores", "confidence"])
def test_they_are_refused_whatever_the_graph_ends_in(tmp_path: Path, head: str) -> None:
    with pytest.raises(UnsupportedModelError, match="only class come from Sigmoid"):
        stage(tmp_path, "enlarged, sigmoid", head=head)


def test_logits_of_a_single_class_give_both_labels(tmp_path: Path) -> None:
    request = ExportRequest(**SMALL)

    report = export_model(seeded(Ending, "logits"), tmp_path / "out.fcn", request=request)

    with Segmenter.open(report.path) as segmenter:
        labels = segmenter(natural_frame(64, 80, seed=1)).labels
    assert set(np.unique(labels)) == {0, 1}


@pytest.mark.parametrize(
    ("end", "classes"),
    [
        ("tanh", 1),  # -1..1, so that 0 divides the labels
        ("zeros", 1),  # as of weights that were never trained; nothing is known of a constant
        ("softmax", 4),  # labels are an argmax
        ("softmax, enlarged", 4),
    ],
)
def test_labels_are_made_of_what_an_activation_does_not_change(
    tmp_path: Path, end: str, classes: int
) -> None:
    assert stage(tmp_path, end, classes).spec.num_classes == classes


@pytest.mark.parametrize(
    ("end", "found"),
    [
        ("softmax", "come from Softmax '"),
        ("softmax, enlarged", "come from Softmax '"),
        ("sigmoid", "come from Sigmoid '"),
        ("softmax by hand", r"lie in \S+ on 6 varied frames"),
    ],
)
def test_the_confidence_of_probabilities_is_refused(tmp_path: Path, end: str, found: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"--head confidence .* scores {found}"):
        stage(tmp_path, end, 4, head="confidence")


@pytest.mark.parametrize("end", ["logits", "log softmax", "softmax of rows"])
def test_the_confidence_of_what_is_no_probability_of_classes_is_made(
    tmp_path: Path, end: str
) -> None:
    staged = stage(tmp_path, end, 4, head="confidence")

    assert [output.name for output in staged.spec.outputs] == ["labels", "confidence"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("p = Softmax <axis = 1> (x)\n s = Resize (p)", "Softmax"),
        ("p = Softmax <axis = -3> (x)\n s = Cast <to = 1> (p)", "Softmax"),
        ("p = Softmax <axis = 3> (x)\n s = Identity (p)", None),
        ("q = Softmax (x)\n s = Transpose <perm = [0, 3, 1, 2]> (q)", "Softmax"),
        ("p = Sigmoid (x)\n s = Mul (p, x)", None),
        ("s = Relu (x)", None),
    ],
)
def test_an_activation_is_found_through_what_only_moves_scores(
    text: str, found: str | None
) -> None:
    graph = parser.parse_graph(f"g (float[n, c, h, w] x) => (float[n, c, h, w] s) {{ {text} }}")

    node = find_activation(graph, "s")

    assert (None if node is None else node.op_type) == found


@pytest.mark.parametrize("ends", [("HardSigmoid",), ("Sigmoid", "Clip")])
def test_a_single_class_of_an_onnx_file_is_refused_where_its_threshold_is_unknown(
    tmp_path: Path, ends: tuple[str, ...]
) -> None:
    path = foreign_network(tmp_path / "net.onnx", ends=ends, classes=1)

    with pytest.raises(UnsupportedModelError, match=f"only class come from {ends[0]}"):
        export_model(path, tmp_path / "out.fcn", request=ExportRequest(**SMALL))


@pytest.mark.parametrize("ends", [("Softmax",), ("Sigmoid",)])
def test_confidence_is_made_before_the_last_activation_of_an_onnx_file(
    tmp_path: Path, ends: tuple[str, ...]
) -> None:
    path = foreign_network(tmp_path / "net.onnx", ends=ends, classes=1 if "Sigmoid" in ends else 4)
    request = ExportRequest(**{**SMALL, "head": "confidence"})

    report = export_model(path, tmp_path / "out.fcn", request=request)

    made = [node.op_type for node in onnx.load(report.path / "model.onnx").graph.node]
    assert made.count("Softmax") + made.count("Sigmoid") == 1


def test_confidence_of_an_onnx_files_probabilities_is_refused(tmp_path: Path) -> None:
    path = foreign_network(tmp_path / "net.onnx", ends=("Softmax", "Clip"))

    with pytest.raises(UnsupportedModelError, match=r"--head confidence .* come from Softmax"):
        export_model(
            path, tmp_path / "out.fcn", request=ExportRequest(**{**SMALL, "head": "confidence"})
        )
