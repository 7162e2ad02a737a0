"""What PyTorch's exporter writes is understood: activations inside networks, ids, transformers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcn_deploy.graph.meaning import FoundMeaning, check_values, find_meaning, labels_of
from fcn_deploy.graph.scan import scan_onnx
from tests.export.tiny_networks import seeded

SIZES = ((32, 48), (40, 24))
Finish = Callable[[Tensor, Tensor], Tensor]


def _up(scores: Tensor, image: Tensor) -> Tensor:
    return F.interpolate(scores, image.shape[2:], mode="bilinear", align_corners=False)


SINGLE: dict[str, tuple[str, Finish]] = {
    "logits": ("logits", lambda y, x: _up(y, x)),
    "last": ("sigmoid", lambda y, x: torch.sigmoid(_up(y, x))),
    "low": ("sigmoid", lambda y, x: torch.sigmoid(y)),
    "before": ("sigmoid", lambda y, x: _up(torch.sigmoid(y), x)),
    "clamp": ("sigmoid", lambda y, x: _up(torch.sigmoid(y), x).clamp(1e-6, 1 - 1e-6)),
    "tanh": ("sigmoid", lambda y, x: _up(torch.tanh(y), x) * 0.5 + 0.5),
    "hard": ("sigmoid", lambda y, x: F.hardsigmoid(_up(y, x))),
    "flipped": ("sigmoid", lambda y, x: 1 - torch.sigmoid(-y)),
    "two scales": ("sigmoid", lambda y, x: (torch.sigmoid(y) + torch.sigmoid(_up(y, y))) / 2),
    "stacked": (
        "sigmoid",
        lambda y, x: torch.stack([torch.sigmoid(y), torch.sigmoid(y)]).mean(0),
    ),
    "cropped": ("sigmoid", lambda y, x: F.pad(torch.sigmoid(y), (1, 1, 1, 1))[..., 1:-1, 1:-1]),
    "squeezed": ("sigmoid", lambda y, x: torch.sigmoid(y).squeeze(1)),
    "first channel": ("sigmoid", lambda y, x: torch.sigmoid(y)[:, 0]),
    "mask": ("ids", lambda y, x: (torch.sigmoid(y) > 0.5).float()),
    "rounded": ("ids", lambda y, x: torch.sigmoid(y).round()),
}

MANY: dict[str, tuple[str, int | None, Finish]] = {
    "softmax": ("softmax", 1, lambda y, x: torch.softmax(y, 1)),
    "softmax before": ("softmax", 1, lambda y, x: _up(torch.softmax(y, 1), x)),
    "log_softmax": ("log_softmax", 1, lambda y, x: F.log_softmax(_up(y, x), 1)),
    "channels last": ("softmax", 3, lambda y, x: y.permute(0, 2, 3, 1).softmax(-1)),
    "keepdim": ("ids", 1, lambda y, x: torch.argmax(y, 1, keepdim=True)),
    "argmax": ("ids", None, lambda y, x: torch.argmax(_up(y, x), 1)),
    "argmax as float": ("ids", 1, lambda y, x: torch.argmax(y, 1, keepdim=True).float()),
    "max": ("ids", None, lambda y, x: torch.max(y, 1)[1]),
    "several sigmoids": ("sigmoid", 1, lambda y, x: torch.sigmoid(y)),
    "background first": (
        "sigmoid",
        1,
        lambda y, x: torch.cat([1 - torch.sigmoid(y[:, 1:2]), torch.sigmoid(y[:, 1:2])], 1),
    ),
}


class _Network(nn.Module):
    """Gives every ending of its scores at once, so that one export shows them all."""

    def __init__(self, classes: int, endings: Mapping[str, Finish]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.classifier = nn.Conv2d(8, classes, 1)
        self.endings = dict(endings)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        scores = self.classifier(F.relu(self.stem(x)))
        return tuple(finish(scores, x) for finish in self.endings.values())


class _Tokens(nn.Module):
    """As a transformer's linear head: pixels in one axis, classes last, then put in place."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = self.stem(x)
        n, _, h, w = features.shape
        tokens = features.flatten(2).transpose(1, 2)  # [N, h w, 8]
        scores = self.head(tokens).transpose(1, 2).reshape(n, -1, h, w)
        return (_up(scores, x),)


