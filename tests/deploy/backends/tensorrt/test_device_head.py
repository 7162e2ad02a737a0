"""The head's CUDA kernel: compiled for the host, it labels as the head does; nvcc takes it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from cuda.pathfinder import DynamicLibNotFoundError

from fcn_deploy.backends.tensorrt import head_kernel
from fcn_deploy.backends.tensorrt.device import DeviceBackend
from fcn_deploy.backends.tensorrt.device_head import DeviceHead
from fcn_deploy.backends.tensorrt.head_kernel import HeadKernel, compile_head
from fcn_deploy.errors import (
    BackendUnavailableError,
    ClosedError,
    ExecutionError,
    NonFiniteOutputError,
    ShapeError,
)
from fcn_deploy.head import upsample_argmax
from fcn_deploy.names import Array
from tests.deploy.backends.tensorrt.fake_driver import build_host_kernel
from tests.deploy.backends.tensorrt.simulated_driver import SimDevice, SimDriver, device_range
from tests.deploy.backends.tensorrt.simulated_head import simulated_head
from tests.deploy.interpolation import interpolate

ROOT = Path(__file__).resolve().parents[4]
COMPUTE_CAPABILITIES = (75, 80, 86, 89, 90, 100, 120)


@pytest.fixture(scope="module")
def host_kernel(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("head")
    return ctypes.CDLL(str(build_host_kernel(folder))).head_labels_on_host


class World:
    """The simulated GPU, which runs the host's build of the kernel."""

    def __init__(self, host_kernel: Any) -> None:
        self.driver = SimDriver()
        self.device = SimDevice(self.driver)
        self.device.kernels["head_labels"] = simulated_head(self.driver, host_kernel)
        self.head = DeviceHead(cast(DeviceBackend, self.device), image=b"the host's")

    def scores(self, content: Array) -> Any:
        """Put scores on the GPU, written in the default stream."""
        with self.driver.current():
            address = self.driver.alloc(content.nbytes)

            def fill() -> None:
                flat = np.ascontiguousarray(content).reshape(-1).view(np.uint8)
                self.driver.view(address, content.nbytes)[:] = flat

            place = device_range(address, content.nbytes, writes=True)
            self.driver.enqueue(0, "fill", fill, place)
        interface = {"shape": content.shape, "typestr": content.dtype.str, "data": (address, True)}
        return SimpleNamespace(__cuda_array_interface__=interface)


@pytest.fixture
def world(host_kernel: Any) -> Iterator[World]:
    made = World(host_kernel)
    yield made
    made.head.close()
    made.head.close()


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1, 21, 17, 31), (136, 248)),
        ((2, 3, 8, 8), (61, 67)),
        ((1, 5, 9, 4), (9, 4)),
        ((1, 4, 20, 30), (7, 11)),
        ((1, 1, 6, 5), (33, 40)),
        ((1, 300, 5, 6), (20, 24)),
        ((1, 2, 1, 1), (5, 3)),
    ],
)
@pytest.mark.parametrize("align_corners", [False, True])
def test_the_kernel_labels_as_the_head_does(
    world: World,
    shape: tuple[int, ...],
    size: tuple[int, int],
    align_corners: bool,
    rng: np.random.Generator,
) -> None:
    scores = rng.standard_normal(shape).astype(np.float32)
    wanted = upsample_argmax(scores, size, align_corners=align_corners)

    labels = world.head.labels(world.scores(scores), size, align_corners=align_corners)

    assert labels.dtype == wanted.dtype
    assert labels.shape == wanted.shape
    if shape[1] == 1:
        np.testing.assert_array_equal(labels, wanted)
        return
    for mine, image in zip(labels, scores, strict=True):
        assert interpolate(image, size, align_corners=align_corners).allows(mine)
    assert (labels != wanted).mean() <= 1e-3  # ties within rounding alone


def test_ties_go_to_the_lowest_class(world: World) -> None:
    scores = np.ones((1, 4, 3, 3), np.float32)

    labels = world.head.labels(world.scores(scores), (9, 9))

    assert set(labels.ravel()) == {0}


def test_one_class_is_held_against_the_threshold(world: World, rng: np.random.Generator) -> None:
    scores = rng.uniform(0, 1, (1, 1, 6, 6)).astype(np.float32)

    labels = world.head.labels(world.scores(scores), (24, 24), threshold=0.5)

    np.testing.assert_array_equal(labels, upsample_argmax(scores, (24, 24), threshold=0.5))


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_are_an_error(world: World, poison: float) -> None:
    scores = np.zeros((1, 3, 4, 4), np.float32)
    scores[0, 1, 2, 3] = poison

    with pytest.raises(NonFiniteOutputError, match="NaN or infinity"):
        world.head.labels(world.scores(scores), (16, 16))
    assert world.head.labels(world.scores(np.zeros_like(scores)), (16, 16)).max() == 0


