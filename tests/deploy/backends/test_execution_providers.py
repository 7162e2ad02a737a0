"""Execution providers of ONNX Runtime: used as asked for, or refused; never the CPU in silence.

The installed ONNX Runtime has the CPU's alone, so what it does where a GPU's provider fails to
load, or leaves parts of a network out, is played by a stand-in for its module.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from fcn_deploy import Segmenter, doctor
from fcn_deploy.backends import get_backend
from fcn_deploy.backends.base import ExecutionContext, ModelSource
from fcn_deploy.backends.execution_providers import ProviderList, provider_requests
from fcn_deploy.cli.doctor import main
from fcn_deploy.errors import ArtifactError, BackendUnavailableError
from fcn_deploy.names import Array, Precision
from tests.deploy.artifacts import write_artifact
from tests.deploy.graphs import segmentation_graph

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
TENSORRT, RTX = "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider"
GRAPH = segmentation_graph()

# where a CUDA session of the graph has its operators, sizes on the CPU
PLACED = {CUDA: ("Cast", "Mul", "Transpose", "Conv", "Conv", "Resize"), CPU: ("Shape", "Gather")}


class FakeRuntime(ModuleType):
    """ONNX Runtime with providers of our choice; the networks run on the real one.

    Args:
        built_in: names that `get_available_providers` gives.
        loads: providers that load; the others are left out in silence, as ONNX Runtime does.
        placed: operators by provider.
        devices: providers that have a device.
    """

    def __init__(
        self,
        *,
        built_in: Sequence[str] = (TENSORRT, CUDA, CPU),
        loads: Sequence[str] = (TENSORRT, CUDA, CPU),
        placed: Mapping[str, Sequence[str]] = PLACED,
        devices: Sequence[str] = (CPU,),
    ) -> None:
        super().__init__("onnxruntime")
        self.__version__ = onnxruntime.__version__
        self.__spec__ = onnxruntime.__spec__
        self.built_in = list(built_in)
        self.loads, self.placed = loads, placed
        self.devices = list(devices)
        self.registered: list[tuple[str, str]] = []
        self.sessions: list[FakeSession] = []
        self.failure: Exception | None = None
        self.InferenceSession = self._session
        self.SessionOptions = FakeOptions

    def get_available_providers(self) -> list[str]:
        return self.built_in

    def get_ep_devices(self) -> list[Any]:
        return [SimpleNamespace(ep_name=name) for name in self.devices]

    def register_execution_provider_library(self, name: str, path: str) -> None:
        self.registered.append((name, path))
        self.devices.append(name)

    def _session(self, model: bytes, options: FakeOptions, **more: Any) -> FakeSession:
        if self.failure is not None:
            raise self.failure
        self.sessions.append(FakeSession(self, model, options, **more))
        return self.sessions[-1]


class FakeOptions:
    def __init__(self) -> None:
        self.entries: dict[str, str] = {}
        self.added: list[tuple[str, dict[str, str]]] = []

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value

    def add_provider_for_devices(self, devices: Sequence[Any], options: dict[str, str]) -> None:
        self.added.append((devices[0].ep_name, options))


class FakeSession:
    def __init__(
        self,
        runtime: FakeRuntime,
        model: bytes,
        options: FakeOptions,
        *,
        providers: list[tuple[str, dict[str, str]]] | None,
        disabled_optimizers: Sequence[str],
        enable_fallback: int,
    ) -> None:
        self._real = onnxruntime.InferenceSession(model, providers=[CPU])
        self._runtime = runtime
        self.asked = options.added if providers is None else providers
        self.entries = options.entries
        self.falls_back = bool(enable_fallback)

    def get_providers(self) -> list[str]:
        names = [name for name, _ in self.asked if name in self._runtime.loads]
        return names if CPU in names else [*names, CPU]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        assert self.entries["session.record_ep_graph_assignment_info"] == "1"
        return [
            SimpleNamespace(
                ep_name=name,
                get_nodes=lambda kinds=kinds: [SimpleNamespace(op_type=kind) for kind in kinds],
            )
            for name, kinds in self._runtime.placed.items()
        ]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def use(monkeypatch: pytest.MonkeyPatch, runtime: FakeRuntime) -> FakeRuntime:
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    return runtime


def use_plugin(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Install what stands for NVIDIA's plugin."""
    (folder / "onnxruntime_ep_nv_tensorrt_rtx.py").write_text(
        "def get_library_path():\n    return '/plugin.so'\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", raising=False)


