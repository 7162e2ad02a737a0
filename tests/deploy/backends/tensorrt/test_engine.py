"""Opening plans: what is refused before TensorRT sees it, profiles, tensors, the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from fcn_deploy.backends.tensorrt import device as device_module
from fcn_deploy.backends.tensorrt.cuda_python_device import CudaPythonDevice
from fcn_deploy.backends.tensorrt.engine import TrtEngine
from fcn_deploy.backends.tensorrt.plan_check import PlanRecord
from fcn_deploy.backends.tensorrt.pycuda_device import PyCudaDevice
from fcn_deploy.backends.tensorrt.session import open_session
from fcn_deploy.errors import (
    ArtifactError,
    ArtifactMissingError,
    BackendUnavailableError,
    DigestMismatchError,
    EngineMismatchError,
    UntrustedArtifactError,
)
from fcn_deploy.names import Precision
from tests.deploy.backends.tensorrt.simulated_driver import SimDriver
from tests.deploy.backends.tensorrt.simulated_tensorrt import Runtime, make_plan
from tests.deploy.backends.tensorrt.test_backend import write_artifact
from tests.deploy.backends.tensorrt.worlds import (
    GRAPH,
    LARGE,
    SMALL,
    World,
    expected,
    frames,
    make_world,
    use_simulation,
)


@pytest.fixture
def world() -> Iterator[World]:
    made = make_world()
    yield made
    made.close()


def test_tensors_and_profiles_are_those_of_the_plan(world: World) -> None:
    engine = world.engine

    assert [str(spec) for spec in engine.inputs] == ["image: uint8 [?, ?, ?, 3]"]
    assert [(spec.name, spec.dtype) for spec in engine.outputs] == [("labels", "uint8")]
    assert [profile.max["image"] for profile in engine.profiles] == [(2, 32, 32, 3), (4, 96, 96, 3)]
    assert "TensorRT 11.4.0" in repr(engine)
    assert "compute capability 8.6" in repr(engine)


@pytest.mark.parametrize(
    ("shape", "profile"),
    [((1, 12, 16, 3), 0), ((2, 32, 32, 3), 0), ((3, 32, 32, 3), 1), ((1, 33, 32, 3), 1)],
)
def test_the_smallest_profile_that_fits_is_taken(
    world: World, shape: tuple[int, ...], profile: int
) -> None:
    assert world.engine.select_profile({"image": shape}) == profile


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (PlanRecord("tensorrt-rtx"), r"was built by tensorrt-rtx; tensorrt cannot run it"),
        (
            PlanRecord("tensorrt", "11.3.0", ("8.6",)),
            r"built with TensorRT 11\.3\.0 for compute capability 8\.6; this process has TensorRT "
            r"11\.4\.0 on compute capability 8\.6 \(Simulated GPU\)",
        ),
        (
            PlanRecord("tensorrt", "11.4.0", ("7.5", "8.9")),
            r"for compute capability 7\.5, 8\.9; this process has .* on compute capability 8\.6",
        ),
        (PlanRecord("tensorrt", "11.4.0", ("8.9+",)), r"compute capability 8\.9\+; this process"),
        (PlanRecord("tensorrt", "11.5.0", version_compatible=True), r"TensorRT 11\.5\.0; this"),
        (PlanRecord("tensorrt", "10.13.0", version_compatible=True), r"TensorRT 10\.13\.0; this"),
    ],
)
def test_a_plan_for_another_place_is_refused_before_it_is_read(
    record: PlanRecord, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []
    monkeypatch.setattr(Runtime, "deserialize_cuda_engine", lambda *a: read.append(a))

    with pytest.raises(EngineMismatchError, match=message):
        make_world(record=record)

    assert read == []


@pytest.mark.parametrize(
    "record",
    [
        PlanRecord("tensorrt"),
        PlanRecord("tensorrt", "11.4.0", ("7.5", "8.6")),
        PlanRecord("tensorrt", "11.4.0", ("8.0+",)),
        PlanRecord("tensorrt", "11.3.0", ("8.6",), version_compatible=True),
    ],
)
def test_a_plan_for_this_place_is_read(record: PlanRecord) -> None:
    with make_world(record=record).engine as engine:
        assert [spec.name for spec in engine.inputs] == ["image"]


def test_a_plan_for_later_releases_is_known_by_its_manifest_alone() -> None:
    record = PlanRecord("tensorrt", "11.3.0", version_compatible=True)
    with make_world(record=record).engine as engine:
        assert engine.inputs

    with pytest.raises(EngineMismatchError, match=r"TensorRT 11\.3\.0; this process"):
        make_world(record=replace(record, version_compatible=False))


def test_a_plan_that_tensorrt_refuses_is_an_error_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = SimDriver(compute_capability=(9, 0))
    use_simulation(monkeypatch, driver)
    plan = make_plan(GRAPH, [SMALL])

    with pytest.raises(EngineMismatchError, match=r"refused .* expecting library version"):
        open_plan(plan)

    assert driver.leftovers() == []


def test_garbage_is_told_from_a_plan_by_rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    use_simulation(monkeypatch, SimDriver())

    with pytest.raises(ArtifactError, match="is no plan of TensorRT-RTX, or a damaged"):
        open_plan(b"garbage", library="tensorrt-rtx")
    with pytest.raises(EngineMismatchError, match="Magic tag does not match"):
        open_plan(b"garbage")


def test_a_tensor_that_numpy_cannot_hold_is_refused() -> None:
    info = [
        helper.make_tensor_value_info(name, TensorProto.BFLOAT16, [1, "H", "W", 3])
        for name in ("image", "labels")
    ]
    node = helper.make_node("Identity", ["image"], ["labels"])
    graph = helper.make_graph([node], "g", [info[0]], [info[1]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)

    with pytest.raises(ArtifactError, match="tensor 'image' of BF16 in device memory; expected"):
        make_world(graph=model.SerializeToString(), profiles=(SMALL,))


def test_a_bare_plan_needs_somebody_to_vouch_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = SimDriver()
    use_simulation(monkeypatch, driver)
    path = tmp_path / "bare.plan"
    path.write_bytes(make_plan(GRAPH, [SMALL, LARGE]))
    (frame,) = frames(1)

    with pytest.raises(UntrustedArtifactError, match=r"outside of an artifact.*--trust-code"):
        TrtEngine.load(path)
    with TrtEngine.load(path, trust_code=True) as engine:
        labels = open_session(engine).infer({"image": frame})["labels"]

    np.testing.assert_array_equal(labels, expected(frame))
    assert driver.leftovers() == []


def test_a_plan_of_an_artifact_is_held_to_its_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = SimDriver()
    use_simulation(monkeypatch, driver)
    plans = {"tensorrt": (Precision.FP32, Precision.FP16)}
    plan = write_artifact(tmp_path, plans) / "model.fp16.tensorrt.plan"
    (frame,) = frames(1)

    with TrtEngine.load(plan) as engine:
        labels = open_session(engine).infer({"image": frame})["labels"]
    write_artifact(tmp_path, plans, capability="9.0")
    with pytest.raises(EngineMismatchError, match=r"capability 9\.0"):
        TrtEngine.load(plan)
    plan.write_bytes(plan.read_bytes()[:-1] + b"\0")
    with pytest.raises(DigestMismatchError, match="SHA-256"):
        TrtEngine.load(plan)

    np.testing.assert_array_equal(labels, expected(frame))
    assert driver.leftovers() == []


def test_a_plan_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError, match=r"no\.plan"):
        TrtEngine.load(tmp_path / "no.plan", trust_code=True)


def test_no_driver_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "driver_loads", lambda: False)

    with pytest.raises(
        BackendUnavailableError, match=r"the NVIDIA driver \(libcuda\.so\.1\) is not installed"
    ):
        device_module.open_device("cuda-python")


def test_no_library_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "find_spec", lambda module: None)
    monkeypatch.setattr(device_module, "driver_loads", lambda: True)

    with pytest.raises(
        BackendUnavailableError,
        match=r"no CUDA driver library for Python \(pycuda or cuda-python\) is.*cuda-bindings",
    ):
        device_module.open_device()


@pytest.mark.parametrize(
    ("device", "module", "message"),
    [
        (PyCudaDevice, "pycuda", "pycuda cannot be imported"),
        (CudaPythonDevice, "cuda.bindings", r"cuda\.bindings cannot be imported"),
    ],
)
def test_a_driver_library_that_does_not_load_says_what_to_install(
    device: Callable[[int], object],
    module: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # makes its import fail

    with pytest.raises(BackendUnavailableError, match=rf"{message}.*pip install"):
        device(0)


def test_an_unknown_device_library_is_refused() -> None:
    with pytest.raises(ValueError, match="device library is 'numba'; expected auto, pycuda"):
        device_module.open_device("numba")


def open_plan(plan: bytes, library: str = "tensorrt") -> TrtEngine:
    from fcn_deploy.backends.tensorrt.api import load_tensorrt

    return TrtEngine(
        plan,
        library=load_tensorrt("tensorrt-rtx" if library == "tensorrt-rtx" else "tensorrt"),
        device=device_module.open_device(),
        name="a.plan",
    )


def test_the_simulation_replaces_both_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    use_simulation(monkeypatch, SimDriver())

    assert {"tensorrt", "tensorrt_rtx"} <= set(sys.modules)
