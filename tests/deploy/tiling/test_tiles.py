"""Frames in tiles against the same frames whole, through the Segmenter, on each CPU backend."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from fcn_deploy.names import Array
from fcn_deploy.segmenter import Segmenter
from fcn_deploy.tiling.self_test import TilingError, measure_tiling_error, tiling_self_test
from tests.deploy.field_probe import Chain
from tests.deploy.graphs import segmentation_graph

Build = Callable[[Chain], str]

BACKENDS = ("openvino", "onnxruntime")
TOLERANCE = 1e-5
"""Of the scores' range: what float32 sums of a few hundred products differ by in another order."""


def conv(chain: Chain, source: str, channels: tuple[int, int], kernel: int, **options: Any) -> str:
    weights = chain.floats(channels[1], channels[0], kernel, kernel)
    return chain.add("Relu", chain.add("Conv", source, weights, **options))


def scores(chain: Chain, source: str, channels: int) -> str:
    return chain.add("Conv", source, chain.floats(4, channels, 1, 1))


def strided(chain: Chain) -> str:
    half = conv(chain, "image", (3, 5), 3, strides=[2, 2], pads=[1, 1, 1, 1])
    quarter = conv(chain, half, (5, 6), 3, strides=[2, 2], pads=[1, 1, 1, 1])
    return scores(chain, conv(chain, quarter, (6, 6), 3, pads=[1, 1, 1, 1]), 6)


def dilated(chain: Chain) -> str:
    near = conv(chain, "image", (3, 5), 3, pads=[2, 2, 2, 2], dilations=[2, 2])
    return scores(chain, conv(chain, near, (5, 6), 3, pads=[5, 5, 5, 5], dilations=[5, 5]), 6)


def asymmetric(chain: Chain) -> str:
    """Windows that look up and left only, with strides that differ by axis."""
    first = conv(chain, "image", (3, 5), 4, pads=[3, 3, 0, 0])
    return scores(chain, conv(chain, first, (5, 6), 4, pads=[3, 2, 1, 0], strides=[2, 3]), 6)