def test_results_belong_to_the_caller(world: World, rng: np.random.Generator) -> None:
    first, second = rng.standard_normal((2, 1, 3, 4, 4)).astype(np.float32)

    labels = world.head.labels(world.scores(first), (8, 8))
    world.head.labels(world.scores(second), (8, 8))

    np.testing.assert_array_equal(labels, upsample_argmax(first, (8, 8)))


@pytest.mark.parametrize("content", [np.zeros((3, 4, 4), np.float32), np.zeros((1, 3, 4, 4))])
def test_scores_of_another_kind_are_refused(world: World, content: Array) -> None:
    with pytest.raises(ShapeError, match=r"expected float32 \[N, C, h, w\]"):
        world.head.labels(world.scores(content), (8, 8))


def test_use_after_close_is_refused(world: World) -> None:
    world.head.close()

    with pytest.raises(ClosedError, match="the head on the GPU is closed"):
        world.head.labels(None, (8, 8))


def test_nvcc_compiles_the_kernel_for_every_gpu(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("the CUDA toolkit is not here: there is no nvcc")
    source = Path(head_kernel.__file__).with_name("head.cu")
    targets = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in COMPUTE_CAPABILITIES]

    done = subprocess.run(
        [
            *(nvcc, "-fatbin", "-Werror", "all-warnings", "--threads", "2", *targets),
            *(source, "-o", tmp_path / "head.fatbin"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "head.fatbin").stat().st_size > 1000 * len(targets)


def test_nvrtc_that_does_not_know_a_gpu_says_so() -> None:
    pytest.importorskip("cuda.bindings.nvrtc")

    with pytest.raises(
        BackendUnavailableError,
        match=r"NVRTC 13\.\d+ cannot compile the head for sm_1: .*architecture.*pip install -U",
    ):
        compile_head("sm_1")


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (None, "import of cuda.bindings halted"),
        (RuntimeError("Failed to dlopen\nlibnvrtc.so.13"), r"Failed to dlopen libnvrtc\.so\.13\."),
        (DynamicLibNotFoundError("Failure finding it"), r"libnvrtc\.so is neither in a wheel nor"),
    ],
    ids=["bindings", "library", "wheel"],
)
def test_without_nvrtc_one_line_says_what_to_install(
    error: RuntimeError | None, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        if error is not None:
            raise error

    bindings: Any = ModuleType("cuda.bindings")
    bindings.nvrtc = SimpleNamespace(nvrtcVersion=fail)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None if error is None else bindings)

    with pytest.raises(
        BackendUnavailableError, match=rf"NVRTC cannot be used: .*{why}.*nvidia-cuda-nvrtc>=13,<14"
    ) as caught:
        compile_head("sm_86")

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("capability", COMPUTE_CAPABILITIES)
def test_nvrtc_compiles_the_kernel_at_run_time(capability: int) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")

    code = compile_head(f"sm_{capability}")

    assert code.startswith(b"\x7fELF")
    assert b"head_labels" in code


def test_a_kernel_that_the_driver_does_not_take_is_no_head(
    host_kernel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(host_kernel)

    def refuse(image: bytes, name: str) -> None:
        raise ExecutionError("the CUDA driver failed in cuModuleLoadData: INVALID_IMAGE (200).")

    monkeypatch.setattr(world.device, "load_kernel", refuse)

    with (
        world.driver.current(),
        pytest.raises(
            BackendUnavailableError,
            match=r"for compute capability 8\.6 cannot be loaded: .*INVALID_IMAGE.*nvidia-smi",
        ),
    ):
        HeadKernel(cast(DeviceBackend, world.device), image=b"for a later driver")
    world.head.close()


@pytest.mark.parametrize("extra", ["gpu", "rtx"])
def test_the_extras_bring_nvrtc_and_bindings_of_one_major_release(extra: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {
        requirement.partition(">")[0]: requirement.partition(";")[0].partition(">=")[2]
        for requirement in project["optional-dependencies"][extra]
    }

    assert wanted["nvidia-cuda-nvrtc"] == wanted["cuda-bindings"] == "13.0,<14"
