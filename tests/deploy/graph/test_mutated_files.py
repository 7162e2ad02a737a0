"""No damaged or hostile file ends the process, passes its limits, or raises a foreign error."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.deploy.graph.mutated_files import KINDS, MEMORY_LIMIT_BYTES, open_files, write_mutants

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
