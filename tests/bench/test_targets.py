"""What a TARGET is, what can run it, and which PyTorch model it is compared with."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from fcn_bench.baseline_model import find_baseline
from fcn_bench.targets import Target, find_candidates, preprocess_of, read_target
from fcn_deploy.artifact.manifest import Manifest, Preprocess
from fcn_deploy.backends import get_backend
from fcn_deploy.errors import (
    ArtifactError,
    ArtifactMissingError,
    BackendUnavailableError,
    BenchmarkError,
    UntrustedArtifactError,
)
from fcn_deploy.names import Precision
from tests.bench.conftest import TinyModel
from tests.deploy.graphs import segmentation_graph


def with_source(target: Target, **changes: object) -> Target:
    manifest = target.manifest
    assert isinstance(manifest, Manifest)
    source = replace(manifest.source, **changes)  # type: ignore[arg-type]  # by the tests' word
    return replace(target, manifest=replace(manifest, source=source))


def test_folder_and_file_in_it_are_the_same_network(tiny: TinyModel) -> None:
    folder, file = read_target(tiny.artifact), read_target(tiny.artifact / "model.onnx")

    assert folder.kind == file.kind == "artifact"
    assert folder.sha256 == file.sha256
    assert file.precisions == (Precision.FP32, Precision.BF16)
    assert folder.precisions == (*file.precisions, Precision.FP16)
    assert read_target(tiny.artifact / "model.fp16.onnx").precisions == (Precision.FP16,)


def test_bare_graph_has_its_own_digest_and_no_manifest(tmp_path: Path) -> None:
    path = tmp_path / "bare.onnx"
    path.write_bytes(segmentation_graph())

    target = read_target(path)

    assert (target.kind, target.manifest) == ("onnx", None)
    assert len(target.sha256) == 64


def test_a_plan_of_anyones_needs_trust(tmp_path: Path) -> None:
    plan = tmp_path / "engine.fp16.plan"
    plan.write_bytes(b"code")

    with pytest.raises(UntrustedArtifactError, match="--trust-code"):
        read_target(plan)
    target = read_target(plan, trust_code=True)

    assert (target.kind, target.manifest, target.precisions) == ("plan", None, ())
    assert target.plans == {"tensorrt": (Precision.FP16,), "tensorrt-rtx": (Precision.FP16,)}


def test_a_backend_of_plans_that_cannot_run_here_says_what_is_missing(tiny: TinyModel) -> None:
    with pytest.raises(BackendUnavailableError, match=r"is not installed|cannot run here"):
        find_candidates(read_target(tiny.artifact), backend="tensorrt")


def test_a_plan_that_nothing_here_runs_sends_nobody_to_cpu_backends(tmp_path: Path) -> None:
    plan = tmp_path / "engine.fp16.plan"
    plan.write_bytes(b"code")

    with pytest.raises(BenchmarkError, match="nothing here can run") as caught:
        find_candidates(replace(read_target(plan, trust_code=True), plans={}))

    assert caught.value.hint is not None
    assert "NVIDIA GPU" in caught.value.hint


def test_a_plan_that_nothing_here_runs_says_what_each_backend_lacks(tmp_path: Path) -> None:
    plan = tmp_path / "engine.fp16.plan"
    plan.write_bytes(b"code")

    with pytest.raises(
        BenchmarkError,
        match=r"engine\.fp16\.plan': TensorRT is not installed; tensorrt cannot run here: [^;]*; "
        r"tensorrt-rtx cannot run here: [^;]*\. A plan runs where",
    ):
        find_candidates(read_target(plan, trust_code=True))


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError, match=r"there is no '.*model.onnx'"):
        read_target(tmp_path / "model.onnx")


def test_checkpoint_is_no_target(tiny: TinyModel) -> None:
    with pytest.raises(ArtifactError, match="becomes an artifact by fcn-export"):
        read_target(tiny.checkpoint)


def test_every_backend_and_precision_of_this_machine_is_a_candidate(tiny: TinyModel) -> None:
    candidates, notes = find_candidates(read_target(tiny.artifact))

    expected = {
        (name, precision)
        for name in ("openvino", "onnxruntime")
        for precision in (Precision.FP32, Precision.BF16, Precision.FP16)
        if precision in get_backend(name).precisions()
    }
    assert {(c.backend, c.precision) for c in candidates} == expected
    assert notes == ()


def test_backend_and_precision_narrow_the_candidates(tiny: TinyModel) -> None:
    target = read_target(tiny.artifact)

    candidates, _ = find_candidates(target, backend="openvino", precisions=[Precision.FP32])

    assert [(c.backend, c.precision) for c in candidates] == [("openvino", Precision.FP32)]


def test_precision_that_nothing_runs_is_an_error(tiny: TinyModel) -> None:
    with pytest.raises(BackendUnavailableError, match=r"nothing here runs .* in int8"):
        find_candidates(read_target(tiny.artifact), precisions=[Precision.INT8])


def test_backend_that_does_not_read_the_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_text("<net/>")

    with pytest.raises(BackendUnavailableError, match=r"onnxruntime does not read '.xml' files"):
        find_candidates(read_target(tmp_path / "model.xml"), backend="onnxruntime")


def test_preprocessing_of_an_artifact_cannot_be_given(tiny: TinyModel, tmp_path: Path) -> None:
    given = Preprocess((0.5,) * 3, (0.5,) * 3, "bgr")
    (tmp_path / "bare.onnx").write_bytes(segmentation_graph())

    assert preprocess_of(read_target(tmp_path / "bare.onnx"), given) is given
    assert preprocess_of(read_target(tiny.artifact), None).mean == (0.485, 0.456, 0.406)
    with pytest.raises(BenchmarkError, match=r"says itself.*Leave --mean, --std and --color out"):
        preprocess_of(read_target(tiny.artifact), given)


def test_factory_that_only_a_manifest_names_is_not_called(tiny: TinyModel) -> None:
    target = with_source(read_target(tiny.artifact), arch="os:system")

    baseline, reason = find_baseline(target)

    assert baseline is None
    assert reason is not None
    assert "code that a file names is not run unasked" in reason


@pytest.mark.parametrize("how", [{"trust_code": True}, {"arch": TinyModel.arch}])
def test_factory_of_the_manifest_is_called_where_the_caller_vouches_for_it(
    tiny: TinyModel, how: dict[str, object]
) -> None:
    target = with_source(read_target(tiny.artifact), arch_args={"width": "8"}, output_key="out")

    baseline, reason = find_baseline(target, **how)  # type: ignore[arg-type]  # as in the cases

    assert reason is None
    assert baseline is not None
    assert (baseline.arch, baseline.arch_args) == (TinyModel.arch, {"width": 8})
    assert (baseline.output_key, baseline.named_by) == ("out", "manifest")


def test_known_network_of_the_manifest_needs_no_trust(tiny: TinyModel) -> None:
    target = with_source(read_target(tiny.artifact), arch="fcn_resnet50")

    baseline, _ = find_baseline(target)

    assert baseline is not None
    assert baseline.path == tiny.checkpoint


def test_changed_model_file_is_not_taken(tiny: TinyModel) -> None:
    target = with_source(read_target(tiny.artifact), sha256="ab" * 32)

    baseline, reason = find_baseline(target, trust_code=True)

    assert baseline is None
    assert reason is not None
    assert "its SHA-256 differs" in reason
    assert "--baseline" in reason


def test_missing_model_file_is_said(tiny: TinyModel) -> None:
    target = with_source(read_target(tiny.artifact), path="/nowhere/gone.pt", file="gone.pt")

    assert "that the manifest names is not there" in str(find_baseline(target)[1])


def test_model_beside_the_artifact_is_found_when_both_moved(
    tiny: TinyModel, tmp_path: Path
) -> None:
    shutil.copytree(tiny.artifact, tmp_path / "tiny.fcn")
    shutil.copy(tiny.checkpoint, tmp_path / "tiny.pt")
    target = with_source(read_target(tmp_path / "tiny.fcn"), path="/nowhere/tiny.pt")

    baseline, _ = find_baseline(target, trust_code=True)

    assert baseline is not None
    assert baseline.path == tmp_path / "tiny.pt"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sha256": None}, "names no model file"),
        ({"file": "model.onnx"}, "made from 'model.onnx', which is no PyTorch model"),
    ],
)
def test_artifact_without_a_pytorch_model_says_so(
    tiny: TinyModel, changes: dict[str, object], reason: str
) -> None:
    target = with_source(read_target(tiny.artifact), **changes)

    assert reason in str(find_baseline(target)[1])


def test_model_given_is_taken_as_the_caller_says(tiny: TinyModel, tmp_path: Path) -> None:
    (tmp_path / "bare.onnx").write_bytes(segmentation_graph())
    target = read_target(tmp_path / "bare.onnx")

    baseline, _ = find_baseline(target, model=tiny.checkpoint, arch="a:b", arch_args={"x": 1})

    assert baseline is not None
    assert (baseline.arch, baseline.arch_args, baseline.named_by) == ("a:b", {"x": 1}, "caller")
    assert "bare graph names no PyTorch model" in str(find_baseline(target)[1])


def test_model_given_that_is_not_there_is_an_error(tiny: TinyModel) -> None:
    with pytest.raises(ArtifactMissingError, match=r"no baseline model 'gone.pt'"):
        find_baseline(read_target(tiny.artifact), model="gone.pt")