def _exported(network: nn.Module, names: list[str], *, exporter: str) -> bytes:
    image = torch.rand(2, 3, 32, 32)
    if exporter == "dynamo":
        free = torch.export.Dim.DYNAMIC
        program = torch.onnx.export(
            network,
            (image,),
            dynamo=True,
            dynamic_shapes=({0: free, 2: free, 3: free},),
            output_names=names,
            opset_version=21,
            verbose=False,
        )
        assert program is not None
        return bytes(program.model_proto.SerializeToString())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "traced.onnx"
        torch.onnx.export(
            network,
            (image,),
            path,
            dynamo=False,
            input_names=["x"],
            output_names=names,
            dynamic_axes={"x": {0: "n", 2: "h", 3: "w"}},
            opset_version=17,
        )
        return path.read_bytes()


def _meanings(network: nn.Module, names: list[str], *, exporter: str) -> dict[str, FoundMeaning]:
    """Find what every output means, and see that its labels are PyTorch's."""
    network.eval()
    # the exporter has tensors of its own that are called 'tanh' and so on
    given = {name: f"out of {name}" for name in names}
    data = _exported(network, [*given.values()], exporter=exporter)
    graph = scan_onnx(data)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    taken = session.get_inputs()[0].name
    random = torch.Generator().manual_seed(4)
    images = [torch.rand(2, 3, *size, generator=random) * 4 - 2 for size in SIZES]
    found = {}
    for position, name in enumerate(names):
        outputs = [session.run([given[name]], {taken: image.numpy()})[0] for image in images]
        meaning = check_values(find_meaning(graph, output=given[name]), outputs)
        for image, output in zip(images, outputs, strict=True):
            with torch.no_grad():
                expected = _labels(network(image)[position], meaning)
            # float32 may round a score on the border to the other side
            assert (labels_of(output, meaning) == expected.numpy()).mean() > 0.999, name
        found[name] = meaning
    return found


def _labels(given: Tensor, meaning: FoundMeaning) -> Tensor:
    """Label what PyTorch gave: by its own number of classes, not by the meaning's."""
    if meaning.activation == "ids":
        return (given.squeeze(1) if given.dim() == 4 else given).long()
    axis = -1 if meaning.class_axis == 3 else 1
    if given.dim() == 4 and given.shape[axis] > 1:
        return given.argmax(axis)
    single = given.squeeze(1) if given.dim() == 4 else given
    return (single > (0 if meaning.activation == "logits" else 0.5)).long()


both_exporters = pytest.mark.parametrize(
    "exporter", [pytest.param("dynamo", marks=pytest.mark.slow), "torchscript"]
)


@both_exporters
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Constant folding:UserWarning")
def test_one_class_is_labelled_as_by_pytorch(exporter: str) -> None:
    network = seeded(_Network, 1, {name: finish for name, (_, finish) in SINGLE.items()})

    found = _meanings(network, [*SINGLE], exporter=exporter)

    assert {name: one.activation for name, one in found.items()} == {
        name: activation for name, (activation, _) in SINGLE.items()
    }
    assert {one.num_classes for one in found.values() if one.activation != "ids"} == {1}
    assert {one.threshold for one in found.values() if one.activation != "ids"} == {0.5}


@both_exporters
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Constant folding:UserWarning")
def test_several_classes_are_labelled_as_by_pytorch(exporter: str) -> None:
    network = seeded(_Network, 4, {name: finish for name, (_, _, finish) in MANY.items()})

    found = _meanings(network, [*MANY], exporter=exporter)

    assert {name: (one.activation, one.class_axis) for name, one in found.items()} == {
        name: (activation, axis) for name, (activation, axis, _) in MANY.items()
    }
    assert {one.threshold for one in found.values()} == {None}


@both_exporters
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Constant folding:UserWarning")
def test_one_of_two_probabilities_is_a_probability(exporter: str) -> None:
    network = seeded(_Network, 2, {"y": lambda y, x: torch.softmax(y, 1)[:, 1:2]})

    meaning = _meanings(network, ["y"], exporter=exporter)["y"]

    assert (meaning.activation, meaning.num_classes) == ("sigmoid", 1)


@both_exporters
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Constant folding:UserWarning")
def test_a_transformers_tokens_are_followed_to_their_place(exporter: str) -> None:
    meaning = _meanings(seeded(_Tokens, 5), ["y"], exporter=exporter)["y"]

    assert (meaning.activation, meaning.class_axis, meaning.num_classes) == ("logits", 1, 5)