def open_graph(providers: ProviderList | None) -> ExecutionContext:
    backend = get_backend("onnxruntime", providers=providers)
    return backend.open(ModelSource(Path("model.onnx"), GRAPH))


def image() -> Array:
    return np.random.default_rng(0).integers(0, 256, (1, 12, 16, 3), np.uint8)


@pytest.mark.parametrize(
    ("provider", "install"),
    [
        (CUDA, r"pip uninstall onnxruntime; pip install 'fcn-deploy\[ort-gpu\]'"),
        (TENSORRT, r"fcn-deploy\[ort-gpu\]"),
        (RTX, "onnxruntime-ep-nv-tensorrt-rtx"),
        ("CudaExecutionProvider", "Check the provider's name"),
    ],
)
def test_missing_provider_says_what_is_here_and_what_to_install(
    provider: str, install: str
) -> None:
    with pytest.raises(
        BackendUnavailableError,
        match=rf"onnxruntime [\d.]+ has no '{provider}' here; it has .*{CPU}",
    ) as caught:
        open_graph([provider])

    assert caught.value.hint is not None
    assert install.replace("\\", "") in caught.value.hint


def test_the_cpu_can_be_named_with_options() -> None:
    labels = open_graph([(CPU, {"use_arena": 0})]).execute({"image": image()})["labels"]

    np.testing.assert_array_equal(labels, open_graph(None).execute({"image": image()})["labels"])


@pytest.mark.parametrize("wrong", [[], [CPU, CPU], [CPU, (CPU, {})], CPU])
def test_lists_that_mean_nothing_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="expected a list of different names"):
        provider_requests(wrong)


@pytest.mark.parametrize("backend", ["openvino", "tensorrt", "auto"])
def test_providers_are_onnx_runtimes_alone(backend: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"for the backend 'onnxruntime'; this is '{backend}'"):
        get_backend(backend, providers=[CPU])
    with pytest.raises(ValueError, match=r"for the backend 'onnxruntime'"):
        Segmenter.open(write_artifact(tmp_path), backend="openvino", providers=[CUDA])


def test_a_damaged_file_is_no_fault_of_the_cpu(capfd: pytest.CaptureFixture[str]) -> None:
    backend = get_backend("onnxruntime")

    with pytest.raises(ArtifactError, match=r"onnxruntime refused 'model\.onnx'"):
        backend.open(ModelSource(Path("model.onnx"), b"\x08\x0a" + GRAPH[-100:]))

    assert capfd.readouterr() == ("", "")


def test_a_provider_that_loads_gets_its_options_and_no_way_back_to_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtime = use(monkeypatch, FakeRuntime())

    context = open_graph([(TENSORRT, {"trt_max_workspace_size": 1 << 30}), CUDA])

    (session,) = runtime.sessions
    assert session.asked == [
        (TENSORRT, {"trt_max_workspace_size": "1073741824"}),
        (CUDA, {"use_tf32": "0"}),
    ]
    assert not session.falls_back
    assert context.execute({"image": image()})["labels"].shape == (1, 12, 16)


def test_tf32_is_used_where_it_is_asked_for() -> None:
    (request,) = provider_requests([(CUDA, {"use_tf32": 1, "device_id": 1})])

    assert request.options == {"use_tf32": "1", "device_id": "1"}


@pytest.mark.parametrize(
    ("loads", "missing", "needs"),
    [
        ((CPU,), CUDA, "cuDNN 9"),
        ((CUDA, CPU), TENSORRT, "TensorRT 10"),
        ((TENSORRT,), CUDA, "CUDA"),
    ],
)
def test_a_provider_that_is_left_out_in_silence_is_an_error(
    monkeypatch: pytest.MonkeyPatch, loads: Sequence[str], missing: str, needs: str
) -> None:
    use(monkeypatch, FakeRuntime(loads=loads))

    with pytest.raises(
        BackendUnavailableError,
        match=rf"could not load '{missing}', and would run 'model\.onnx' on .*{CPU} instead",
    ) as caught:
        open_graph([missing] if loads == (CPU,) else [TENSORRT, CUDA])

    assert needs in str(caught.value.hint)


