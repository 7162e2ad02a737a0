"""make gpu-check over the simulated GPU: every step runs, and what fails is in the report."""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

import fcn_export.engine
from fcn_bench.gpu_check import case, cli, labels, plan, timings
from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.backends.tensorrt import device_labelling, head_kernel
from fcn_deploy.backends.tensorrt.graph_cache import GraphCache
from fcn_deploy.backends.tensorrt.head_kernel import TAINTED, HeadArguments
from fcn_deploy.errors import BackendUnavailableError, BenchmarkError
from fcn_deploy.head import upsample_argmax
from fcn_deploy.head.geometry import make_axis
from fcn_deploy.names import Array
from tests.deploy.backends.tensorrt.fake_driver import build_host_kernel
from tests.deploy.backends.tensorrt.simulated_driver import SimDevice, SimDriver
from tests.deploy.backends.tensorrt.simulated_tensorrt import make_plan
from tests.deploy.backends.tensorrt.test_backend import VERSIONS, write_artifact
from tests.deploy.backends.tensorrt.worlds import GRAPH, use_head, use_simulation
from tests.deploy.graphs import segmentation_graph

SHAPES = ShapeRange((1, 32, 32), (1, 64, 64), (2, 96, 96))

TRTEXEC = """#!/bin/sh
echo "[I] GPU Compute Time: the GPU latency to execute the kernels for a query."
echo "[I] Latency: min = 1.5 ms, max = 2.5 ms, mean = 1.7 ms, median = 1.6 ms"
echo "[I] GPU Compute Time: min = 1.1 ms, max = 2.2 ms, mean = 1.3 ms, median = 1.2 ms"
"""


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SimDriver]:
    made = SimDriver()
    use_simulation(monkeypatch, made)
    kernel = ctypes.CDLL(str(build_host_kernel(tmp_path))).head_labels_on_host
    use_head(monkeypatch, kernel)

    def build(path: Path, config: Any, *, tensorrt: Any) -> Any:
        ends = {name: (p.min, p.opt, p.max) for name, p in config.profiles[0].items()}
        version = VERSIONS[config.library]
        plan = make_plan(path.read_bytes(), [ends], library=config.library, version=version)
        return SimpleNamespace(
            plan=plan, build_seconds=0.1, seconds=0.1, layer_shares={}, warnings=()
        )

    monkeypatch.setattr(fcn_export.engine, "build_engine", build)
    for module in (cli, plan):
        monkeypatch.setattr(module, "device_problem", lambda name=None: None)
    for module in (cli, case):
        monkeypatch.setattr(
            module,
            "open_device",
            lambda name="auto", *, ordinal=0: SimDevice(made, ordinal=ordinal),
        )
    yield made
    assert made.leftovers() == []


def run(
    tmp_path: Path, *options: str, graph: bytes = GRAPH
) -> tuple[int, dict[str, dict[str, Any]]]:
    artifact = write_artifact(tmp_path, {}, graph=graph, shapes=SHAPES)
    output = tmp_path / "report"

    status = cli.main([str(artifact), "--output", str(output), "--runs", "3", *options])

    report = json.loads((output / "report.json").read_text())
    return status, {step["name"]: step for step in report["steps"]}


