"""Where large frames are cut: by the graph, or by what the manifest says of a plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from fcn_deploy.artifact.folder import Artifact
from fcn_deploy.artifact.manifest import SeenByNetwork
from fcn_deploy.names import Precision
from fcn_deploy.opening.load import OpenedModel
from fcn_deploy.opening.locate import ModelFile
from fcn_deploy.opening.options import OpenOptions
from fcn_deploy.opening.readers import LabelsReader
from fcn_deploy.tiling.tiles import Tiling
from tests.deploy.manifests import example_manifest

SEEN = SeenByNetwork((8, 8), (3.5, 3.5), (60, 60), (40, 41), (42, 44), (32, 16))


def tiling_of_a_plan(folder: Path, seen: SeenByNetwork | None) -> Tiling:
    manifest = replace(example_manifest(), receptive_field=seen)
    unused = cast(Any, None)  # nothing is run
    model = OpenedModel(
        file=ModelFile(folder / "model.plan", Artifact(folder, manifest)),
        options=OpenOptions(),
        backend=unused,
        precision=Precision.FP16,
        reason="",
        context=unused,
        input_format=unused,
        reader=LabelsReader(file="model.plan", output="labels", head="in the graph"),
    )
    return Tiling(model, None)


def test_a_plan_is_cut_by_what_its_manifest_says(tmp_path: Path) -> None:
    tiling = tiling_of_a_plan(tmp_path, SEEN)

    # what a label sees, two labels, and a step to begin at, in whole steps
    assert tiling.least_tile_px == (128, 112)
    assert tiling.tile_steps_px == (32, 16)
    assert tiling.reason.endswith("a label depends on 44 px around it, as the manifest says")
    assert not tiling.exact  # frames of other sizes than multiples are not followed


@pytest.mark.parametrize("seen", [None, replace(SEEN, before=(10, 10), behind=(10, 10))])
def test_a_plan_without_an_account_is_cut_with_the_usual_halo(
    tmp_path: Path, seen: SeenByNetwork | None
) -> None:
    tiling = tiling_of_a_plan(tmp_path, seen)

    assert (tiling.least_tile_px[0] > 500) is (seen is None)
