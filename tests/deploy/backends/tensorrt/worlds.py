"""A simulated GPU with an engine on it, as the tests of the runtime use it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import numpy as np
import onnxruntime
import pytest

from fcn_deploy.backends.tensorrt import backend, device, engine, head_kernel
from fcn_deploy.backends.tensorrt.api import TensorRT, capabilities_of
from fcn_deploy.backends.tensorrt.device import DeviceBackend
from fcn_deploy.backends.tensorrt.engine import TrtEngine
from fcn_deploy.backends.tensorrt.plan_check import PlanRecord
from fcn_deploy.backends.tensorrt.surface import LibraryName
from fcn_deploy.names import Array
from tests.deploy.backends.tensorrt.simulated_driver import SimDevice, SimDriver
from tests.deploy.backends.tensorrt.simulated_head import simulated_head
from tests.deploy.backends.tensorrt.simulated_tensorrt import Profile, make_plan, simulated_module
from tests.deploy.graphs import segmentation_graph

GRAPH = segmentation_graph()

SMALL: Profile = {"image": ((1, 1, 1, 3), (1, 16, 16, 3), (2, 32, 32, 3))}
LARGE: Profile = {"image": ((1, 16, 16, 3), (1, 64, 64, 3), (4, 96, 96, 3))}

_TITLES: dict[LibraryName, tuple[str, str]] = {
    "tensorrt": ("TensorRT", "tensorrt"),
    "tensorrt-rtx": ("TensorRT-RTX", "tensorrt_rtx"),
}


@dataclass
class World:
    """A driver, and an engine on it that is closed with `close`."""

    driver: SimDriver
    device: SimDevice
    engine: TrtEngine

    def close(self) -> None:
        self.engine.close()
        assert self.driver.leftovers() == []
        assert self.device.closed


def simulated_library(driver: SimDriver, name: LibraryName = "tensorrt") -> TensorRT:
    title, module_name = _TITLES[name]
    module = simulated_module(module_name, driver)
    return TensorRT(name, title, module.__version__, capabilities_of(name), module)


def make_world(
    *,
    seed: int | None = None,
    library: LibraryName = "tensorrt",
    graph: bytes = GRAPH,
    profiles: tuple[Profile, ...] = (SMALL, LARGE),
    total_bytes: int = 1 << 30,
    memory: int = 1 << 16,
    record: PlanRecord | None = None,
) -> World:
    driver = SimDriver(seed=seed, total_bytes=total_bytes)
    simulated = SimDevice(driver)
    loaded = simulated_library(driver, library)
    plan = make_plan(
        graph,
        profiles,
        library=library,
        version=(record.version if record is not None else None) or loaded.release,
        version_compatible=record is not None and record.version_compatible,
        memory=memory,
    )
    opened = TrtEngine(
        plan,
        library=loaded,
        device=cast(DeviceBackend, simulated),
        name="model.plan",
        record=record,
    )
    return World(driver, simulated, opened)


def frames(count: int, height: int = 12, width: int = 16, *, batch: int = 1) -> list[Array]:
    random = np.random.default_rng(height * 1000 + width)
    return [random.integers(0, 256, (batch, height, width, 3), np.uint8) for _ in range(count)]


@cache
def _reference_session(graph: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])


def expected(frame: Array, graph: bytes = GRAPH) -> Array:
    """Give the labels that ONNX Runtime gives, with no simulation about it."""
    labels: Array = _reference_session(graph).run(["labels"], {"image": frame})[0]
    return labels


def use_simulation(monkeypatch: pytest.MonkeyPatch, driver: SimDriver) -> None:
    """Let `load_tensorrt` and `open_device` find the simulation."""
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, simulated_module(name, driver))
    monkeypatch.setattr(device, "device_problem", lambda name=None: None)
    monkeypatch.setattr(device, "open_device", _opener(driver))
    monkeypatch.setattr(engine, "open_device", _opener(driver))
    monkeypatch.setattr(backend, "open_device", _opener(driver))
    monkeypatch.setattr(backend, "device_problem", lambda name=None: None)
    monkeypatch.setattr(backend, "require_device", lambda name=None, *, what: None)


def use_head(monkeypatch: pytest.MonkeyPatch, host_kernel: Any) -> None:
    """Let every simulated GPU run the host's build of the head's kernel."""
    original = SimDevice.__init__

    def with_head(self: SimDevice, driver: SimDriver, *, ordinal: int = 0) -> None:
        original(self, driver, ordinal=ordinal)
        self.kernels["head_labels"] = simulated_head(driver, host_kernel)

    monkeypatch.setattr(SimDevice, "__init__", with_head)
    monkeypatch.setattr(head_kernel, "compile_head", lambda architecture: b"the host's")


def _opener(driver: SimDriver) -> Callable[..., DeviceBackend]:
    def open_device(name: str = "auto", *, ordinal: int = 0) -> DeviceBackend:
        return cast(DeviceBackend, SimDevice(driver, ordinal=ordinal))

    return open_device
