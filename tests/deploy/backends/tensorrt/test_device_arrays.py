"""Arrays that stay on the GPU: other libraries' in, ours and theirs out, in stream order."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fcn_deploy.backends.tensorrt.device_arrays import (
    DeviceArray,
    DeviceView,
    stream_handle,
    view_of,
)
from fcn_deploy.backends.tensorrt.session import open_session
from fcn_deploy.errors import (
    ClosedError,
    DeviceMemoryError,
    DTypeError,
    ExecutionError,
    ShapeError,
)
from fcn_deploy.graph.scan import with_outputs
from fcn_deploy.names import Array
from tests.deploy.backends.tensorrt.simulated_driver import SimDriver, device_range
from tests.deploy.backends.tensorrt.simulated_tensorrt import IExecutionContext
from tests.deploy.backends.tensorrt.worlds import GRAPH, World, expected, frames, make_world


class ForeignArray:
    """Another library's array on the simulated GPU, filled in a stream of that library."""

    def __init__(
        self, driver: SimDriver, content: Array, stream: int, *, names_it: bool = False
    ) -> None:
        self.driver = driver
        self.stream = stream
        with driver.current():
            self.address = driver.alloc(content.nbytes)
        self.content = content
        self.interface = {"stream": stream} if names_it else {}

    def fill(self) -> ForeignArray:
        content = self.content.copy()

        def write() -> None:
            self.driver.view(self.address, content.nbytes)[:] = content.reshape(-1).view(np.uint8)

        with self.driver.current():
            place = device_range(self.address, content.nbytes, writes=True)
            self.driver.enqueue(self.stream, "fill", write, place)
        return self

    def read(self) -> Array:
        """Read in the stream's order, as a kernel of that library would."""
        return read_in_stream(
            self.driver, self.address, self.content.shape, self.content.dtype, self.stream
        )

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.content.shape,
            "typestr": self.content.dtype.str,
            "data": (self.address, False),
            "version": 3,
            **self.interface,
        }


def read_in_stream(
    driver: SimDriver, address: int, shape: tuple[int, ...], dtype: Any, stream: int
) -> Array:
    found = np.zeros(shape, dtype)

    def read() -> None:
        found.reshape(-1).view(np.uint8)[:] = driver.view(address, found.nbytes)

    with driver.current():
        driver.enqueue(stream, "read", read, device_range(address, found.nbytes, writes=False))
    driver.synchronize_stream(stream)
    return found


@pytest.fixture(params=[None, 0, 1], ids=lambda seed: "lazy" if seed is None else f"random{seed}")
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    made = make_world(seed=request.param)
    yield made
    made.engine.close()


def foreign_stream(world: World) -> int:
    with world.driver.current():
        return world.driver.new_stream()


def test_a_run_waits_for_the_stream_that_fills_its_input(world: World) -> None:
    session, stream = open_session(world.engine), foreign_stream(world)
    for frame in frames(3):
        array = ForeignArray(world.driver, frame, stream).fill()

        labels = session.infer_device({"image": array}, stream=stream)["labels"]

        found = read_in_stream(world.driver, labels.address, labels.shape, labels.dtype, stream)
        np.testing.assert_array_equal(found, expected(frame))


def test_the_default_stream_is_the_one_that_is_meant_by_none(world: World) -> None:
    (frame,) = frames(1)
    array = ForeignArray(world.driver, frame, 0).fill()

    labels = open_session(world.engine).infer_device({"image": array})["labels"]

    found = read_in_stream(world.driver, labels.address, labels.shape, labels.dtype, 0)
    np.testing.assert_array_equal(found, expected(frame))


def test_outputs_are_written_into_given_arrays(world: World) -> None:
    (frame,) = frames(1)
    stream = foreign_stream(world)
    array = ForeignArray(world.driver, frame, stream).fill()
    out = ForeignArray(world.driver, np.zeros((1, 12, 16), np.uint8), stream)

    found = open_session(world.engine).infer_device(
        {"image": array}, stream=stream, out={"labels": out}
    )["labels"]

    assert found is out
    np.testing.assert_array_equal(out.read(), expected(frame))


def test_runs_on_host_and_device_arrays_may_alternate(world: World) -> None:
    session, stream = open_session(world.engine, depth=2), foreign_stream(world)
    images = frames(4)
    for first, second in zip(images[::2], images[1::2], strict=True):
        array = ForeignArray(world.driver, first, stream).fill()

        pending = session.submit({"image": second})
        labels = session.infer_device({"image": array}, stream=stream)["labels"]

        found = read_in_stream(world.driver, labels.address, labels.shape, labels.dtype, stream)
        np.testing.assert_array_equal(found, expected(first))
        np.testing.assert_array_equal(pending.result()["labels"], expected(second))


