"""The code uses only what TensorRT 10.13, 11.4 and TensorRT-RTX 1.7 really have."""

from __future__ import annotations

import itertools
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, Protocol

import pytest

from fcn_deploy.backends.tensorrt import api
from fcn_deploy.backends.tensorrt.surface import SURFACE, Enumerator, LibraryName
from fcn_deploy.errors import BackendUnavailableError, BuildError
from tests.deploy.backends.tensorrt_snapshots import (
    SNAPSHOTS,
    library_of,
    member_lookups,
    module_names,
    problems,
)

CODE = ("fcn_deploy", "export/fcn_export", "benchmarks/fcn_bench")
USES = [
    pytest.param(protocol, cls, snapshot, id=f"{protocol.__name__}-{snapshot}")
    for protocol, (cls, libraries) in SURFACE.items()
    for snapshot in SNAPSHOTS
    if library_of(snapshot) in libraries
]


def test_snapshots_are_of_the_three_libraries() -> None:
    releases = {name: snapshot["module"]["__version__"] for name, snapshot in SNAPSHOTS.items()}

    assert releases == {
        "10.13.3": "10.13.3.9",
        "11.4.0": "11.4.0.106",
        "rtx-1.7.1": "1.7.1.116",
    }


@pytest.mark.parametrize(("protocol", "cls", "snapshot"), USES)
def test_every_declared_call_exists(protocol: type, cls: str, snapshot: str) -> None:
    assert problems(protocol, cls, SNAPSHOTS[snapshot]) == []


@pytest.mark.parametrize("snapshot", SNAPSHOTS)
def test_every_name_of_the_module_exists(snapshot: str) -> None:
    names = module_names("fcn_deploy/backends/tensorrt/api.py") - {"__version__"}

    assert {"Builder", "Runtime", "OnnxParser", "ILogger"} <= names
    assert names - set(SNAPSHOTS[snapshot]) == set()


@pytest.mark.parametrize("snapshot", SNAPSHOTS)
def test_every_enum_member_that_is_looked_up_exists(snapshot: str) -> None:
    own = ("ComputeCapability", "CudaGraphStrategy")  # TensorRT-RTX's
    rtx_only = () if library_of(snapshot) == "tensorrt-rtx" else own
    lookups = [entry for entry in member_lookups(*CODE) if entry[1] not in rtx_only]
    real = SNAPSHOTS[snapshot]

    missing = [entry for entry in lookups if entry[2] not in real.get(entry[1], {})]

    assert {"BuilderFlag", "MemoryPoolType"} <= {enum for _, enum, _ in lookups}
    assert missing == []


class Renamed(Protocol):
    def build_serialised_network(self, network: object, config: object) -> object: ...


class WrongArgument(Protocol):
    def create_network(self, flag: int = 0) -> object: ...


class WrongType(Protocol):
    def create_network(self, flags: str = "") -> object: ...


class TooFew(Protocol):
    def build_serialized_network(self, network: object) -> object: ...


class TooMany(Protocol):
    def create_builder_config(self, logger: object) -> object: ...


class WrongResult(Protocol):
    def is_network_supported(self, network: object, config: object) -> None: ...


class NoDefault(Protocol):
    def is_network_supported(self, network: object, config: object = None) -> bool: ...


class Settable(Protocol):
    num_DLA_cores: int


class NoProperty(Protocol):
    @property
    def reset(self) -> int: ...


@pytest.mark.parametrize(
    ("protocol", "complaint"),
    [
        (Renamed, "Builder.build_serialised_network is missing"),
        (WrongArgument, "Builder.create_network takes flags, not flag"),
        (WrongType, "Builder.create_network takes flags: int, not <class 'str'>"),
        (TooFew, "Builder.build_serialized_network needs config"),
        (TooMany, "Builder.create_builder_config takes no logger"),
        (WrongResult, "Builder.is_network_supported returns bool, not <class 'NoneType'>"),
        (NoDefault, "Builder.is_network_supported needs config"),
        (Settable, "Builder.num_DLA_cores cannot be set"),
        (NoProperty, "Builder.reset is no property but ['(self: Builder) -> None']"),
    ],
)
def test_comparison_finds(protocol: type, complaint: str) -> None:
    assert problems(protocol, "Builder", SNAPSHOTS["11.4.0"]) == [complaint]


def test_what_one_release_dropped_is_found() -> None:
    class Gone(Protocol):
        @property
        def platform_has_fast_fp16(self) -> bool: ...

    assert problems(Gone, "Builder", SNAPSHOTS["10.13.3"]) == []
    assert problems(Gone, "Builder", SNAPSHOTS["11.4.0"]) == [
        "Builder.platform_has_fast_fp16 is missing"
    ]
    assert "FP16" in SNAPSHOTS["10.13.3"]["BuilderFlag"]
    assert "FP16" not in SNAPSHOTS["11.4.0"]["BuilderFlag"]


