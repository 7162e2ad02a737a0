"""What a network's output is decides its labels and confidence: logits, probabilities, ids."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcn_deploy.errors import ParityError, UnsupportedModelError
from fcn_deploy.preprocess import default_preprocess
from fcn_deploy.segmenter import Segmenter
from fcn_export.check.reference import TorchReference
from fcn_export.check.sample_frames import natural_frame
from fcn_export.check.verify import verify
from fcn_export.export import ExportRequest, export_model
from fcn_export.graph_spec import GraphSpec
from fcn_export.onnx_file import write_onnx
from fcn_export.staged import Staged
from fcn_export.steps import Steps
from fcn_export.trace.stage_module import stage_module
from fcn_export.trace.to_onnx import trace
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
    "erf": lambda y, x: torch.erf(y),
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


SINGLE = [end for end in ENDS if "sigmoid" in end or end in ("logits", "shifted tanh")]
SINGLE.append("second of a softmax")


def shares_of(end: str, frame: Any, classes: int = 1) -> Any:
    """PyTorch's own output for one frame, [C, h, w], at the network's size."""
    spec = GraphSpec(default_preprocess(), classes)
    return TorchReference(seeded(Ending, end, classes).eval(), spec).raw(frame[None])


@pytest.mark.parametrize("end", SINGLE)
def test_a_single_class_is_where_its_probability_is_above_one_half(
    tmp_path: Path, end: str
) -> None:
    staged = stage(tmp_path, end)

    frame = natural_frame(64, 80, seed=1)
    with staged.file.opened("onnxruntime") as context:
        labels = context.execute({"image": frame[None]})["labels"]
    logits = torch.from_numpy(shares_of("logits", frame))
    expected = enlarged(ENDS[end](logits, frame[None].transpose(0, 3, 1, 2)), sized(frame))
    above = (expected[:, 0] > (0 if end == "logits" else 0.5)).numpy()
    assert 0.05 < above.mean() < 0.95
    assert np.mean(labels == above) > 0.999  # near ties may go either way
    assert staged.spec.activation == ("logits" if end == "logits" else "sigmoid")


def sized(frame: Any) -> Tensor:
    """Make a tensor of the frame's size, for what asks for that."""
    return torch.empty(1, 3, *frame.shape[:2])


def test_a_threshold_that_is_asked_for_is_a_probability(tmp_path: Path) -> None:
    frame = natural_frame(64, 80, seed=1)
    request = ExportRequest(**SMALL, threshold=0.7)

    report = export_model(seeded(Ending, "sigmoid"), tmp_path / "out.fcn", request=request)

    with Segmenter.open(report.path) as segmenter:
        result = segmenter(frame, scores=True)
        manifest = segmenter.manifest
    assert manifest is not None
    assert manifest.source.activation == "sigmoid"
    assert manifest.source.threshold == 0.7
    shares = enlarged(torch.from_numpy(shares_of("sigmoid", frame)), sized(frame))[0].numpy()
    assert np.mean(result.labels == (shares[0] > 0.7)) > 0.999
    np.testing.assert_allclose(result.probabilities(), shares, atol=1e-4)  # float32 rounding


def test_what_is_not_known_names_the_options(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="output 'output'") as caught:
        stage(tmp_path, "erf", head="labels")

    assert "--activation" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("said", "end", "found"),
    [
        ("logits", "sigmoid", "as of probabilities"),
        ("sigmoid", "logits", "not 0 to 1"),
    ],
)
def test_a_wrong_activation_in_the_specification_fails_verification(
    tmp_path: Path, said: Any, end: str, found: str
) -> None:
    request = ExportRequest(**SMALL)
    network = seeded(Ending, end).eval()
    with ExitStack() as stack:
        staged = stage_module(network, tmp_path, request, Steps(None), stack)
        wrong = replace(staged.spec, activation=said)
        graph = trace(network, wrong)
        file = write_onnx(graph.model, tmp_path / "wrong.onnx")

        with pytest.raises(ParityError, match=f"taken for {said} .*{found}"):
            verify(file, TorchReference(network, wrong), wrong, ((1, 64, 80),))


def test_logits_of_a_single_class_give_both_labels(tmp_path: Path) -> None:
    request = ExportRequest(**SMALL)

    report = export_model(seeded(Ending, "logits"), tmp_path / "out.fcn", request=request)

    with Segmenter.open(report.path) as segmenter:
        labels = segmenter(natural_frame(64, 80, seed=1)).labels
    assert set(np.unique(labels)) == {0, 1}


