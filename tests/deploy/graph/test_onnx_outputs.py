"""Models that were cut down to some of their tensors, as the backends read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from fcn_deploy.backends import get_backend
from fcn_deploy.errors import ArtifactError
from fcn_deploy.graph.scan import with_outputs
from fcn_deploy.segmenter import Segmenter
from tests.deploy.onnx_models import segmenter_model

BRIGHTEST = """
<ir_version: 10, opset_import: ["" : 21]>
brightest (uint8[N, H, W, 3] image) => (uint8[N, H, W] labels)
{
    values = Cast<to = 1>(image)
    best = ArgMax<axis = -1, keepdims = 0>(values)
    labels = Cast<to = 2>(best)
}
"""


def importing(domains: tuple[str, ...]) -> bytes:
    """Import operators of more domains, as exporters do whether or not they use any."""
    model = segmenter_model()
    for domain in domains:
        model.opset_import.add(domain=domain, version=1)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("domains", [(), ("ai.onnx.ml",), ("com.microsoft", "pkg.torch")])
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_cut_model_that_imports_several_domains_opens_and_runs(
    tmp_path: Path, backend: str, domains: tuple[str, ...]
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(importing(domains))
    frame = np.random.default_rng(5).integers(0, 256, (40, 48, 3), np.uint8)

    assert get_backend(backend).available()
    with Segmenter.open(path, backend=backend, cache=False, peel=False) as segmenter:
        result = segmenter(frame, scores=True)  # runs the graph with other outputs

    assert result.scores is not None
    assert result.scores.shape == (5, 20, 24)
    assert result.labels.shape == (40, 48)


def test_scores_of_a_graph_that_labels_the_image_itself_are_said_to_be_missing(
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(parser.parse_model(BRIGHTEST).SerializeToString())

    with (
        Segmenter.open(path, cache=False) as segmenter,
        pytest.raises(ArtifactError, match="the class scores were not found"),
    ):
        segmenter(np.zeros((8, 8, 3), np.uint8), scores=True)


def test_a_cut_model_keeps_every_import() -> None:
    cut = onnx.load_from_string(with_outputs(importing(("ai.onnx.ml",)), ("network_scores",)))

    assert [entry.domain for entry in cut.opset_import] == ["", "ai.onnx.ml"]
    assert [entry.name for entry in cut.graph.output] == ["network_scores"]
