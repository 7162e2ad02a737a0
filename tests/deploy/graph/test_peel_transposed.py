"""Tails that enlarge by a fixed bilinear convolution or crop are peeled, where labels stay."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcn_deploy.backends import backend_names
from fcn_deploy.errors import ExecutionError
from fcn_deploy.graph.peel import PeeledTail, peel_tail
from fcn_deploy.graph.scan import scan_onnx
from fcn_deploy.graph.tail import find_tail
from fcn_deploy.names import Array
from fcn_deploy.segmenter import Segmenter
from tests.deploy.peeling import GraphBuilder, compare, frame

TO_THE_END = (1 << 63) - 1


@pytest.fixture(autouse=True)
def _without_notices(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="fcn_deploy.opening.load")


def bilinear(size: int, channels: int = 4) -> Array:
    factor = (size + 1) // 2
    taps = 1 - np.abs(np.arange(size) - (size - 1) / 2) / factor
    return np.tile(np.outer(taps, taps).astype(np.float32), (channels, 1, 1, 1))


def enlarge(g: GraphBuilder, weights: Array, *, cut: int, regrown: int = 0, **more: Any) -> str:
    factor = (weights.shape[-1] + 1) // 2
    attributes = {
        "strides": [factor] * 2,
        "pads": [cut] * 4,
        "output_padding": [regrown] * 2,
        "group": len(weights),
    }
    return g.add("ConvTranspose", g.scores, g.constant(weights), **{**attributes, **more})


def crop(g: GraphBuilder, scores: str, first: int = 0, height: str = "", width: str = "") -> str:
    """Cut an axis at a time, as torch's exporters do."""
    one = g.constant([1])
    sizes = height or g.shape_of(g.image, 2, 3), width or g.shape_of(g.image, 3, 4)
    if first:
        begin, end = g.constant([first]), g.constant([TO_THE_END])
        for axis in (2, 3):
            scores = g.add("Slice", scores, begin, end, g.constant([axis]), one)
    for axis, size in zip((2, 3), sizes, strict=True):
        scores = g.add("Slice", scores, g.constant([0]), size, g.constant([axis]), one)
    return scores


def build(tail: Callable[[GraphBuilder], str], **options: Any) -> bytes:
    builder = GraphBuilder(**options)
    return builder.build(builder.argmax(tail(builder)))


def decide(data: bytes) -> PeeledTail | str:
    graph = scan_onnx(data)
    return peel_tail(graph, find_tail(graph))


PEELED: dict[str, tuple[Callable[[GraphBuilder], str], dict[str, Any], dict[str, Any]]] = {
    "even": (
        lambda g: crop(g, enlarge(g, bilinear(8), cut=2)),
        {},
        {"factors": (4, 4)},
    ),
    "odd": (
        lambda g: crop(g, enlarge(g, bilinear(7), cut=3, regrown=3)),
        {},
        {"factors": (4, 4), "lead": (1.5, 1.5)},
    ),
    "uncut": (
        lambda g: crop(g, enlarge(g, bilinear(8), cut=0)),
        {},
        {"factors": (4, 4), "lead": (-2, -2)},
    ),
    "cropped": (
        lambda g: crop(g, enlarge(g, bilinear(16), cut=3, regrown=2), first=5),
        {"stride": 4},
        {"factors": (8, 8), "lead": (4, 4)},
    ),
    "resized": (
        lambda g: crop(g, g.scale(g.scores, [1, 1, 8, 8]), first=3),
        {"stride": 4},
        {"factors": (8, 8), "lead": (3, 3)},
    ),
    "thirty-two": (
        lambda g: crop(g, enlarge(g, bilinear(64, 21), cut=16)),
        {"stride": 8, "classes": 21},
        {"factors": (32, 32)},
    ),
}


@pytest.mark.parametrize("backend", backend_names())
@pytest.mark.parametrize("name", PEELED)
def test_a_fixed_enlargement_is_peeled_without_changing_a_label(
    tmp_path: Path, name: str, backend: str
) -> None:
    tail, options, expectation = PEELED[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(build(tail, **options))

    found = compare(path, backend=backend, **expectation)

    assert found.wrong == 0
    assert found.ties <= found.pixels / 1000
    assert found.classes > 1


def biased(g: GraphBuilder) -> str:
    weights, bias = g.constant(bilinear(8)), g.constant(np.ones(4, np.float32))
    attributes = {"strides": [4, 4], "pads": [2] * 4, "group": 4}
    return crop(g, g.add("ConvTranspose", g.scores, weights, bias, **attributes))


def learned(g: GraphBuilder) -> str:
    weights = bilinear(8)
    weights[2, 0, 3, 3] += 1e-5
    return crop(g, enlarge(g, weights, cut=2))


def mixing(g: GraphBuilder) -> str:
    weights = np.zeros((4, 4, 8, 8), np.float32)
    weights[range(4), range(4)] = bilinear(8)[:, 0]
    return crop(g, enlarge(g, weights, cut=2, group=1))


WHOLE: dict[str, tuple[Callable[[GraphBuilder], str], str]] = {
    "biased": (biased, "nothing is upsampled"),
    "learned": (learned, "nothing is upsampled"),
    "mixing classes": (mixing, "nothing is upsampled"),
    "of another stride": (
        lambda g: crop(g, enlarge(g, bilinear(8), cut=2, strides=[3, 3])),
        "nothing is upsampled",
    ),
    "dilated": (
        lambda g: crop(g, enlarge(g, bilinear(8), cut=0, dilations=[2, 2])),
        "nothing is upsampled",
    ),
    "grown beyond its samples": (
        lambda g: crop(g, enlarge(g, bilinear(8), cut=1, regrown=2)),
        "nothing is upsampled",
    ),
    "turned crop": (
        lambda g: crop(
            g,
            enlarge(g, bilinear(8), cut=2),
            height=g.shape_of(g.image, 3, 4),
            width=g.shape_of(g.image, 2, 3),
        ),
        "cropped to a size that is not known to be the image's",
    ),
    "constant crop": (
        lambda g: crop(g, enlarge(g, bilinear(8), cut=2), height=g.constant([20])),
        "cropped to a size that is not known to be the image's",
    ),
    "cropped image size": (lambda g: crop(g, g.upsample(), first=2), "before the first pixel"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_another_enlargement_is_left_whole(name: str) -> None:
    tail, reason = WHOLE[name]

    found = decide(build(tail))

    assert isinstance(found, str)
    assert reason in found


@pytest.mark.parametrize(("limit", "peeled"), [(0.0, True), (0.25, False)])
def test_only_a_threshold_of_zero_is_the_same_where_scores_fade(limit: float, peeled: bool) -> None:
    builder = GraphBuilder(classes=1)
    full = crop(builder, enlarge(builder, bilinear(8, 1), cut=2))
    above = builder.add("Greater", full, builder.constant(np.float32(limit)))

    found = decide(builder.build(above))

    assert isinstance(found, PeeledTail) is peeled
    assert peeled or "a threshold that is not 0" in str(found)


@pytest.mark.parametrize("peel", [True, False])
def test_labels_smaller_than_the_frame_are_refused_peeled_or_not(
    tmp_path: Path, peel: bool
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(build(lambda g: crop(g, enlarge(g, bilinear(8), cut=3))))

    with (
        Segmenter.open(path, backend="onnxruntime", peel=peel) as segmenter,
        pytest.raises(ExecutionError, match=r"gave labels \[1, 62, 46\] for frames of \[64, 48\]"),
    ):
        segmenter(frame((64, 48)))