@pytest.mark.parametrize(
    ("end", "classes"), [("softmax", 4), ("softmax, enlarged", 4), ("log softmax", 4)]
)
def test_labels_of_several_classes_are_the_best(tmp_path: Path, end: str, classes: int) -> None:
    assert stage(tmp_path, end, classes).spec.num_classes == classes


@pytest.mark.parametrize(
    "end", ["logits", "softmax", "softmax, enlarged", "sigmoid", "log softmax"]
)
@pytest.mark.parametrize("classes", [1, 4])
def test_the_confidence_is_activated_once(tmp_path: Path, end: str, classes: int) -> None:
    if classes == 1 and "softmax" in end:
        end = "enlarged, sigmoid"
    request = ExportRequest(**{**SMALL, "head": "confidence"})

    report = export_model(seeded(Ending, end, classes), tmp_path / "out.fcn", request=request)

    made = [node.op_type for node in onnx.load(report.path / "model.onnx").graph.node]
    assert made.count("Softmax") + made.count("Sigmoid") + made.count("LogSoftmax") == (
        2 if end == "log softmax" else 1
    )
    with Segmenter.open(report.path) as segmenter:
        found = segmenter(natural_frame(64, 80, seed=1)).confidence
    assert found is not None
    assert 0 <= found.min() < found.max() <= 1


class Ids(nn.Module):
    """Class ids of four classes, [N, 1, h, w] or [N, h, w]; at half the size where `small`."""

    def __init__(self, keepdim: bool, small: bool, floats: bool) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, stride=2 if small else 1, padding=1)
        self.keepdim, self.floats = keepdim, floats

    def forward(self, x: Tensor) -> Tensor:
        ids = self.body(x).argmax(1, keepdim=self.keepdim)
        return torch.as_tensor(ids.float() if self.floats else ids)


@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("floats", [True, False])
def test_class_ids_are_passed_on(tmp_path: Path, keepdim: bool, small: bool, floats: bool) -> None:
    network = seeded(Ids, keepdim, small, floats).eval()
    frame = natural_frame(64, 80, seed=1)

    report = export_model(network, tmp_path / "out.fcn", request=ExportRequest(**SMALL))

    with Segmenter.open(report.path) as segmenter:
        labels = segmenter(frame).labels
    raw = TorchReference(network, GraphSpec(default_preprocess(), 4, activation="ids")).raw(
        frame[None]
    )
    expected = raw[0, 0].repeat(2, 0).repeat(2, 1) if small else raw[0, 0]
    assert report.num_classes == 4
    assert len(np.unique(expected)) > 2
    np.testing.assert_array_equal(labels, expected)


def test_scores_of_class_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="--head scores needs the network's scores"):
        export_model(
            seeded(Ids, True, False, False),
            tmp_path / "out.fcn",
            request=ExportRequest(**{**SMALL, "head": "scores"}),
        )


@pytest.mark.parametrize("ends", [("HardSigmoid",), ("Sigmoid", "Clip"), ("Sigmoid",)])
def test_a_single_class_of_an_onnx_file_has_both_labels(
    tmp_path: Path, ends: tuple[str, ...]
) -> None:
    path = foreign_network(tmp_path / "net.onnx", ends=ends, classes=1)
    frame = natural_frame(64, 80, seed=1)

    report = export_model(path, tmp_path / "out.fcn", request=ExportRequest(**SMALL))

    with Segmenter.open(report.path) as segmenter:
        found = segmenter(frame)
    assert 0.02 < found.labels.mean() < 0.98


@pytest.mark.parametrize("ends", [("Softmax",), ("Sigmoid",), ("Softmax", "Clip")])
def test_confidence_of_an_onnx_file_is_activated_once(
    tmp_path: Path, ends: tuple[str, ...]
) -> None:
    path = foreign_network(tmp_path / "net.onnx", ends=ends, classes=1 if "Sigmoid" in ends else 4)
    request = ExportRequest(**{**SMALL, "head": "confidence"})

    report = export_model(path, tmp_path / "out.fcn", request=request)

    made = [node.op_type for node in onnx.load(report.path / "model.onnx").graph.node]
    assert made.count("Softmax") + made.count("Sigmoid") == 1
