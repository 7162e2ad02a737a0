"""Tails as torch's exporters write them are peeled, and give the labels of the whole graph."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcn_deploy.backends import backend_names
from fcn_deploy.graph.peel import PeeledTail, peel_tail
from fcn_deploy.graph.scan import scan_onnx
from fcn_deploy.graph.tail import find_tail
from fcn_export.trace.exporter_messages import quiet_exporters
from tests.deploy.peeling import SIZES, compare

Tail = Callable[[Tensor, Tensor], Tensor]


class Network(nn.Module):
    """Two convolutions, scores at a quarter of the size, and a tail."""

    def __init__(self, tail: Tail, *, classes: int, channels_last: bool) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first = nn.Conv2d(3, 6, 3, stride=4, padding=1)
        self.last = nn.Conv2d(6, classes, 1)
        self.tail = tail
        self.channels_last = channels_last
        for weights in (self.first.weight, self.last.weight):  # random ones have hardly an edge
            weights.data *= 4
        self.last.bias.data.zero_()  # type: ignore[union-attr]  # it has one

    def forward(self, image: Tensor) -> Tensor:
        if self.channels_last:
            image = (image.float() - 120).div(60).permute(0, 3, 1, 2)
        return self.tail(image, self.last(F.relu(self.first(image))))


def size(x: Tensor, y: Tensor) -> Tensor:
    return F.interpolate(y, size=x.shape[-2:], mode="bilinear").argmax(1)


def corners(x: Tensor, y: Tensor) -> Tensor:
    full = F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=True)
    return full.softmax(1).argmax(1, keepdim=True).to(torch.uint8)


def factor(x: Tensor, y: Tensor) -> Tensor:
    full: Tensor = nn.Upsample(scale_factor=8, mode="bilinear")(y)
    return full.argmax(1).to(torch.int32)


def chain(x: Tensor, y: Tensor) -> Tensor:
    middle = F.interpolate(y, scale_factor=2, mode="bilinear")
    return F.interpolate(middle, size=(x.shape[2], x.shape[3]), mode="bilinear").argmax(1)


def log_softmax(x: Tensor, y: Tensor) -> Tensor:
    full = F.interpolate(y, size=x.shape[-2:], mode="bilinear")
    indices: Tensor = torch.log_softmax(full, 1).max(1).indices
    return indices.to(torch.uint8)


def mask(x: Tensor, y: Tensor) -> Tensor:
    full = F.interpolate(y, size=x.shape[-2:], mode="bilinear")
    return (torch.sigmoid(full) > 0.5).to(torch.uint8)


def first_of_mask(x: Tensor, y: Tensor) -> Tensor:
    full = F.interpolate(y, size=x.shape[-2:], mode="bilinear")
    return (full[:, 0] >= 0.25).to(torch.int64)


def constant(x: Tensor, y: Tensor) -> Tensor:
    return F.interpolate(y, size=(32, 48), mode="bilinear").argmax(1)


def sigmoid(x: Tensor, y: Tensor) -> Tensor:
    return F.interpolate(y, size=x.shape[-2:], mode="bilinear").sigmoid().argmax(1)


def fraction(x: Tensor, y: Tensor) -> Tensor:
    return F.interpolate(y, scale_factor=4.5, mode="bilinear").argmax(1)


def bicubic(x: Tensor, y: Tensor) -> Tensor:
    return F.interpolate(y, size=x.shape[-2:], mode="bicubic").argmax(1)


def export(
    tail: Tail, exporter: str, opset: int, *, classes: int = 4, channels_last: bool = False
) -> bytes:
    network = Network(tail, classes=classes, channels_last=channels_last).eval()
    first = 1 if channels_last else 2
    image = torch.zeros(2, 3, 36, 52)
    if channels_last:
        image = image.permute(0, 2, 3, 1).to(torch.uint8).contiguous()
    axes = {0: "n", first: "h", first + 1: "w"}
    write = partial(
        torch.onnx.export,
        network,
        (image,),
        input_names=["image"],
        output_names=["labels"],
        opset_version=opset,
    )
    with quiet_exporters(), torch.no_grad():
        if exporter == "torchscript":
            file = io.BytesIO()
            write(file, dynamo=False, dynamic_axes={"image": axes})  # type: ignore[arg-type]  # it takes files
            return file.getvalue()
        free = dict.fromkeys(axes, torch.export.Dim.DYNAMIC)
        program = write(dynamo=True, dynamic_shapes=(free,), verbose=False)
        assert program is not None
        return bytes(program.model_proto.SerializeToString())


EXPORTERS = [("torchscript", 11), ("torchscript", 17), ("dynamo", 21)]
PEELED: dict[str, tuple[Tail, dict[str, object], dict[str, object]]] = {
    "size": (size, {}, {}),
    "corners": (corners, {}, {"align_corners": True}),
    "factor": (factor, {}, {"factors": (8, 8)}),
    "chain": (chain, {}, {}),
    "log_softmax": (log_softmax, {"channels_last": True}, {}),
    "mask": (mask, {"classes": 1}, {}),
    "first_of_mask": (first_of_mask, {"classes": 1}, {"threshold": 0.25}),
}
WHOLE: dict[str, tuple[Tail, str]] = {
    "constant": (constant, "not known to give the image's size"),
    "sigmoid": (sigmoid, "sigmoid makes high scores equal"),
    "fraction": (fraction, "not known to give the image's size"),
    "bicubic": (bicubic, "nothing is upsampled"),
}


@pytest.fixture(autouse=True)
def _without_notices(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="fcn_deploy.opening.load")


@pytest.mark.parametrize(("exporter", "opset"), EXPORTERS)
@pytest.mark.parametrize("name", PEELED)
def test_an_exported_tail_is_peeled_without_changing_a_label(
    tmp_path: Path, name: str, exporter: str, opset: int
) -> None:
    tail, options, expectation = PEELED[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(export(tail, exporter, opset, **options))  # type: ignore[arg-type]

    found = [
        compare(path, backend=backend, sizes=SIZES[:2], **expectation)  # type: ignore[arg-type]
        for backend in backend_names()
    ]

    assert [one.wrong for one in found] == [0, 0]
    assert all(one.ties <= one.pixels / 1000 for one in found)
    assert all(one.classes > 1 for one in found)


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("name", WHOLE)
def test_an_exported_tail_that_is_another_is_left_whole(name: str, exporter: str) -> None:
    tail, reason = WHOLE[name]
    graph = scan_onnx(export(tail, exporter, 18))

    found = peel_tail(graph, find_tail(graph))

    assert not isinstance(found, PeeledTail)
    assert reason in found