def pooled(chain: Chain) -> str:
    first = conv(chain, "image", (3, 5), 3, pads=[1, 1, 1, 1])
    for _ in range(2):
        first = chain.add("MaxPool", first, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    return scores(chain, first, 5)


def transposed(chain: Chain) -> str:
    half = conv(chain, "image", (3, 5), 3, strides=[2, 2], pads=[1, 1, 1, 1])
    quarter = conv(chain, half, (5, 6), 3, strides=[2, 2], pads=[1, 1, 1, 1])
    larger = chain.add(
        "ConvTranspose", quarter, chain.floats(6, 5, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1],
        output_padding=[1, 1],
    )  # fmt: skip
    more = chain.add(
        "ConvTranspose", larger, chain.floats(5, 6, 4, 4), strides=[2, 2], pads=[1, 1, 1, 1]
    )
    return scores(chain, more, 6)


def reflecting(chain: Chain) -> str:
    """The image's own pixels as padding, more above and left than below and right."""
    pads = chain.ints(0, 0, 9, 8, 0, 0, 3, 0)
    more = chain.add("Pad", "image", pads, mode="reflect")
    return scores(chain, conv(chain, more, (3, 5), 9), 5)


def labelled(chain: Chain) -> str:
    """An encoder and a decoder with a skip; the labels are made in the graph."""
    size = chain.add("Slice", chain.add("Shape", "image"), chain.ints(2), chain.ints(4))
    half = conv(chain, "image", (3, 4), 3, strides=[2, 2], pads=[1, 1, 1, 1])
    low = conv(chain, half, (4, 6), 3, strides=[2, 2], pads=[1, 1, 1, 1])
    back = chain.add(
        "Resize", low, "", chain.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest"
    )
    joined = scores(chain, chain.add("Concat", half, back, axis=1), 10)
    sizes = chain.add("Concat", chain.ints(1, 4), size, axis=0)
    whole = chain.add("Resize", joined, "", "", sizes, mode="linear")
    best = chain.add("ArgMax", whole, axis=1, keepdims=0)
    return chain.add("Cast", best, to=TensorProto.UINT8)


def pooling_all(chain: Chain) -> str:
    near = conv(chain, "image", (3, 5), 3, pads=[1, 1, 1, 1])
    mean = chain.add("GlobalAveragePool", near)
    return scores(chain, chain.add("Mul", near, mean), 5)


NETWORKS: dict[str, tuple[Build, tuple[int, int]]] = {
    **{
        f"{build.__name__} {height}x{width}": (build, (height, width))
        for build in (strided, dilated, asymmetric, pooled, reflecting)
        for height, width in ((96, 120), (97, 131), (150, 41))
    },
    "transposed 96x120": (transposed, (96, 120)),
    "labelled 96x120": (labelled, (96, 120)),
}


def written(folder: Path, build: Build) -> Path:
    chain = Chain(channels=3)
    path = folder / "model.onnx"
    path.write_bytes(chain.model(build(chain)))
    return path


def scene(size: tuple[int, int]) -> Array:
    """Blocks with noise: borders of classes everywhere."""
    random = np.random.default_rng(3)
    coarse = random.integers(0, 200, (size[0] // 8 + 1, size[1] // 8 + 1, 3), np.uint8)
    blocks = coarse.repeat(8, axis=0).repeat(8, axis=1)[: size[0], : size[1]]
    frame: Array = blocks + random.integers(0, 56, blocks.shape, np.uint8)
    return frame


def warnings_of_tiles(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.name == "fcn_deploy.tiling.tiles"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_tiles_give_the_whole_frames_labels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, backend: str
) -> None:
    build, size = NETWORKS[name]
    path, frame = written(tmp_path, build), scene(size)

    with Segmenter.open(path, backend=backend, cache=False) as segmenter:
        whole = segmenter(frame, scores=True)
        assert whole.scores is not None
        at_pixels = segmenter.scores_at_pixels(whole.scores, size)
    with (
        Segmenter.open(path, backend=backend, cache=False, tile_pixels=48 * 48) as segmenter,
        caplog.at_level(logging.WARNING, logger="fcn_deploy"),
    ):
        tiles = segmenter.tiling.count(size)
        assert segmenter.tiling.is_needed(size)
        assert segmenter.tiling.exact
        assert segmenter.tiling.differs_at(size) is None
        tiled = segmenter(frame, scores=True)

    assert max(tiles) >= 2
    assert not warnings_of_tiles(caplog)
    assert len(np.unique(whole.labels)) > 1
    assert tiled.scores is not None
    scale = float(np.ptp(whole.scores))
    assert tiled.scores.shape == whole.scores.shape
    assert np.abs(tiled.scores - whole.scores).max() <= TOLERANCE * scale
    # other labels only where both classes' scores are the same but for rounding
    best = np.take_along_axis(at_pixels, whole.labels[None].astype(np.intp), 0)[0]
    taken = np.take_along_axis(at_pixels, tiled.labels[None].astype(np.intp), 0)[0]
    assert (best - taken).max() <= TOLERANCE * scale


@pytest.mark.parametrize("backend", BACKENDS)
def test_tiles_of_a_network_that_computes_exactly_are_the_frame_bit_for_bit(
    tmp_path: Path, backend: str
) -> None:
    """Weights and pixels are small whole numbers, so that no sum is rounded in any order."""

    def whole_numbers(chain: Chain) -> str:
        def weights(*shape: int) -> str:
            return chain.constant(chain.random.integers(-2, 3, shape).astype(np.float32))

        pixels = chain.add("Mul", "image", chain.constant(np.float32(255)))
        rounded = chain.add("Round", pixels)
        half = chain.add("Conv", rounded, weights(5, 3, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1])
        low = chain.add("Conv", half, weights(5, 5, 3, 3), strides=[2, 2], pads=[1, 0, 1, 2])
        return chain.add("Conv", low, weights(4, 5, 1, 1))

    path, frame = written(tmp_path, whole_numbers), scene((97, 131))
    options: dict[str, Any] = {"backend": backend, "mean": (0, 0, 0), "std": (1, 1, 1)}

    with Segmenter.open(path, **options) as segmenter:
        whole = segmenter(frame, scores=True)
    with Segmenter.open(path, **options, tile_pixels=48 * 48) as segmenter:
        tiled = segmenter(frame, scores=True)

    assert whole.scores is not None
    assert tiled.scores is not None
    assert np.array_equal(tiled.scores, whole.scores)
    assert np.array_equal(tiled.scores, np.rint(tiled.scores))
    assert np.array_equal(tiled.labels, whole.labels)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_network_that_pools_the_whole_frame_says_that_tiles_change_its_labels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, backend: str
) -> None:
    path, frame = written(tmp_path, pooling_all), scene((96, 120))
    frame[:, :60] //= 4  # a dark half, so that the mean of a tile is not the frame's

    with (
        Segmenter.open(path, backend=backend, cache=False, tile_pixels=48 * 48) as segmenter,
        caplog.at_level(logging.WARNING, logger="fcn_deploy"),
    ):
        measured = measure_tiling_error(segmenter, frame)
        segmenter(frame)
        exact, reason = segmenter.tiling.exact, segmenter.tiling.reason

    assert not exact
    assert "reads the whole image" in reason
    assert measured.differs == reason
    assert measured.score_error is not None
    assert measured.score_error > 0.01
    assert measured.as_promised  # nothing else was promised
    (warning,) = warnings_of_tiles(caplog)
    assert "changes its labels a little: GlobalAveragePool" in warning


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("build", [strided, asymmetric, transposed, labelled])
def test_the_self_test_joins_tiles_of_a_local_network(
    tmp_path: Path, backend: str, build: Build
) -> None:
    with Segmenter.open(written(tmp_path, build), backend=backend, cache=False) as segmenter:
        result = tiling_self_test(segmenter)

    assert isinstance(result, TilingError)
    assert result.differs is None
    assert result.as_promised
    assert result.differing_labels == round((1 - result.label_agreement) * math.prod(result.size))
    assert min(result.tiles) >= 3  # one that touches no border
    assert result.label_agreement > 0.999
    assert f"{result.size[0]}x{result.size[1]} in" in str(result)


def test_a_self_test_that_would_take_too_long_is_left_out(tmp_path: Path) -> None:
    with Segmenter.open(written(tmp_path, strided), cache=False) as segmenter:
        result = tiling_self_test(segmenter, most_seconds=0)

    assert isinstance(result, str)
    assert "s here, of which 0 are given" in result


@pytest.mark.parametrize("backend", BACKENDS)
def test_tiles_of_a_uint8_graph_are_the_whole_frame(tmp_path: Path, backend: str) -> None:
    path, frame = tmp_path / "model.onnx", scene((97, 131))
    path.write_bytes(segmentation_graph(stride=4))

    with Segmenter.open(path, backend=backend, cache=False) as segmenter:
        whole = segmenter(frame)
    with Segmenter.open(path, backend=backend, cache=False, tile_pixels=1) as segmenter:
        least = segmenter.tiling.least_tile_px
        tiled = segmenter(frame)

    assert np.prod(least) < 30 * 30  # however little is asked for, a tile holds its halo
    assert np.mean(tiled.labels == whole.labels) > 0.9999
