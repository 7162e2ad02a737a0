"""What a user says of how to open a model reaches every network that is opened of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fcn_deploy import Segmenter
from fcn_deploy.artifact.folder import Artifact
from fcn_deploy.backends.onnxruntime import OnnxRuntimeBackend
from tests.deploy.artifacts import frame, write_artifact


def test_the_network_that_scores_load_has_the_same_threads_and_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = record_openings(monkeypatch)
    how: dict[str, Any] = {"num_threads": 1, "num_streams": 2}

    with Segmenter.open(
        write_artifact(tmp_path), backend="onnxruntime", peel=False, **how
    ) as segmenter:
        result = segmenter(frame(), scores=True)

    assert result.scores is not None
    assert [{name: each[name] for name in how} for each in opened] == [how, how]


@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_a_manifest_is_read_once_an_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    path = write_artifact(tmp_path)
    read = []
    usual = Artifact.open

    def counted(place: Path) -> Artifact:
        read.append(place)
        return usual(place)

    monkeypatch.setattr(Artifact, "open", counted)

    Segmenter.open(path, backend="onnxruntime", precision=precision).close()

    assert read == [path]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"precision": "fp8"}, "precision is 'fp8'; expected auto, fp32"),
        ({"color": "hsv"}, "color is 'hsv'; expected one of"),
        ({"num_threads": 0}, "num_threads is 0; it must be 1 or more"),
        ({"num_streams": -1}, "num_streams is -1; it must be 1 or more"),
        ({"tile_pixels": 0}, "tile_pixels is 0; it must be 1 or more"),
    ],
)
def test_an_option_that_is_none_of_its_choices_is_refused_before_anything_is_read(
    tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Segmenter.open(tmp_path / "nothing.fcn", **given)


def record_openings(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Note how ONNX Runtime is told to open networks."""
    opened: list[dict[str, Any]] = []
    usual = OnnxRuntimeBackend.open

    def recorded(self: OnnxRuntimeBackend, source: Any, /, **options: Any) -> Any:
        opened.append(options)
        return usual(self, source, **options)

    monkeypatch.setattr(OnnxRuntimeBackend, "open", recorded)
    return opened
