"""Building with TensorRT itself, which needs a GPU: what it is told, over a stand-in for it.

The stand-in has the names of the real library's enums, from the snapshot of its API; that the calls
exist is tested in tests/deploy/backends/test_tensorrt_api.py.
"""

from __future__ import annotations

import json
import subprocess
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fcn_deploy.backends.tensorrt import api
from fcn_deploy.errors import BackendUnavailableError, BuildError
from fcn_deploy.names import Precision
from fcn_export.engine import BuildConfig, build_engine
from fcn_export.engine import build as build_module
from fcn_export.engine.gpu import gpu_compute_capability
from tests.deploy.backends.tensorrt_snapshots import SNAPSHOTS
from tests.export.engine_graphs import PROFILE, network, write

LAYERS = {
    "Layers": [
        {
            "Inputs": [{"Datatype": "Half"}],
            "Weights": {"Type": "Half"},
            "Metadata": f"[ONNX Layer: {name}]",
        }
        for name in ("stem", "classifier")
    ]
}


class Cache:
    """Timings: names of kernels, joined by commas."""

    def __init__(self, content: bytes) -> None:
        self.kernels = set(content.decode().split(",")) - {""}

    def combine(self, input_cache: Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.kernels |= input_cache.kernels
        return True

    def serialize(self) -> bytes:
        return ",".join(sorted(self.kernels)).encode()


class Library:
    """What `import tensorrt` would give, as far as a build uses it; keeps what it was told."""

    def __init__(self, *, layers: dict[str, Any] = LAYERS, foreign_cache: bool = False) -> None:
        self.__name__ = f"tensorrt stand-in {id(self)}"
        self.told: dict[str, Any] = {}
        self.cache: Cache | None = None
        self.layers = layers
        self.foreign_cache = foreign_cache
        for name, members in SNAPSHOTS["11.4.0"].items():
            values = [value for value in members.values() if isinstance(value, int)]
            if values and len(values) == len(members):
                setattr(self, name, IntEnum(name, members))

    class ILogger:
        def __init__(self) -> None:
            pass

    class IProgressMonitor:
        def __init__(self) -> None:
            pass

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        return SimpleNamespace(parse_from_file=lambda path: True)

    def Builder(self, logger: Any) -> Any:
        config = SimpleNamespace(
            set_flag=lambda flag: self.told.setdefault("set", []).append(flag.name),
            clear_flag=lambda flag: self.told.setdefault("cleared", []).append(flag.name),
            set_memory_pool_limit=lambda pool, size: self.told.update({pool.name: size}),
            add_optimization_profile=lambda profile: 0,
            create_timing_cache=Cache,
            set_timing_cache=self._set_cache,
            get_timing_cache=lambda: self.cache,
        )
        self.told["config"] = config
        return SimpleNamespace(
            create_network=lambda flags: self.told.setdefault("network", flags),
            create_builder_config=lambda: config,
            create_optimization_profile=lambda: SimpleNamespace(set_shape=lambda *shapes: None),
            build_serialized_network=self.build_plan,
        )

    def Runtime(self, logger: Any) -> Any:
        inspector = SimpleNamespace(get_engine_information=lambda layout: json.dumps(self.layers))
        engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
        self.told["runtime"] = SimpleNamespace(deserialize_cuda_engine=lambda plan: engine)
        return self.told["runtime"]

    def _set_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache
        return not self.foreign_cache

    def build_plan(self, network: Any, config: Any) -> bytes:
        if self.cache is not None:
            self.cache.kernels.add("conv")
        return b"plan"


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "gpu_compute_capability", lambda: "8.6")


def adapter(library: Library) -> api.TensorRT:
    capabilities = api.capabilities_of("tensorrt")
    return api.TensorRT("tensorrt", "TensorRT", "11.4.0.106", capabilities, library)


def build(tmp_path: Path, library: Library, **options: Any) -> Any:
    path = write(network("float16"), tmp_path)
    config = BuildConfig(
        library="tensorrt", profiles=(PROFILE,), precision=Precision.FP16, **options
    )
    return build_engine(path, config, tensorrt=adapter(library))