@pytest.mark.parametrize("snapshot", SNAPSHOTS)
def test_capabilities_that_show_in_the_api_are_in_the_table(snapshot: str) -> None:
    seen = SNAPSHOTS[snapshot]
    (library,) = [name for name in api.LIBRARY_NAMES if name == library_of(snapshot)]

    found = api.capabilities_of(library)

    assert found.compute_capabilities == ("ComputeCapability" in seen)
    assert found.runtime_cache == ("IRuntimeCache" in seen)
    assert found.engine_validity == ("get_engine_validity" in seen["Runtime"])
    assert found.native_cuda_graphs == ("CudaGraphStrategy" in seen)


@pytest.mark.parametrize("snapshot", SNAPSHOTS)
def test_networks_are_strongly_typed_whatever_number_the_flag_has(snapshot: str) -> None:
    flags = SNAPSHOTS[snapshot]["NetworkDefinitionCreationFlag"]
    asked: list[int] = []
    module = fake_module(NetworkDefinitionCreationFlag=SimpleNamespace(**flags))
    builder: Any = SimpleNamespace(create_network=asked.append)

    adapter("tensorrt", module).network(builder)

    assert asked == [1 << flags["STRONGLY_TYPED"]]


def test_member_that_a_release_lacks_is_refused_by_name() -> None:
    with pytest.raises(BuildError, match=r"TensorRT 11\.4\.0\.106 has no BuilderFlag\.FP16"):
        adapter("tensorrt", fake_module()).member("BuilderFlag", "FP16")


def test_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)

    with pytest.raises(
        BackendUnavailableError, match=r"TensorRT is not installed\. pip install .*\[gpu\]"
    ):
        api.load_tensorrt("tensorrt")


def test_library_that_cannot_be_loaded_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: not found')")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(BackendUnavailableError, match=r"cannot be imported: libnvinfer\.so\.10"):
        api.load_tensorrt("tensorrt")


def test_old_library_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "tensorrt.py").write_text("__version__ = '10.9.0.34'")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)

    with pytest.raises(
        BackendUnavailableError, match=r"10\.9\.0\.34 is installed; 10\.13 or newer"
    ):
        api.load_tensorrt("tensorrt")

    sys.modules.pop("tensorrt", None)


def test_rtx_says_what_it_is() -> None:
    rtx = api.load_tensorrt("tensorrt-rtx")

    assert str(rtx) == f"TensorRT-RTX {rtx.release}"
    assert rtx.version >= (1, 7, 0)
    assert rtx.capabilities.builds_without_gpu
    assert rtx.member("ILogger", "Severity") is not None


def test_messages_of_the_real_library_are_captured_and_not_printed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    rtx = api.load_tensorrt("tensorrt-rtx")
    runtime = rtx.runtime()

    with rtx.capture() as messages:
        engine = runtime.deserialize_cuda_engine(b"no plan at all, but long enough to look at" * 4)

    assert engine is None
    assert "Serialization" in messages[0].text
    assert capfd.readouterr() == ("", "")


def test_second_builder_does_not_complain_about_another_logger() -> None:
    rtx = api.load_tensorrt("tensorrt-rtx")
    rtx.builder()

    with rtx.capture() as messages:
        api.load_tensorrt("tensorrt-rtx").builder()

    assert [message for message in messages if "logger" in message.text] == []


def test_builder_that_cannot_be_made_is_reported_with_the_librarys_reason() -> None:
    def refuse(logger: Any) -> None:
        logger.log(SimpleNamespace(name="ERROR"), "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    class Logger:
        def __init__(self) -> None:
            pass

    module = fake_module(ILogger=Logger, Builder=refuse)

    with pytest.raises(
        BackendUnavailableError, match="cannot make its builder here: CUDA initialization failure"
    ):
        adapter("tensorrt", module).builder()


def test_adapter_is_light_until_a_library_is_asked_for() -> None:
    code = (
        "import sys; import fcn_deploy.backends.tensorrt.api as api; api.installed('tensorrt-rtx');"
        "sys.exit('tensorrt_rtx' in sys.modules or 'tensorrt' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_enum_members_of_the_real_library_have_a_name_and_a_number() -> None:
    flag: Enumerator = api.load_tensorrt("tensorrt-rtx").member("BuilderFlag", "TF32")

    assert flag.name == "TF32"
    assert int(flag) == SNAPSHOTS["rtx-1.7.1"]["BuilderFlag"]["TF32"]


_NUMBERS = itertools.count()


def fake_module(**names: object) -> Any:
    return SimpleNamespace(__name__=f"fake {next(_NUMBERS)}", **names)


def adapter(library: LibraryName, module: Any) -> api.TensorRT:
    return api.TensorRT(library, "TensorRT", "11.4.0.106", api.capabilities_of(library), module)
