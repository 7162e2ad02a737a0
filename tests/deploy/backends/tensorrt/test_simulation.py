"""The simulation itself: it has no name that TensorRT lacks, and it catches what it should."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.deploy.backends.tensorrt.simulated_driver import (
    POISON_DEVICE,
    POISON_HOST,
    SimDevice,
    SimDriver,
    SimEvent,
    SimulationError,
)
from tests.deploy.backends.tensorrt.simulated_tensorrt import simulated_module
from tests.deploy.backends.tensorrt_snapshots import SNAPSHOTS, library_of


def parameters(overload: str) -> list[str]:
    inside = overload[1 : overload.rindex(")")]
    return [part.split(":")[0].strip() for part in inside.split(", ") if ":" in part]


@pytest.mark.parametrize("snapshot", SNAPSHOTS)
def test_every_name_of_the_simulation_is_tensorrts(snapshot: str) -> None:
    real = SNAPSHOTS[snapshot]
    name = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}[library_of(snapshot)]
    module = simulated_module(name, SimDriver())
    classes = {n: value for n, value in vars(module).items() if isinstance(value, type)}
    wrong = []

    for class_name, cls in classes.items():
        if class_name not in real:
            wrong.append(class_name)
            continue
        if issubclass(cls, enum.Enum):
            wrong += [
                f"{class_name}.{m}" for m in cls.__members__ if m not in str(real[class_name])
            ]
            continue
        members = {n for base in cls.__mro__[:-1] for n in vars(base) if not n.startswith("_")}
        for member in members - {"driver", "module"}:
            theirs = real[class_name].get(member)
            ours = inspect.getattr_static(cls, member)
            if theirs is None:
                wrong.append(f"{class_name}.{member}")
            elif inspect.isfunction(ours):
                mine = list(inspect.signature(ours).parameters)[1:]
                if not any(parameters(each)[1 : len(mine) + 1] == mine for each in theirs):
                    wrong.append(f"{class_name}.{member}{tuple(mine)}")

    assert len(classes) >= 9
    assert wrong == []


@pytest.fixture
def driver() -> SimDriver:
    return SimDriver()


def upload_one(driver: SimDriver, device: SimDevice, value: int = 7) -> tuple[int, Any, int]:
    stream, address, host = device.stream(), device.alloc(256), device.pinned(256)
    host[:] = value
    device.upload(address, host, stream)
    return address, host, stream


def test_nothing_is_there_before_somebody_waits(driver: SimDriver) -> None:
    device = SimDevice(driver)
    with device.current():
        address, _, stream = upload_one(driver, device)
        target = device.pinned(256)

        device.download(target, address, stream)

        assert set(target) == {POISON_HOST}
        assert set(driver.view(address, 256)) == {POISON_DEVICE}
        driver.synchronize_stream(stream)
        assert set(target) == {7}


def test_a_source_that_changes_too_early_is_copied_as_it_is_then(driver: SimDriver) -> None:
    device = SimDevice(driver)
    with device.current():
        address, host, stream = upload_one(driver, device)

        host[:] = 9
        driver.synchronize_stream(stream)

        assert set(driver.view(address, 256)) == {9}


def unordered(driver: SimDriver, device: SimDevice) -> None:
    address, _, _ = upload_one(driver, device)
    device.download(device.pinned(256), address, device.stream())


def freed_while_used(driver: SimDriver, device: SimDevice) -> None:
    device.free(upload_one(driver, device)[0])


def unpinned_while_used(driver: SimDriver, device: SimDevice) -> None:
    device.free_pinned(upload_one(driver, device)[1])


def freed_twice(driver: SimDriver, device: SimDevice) -> None:
    address = device.alloc(8)
    device.free(address)
    device.free(address)


def out_of_bounds(driver: SimDriver, device: SimDevice) -> None:
    stream, address = device.stream(), device.alloc(128)
    device.upload(address, device.pinned(129), stream)
    driver.synchronize_stream(stream)


def not_pinned(driver: SimDriver, device: SimDevice) -> None:
    device.upload(device.alloc(8), np.zeros(8, np.uint8), device.stream())


def stream_destroyed_while_used(driver: SimDriver, device: SimDevice) -> None:
    device.release(upload_one(driver, device)[2])


def capture_and_alloc(driver: SimDriver, device: SimDevice) -> None:
    device.begin_capture(device.stream())
    device.alloc(8)


def times_without_timing(driver: SimDriver, device: SimDevice) -> None:
    device.elapsed_ms(SimEvent(timing=False), SimEvent(timing=True))


def graph_after_its_end(driver: SimDriver, device: SimDevice) -> None:
    stream = device.stream()
    device.begin_capture(stream)
    graph = device.end_capture(stream)
    device.release(graph)
    device.launch(graph, stream)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (unordered, "nothing orders them"),
        (freed_while_used, "free while stream"),
        (unpinned_while_used, "free_pinned while stream"),
        (freed_twice, "which is not allocated"),
        (out_of_bounds, "illegal access of 129 bytes"),
        (not_pinned, "not page-locked"),
        (stream_destroyed_while_used, "destroyed while it has work"),
        (capture_and_alloc, "alloc while a stream is captured"),
        (times_without_timing, "events without timing"),
        (graph_after_its_end, "graph that was destroyed"),
    ],
)
def test_a_mistake_is_caught(
    mistake: Callable[[SimDriver, SimDevice], None], message: str, driver: SimDriver
) -> None:
    device = SimDevice(driver)

    with device.current(), pytest.raises(SimulationError, match=message):
        mistake(driver, device)


def test_a_call_without_a_context_is_caught(driver: SimDriver) -> None:
    with pytest.raises(SimulationError, match="alloc without a current context"):
        driver.alloc(8)


def test_what_is_left_behind_is_told(driver: SimDriver) -> None:
    device = SimDevice(driver)
    with device.current():
        device.alloc(8)
        device.event()

    assert driver.leftovers() == ["8 bytes of device memory", "an event"]