def test_plan_is_for_this_machines_gpu_and_proven_by_the_inspector(tmp_path: Path) -> None:
    library = Library()

    engine = build(tmp_path, library)

    assert engine.plan == b"plan"
    assert engine.compute_capabilities == ("8.6",)
    assert engine.layer_shares == {"float16": 1.0}
    assert library.told["config"].profiling_verbosity.name == "DETAILED"


def test_plan_that_computes_in_another_type_is_an_error(tmp_path: Path) -> None:
    layers = json.loads(json.dumps(LAYERS).replace("Half", "Float"))

    with pytest.raises(BuildError, match="2 of 2 layers run in another type"):
        build(tmp_path, Library(layers=layers))


def test_every_option_reaches_the_library(tmp_path: Path) -> None:
    library = Library()

    engine = build(
        tmp_path,
        library,
        tf32=False,
        workspace_bytes=1 << 30,
        optimization_level=4,
        hardware_compatible=True,
        version_compatible=True,
    )

    told = library.told
    assert told["cleared"] == ["TF32"]
    assert told["set"] == ["VERSION_COMPATIBLE"]
    assert told["WORKSPACE"] == 1 << 30
    assert told["config"].builder_optimization_level == 4
    assert told["config"].hardware_compatibility_level.name == "AMPERE_PLUS"
    assert told["runtime"].engine_host_code_allowed is True
    assert engine.compute_capabilities == ("8.0+",)


def test_nothing_is_set_that_was_not_asked_for(tmp_path: Path) -> None:
    library = Library()

    build(tmp_path, library)

    assert {"cleared", "set", "WORKSPACE"}.isdisjoint(library.told)
    assert not hasattr(library.told["config"], "builder_optimization_level")
    assert not hasattr(library.told["runtime"], "engine_host_code_allowed")


def test_timings_are_kept_for_the_next_build(tmp_path: Path) -> None:
    cache = tmp_path / "caches" / "timing.cache"

    build(tmp_path, Library(), timing_cache=cache)
    second = Library()
    build(tmp_path, second, timing_cache=cache)

    assert cache.read_bytes() == b"conv"
    assert second.cache is not None
    assert sorted(file.name for file in cache.parent.iterdir()) == [
        ".timing.cache.lock",
        "timing.cache",
    ]


def test_timings_that_another_build_wrote_meanwhile_are_merged(tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    library = Library()
    usual = library.build_plan

    def build_while_another_writes(network: Any, config: Any) -> bytes:
        cache.write_bytes(b"pool")
        return usual(network, config)

    library.build_plan = build_while_another_writes  # type: ignore[method-assign] # the other build

    build(tmp_path, library, timing_cache=cache)

    assert cache.read_bytes() == b"conv,pool"


def test_timings_of_another_gpu_are_refused(tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"conv")

    with pytest.raises(BuildError, match="holds no timings for this GPU and this release"):
        build(tmp_path, Library(foreign_cache=True), timing_cache=cache)
    assert cache.read_bytes() == b"conv"


def test_timing_cache_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(BuildError, match=r"timing cache '.*' cannot be read"):
        build(tmp_path, Library(), timing_cache=tmp_path / "file" / "cache")


def test_compute_capability_cannot_be_chosen(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"no --compute-capability: it builds for the GPU of the"):
        build(tmp_path, Library(), compute_capabilities=("8.6",))


DRIVER = """
int cuInit(unsigned flags) { return %(status)d; }
int cuDeviceGet(int* device, int ordinal) { *device = 7; return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
    if (device != 7) return 101;
    *value = attribute == 75 ? 12 : attribute == 76 ? 1 : -1;
    return 0;
}
"""


def driver(folder: Path, *, status: int = 0) -> str:
    source, library = folder / "driver.c", folder / "libdriver.so"
    source.write_text(DRIVER % {"status": status}, encoding="utf-8")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    return str(library)


def test_compute_capability_is_what_the_driver_says(tmp_path: Path) -> None:
    assert gpu_compute_capability(library=driver(tmp_path)) == "12.1"


def test_driver_that_fails_is_reported_with_its_number(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailableError, match="cuInit failed with error 100"):
        gpu_compute_capability(library=driver(tmp_path, status=100))


def test_missing_driver_says_what_builds_without_one() -> None:
    with pytest.raises(BackendUnavailableError, match=r"no NVIDIA driver.*tensorrt-rtx"):
        gpu_compute_capability(library="libno-such-driver.so.1")
