"""Looking at every tensor of a deep network does not hold them all."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from fcn_export.onnx_file import OnnxFile
from fcn_export.precision.collect import collect_extents
from fcn_export.precision.passes.inner_outputs import deepest_first
from fcn_export.precision.passes.ranges import largest_values
from tests.export.qdq_graphs import FrameGraph

_LAYERS = 24
_CHANNELS = 16
_SIDE_PX = 512
_ALL_BYTES = 4 * _LAYERS * _CHANNELS * _SIDE_PX**2  # 400 MB


def _deep(path: Path) -> OnnxFile:
    graph = FrameGraph(np.random.default_rng(0))
    last = graph.conv("input", (3, _CHANNELS), out="stem")
    for layer in range(_LAYERS):
        last = graph.op("Sigmoid", last, out=f"layer_{layer:02}")
    data = graph.model(graph.conv(last, (_CHANNELS, 4), out="classifier")).SerializeToString()
    path.write_bytes(data)
    return OnnxFile(path, data)


def _look(way: str, path: Path) -> None:
    """Print how many bytes the peak of memory grows while each layer is looked at."""
    image = np.zeros((1, _SIDE_PX, _SIDE_PX, 3), np.uint8)
    file = OnnxFile(path, path.read_bytes())
    with file.opened("onnxruntime") as context:
        context.execute({"image": image})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if way == "fp16":
        names = set(largest_values(file, [image]))
    else:
        layers = [f"layer_{layer:02}" for layer in range(_LAYERS)]
        names = set(collect_extents(onnx.load_model_from_string(file.data), layers, [image]))
    assert {"layer_00", f"layer_{_LAYERS - 1:02}"} <= names
    print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))  # noqa: T201 - read by the test


@pytest.mark.parametrize("way", ["fp16", "int8"])
def test_tensors_are_freed_behind_the_network(way: str, tmp_path: Path) -> None:
    file = _deep(tmp_path / "deep.onnx")

    done = subprocess.run(
        [sys.executable, "-m", "tests.export.precision.test_inner_outputs", way, str(file.path)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < _ALL_BYTES / 4


def test_last_node_s_tensor_comes_first_and_the_input_last(tmp_path: Path) -> None:
    model = _deep(tmp_path / "deep.onnx").load()

    order = deepest_first(
        ir.from_proto(model).graph, ["image", "layer_01", "classifier", "layer_00"]
    )

    assert order == ["classifier", "layer_01", "layer_00", "image"]


if __name__ == "__main__":
    _look(sys.argv[1], Path(sys.argv[2]))