def test_the_caller_may_drop_its_arrays_at_once(world: World) -> None:
    session, stream = open_session(world.engine), foreign_stream(world)
    dropped: list[str] = []

    class Dropping(ForeignArray):
        def __del__(self) -> None:
            dropped.append("input")
            with self.driver.current():
                self.driver.free(self.address)  # refused while work that uses it is queued

    (frame,) = frames(1)
    session.infer_device({"image": Dropping(world.driver, frame, stream).fill()}, stream=stream)

    if not any(s.queue for s in world.driver.streams.values()):
        pytest.fail("the run was over before its input could be dropped")
    assert dropped == []
    session.close()
    assert dropped == ["input"]


def test_inputs_are_let_go_of_when_their_run_is_over() -> None:
    world = make_world()
    session = open_session(world.engine)
    given = []
    for frame in frames(4):
        array = ForeignArray(world.driver, frame, 0).fill()
        given.append(weakref.ref(array))
        labels = session.infer_device({"image": array})
        read_in_stream(world.driver, labels["labels"].address, (1, 12, 16), np.uint8, 0)

    del array
    assert sum(held() is not None for held in given) <= 2
    world.engine.close()


def test_our_arrays_can_be_given_back_by_hand(world: World) -> None:
    (frame,) = frames(1)
    array = ForeignArray(world.driver, frame, 0).fill()
    before = len(world.driver.memory)

    with open_session(world.engine).infer_device({"image": array})["labels"] as labels:
        assert isinstance(labels, DeviceArray)
        assert repr(labels) == "DeviceArray(uint8 [1, 12, 16])"
        interface = labels.__cuda_array_interface__
    labels.close()

    assert interface["data"] == (labels.address, False)
    assert (interface["shape"], interface["typestr"]) == ((1, 12, 16), "|u1")
    assert len(world.driver.memory) == before
    with pytest.raises(ClosedError, match="DeviceArray"):
        _ = labels.__cuda_array_interface__


def test_arrays_that_were_kept_are_freed_with_the_session(world: World) -> None:
    (frame,) = frames(1)
    array = ForeignArray(world.driver, frame, 0).fill()
    session = open_session(world.engine)
    labels = session.infer_device({"image": array})["labels"]

    session.close()

    assert set(world.driver.memory) == {array.address}
    with pytest.raises(ClosedError, match="DeviceArray"):
        _ = labels.__cuda_array_interface__


def test_an_output_of_another_shape_is_refused(world: World) -> None:
    (frame,) = frames(1)
    array = ForeignArray(world.driver, frame, 0).fill()
    out = ForeignArray(world.driver, np.zeros((1, 12, 15), np.uint8), 0)

    with pytest.raises(ShapeError, match=r"out\['labels'\] is uint8 \[1, 12, 15\]"):
        open_session(world.engine).infer_device({"image": array}, out={"labels": out})