def test_parts_of_the_network_on_the_cpu_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    placed = {CUDA: ("Conv",), CPU: ("Shape", "Resize", "ArgMax", "Resize")}
    use(monkeypatch, FakeRuntime(placed=placed))

    with pytest.raises(
        BackendUnavailableError,
        match=rf"{CUDA} cannot run all of 'model\.onnx': .* run 2 Resize, 1 ArgMax on the CPU",
    ) as caught:
        open_graph([CUDA])

    assert f"Add '{CPU}'" in str(caught.value.hint)
    open_graph([CUDA, CPU])


def test_a_provider_that_fails_is_no_fault_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FakeRuntime()).failure = RuntimeError("CUDA failure 35: driver too old")

    with pytest.raises(
        BackendUnavailableError, match=rf"cannot run 'model\.onnx' with {CUDA}: CUDA failure 35"
    ) as caught:
        open_graph([CUDA])

    assert "preload_dlls" in str(caught.value.hint)


def test_the_plugin_is_registered_once_and_used_by_its_devices(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    placed = {RTX: ("Conv",)}
    runtime = use(monkeypatch, FakeRuntime(built_in=[CPU], loads=[RTX], placed=placed))
    use_plugin(monkeypatch, tmp_path)

    open_graph([(RTX, {"enable_cuda_graph": True})])
    open_graph([RTX])

    assert runtime.registered == [(RTX, "/plugin.so")]
    assert [session.asked for session in runtime.sessions] == [
        [(RTX, {"enable_cuda_graph": "True"})],
        [(RTX, {})],
    ]


def test_a_plugin_without_a_gpu_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runtime = use(monkeypatch, FakeRuntime(built_in=[CPU]))
    use_plugin(monkeypatch, tmp_path)
    runtime.register_execution_provider_library = lambda name, path: None  # type: ignore[method-assign]  # sees no GPU

    with pytest.raises(BackendUnavailableError, match=f"'{RTX}' sees no device here") as caught:
        open_graph([RTX])

    assert "RTX GPU" in str(caught.value.hint)


def test_a_plugin_that_does_not_load_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runtime = use(monkeypatch, FakeRuntime(built_in=[CPU]))
    use_plugin(monkeypatch, tmp_path)

    def register(name: str, path: str) -> None:
        raise RuntimeError("libcuda.so.1: cannot open shared object file")

    runtime.register_execution_provider_library = register  # type: ignore[method-assign]  # as here

    with pytest.raises(BackendUnavailableError, match=rf"{RTX}: libcuda\.so\.1: cannot open"):
        open_graph([RTX])


def test_a_segmenter_uses_them_in_fp32_unless_told_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runtime = use(monkeypatch, FakeRuntime())
    path = write_artifact(tmp_path)
    frame = image()[0]

    with (
        Segmenter.open(path, backend="onnxruntime", providers=[CUDA]) as on_gpu,
        Segmenter.open(path, backend="openvino", precision="fp32") as reference,
    ):
        np.testing.assert_array_equal(on_gpu(frame).labels, reference(frame).labels)
        on_gpu(frame, scores=True)

    assert on_gpu.precision is Precision.FP32
    assert on_gpu.reason == (
        f"onnxruntime with {CUDA} was asked for; fp32, as nothing was measured with these providers"
    )
    assert {name for session in runtime.sessions for name, _ in session.asked} == {CUDA}


def test_arithmetic_is_the_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = get_backend("onnxruntime", providers=[TENSORRT, CUDA])

    assert backend.arithmetic(Precision.FP16) == f"fp16 as {TENSORRT} and {CUDA} has it"


def test_doctor_lists_what_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, FakeRuntime())
    use_plugin(monkeypatch, tmp_path)

    (found,) = [each for each in doctor.diagnose().backends if each.name == "onnxruntime"]
    main([])

    assert found.providers == (TENSORRT, CUDA, CPU, RTX)
    assert f"with {TENSORRT}, {CUDA}, {CPU}, {RTX}" in capsys.readouterr().out
