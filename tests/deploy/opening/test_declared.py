"""What a manifest says of a graph's output spares opening the analysis, and is held against it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcn_deploy import Segmenter
from fcn_deploy.artifact.manifest import Variant
from fcn_deploy.artifact.output_meaning import OutputMeaning
from fcn_deploy.errors import ArtifactError, ManifestError
from fcn_deploy.graph.analyse import analyse
from fcn_deploy.graph.scan import scan_onnx
from fcn_deploy.names import Precision
from tests.deploy.artifacts import frame, write_artifact, write_graph
from tests.deploy.graphs import segmentation_graph

ANALYSES = [
    "fcn_deploy.opening.locate.analyse",
    "fcn_deploy.graph.analyse.find_tail",
    "fcn_deploy.graph.analyse.peel_tail",
    "fcn_deploy.graph.analyse.find_receptive_field",
    "fcn_deploy.graph.peel.SizeTracer",
    "fcn_deploy.tiling.tiles.find_receptive_field",
]


def said_of(graph: bytes) -> OutputMeaning:
    return analyse(scan_onnx(graph)).measured()


@pytest.mark.parametrize("head", ["labels", "scores", "sigmoid"])
def test_an_artifact_opens_and_labels_a_frame_without_analysis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    graph = segmentation_graph(head=head)
    analysed = Segmenter.open(write_artifact(tmp_path, graph))
    expected = analysed(frame())
    path = write_artifact(tmp_path, graph, output=said_of(graph))
    for name in ANALYSES:
        monkeypatch.setattr(name, refuse)

    with Segmenter.open(path) as segmenter:
        result = segmenter(frame())

    np.testing.assert_array_equal(result.labels, expected.labels)
    assert segmenter.head == analysed.head


@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize("peel", [False, True])
def test_an_artifact_of_an_earlier_release_gives_the_same_by_analysis(
    tmp_path: Path, peel: bool, scores: bool
) -> None:
    graph = segmentation_graph()
    path = write_artifact(tmp_path, graph, output=said_of(graph))
    with Segmenter.open(path, peel=peel) as segmenter:
        said, head = segmenter(frame(), scores=scores), segmenter.head
    strip(path / "manifest.json")

    with Segmenter.open(path, peel=peel) as segmenter:
        found = segmenter(frame(), scores=scores)

    assert segmenter.manifest is not None
    assert segmenter.manifest.output is None
    np.testing.assert_array_equal(found.labels, said.labels)
    np.testing.assert_array_equal(np.asarray(found.scores), np.asarray(said.scores))
    assert segmenter.head == head


@pytest.mark.parametrize("changed", ["stop_at", "scores"])
def test_a_manifest_that_names_a_tensor_of_no_graph_is_refused(
    tmp_path: Path, changed: str
) -> None:
    graph = segmentation_graph()
    output = replace(said_of(graph), **{changed: "nowhere"})  # type: ignore[arg-type]  # a name

    with pytest.raises(ManifestError, match="output names 'nowhere', which no node of 'model"):
        Segmenter.open(write_artifact(tmp_path, graph, output=output))


def test_a_manifest_that_stops_at_labels_is_refused(tmp_path: Path) -> None:
    graph = segmentation_graph()
    output = replace(said_of(graph), stop_at="labels")

    with pytest.raises(ArtifactError, match=r"gives labels: .* to stop at; expected float scores"):
        Segmenter.open(write_artifact(tmp_path, graph, output=output))


def test_what_is_said_of_a_variant_goes_before_what_is_said_of_all(tmp_path: Path) -> None:
    graph = segmentation_graph()
    own = Variant("model.onnx", Precision.FP32, output=said_of(graph))
    output = OutputMeaning("logits", whole_because="it is another graph")
    path = write_artifact(tmp_path, graph, output=output, variants=(own,))

    with Segmenter.open(path) as segmenter:
        assert segmenter.head == "in the runtime, peeled from the graph at 'network_scores'"


@pytest.mark.parametrize("head", ["labels", "scores"])
def test_a_bare_graph_is_analysed_once_an_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    path = write_graph(tmp_path, head=head)
    calls: Counter[str] = Counter()
    for name in ("find_tail", "peel_tail"):
        count_calls(monkeypatch, name, calls)

    Segmenter.open(path).close()

    assert calls == {"find_tail": 1, "peel_tail": 1}


def refuse(*given: Any, **named: Any) -> Any:
    raise AssertionError("the graph is analysed")


def count_calls(monkeypatch: pytest.MonkeyPatch, name: str, calls: Counter[str]) -> None:
    import fcn_deploy.graph.analyse as door

    usual = getattr(door, name)

    def counted(*given: Any, **named: Any) -> Any:
        calls[name] += 1
        return usual(*given, **named)

    monkeypatch.setattr(door, name, counted)


def strip(manifest: Path) -> None:
    """Leave out what earlier releases did not write."""
    document = json.loads(manifest.read_text())
    del document["output"]
    for variant in document["variants"]:
        del variant["output"]
    manifest.write_text(json.dumps(document))
