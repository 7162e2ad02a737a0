"""Run by `test_real_drivers.py` in a process of its own, where `libcuda.so.1` is the fake one.

The driver libraries are the real ones, PyCUDA or cuda.bindings; the tests are those of the
simulated driver, and some of the seam itself.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fcn_deploy.backends.tensorrt.api import TensorRT, capabilities_of
from fcn_deploy.backends.tensorrt.device import DeviceBackend, open_device
from fcn_deploy.backends.tensorrt.device_head import DeviceHead
from fcn_deploy.backends.tensorrt.device_labelling import DeviceLabelling
from fcn_deploy.backends.tensorrt.engine import TrtEngine
from fcn_deploy.backends.tensorrt.head_kernel import HeadKernel
from fcn_deploy.backends.tensorrt.session import open_session
from fcn_deploy.errors import BackendUnavailableError, DeviceMemoryError, ExecutionError
from fcn_deploy.head import upsample_argmax
from tests.deploy.backends.tensorrt.fake_driver import CDriver, build_host_kernel
from tests.deploy.backends.tensorrt.simulated_tensorrt import make_plan, simulated_module
from tests.deploy.backends.tensorrt.test_session import (  # noqa: F401 - pytest finds them here
    test_a_frame_gives_the_labels_that_onnxruntime_gives,
    test_a_graph_of_a_buffer_that_moved_is_not_launched,
    test_a_run_that_tensorrt_refuses_is_an_error_and_the_next_one_works,
    test_a_strided_frame_is_read_right,
    test_buffers_grow_and_results_stay_right,
    test_closing_waits_for_what_is_under_way,
    test_frames_in_flight_do_not_mix,
    test_layers_are_measured_one_by_one,
    test_one_result_may_be_awaited_by_several_threads,
    test_results_can_be_taken_in_any_order,
    test_results_stay_as_they_are_when_the_slot_is_used_again,
    test_sizes_batches_and_profiles_may_alternate,
    test_the_callers_array_may_change_at_once,
    test_threads_share_a_session,
    test_times_tell_the_run_from_the_copies,
)
from tests.deploy.backends.tensorrt.worlds import GRAPH, LARGE, SMALL, expected, frames
from tests.deploy.graphs import segmentation_graph

NAME = os.environ["FCN_TEST_DEVICE"]


@dataclass
class RealWorld:
    driver: CDriver
    engine: TrtEngine


@pytest.fixture(scope="module")
def driver() -> CDriver:
    return CDriver()


@pytest.fixture
def device(driver: CDriver) -> Iterator[DeviceBackend]:
    opened = open_device(NAME)
    yield opened
    opened.close()
    opened.close()
    del opened
    gc.collect()
    assert driver.context_depth == 0


@pytest.fixture
def world(driver: CDriver) -> Iterator[RealWorld]:
    module = simulated_module("tensorrt", driver)
    library = TensorRT(
        "tensorrt", "TensorRT", module.__version__, capabilities_of("tensorrt"), module
    )
    plan = make_plan(GRAPH, [SMALL, LARGE])
    made = RealWorld(
        driver, TrtEngine(plan, library=library, device=open_device(NAME), name="model.plan")
    )
    yield made
    made.engine.close()
    del made
    gc.collect()
    assert driver.errors == []
    assert driver.context_depth == 0
    assert driver.leftovers() == {}


@pytest.fixture
def lazy(world: RealWorld) -> RealWorld:
    return world


def test_the_device_tells_what_it_is(device: DeviceBackend) -> None:
    assert device.name == NAME
    assert device.info.name == "Fake GPU"
    assert device.info.compute_capability == (8, 6)
    assert device.info.total_bytes == 1 << 30
    assert device.has_graphs


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(BackendUnavailableError, match="there is no GPU 3: the driver sees 1"):
        open_device(NAME, ordinal=3)


def test_a_driver_that_finds_no_gpu_is_none_to_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_CUINIT", "100")

    with pytest.raises(
        BackendUnavailableError, match=r"cannot run here: .*failed in cuInit.*\. Check nvidia-smi"
    ):
        open_device(NAME)


def test_bytes_travel_there_and_back(device: DeviceBackend) -> None:
    with device.current():
        stream, event, address = device.stream(), device.event(), device.alloc(1000)
        there, back = device.pinned(1000), device.pinned(1000)
        there[:] = np.arange(1000) % 251

        device.upload(address, there, stream)
        device.download(back, address, stream)
        device.record(event, stream)

        assert not device.is_done(event)
        assert not np.array_equal(back, there)
        device.synchronize(event)
        assert device.is_done(event)
        np.testing.assert_array_equal(back, there)
        assert address % 256 == 0
        device.free(address)
        device.free_pinned(there)
        device.free_pinned(back)
        device.release(event, stream)


def test_streams_wait_for_each_other_by_events(device: DeviceBackend) -> None:
    with device.current():
        first, second = device.stream(), device.stream()
        event, done, address = device.event(), device.event(), device.alloc(16)
        there, back = device.pinned(16), device.pinned(16)
        there[:] = 5

        device.upload(address, there, first)
        device.record(event, first)
        device.wait(second, event)
        device.download(back, address, second)
        device.record(done, second)
        device.synchronize(done)

        assert set(back) == {5}
        device.free(address)
        device.free_pinned(there)
        device.free_pinned(back)
        device.release(event, done, first, second)


def test_foreign_streams_are_put_in_order(device: DeviceBackend) -> None:
    with device.current():
        stream, done, address = device.stream(), device.event(), device.alloc(16)
        there, back = device.pinned(16), device.pinned(16)
        other = device.stream()
        there[:] = 6

        device.upload(address, there, other)
        device.order(other, stream)
        device.download(back, address, stream)
        device.order(stream, 0)
        device.record(done, stream)
        device.synchronize(done)

        assert set(back) == {6}
        device.free(address)
        device.free_pinned(there)
        device.free_pinned(back)
        device.release(done, stream, other)


def test_events_with_timing_tell_the_time_between_them(device: DeviceBackend) -> None:
    with device.current():
        stream, start, end = device.stream(), device.event(timing=True), device.event(timing=True)

        device.record(start, stream)
        device.record(end, stream)
        device.synchronize(end)

        assert device.elapsed_ms(start, end) == 1.0
        device.release(start, end, stream)


def test_too_much_memory_is_an_error_with_numbers(device: DeviceBackend) -> None:
    with (
        device.current(),
        pytest.raises(
            DeviceMemoryError, match=r"2048\.0 MiB are needed, 1024\.0 of 1024\.0 MiB are free"
        ),
    ):
        device.alloc(2 << 30)


def test_too_much_page_locked_memory_is_an_error_that_says_what_helps(
    device: DeviceBackend,
) -> None:
    with device.current(), pytest.raises(DeviceMemoryError, match=r"cuMemHostAlloc.*Use smaller"):
        device.pinned(2 << 30)


def test_a_call_without_a_context_is_our_error(device: DeviceBackend) -> None:
    with pytest.raises(ExecutionError, match="cuMemAlloc") as caught:
        device.alloc(16)

    assert "context is lost" not in str(caught.value)


def test_the_context_of_others_comes_back(device: DeviceBackend, driver: CDriver) -> None:
    with device.current():
        with device.current():
            device.memory_info()
        device.memory_info()  # PyCUDA takes the outer context off the stack, and puts it back
        assert driver.context_depth == 1
    assert driver.context_depth == 0


def test_each_thread_has_a_context_of_its_own(device: DeviceBackend) -> None:
    found: list[tuple[int, int]] = []

    def work() -> None:
        with device.current():
            found.append(device.memory_info())

    with device.current():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    assert found == [(1 << 30, 1 << 30)]


def test_the_heads_kernel_is_launched_with_its_argument(
    device: DeviceBackend, tmp_path: Path, rng: np.random.Generator
) -> None:
    scores = rng.standard_normal((2, 5, 6, 7)).astype(np.float32)
    library = build_host_kernel(tmp_path)
    with DeviceHead(device, image=bytes(library) + b"\0") as head, device.current():
        stream, address = device.stream(), device.alloc(scores.nbytes)
        pinned = device.pinned(scores.nbytes)
        pinned[:] = scores.reshape(-1).view(np.uint8)
        device.upload(address, pinned, stream)
        interface = {"shape": scores.shape, "typestr": "<f4", "data": (address, False)}

        labels = head.labels(
            SimpleNamespace(__cuda_array_interface__=interface), (48, 56), stream=stream
        )

        np.testing.assert_array_equal(labels, upsample_argmax(scores, (48, 56)))
        device.free(address)
        device.free_pinned(pinned)
        device.release(stream)


def test_scores_are_labelled_behind_each_run(world: RealWorld, tmp_path: Path) -> None:
    graph = segmentation_graph(head="scores")
    plan = make_plan(graph, [SMALL, LARGE])
    engine = TrtEngine(
        plan, library=world.engine.library, device=open_device(NAME), name="scores.plan"
    )
    with engine.device.current():
        library = bytes(build_host_kernel(tmp_path)) + b"\0"
        kernel = HeadKernel(engine.device, image=library)
    labelling = DeviceLabelling(kernel, "out", "image", (1, 2))
    session = open_session(engine, depth=2)

    waiting = [
        session.submit({"image": image}, outputs=[], labelling=labelling) for image in frames(4)
    ]

    for image, pending in zip(frames(4), waiting, strict=True):
        np.testing.assert_array_equal(pending.result()["labels of out"], expected(image))
    session.close()
    with engine.device.current():
        kernel.close()
    engine.close()


def test_recorded_runs_are_launched_again(world: RealWorld) -> None:
    session = open_session(world.engine, depth=1, cuda_graphs=True)
    images = frames(4)

    for image in images:
        np.testing.assert_array_equal(session.infer({"image": image})["labels"], expected(image))

    assert world.driver.leftovers()["graph execs"] == 1
