"""Plans in artifacts: what `Segmenter.open` takes, why, and what it refuses."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fcn_deploy import Segmenter, VideoPipeline
from fcn_deploy.artifact.folder import ArtifactWriter
from fcn_deploy.artifact.manifest import ClassInfo, Fidelity, Variant
from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.backends import get_backend, plan_backend_names
from fcn_deploy.backends.base import ModelSource
from fcn_deploy.backends.tensorrt import backend as plan_backends
from fcn_deploy.backends.tensorrt import device
from fcn_deploy.doctor import diagnose
from fcn_deploy.errors import (
    ArtifactMissingError,
    BackendUnavailableError,
    ClosedError,
    DigestMismatchError,
    EngineMismatchError,
    ShapeError,
    UntrustedArtifactError,
)
from fcn_deploy.names import Array, Precision
from tests.deploy.backends.tensorrt.simulated_driver import SimDriver
from tests.deploy.backends.tensorrt.simulated_tensorrt import make_plan
from tests.deploy.backends.tensorrt.worlds import GRAPH, LARGE, SMALL, expected, use_simulation
from tests.deploy.clips import write_clip
from tests.deploy.manifests import MANIFEST

VERSIONS = {"tensorrt": "11.4.0", "tensorrt-rtx": "1.7.1"}


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimDriver]:
    made = SimDriver(seed=0)
    use_simulation(monkeypatch, made)
    yield made
    assert made.leftovers() == []


def write_artifact(
    folder: Path,
    plans: Mapping[str, tuple[Precision, ...]],
    *,
    agreement: float = 1.0,
    capability: str = "8.6",
    versions: dict[str, str] = VERSIONS,
    graph: bytes = GRAPH,
    shapes: ShapeRange = MANIFEST.shapes,
    multiple_of: int = 1,
) -> Path:
    """Write an artifact of a graph of the tests with plans, and fp16's and int8's fidelity."""
    variants = [
        Variant(
            "model.onnx",
            precision,
            fidelity=(
                Fidelity("onnxruntime", precision, agreement, 0.0, worst_class_iou=0.999, images=4),
            ),
        )
        for precision in (Precision.FP32, Precision.FP16, Precision.INT8)
    ]
    path = folder / "model.fcn"
    with ArtifactWriter(path, force=True) as writer:
        writer.add("model.onnx", graph)
        for backend, precisions in plans.items():
            for precision in precisions:
                name = f"model.{precision}.{backend}.plan"
                plan = make_plan(graph, [SMALL, LARGE], library=backend, version=VERSIONS[backend])
                writer.add(name, plan)
                variants.append(Variant(name, precision, backend, (capability,)))
        manifest = replace(
            MANIFEST,
            classes=tuple(ClassInfo(str(n), (n, n, n)) for n in range(3)),
            variants=tuple(variants),
            provenance=versions,
            shapes=replace(shapes, multiple_of=multiple_of),
        )
        writer.commit(manifest)
    return path


def frame(height: int = 24, width: int = 32) -> Array:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)


ALL = (Precision.FP32, Precision.FP16, Precision.INT8)


@pytest.mark.parametrize("backend", plan_backend_names())
def test_a_plan_gives_the_labels_of_its_graph(
    backend: str, driver: SimDriver, tmp_path: Path
) -> None:
    path = write_artifact(tmp_path, {backend: (Precision.FP32,)})

    with Segmenter.open(path, backend=backend) as segmenter:
        labels = segmenter(frame()).labels

    np.testing.assert_array_equal(labels, expected(frame()[np.newaxis])[0])
    assert (segmenter.backend, segmenter.precision) == (backend, Precision.FP32)
    assert f"{backend} was asked for" in segmenter.reason


def test_auto_takes_the_plan_that_fits_the_gpu(driver: SimDriver, tmp_path: Path) -> None:
    path = write_artifact(tmp_path, {"tensorrt": ALL})

    with Segmenter.open(path) as segmenter:
        assert (segmenter.backend, segmenter.precision) == ("tensorrt", Precision.FP16)
        assert "tensorrt has a plan for this GPU; fp16 is the plan's own" in segmenter.reason


def test_auto_takes_fp32_where_fp16_measured_too_little(driver: SimDriver, tmp_path: Path) -> None:
    path = write_artifact(tmp_path, {"tensorrt": ALL}, agreement=0.998)

    with Segmenter.open(path) as segmenter:
        assert (segmenter.backend, segmenter.precision) == ("tensorrt", Precision.FP32)


def test_a_precision_that_is_asked_for_chooses_the_plan(driver: SimDriver, tmp_path: Path) -> None:
    path = write_artifact(tmp_path, {"tensorrt": ALL})

    with Segmenter.open(path, precision="int8") as segmenter:
        assert (segmenter.backend, segmenter.precision) == ("tensorrt", Precision.INT8)
        assert segmenter.path.name == "model.int8.tensorrt.plan"


def test_auto_leaves_a_plan_out_that_was_not_shown_to_keep_the_labels(
    driver: SimDriver, tmp_path: Path
) -> None:
    path = write_artifact(tmp_path, {"tensorrt": (Precision.INT8,)}, agreement=0.6)

    with Segmenter.open(path, cache=False) as segmenter:
        assert segmenter.backend != "tensorrt"
        assert "'model.int8.tensorrt.plan' was left out: export did not show" in segmenter.reason


def test_auto_leaves_a_plan_for_another_gpu_out_and_says_so(
    driver: SimDriver, tmp_path: Path
) -> None:
    path = write_artifact(tmp_path, {"tensorrt": ALL}, capability="9.0")

    with Segmenter.open(path) as segmenter:
        assert segmenter.backend == "openvino"
        assert "'model.fp16.tensorrt.plan' was left out" in segmenter.reason
        assert "for compute capability 9.0" in segmenter.reason


def test_auto_leaves_plans_out_where_the_gpu_does_not_open(
    driver: SimDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_artifact(tmp_path, {"tensorrt": ALL})

    def open_device() -> None:
        raise BackendUnavailableError("the driver failed in cuInit.", hint="Reboot.")

    monkeypatch.setattr("fcn_deploy.backends.tensorrt.backend.open_device", open_device)

    with Segmenter.open(path) as segmenter:
        assert segmenter.backend == "openvino"
        assert "was left out: the driver failed in cuInit." in segmenter.reason


def test_a_plan_computes_in_the_types_that_it_was_built_with(driver: SimDriver) -> None:
    backend = get_backend("tensorrt")

    assert backend.precisions() == tuple(Precision)
    assert backend.arithmetic(Precision.INT8) == "int8, in the types that the plan was built with"


def test_a_plan_for_another_gpu_that_is_asked_for_is_an_error(
    driver: SimDriver, tmp_path: Path
) -> None:
    path = write_artifact(tmp_path, {"tensorrt": ALL}, capability="9.0")

    with pytest.raises(EngineMismatchError, match=r"capability 9\.0; this process has TensorRT"):
        Segmenter.open(path, backend="tensorrt")


def test_a_plan_of_another_release_is_an_error(driver: SimDriver, tmp_path: Path) -> None:
    path = write_artifact(tmp_path, {"tensorrt": ALL}, versions={"tensorrt": "10.14.1"})

    with pytest.raises(EngineMismatchError, match=r"TensorRT 10\.14\.1 .*Install tensorrt 10\.14"):
        Segmenter.open(path, backend="tensorrt")


def test_a_backend_without_a_plan_lists_the_plans(driver: SimDriver, tmp_path: Path) -> None:
    path = write_artifact(tmp_path, {"tensorrt": (Precision.FP32,)})

    with pytest.raises(ArtifactMissingError, match=r"no usable plan for tensorrt-rtx.*--engine"):
        Segmenter.open(path, backend="tensorrt-rtx")
    with pytest.raises(
        ArtifactMissingError, match=r"no int8 plan for tensorrt; .*model\.fp32\.tensorrt\.plan"
    ):
        Segmenter.open(path, backend="tensorrt", precision="int8")


def test_a_file_of_the_artifact_can_be_named(driver: SimDriver, tmp_path: Path) -> None:
    path = write_artifact(tmp_path, {"tensorrt": ALL})
    plan = path / "model.int8.tensorrt.plan"

    with Segmenter.open(plan) as segmenter:
        assert (segmenter.backend, segmenter.precision) == ("tensorrt", Precision.INT8)
    with pytest.raises(BackendUnavailableError, match="is a plan of tensorrt; tensorrt-rtx cannot"):
        Segmenter.open(plan, backend="tensorrt-rtx")
    with pytest.raises(BackendUnavailableError, match="plan in int8; it cannot compute in fp16"):
        Segmenter.open(plan, precision="fp16")
    with pytest.raises(BackendUnavailableError, match=r"openvino does not read '\.plan'"):
        Segmenter.open(plan, backend="openvino")


def test_a_plan_that_was_changed_is_not_parsed(driver: SimDriver, tmp_path: Path) -> None:
    path = write_artifact(tmp_path, {"tensorrt": (Precision.FP32,)})
    plan = path / "model.fp32.tensorrt.plan"
    plan.write_bytes(plan.read_bytes()[:-1] + b"\0")

    with pytest.raises(DigestMismatchError, match="SHA-256"):
        Segmenter.open(path, backend="tensorrt")


def test_a_bare_plan_needs_trust(driver: SimDriver, tmp_path: Path) -> None:
    plan = tmp_path / "mine.fp16.plan"
    plan.write_bytes(make_plan(GRAPH, [SMALL, LARGE]))

    with pytest.raises(UntrustedArtifactError, match="trust"):
        Segmenter.open(plan)
    with Segmenter.open(plan, trust_code=True) as segmenter:
        labels = segmenter(frame()).labels
        precision = segmenter.precision

    rgb = np.ascontiguousarray(frame()[np.newaxis, ..., ::-1])  # as for all bare graphs
    np.testing.assert_array_equal(labels, expected(rgb)[0])
    assert precision is Precision.FP16


def test_a_bare_plan_without_a_precision_in_its_name_is_noticed(
    driver: SimDriver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = tmp_path / "mine.plan"
    plan.write_bytes(make_plan(GRAPH, [SMALL, LARGE]))

    found = diagnose(plan, trust_code=True).model

    assert found is not None
    assert found.precision is Precision.FP32
    assert caplog.text.count("does not say its precision in its name") == 1


def test_a_frame_outside_of_all_profiles_is_an_error(driver: SimDriver, tmp_path: Path) -> None:
    path = write_artifact(tmp_path, {"tensorrt": (Precision.FP32,)})

    with Segmenter.open(path) as segmenter, pytest.raises(ShapeError, match="none of 2 profiles"):
        segmenter(frame(128, 64))


def test_threads_share_a_network_with_several_streams(driver: SimDriver, tmp_path: Path) -> None:
    path = write_artifact(tmp_path, {"tensorrt": (Precision.FP32,)})
    images = [frame(20 + n, 32) for n in range(4)]
    wrong: list[object] = []

    with Segmenter.open(path, backend="tensorrt", num_streams=2) as segmenter:
        before = len(driver.streams)

        def work(n: int) -> None:
            for _ in range(5):
                labels = segmenter(images[n]).labels
                if not np.array_equal(labels, expected(images[n][np.newaxis])[0]):
                    wrong.append(n)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(len(images))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        streams = len(driver.streams) - before

    assert wrong == []
    assert streams == 2 * 3  # two sessions: copies in, runs, copies out
    with pytest.raises(ClosedError, match="closed"):
        segmenter(images[0])


def test_timed_runs_say_what_the_gpu_took(driver: SimDriver, tmp_path: Path) -> None:
    with Segmenter.open(write_artifact(tmp_path, {"tensorrt": (Precision.FP32,)})) as segmenter:
        feeds = segmenter.prepare([frame()])
        plain = segmenter.execute(feeds)

        outputs, times = segmenter.execute_timed(feeds)

    assert times is not None
    assert 0 < times.compute_ms < times.transfer_ms
    np.testing.assert_array_equal(outputs["labels"], plain["labels"])


def test_the_video_pipeline_runs_on_a_plan(driver: SimDriver, tmp_path: Path) -> None:
    path = write_artifact(tmp_path, {"tensorrt": (Precision.FP32,)})
    clip = write_clip(tmp_path / "clip.avi", frames=6)
    found = {}

    for name in ("onnxruntime", "tensorrt"):
        with (
            Segmenter.open(path, backend=name, precision="fp32") as segmenter,
            VideoPipeline(segmenter, clip) as pipeline,
        ):
            found[name] = [item.labels for item in pipeline]

    assert len(found["tensorrt"]) == 6
    np.testing.assert_array_equal(found["tensorrt"], found["onnxruntime"])


def test_scores_are_not_in_a_plan(driver: SimDriver, tmp_path: Path) -> None:
    path = write_artifact(tmp_path, {"tensorrt": (Precision.FP32,)})

    with Segmenter.open(path) as segmenter:
        assert segmenter.head == "in the graph"
        with pytest.raises(Exception, match="class scores were not found"):
            segmenter(frame(), scores=True)


@pytest.mark.parametrize("name", plan_backend_names())
def test_without_a_driver_one_line_says_what_is_missing(
    name: str, driver: SimDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    path = write_artifact(tmp_path, {name: (Precision.FP32,)})
    use_simulation(monkeypatch, driver)
    problem = "the NVIDIA driver (libcuda.so.1) is not installed"
    monkeypatch.setattr(plan_backends, "device_problem", lambda: problem)
    monkeypatch.setattr(plan_backends, "require_device", device.require_device)
    monkeypatch.setattr(device, "device_problem", lambda name=None: problem)
    backend = get_backend(name)

    assert not backend.available()
    for ask in (backend.version, backend.precisions, lambda: Segmenter.open(path, backend=name)):
        with pytest.raises(BackendUnavailableError, match=rf"{name} cannot run here: the NVIDIA"):
            ask()
    with Segmenter.open(path) as segmenter:
        assert f"was left out: {name} cannot run here: {problem};" in segmenter.reason


def test_without_a_driver_a_plan_by_itself_says_what_each_backend_lacks(
    driver: SimDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.fp16.plan"
    path.write_bytes(make_plan(GRAPH, [SMALL]))
    monkeypatch.undo()
    monkeypatch.setattr(device, "driver_loads", lambda: False)

    with pytest.raises(
        BackendUnavailableError,
        match=r"plans can run here: TensorRT is not installed; tensorrt cannot .*; tensorrt-rtx "
        r"cannot run here: the NVIDIA driver .* is not installed\. A plan runs where",
    ):
        Segmenter.open(path, trust_code=True)


def test_a_plan_is_opened_whole(driver: SimDriver) -> None:
    with pytest.raises(ValueError, match="it comes as bytes and runs whole"):
        get_backend("tensorrt").open(ModelSource(Path("a.plan"), b"", ("scores",)))


def test_the_simulated_device_is_what_opens(driver: SimDriver) -> None:
    assert device.open_device().name == "simulation"
