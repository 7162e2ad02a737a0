"""How a network's outputs are read is chosen when it is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from fcn_deploy import Segmenter
from fcn_deploy.errors import ExecutionError
from fcn_deploy.graph.scan import with_extra_outputs
from fcn_deploy.opening.load import open_model
from fcn_deploy.opening.options import OpenOptions
from fcn_deploy.opening.readers import (
    LabelsReader,
    OutputReader,
    PeeledScoresReader,
    ScoresReader,
)
from tests.deploy.artifacts import frame, write_artifact, write_graph
from tests.deploy.graphs import segmentation_graph

FLOAT: dict[str, Any] = {"input_type": TensorProto.FLOAT, "layout": "NCHW"}


@pytest.mark.parametrize(
    ("graph", "peel", "reader", "output"),
    [
        ({"head": "labels"}, True, PeeledScoresReader, "network_scores"),
        ({"head": "labels"}, False, LabelsReader, "labels"),
        ({"head": "scores", **FLOAT}, True, ScoresReader, "out"),
        ({"head": "sigmoid", **FLOAT}, True, ScoresReader, "out"),
    ],
)
def test_the_reader_follows_from_the_graph(
    tmp_path: Path, graph: dict[str, Any], peel: bool, reader: type[OutputReader], output: str
) -> None:
    model = open_model(write_graph(tmp_path, **graph), OpenOptions(peel=peel))

    try:
        assert type(model.reader) is reader
        assert model.reader.output == output
        assert model.reader.file == "bare.onnx"
    finally:
        model.context.close()


def test_scores_that_a_graph_gives_beside_its_labels_need_no_second_network(
    tmp_path: Path,
) -> None:
    path = tmp_path / "both.onnx"
    path.write_bytes(with_extra_outputs(segmentation_graph(), ["network_scores"]))
    peeled = Segmenter.open(write_artifact(tmp_path))(frame(), scores=True)

    with Segmenter.open(path, backend="onnxruntime", color="bgr") as segmenter:
        result = segmenter(frame(), scores=True)

    assert result.scores is not None
    assert peeled.scores is not None
    # one float32 graph, by two libraries
    np.testing.assert_allclose(result.scores, peeled.scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(24, 32), (1, 23, 32), (1, 24, 31), (1, 2, 24, 32)])
def test_labels_that_do_not_cover_the_frame_are_refused(shape: tuple[int, ...]) -> None:
    reader = LabelsReader(file="m.onnx", output="labels", head="in the graph")

    with pytest.raises(ExecutionError, match=r"'m\.onnx' gave labels \[.*\] for frames of \[24, 3"):
        reader.results({"labels": np.zeros(shape, np.uint8)}, [frame(24, 32)])
