"""No damaged or hostile file ends the process, passes its limits, or raises a foreign error."""

from __future__ import annotations

from pathlib import Path

import pytest

from fcn_deploy.graph.peel import peel_tail
from fcn_deploy.graph.scan import scan_onnx
from fcn_deploy.graph.tail import find_tail
from tests.deploy.graph.mutated_files import KINDS, MEMORY_LIMIT_BYTES, open_files, write_mutants
from tests.deploy.onnx_models import segmenter_model

COUNT = 1000


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_each_of_a_thousand_mutated_files_is_opened_or_refused(
    tmp_path: Path, backend: str
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    paths = write_mutants(folder, count=COUNT, seed=1)

    found = [*open_files(paths, backend=backend)]

    assert [one for one in found if one.outcome not in ("opened", "refused")] == []
    assert [one.path for one in found] == paths
    assert max(one.peak_mib for one in found) < MEMORY_LIMIT_BYTES >> 20
    opened = {one.path.stem.split("-", 1)[1] for one in found if one.outcome == "opened"}
    assert len(opened) > len(KINDS) // 3  # damage that leaves a network is among them


def test_an_upsampling_that_says_no_size_is_not_peeled() -> None:
    model = segmenter_model(opset=13)
    (resize,) = (node for node in model.graph.node if node.op_type == "Resize")
    del resize.input[1:]
    graph = scan_onnx(model.SerializeToString())

    assert isinstance(peel_tail(graph, find_tail(graph)), str)