def test_every_step_runs_and_is_reported(
    driver: SimDriver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tool = tmp_path / "trtexec"
    tool.write_text(TRTEXEC)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    status, steps = run(tmp_path)

    assert [step["error"] for step in steps.values() if step["status"] == "failed"] == []
    assert status == 0
    for library in VERSIONS:
        for precision in ("fp32", "fp16", "int8"):
            labels = steps[f"{library} {precision} labels over pycuda"]["found"]
            assert labels == {"label_agreement": 1.0, "runs_at_once_agree": True}
            times = steps[f"{library} {precision} times, CUDA graphs"]["found"]
            assert 0 < times["compute_ms"] < times["transfer_ms"]
            assert steps[f"{library} {precision} head kernel"]["found"]["label_agreement"] > 0.9999
            recorded = steps[f"{library} {precision} labels, CUDA graphs"]["found"]
            assert recorded == {"sizes": [[64, 64], [45, 51]], "label_agreement": 1.0}
            made = steps[f"{library} {precision} labels made on the GPU"]["found"]["sizes"]
            assert [each["size"] for each in made] == [[64, 64], [45, 51]]
            assert [each["upsampling"] for each in made] == [[2.0, 2.0], [45 / 23, 51 / 26]]
            for each in made:
                assert each["score_error"] == 0
                assert each["against_head"]["real"] == each["against_onnxruntime"]["real"] == 0
                assert each["against_onnxruntime"]["label_agreement"] > 0.999
                assert each["runs_at_once_agree"]
            times = steps[f"{library} {precision} times, labels made on the GPU"]["found"]
            assert times["label_stage_ms"] > 0  # the simulation takes 1 ms for a kernel
            behind = times["labels_behind_the_plan"]
            assert times["scores_alone"]["compute_ms"] < behind["compute_ms"]
            assert behind["compute_ms"] < behind["transfer_ms"]
            assert set(times["labels_in_the_graph"]) == {"compute_ms", "transfer_ms"}
    assert steps["tensorrt fp32 trtexec"]["found"] == {"compute_ms": 1.2, "latency_ms": 1.6}
    assert steps["tensorrt-rtx fp32 trtexec"]["status"] == "skipped"
    assert steps["tensorrt fp32 layers"]["found"]["slowest"] == {"backbone": 1.0, "head": 2.0}
    assert steps["torch"]["found"] == {"skipped": "this PyTorch has no CUDA"}
    assert "please send report.json" in capsys.readouterr().out
    assert "| tensorrt fp32 build | ok |" in (tmp_path / "report" / "report.md").read_text()


def test_a_plan_with_other_labels_fails_its_step_and_the_others_go_on(
    driver: SimDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "agreement_with", lambda wanted, found: 0.5)

    status, steps = run(tmp_path, "--library", "tensorrt")

    failed = [name for name, step in steps.items() if step["status"] == "failed"]
    assert status == 1
    assert "tensorrt int8 labels over pycuda" in failed
    assert (
        "0.50000 of the labels are ONNX Runtime's; at least 0.999 expected"
        in (steps["tensorrt fp32 labels over pycuda"]["error"])
    )
    assert "Traceback" in steps["tensorrt fp32 labels over pycuda"]["traceback"]
    assert steps["tensorrt int8 layers"]["status"] == "ok"
    assert not any(name.startswith("tensorrt-rtx") for name in steps)


def test_a_build_that_fails_leaves_its_plan_out(
    driver: SimDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise BenchmarkError("no kernel for this layer")

    monkeypatch.setattr(fcn_export.engine, "build_engine", fail)

    status, steps = run(tmp_path, "--library", "tensorrt")

    assert status == 1
    assert "no kernel for this layer" in steps["tensorrt fp32 build"]["error"]
    assert "tensorrt fp32 layers" not in steps


def in_corners(samples: tuple[int, int], size: tuple[int, int]) -> Array:
    return head_kernel.head_tables(samples, size, align_corners=True)


def by_whole_factors(samples: tuple[int, int], size: tuple[int, int]) -> Array:
    """Right where one score lies 2 px from the next, as at the size that is served."""
    parts: list[Array] = [TAINTED]
    for count, outputs in zip(samples, size, strict=True):
        axis = make_axis(count, outputs, align_corners=False, factor=2)
        parts += [axis.cells.astype(np.int32), axis.near[:outputs], axis.far[:outputs]]
    return np.concatenate([part.view(np.uint8) for part in parts])


@pytest.mark.parametrize("tables", [in_corners, by_whole_factors])
def test_labels_that_the_gpu_makes_at_other_places_fail_their_step(
    tables: Any, driver: SimDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_labelling, "head_tables", tables)

    status, steps = run(tmp_path, "--library", "tensorrt")

    failed = [name for name, step in steps.items() if step["status"] == "failed"]
    assert status == 1
    assert failed == [f"tensorrt {p} labels made on the GPU" for p in ("fp32", "fp16", "int8")]
    error = steps[failed[0]]["error"]
    assert "labels made on the GPU differ: " in error
    assert f"'size': {[64, 64] if tables is in_corners else [45, 51]}" in error


def test_labels_of_a_wrong_kernel_fail_their_step(
    driver: SimDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = ctypes.CDLL(str(build_host_kernel(tmp_path))).head_labels_on_host

    def one_pixel_wrong(argument: Any) -> None:
        kernel(argument)
        given = ctypes.cast(argument, ctypes.POINTER(HeadArguments)).contents
        first = ctypes.cast(given.labels, ctypes.POINTER(ctypes.c_uint8))
        first[0] = (first[0] + 1) % given.classes

    use_head(monkeypatch, one_pixel_wrong)

    _, steps = run(tmp_path, "--library", "tensorrt")

    error = steps["tensorrt fp32 labels made on the GPU"]["error"]
    assert "'against_head': {'label_agreement': 0.9997" in error
    assert "'real': 1}" in error


def test_a_large_error_of_the_scores_excuses_no_wrong_kernel(
    driver: SimDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = ctypes.CDLL(str(build_host_kernel(tmp_path))).head_labels_on_host
    open_reference = case.PlanCase.reference

    def without_labels(argument: Any) -> None:
        kernel(argument)
        given = ctypes.cast(argument, ctypes.POINTER(HeadArguments)).contents
        ctypes.memset(given.labels, 0, 2 * given.out_width)  # two rows of so many

    def far_from_the_plan(case: case.PlanCase, outputs: Any = None) -> Any:
        context = open_reference(case, outputs)

        def execute(feeds: Any) -> dict[str, Array]:
            found = context.execute(feeds)
            return {name: 2 * a if a.dtype == np.float32 else a for name, a in found.items()}

        return SimpleNamespace(
            execute=execute, close=context.close, inputs=context.inputs, outputs=context.outputs
        )

    use_head(monkeypatch, without_labels)
    monkeypatch.setattr(case.PlanCase, "reference", far_from_the_plan)
    monkeypatch.setattr(case.PlanCase, "least_agreement", 0.5)

    _, steps = run(tmp_path, "--library", "tensorrt")

    of_kernel, of_plan = counts(steps["tensorrt fp32 labels made on the GPU"]["error"])
    assert of_kernel > 0
    assert of_plan > 0  # near ties are bounded by the reference's own spread, too


def test_a_head_that_errs_as_the_kernel_does_is_no_excuse(
    driver: SimDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_labelling, "head_tables", in_corners)
    monkeypatch.setattr(labels, "upsample_argmax", partial(upsample_argmax, align_corners=True))
    monkeypatch.setattr(case.PlanCase, "least_agreement", 0.5)

    _, steps = run(tmp_path, "--library", "tensorrt")

    of_kernel, of_plan = counts(steps["tensorrt fp32 labels made on the GPU"]["error"])
    assert of_kernel == 0
    assert of_plan > 0


def test_too_many_near_ties_fail_their_step(
    driver: SimDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(case.PlanCase, "least_agreement", 1.1)

    _, steps = run(tmp_path, "--library", "tensorrt")

    assert "at least 1.1 of" in steps["tensorrt fp32 labels made on the GPU"]["error"]


def counts(error: str) -> tuple[int, int]:
    """Read how many disagreements with the head, and with ONNX Runtime, are real."""
    of_head, of_onnxruntime = re.findall(r"'real': (\d+)", error)
    return int(of_head), int(of_onnxruntime)


def test_labels_of_one_run_of_many_that_differ_fail_their_step(
    driver: SimDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = ctypes.CDLL(str(build_host_kernel(tmp_path))).head_labels_on_host
    launches = iter(range(1000))

    def fourth_run_too_early(argument: Any) -> None:
        kernel(argument)
        given = ctypes.cast(argument, ctypes.POINTER(HeadArguments)).contents
        if next(launches) == 3:
            ctypes.memset(given.labels, 0, given.images * given.out_height * given.out_width)

    use_head(monkeypatch, fourth_run_too_early)

    _, steps = run(tmp_path, "--library", "tensorrt")

    error = steps["tensorrt fp32 labels made on the GPU"]["error"]
    assert "'runs_at_once_agree': False" in error


def test_labels_that_the_cpu_makes_for_want_of_nvrtc_fail_their_step(
    driver: SimDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_head(architecture: str) -> bytes:
        raise BackendUnavailableError("NVRTC cannot be used: it is not here.")

    monkeypatch.setattr(head_kernel, "compile_head", compile_head)

    status, steps = run(tmp_path, "--library", "tensorrt")

    assert status == 1
    assert (
        "the labels are not made on the GPU, but in the runtime, as the graph ends in scores: NVRTC"
        in steps["tensorrt fp32 labels made on the GPU"]["error"]
    )


def test_a_graph_that_ends_in_scores_is_not_cut(driver: SimDriver, tmp_path: Path) -> None:
    cut = labels.cut_at_scores(segmentation_graph(head="scores"), name="graph", folder=tmp_path)

    assert cut == "the graph does not end in class ids made of scores"


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("align_corners", "its upsampling is not the usual one to the image's size"),
        ("asymmetric", "its upsampling has the coordinates asymmetric"),
    ],
)
def test_a_graph_with_another_upsampling_is_not_cut(mode: str, reason: str, tmp_path: Path) -> None:
    model = onnx.load_from_string(GRAPH)
    (resize,) = (node for node in model.graph.node if node.op_type == "Resize")
    for attribute in resize.attribute:
        if attribute.name == "coordinate_transformation_mode":
            resize.attribute.remove(attribute)
    resize.attribute.append(onnx.helper.make_attribute("coordinate_transformation_mode", mode))

    cut = labels.cut_at_scores(model.SerializeToString(), name="graph", folder=tmp_path)

    assert cut == reason


def test_recorded_runs_that_differ_fail_their_step(
    driver: SimDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GraphCache, "launch", lambda cache, key, stream: None)

    _, steps = run(tmp_path, "--library", "tensorrt")

    error = steps["tensorrt fp32 labels, CUDA graphs"]["error"]
    assert "of the labels of plain ones" in error


def test_the_step_of_a_graph_that_is_not_cut_is_skipped(
    driver: SimDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labels, "peel_tail", lambda graph, tail: "its upsampling is odd")

    _, steps = run(tmp_path, "--library", "tensorrt")

    found = steps["tensorrt fp32 scores build"]
    assert (found["status"], found["found"]) == ("skipped", {"skipped": "its upsampling is odd"})
    assert "tensorrt fp32 labels made on the GPU" not in steps


@pytest.mark.parametrize(
    ("shapes", "sizes"),
    [
        (ShapeRange((1, 64, 64), (1, 512, 512), (8, 2048, 2048)), ((512, 512), (381, 443))),
        (ShapeRange((1, 64, 64), (1, 64, 64), (8, 2048, 2048)), ((64, 64), (83, 77))),
        (ShapeRange((1, 64, 64), (1, 512, 512), (1, 1024, 1024), 32), ((512, 512), (352, 416))),
        (ShapeRange((1, 64, 64), (1, 64, 64), (1, 64, 64)), ((64, 64),)),
        (ShapeRange((1, 64, 64), (1, 64, 96), (1, 64, 128)), ((64, 96),)),
    ],
)
def test_another_size_is_taken_where_the_range_has_one(
    shapes: ShapeRange, sizes: tuple[tuple[int, int], ...]
) -> None:
    assert labels.label_sizes(shapes) == sizes


def test_without_a_gpu_it_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    status = cli.main([])

    assert status == 2
    assert "nothing can be checked: the NVIDIA driver" in capsys.readouterr().err


def test_without_a_library_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "device_problem", lambda: None)
    monkeypatch.setattr(cli, "installed", lambda name: name == "tensorrt-rtx")

    status = cli.main(["--library", "tensorrt"])

    assert status == 2
    assert "nothing can be checked: no tensorrt is installed." in capsys.readouterr().err


def test_an_artifact_that_is_not_there_is_one_line(
    driver: SimDriver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = cli.main([str(tmp_path / "gone.fcn"), "--output", str(tmp_path / "report")])

    captured = capsys.readouterr()
    assert status == 2
    assert captured.err.count("\n") == 1
    assert "gone.fcn" in captured.err


def test_labels_of_another_shape_are_an_error() -> None:
    with pytest.raises(BenchmarkError, match=r"gave labels \[3\]; expected \[2\]"):
        timings.agreement_with(np.zeros(2), np.zeros(3))


def test_a_trtexec_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "trtexec"
    tool.write_text("#!/bin/sh\necho 'engine is of another version' >&2\nexit 3\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    found = timings.run_trtexec(tmp_path / "a.plan", {"image": np.zeros((1, 2, 3, 3))})

    assert found == {"error": "status 3: engine is of another version"}