def test_a_run_that_is_refused_leaves_no_memory(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    (frame,) = frames(1)
    array = ForeignArray(world.driver, frame, 0).fill()
    session = open_session(world.engine)

    with monkeypatch.context() as patch:
        patch.setattr(IExecutionContext, "execute_async_v3", lambda context, stream: False)
        for _ in range(3):
            with pytest.raises(ExecutionError, match="it gave no reason"):
                session.infer_device({"image": array})

    assert set(world.driver.memory) == {array.address}
    labels = session.infer_device({"image": array})["labels"]
    found = read_in_stream(world.driver, labels.address, labels.shape, labels.dtype, 0)
    np.testing.assert_array_equal(found, expected(frame))


def test_what_a_failed_run_began_is_over_before_its_caller_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = make_world()
    (frame,) = frames(1)
    array = ForeignArray(world.driver, frame, 0).fill()
    out = ForeignArray(world.driver, np.zeros((1, 12, 16), np.uint8), 0)
    session = open_session(world.engine)
    enqueue = IExecutionContext.execute_async_v3

    def run_and_refuse(context: IExecutionContext, stream: int) -> bool:
        enqueue(context, stream)
        return False

    with monkeypatch.context() as patch:
        patch.setattr(IExecutionContext, "execute_async_v3", run_and_refuse)
        with pytest.raises(ExecutionError, match="it gave no reason"):
            session.infer_device({"image": array}, out={"labels": out})

    with world.driver.current():
        world.driver.free(array.address)  # refused while work that uses it is queued
        world.driver.free(out.address)
    world.close()


def test_an_output_without_room_leaves_the_others_no_memory() -> None:
    # the input has 576 bytes, labels 192, scores 576
    graph = with_outputs(GRAPH, ("labels", "network_scores"))
    world = make_world(graph=graph, total_bytes=1000, memory=1)
    (frame,) = frames(1)
    array = ForeignArray(world.driver, frame, 0).fill()
    session = open_session(world.engine)

    for _ in range(3):
        with pytest.raises(DeviceMemoryError, match="MiB are needed"):
            session.infer_device({"image": array})

    assert set(world.driver.memory) == {array.address}
    world.engine.close()


def test_an_input_of_another_dtype_is_refused(world: World) -> None:
    array = ForeignArray(world.driver, np.zeros((1, 12, 16, 3), np.float32), 0).fill()

    with pytest.raises(DTypeError, match="float32; expected uint8"):
        open_session(world.engine).infer_device({"image": array})


def test_an_array_that_is_not_contiguous_is_refused() -> None:
    array = SimpleNamespace(
        __cuda_array_interface__={
            "shape": (2, 3),
            "typestr": "|u1",
            "data": (256, False),
            "strides": (6, 2),
        }
    )

    with pytest.raises(ShapeError, match=r"strides \[6, 2\]; expected a C-contiguous uint8 \[2, 3"):
        view_of(array, name="image", ordinal=0)


def test_explicit_strides_of_a_contiguous_array_are_fine() -> None:
    interface = {"shape": (2, 3), "typestr": "<f4", "data": (256, True), "strides": (12, 4)}

    view = view_of(SimpleNamespace(__cuda_array_interface__=interface), name="image", ordinal=0)

    assert (view.address, view.shape) == (256, (2, 3))
    assert view.dtype == np.dtype(np.float32)


def test_an_array_in_host_memory_is_refused() -> None:
    with pytest.raises(TypeError, match="'image' is a ndarray without __cuda_array_interface__"):
        view_of(np.zeros(3), name="image", ordinal=0)


def test_an_array_on_another_gpu_is_refused() -> None:
    interface = {"shape": (2,), "typestr": "|u1", "data": (256, False)}
    array = SimpleNamespace(__cuda_array_interface__=interface, device=SimpleNamespace(index=1))

    with pytest.raises(ValueError, match="'image' is on GPU 1; the engine is on GPU 0"):
        view_of(array, name="image", ordinal=0)


@pytest.mark.parametrize(
    "stream",
    [
        77,
        SimpleNamespace(cuda_stream=77),
        SimpleNamespace(ptr=77),
        SimpleNamespace(handle=77),
        SimpleNamespace(__cuda_stream__=lambda: (0, 77)),
    ],
    ids=["int", "torch", "cupy", "pycuda", "protocol"],
)
def test_streams_of_other_libraries_are_understood(stream: object) -> None:
    assert stream_handle(stream, [], []) == 77


def test_inputs_that_are_ready_in_several_streams_are_refused() -> None:
    views = [DeviceView(256, (1,), np.dtype(np.uint8), stream) for stream in (None, 5, 6)]

    with pytest.raises(ValueError, match="the inputs name 2 streams"):
        stream_handle(None, [], views)
    assert stream_handle(None, [], views[:2]) == 5
    assert stream_handle(7, [], views) == 7


def test_a_stream_that_is_none_is_refused_by_type() -> None:
    with pytest.raises(TypeError, match="stream is a str"):
        stream_handle("fast", [], [])


def test_an_array_may_name_its_stream(world: World) -> None:
    (frame,) = frames(1)
    stream = foreign_stream(world)
    array = ForeignArray(world.driver, frame, stream, names_it=True).fill()

    labels = open_session(world.engine).infer_device({"image": array})["labels"]

    found = read_in_stream(world.driver, labels.address, labels.shape, labels.dtype, stream)
    np.testing.assert_array_equal(found, expected(frame))


def test_tensors_of_torch_are_taken_in_its_current_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Tensor:
        device = "cuda:0"

    def current_stream(device: object) -> SimpleNamespace:
        return SimpleNamespace(cuda_stream=99)

    # as much of PyTorch as is asked for: the real one has no stream without a GPU
    torch = SimpleNamespace(Tensor=Tensor, cuda=SimpleNamespace(current_stream=current_stream))
    monkeypatch.setitem(sys.modules, "torch", torch)

    assert stream_handle(None, [Tensor()], []) == 99
    assert stream_handle(None, [object()], []) == 0
