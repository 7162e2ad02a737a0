"""Adaptive pooling to bins follows any size of the image, and equals torch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcn_deploy.artifact.manifest import SeenByNetwork
from fcn_deploy.graph.field_summary import summarize_field
from fcn_deploy.graph.scan import scan_onnx
from fcn_deploy.names import Precision
from fcn_deploy.preprocess import default_preprocess
from fcn_export.check.reference import TorchReference, labels_of
from fcn_export.check.sample_frames import natural_batch
from fcn_export.graph_spec import GraphSpec
from fcn_export.precision.uncalibrated import in_precision
from fcn_export.trace.adaptive_pooling import FollowingPools
from fcn_export.trace.borrow import borrowed
from fcn_export.trace.to_onnx import TracedGraph, trace
from tests.export.tiny_networks import PyramidPooling, seeded

ODD_SIZES = ((97, 65), (77, 203), (161, 223))


class MaximumPyramid(PyramidPooling):
    """The largest of each bin, in place of its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.pools = nn.ModuleList(nn.AdaptiveMaxPool2d(bins) for bins in (1, 2, 3, 6))


class Strips(nn.Module):
    """Means of whole rows and columns, and of a grid whose size follows the image's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.rows = nn.AdaptiveAvgPool2d((None, 1))
        self.columns = nn.AdaptiveAvgPool2d((1, None))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        half = F.max_pool2d(y, 3, 2, 1)
        coarse = F.interpolate(
            F.adaptive_avg_pool2d(y, (half.shape[2], half.shape[3])), y.shape[2:]
        )
        same = F.adaptive_avg_pool2d(y, output_size=(y.shape[2], 1))
        return torch.as_tensor(y * self.rows(y) + self.columns(y) + coarse - same)


def traced(network: nn.Module, exporter: str, **options: Any) -> tuple[TracedGraph, GraphSpec]:
    spec = GraphSpec(default_preprocess(), 4, min_size=(32, 32), **options)
    with borrowed(network):
        return trace(network, spec, exporters=(exporter,)), spec


def answers(model: Any, images: Any) -> Any:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"image": images})[0]


@pytest.mark.parametrize("bins", [2, 3, 6, (3, 5), (None, 4), (1, 3), (7, None), (2, 1)])
@pytest.mark.parametrize("size", [(13, 17), (64, 48), (6, 9), (2, 5), (100, 1)])
def test_bands_equal_torchs_pooling_to_rounding(bins: Any, size: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    with FollowingPools():
        averages = F.adaptive_avg_pool2d(x, bins)
        maxima = nn.AdaptiveMaxPool2d(bins)(x)
        both = F.adaptive_max_pool2d(x, bins, return_indices=True)

    # of values in 0..1; sums are in another order
    assert (averages - F.adaptive_avg_pool2d(x, bins)).abs().max() < 1e-14
    assert torch.equal(maxima, F.adaptive_max_pool2d(x, bins))
    assert torch.equal(both[1], F.adaptive_max_pool2d(x, bins, return_indices=True)[1])


@pytest.mark.parametrize("make", [PyramidPooling, MaximumPyramid, Strips])
@pytest.mark.parametrize("exporter", ["dynamo", "dynamo-strict"])
def test_pooling_to_bins_is_right_at_sizes_never_seen(make: type[nn.Module], exporter: str) -> None:
    network = seeded(make).eval()

    graph, spec = traced(network, exporter, head="scores")

    assert graph.fixed == ()
    for size in ODD_SIZES:
        images = natural_batch(2, *size, 0)
        expected = TorchReference(network, spec).scores(images)
        # of sums in another order
        assert np.abs(answers(graph.model, images) - expected).max() < 1e-5 * np.ptp(expected)


def test_the_torchscript_tracer_follows_bins_too() -> None:
    network = seeded(PyramidPooling).eval()

    graph, spec = traced(network, "torchscript")

    for size in ODD_SIZES:
        images = natural_batch(1, *size, 0)
        expected = labels_of(TorchReference(network, spec).scores(images), spec)
        assert (answers(graph.model, images) == expected).mean() > 0.999


def test_the_module_pools_as_before_after_it_was_traced() -> None:
    network = seeded(PyramidPooling).eval()
    pool, function = network.pools[2], F.adaptive_avg_pool2d

    traced(network, "dynamo")

    assert network.pools[2] is pool
    assert F.adaptive_avg_pool2d is function
    assert "forward" not in vars(pool)


def test_float16_keeps_the_labels() -> None:
    network = seeded(PyramidPooling).eval()
    graph, spec = traced(network, "dynamo")
    images = natural_batch(2, 161, 223, 0)

    found = answers(in_precision(graph.model, Precision.FP16), images)

    expected = labels_of(TorchReference(network, spec).scores(images), spec)
    assert (found == expected).mean() > 0.99


@pytest.mark.parametrize("make", [PyramidPooling, MaximumPyramid])
def test_pooling_to_bins_is_said_to_read_the_whole_image(make: type[nn.Module]) -> None:
    graph, _ = traced(seeded(make).eval(), "dynamo", upsample=False)

    seen = summarize_field(scan_onnx(graph.model.SerializeToString()))

    assert isinstance(seen, SeenByNetwork), seen
    assert seen.stride == (4, 4)
    operator = "MatMul" if make is PyramidPooling else "ReduceMax"
    whole = [text for text in seen.whole_image if text.startswith(operator)]
    assert len(whole) >= 6  # rows and columns of three grids
    assert all(text.endswith("reads the whole image") for text in whole)
