"""The TensorRT runtime over a simulated driver: order, lifetimes, reuse, threads, graphs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from fcn_deploy.backends.tensorrt.buffers import BufferPool
from fcn_deploy.backends.tensorrt.ring import Ring
from fcn_deploy.backends.tensorrt.session import InferenceSession, PendingResult, open_session
from fcn_deploy.backends.tensorrt.slots import Slot
from fcn_deploy.errors import (
    BackendUnavailableError,
    ClosedError,
    DeviceMemoryError,
    DTypeError,
    ExecutionError,
    ShapeError,
)
from fcn_deploy.names import Array
from tests.deploy.backends.tensorrt.simulated_tensorrt import ICudaEngine, IExecutionContext
from tests.deploy.backends.tensorrt.worlds import World, expected, frames, make_world
from tests.deploy.layouts import LAYOUTS

SCHEDULES = [None, 0, 1, 2, 3, 4]  # None: nothing runs before somebody waits for it


@pytest.fixture(params=SCHEDULES, ids=lambda seed: "lazy" if seed is None else f"random{seed}")
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    made = make_world(seed=request.param)
    yield made
    made.close()


@pytest.fixture
def lazy() -> Iterator[World]:
    made = make_world()
    yield made
    made.close()


def labels_of(pending: PendingResult) -> Array:
    return pending.result()["labels"]


def test_a_frame_gives_the_labels_that_onnxruntime_gives(world: World) -> None:
    (frame,) = frames(1)

    labels = open_session(world.engine).infer({"image": frame})["labels"]

    np.testing.assert_array_equal(labels, expected(frame))
    assert labels.dtype == np.uint8


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_frame_of_any_layout_gives_the_same_and_stays_as_it_is(lazy: World, layout: str) -> None:
    given = LAYOUTS[layout](frames(1, 24, 16)[0])
    plain = np.array(given, order="C")

    labels = open_session(lazy.engine).infer({"image": given})["labels"]

    np.testing.assert_array_equal(labels, expected(plain))
    np.testing.assert_array_equal(given, plain)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_frames_in_flight_do_not_mix(world: World, depth: int, cuda_graphs: bool) -> None:
    session = open_session(world.engine, depth=depth, cuda_graphs=cuda_graphs)
    images = frames(9)

    pending = [session.submit({"image": image}) for image in images]

    for image, each in zip(images, pending, strict=True):
        np.testing.assert_array_equal(labels_of(each), expected(image))


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_sizes_batches_and_profiles_may_alternate(world: World, cuda_graphs: bool) -> None:
    session = open_session(world.engine, depth=2, cuda_graphs=cuda_graphs)
    small, large, pair = frames(2, 12, 16), frames(2, 70, 90), frames(2, 20, 16, batch=2)
    images = [image for trio in zip(small, large, pair, strict=True) for image in trio] * 3

    pending = [session.submit({"image": image}) for image in images]

    for image, each in zip(images, pending, strict=True):
        np.testing.assert_array_equal(labels_of(each), expected(image))


def test_a_change_of_profile_may_forget_the_addresses(world: World) -> None:
    session = open_session(world.engine, depth=1)
    (large,), (small,) = frames(1, 70, 90), frames(1)

    for image in (large, small, large):  # in buffers that stay where they are
        np.testing.assert_array_equal(session.infer({"image": image})["labels"], expected(image))


def test_the_callers_array_may_change_at_once(world: World) -> None:
    (frame,) = frames(1)
    mine = frame.copy()

    pending = open_session(world.engine).submit({"image": mine})
    mine[...] = 0

    np.testing.assert_array_equal(labels_of(pending), expected(frame))


def test_results_stay_as_they_are_when_the_slot_is_used_again(world: World) -> None:
    session = open_session(world.engine, depth=1)
    first, second = frames(2)

    labels = session.infer({"image": first})["labels"]
    session.infer({"image": second})

    np.testing.assert_array_equal(labels, expected(first))


def test_results_can_be_taken_in_any_order(world: World) -> None:
    session = open_session(world.engine, depth=3)
    images = frames(3)

    pending = [session.submit({"image": image}) for image in images]

    for index in (2, 0, 1):
        np.testing.assert_array_equal(labels_of(pending[index]), expected(images[index]))


def test_nobody_waits_for_a_slot_that_is_free(lazy: World) -> None:
    session = open_session(lazy.engine, depth=2)

    first, second = (session.submit({"image": image}) for image in frames(2))

    assert not first.done()
    assert not second.done()
    assert "synchronize" not in lazy.driver.calls
    first.result()
    assert first.done()


def test_results_are_written_into_given_arrays(lazy: World) -> None:
    (frame,) = frames(1)
    out = np.zeros((1, 12, 16), np.uint8)

    found = open_session(lazy.engine).infer({"image": frame}, out={"labels": out})["labels"]

    assert found is out
    np.testing.assert_array_equal(out, expected(frame))


def test_a_given_array_of_another_shape_is_refused(lazy: World) -> None:
    (frame,) = frames(1)
    session = open_session(lazy.engine)

    with pytest.raises(ShapeError, match=r"out\['labels'\] is uint8 \[1, 12, 15\]; expected uint8"):
        session.infer({"image": frame}, out={"labels": np.zeros((1, 12, 15), np.uint8)})


def test_a_strided_frame_is_read_right(lazy: World) -> None:
    wide = frames(1, 24, 32)[0]
    frame = wide[:, ::2, ::-2]

    labels = open_session(lazy.engine).infer({"image": frame})["labels"]

    np.testing.assert_array_equal(labels, expected(np.ascontiguousarray(frame)))


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_threads_share_a_session(world: World, cuda_graphs: bool) -> None:
    session = open_session(world.engine, depth=2, cuda_graphs=cuda_graphs)
    images = [frames(1, 8 + n, 12 + 2 * n)[0] for n in range(4)]
    wrong: list[object] = []

    def work(n: int) -> None:
        try:
            for _ in range(6):
                labels = session.infer({"image": images[n]})["labels"]
                if not np.array_equal(labels, expected(images[n])):
                    wrong.append(n)
        except BaseException as error:  # noqa: BLE001 - the test reports it
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


def test_one_thread_enqueues_at_a_time(lazy: World, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session(lazy.engine, depth=2)
    images = frames(2)
    inside = threading.Event()
    second_started = threading.Event()
    overtaken: list[bool] = []
    original = lazy.device.record

    def slow_record(event: Any, stream: int) -> None:
        original(event, stream)
        if threading.current_thread().name == "first" and not inside.is_set():
            inside.set()
            second_started.wait(5)
            overtaken.append(done.wait(0.3))

    done = threading.Event()
    monkeypatch.setattr(lazy.device, "record", slow_record)  # to hold a thread there
    results: dict[str, Array] = {}

    def work(name: str, image: Array) -> None:
        if name == "second":
            inside.wait(5)
            second_started.set()
        results[name] = session.infer({"image": image})["labels"]
        if name == "second":
            done.set()

    threads = [
        threading.Thread(target=work, args=(name, image), name=name)
        for name, image in zip(("first", "second"), images, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert overtaken == [False]
    np.testing.assert_array_equal(results["first"], expected(images[0]))
    np.testing.assert_array_equal(results["second"], expected(images[1]))


def test_one_result_may_be_awaited_by_several_threads(world: World) -> None:
    (frame,) = frames(1)
    pending = open_session(world.engine).submit({"image": frame})
    found: list[Array] = []

    threads = [threading.Thread(target=lambda: found.append(labels_of(pending))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(found) == 4
    for labels in found:
        np.testing.assert_array_equal(labels, expected(frame))


def test_one_thread_at_a_time_takes_a_result_from_its_slot(
    lazy: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending = open_session(lazy.engine).submit({"image": frames(1)[0]})
    original = lazy.device.synchronize
    inside: list[int] = []
    most: list[int] = []
    second = threading.Event()

    def slow(event: Any) -> None:
        inside.append(1)
        most.append(len(inside))
        if len(inside) == 2:
            second.set()
        second.wait(0.3)  # long enough for the other thread to get here, if it can
        original(event)
        inside.pop()

    monkeypatch.setattr(lazy.device, "synchronize", slow)

    threads = [threading.Thread(target=pending.result) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert max(most) == 1


def test_a_slot_whose_result_is_taken_meanwhile_is_free(
    lazy: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(lazy.engine, depth=1)
    pending = session.submit({"image": frames(1)[0]})
    looks = iter([pending])  # another thread takes the result after the first look
    taken = property(lambda slot: next(looks, None), lambda slot, value: None)
    monkeypatch.setattr(Slot, "pending", taken)

    session.close()  # waits for the run in each slot

    assert pending.done()


def test_done_does_not_wait_for_another_threads_wait(
    lazy: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pending = open_session(lazy.engine).submit({"image": frames(1)[0]})
    original = lazy.device.synchronize
    waits, asked = threading.Event(), threading.Event()

    def slow(event: Any) -> None:
        waits.set()
        asked.wait(5)
        original(event)

    monkeypatch.setattr(lazy.device, "synchronize", slow)
    thread = threading.Thread(target=pending.result)
    thread.start()
    waits.wait(5)

    found = pending.done()
    late = asked.is_set()
    asked.set()
    thread.join()

    assert (found, late) == (False, False)
    assert pending.done()


def test_a_wait_that_is_interrupted_can_be_taken_up_again(
    lazy: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(lazy.engine, depth=1)
    first, second = frames(2)
    pending = session.submit({"image": first})

    def interrupt(event: Any) -> None:
        raise KeyboardInterrupt("Ctrl-C")

    with monkeypatch.context() as patch:
        patch.setattr(lazy.device, "synchronize", interrupt)
        with pytest.raises(KeyboardInterrupt, match="Ctrl-C"):
            pending.result()

    after = session.submit({"image": second})  # in the same slot, whose run goes on
    np.testing.assert_array_equal(labels_of(after), expected(second))
    np.testing.assert_array_equal(labels_of(pending), expected(first))


def test_a_result_that_the_host_has_no_room_for_is_its_callers_error_only(
    lazy: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TooLarge:
        def copy(self) -> Array:
            raise MemoryError("no room for 3 GiB")

    session = open_session(lazy.engine, depth=1)
    first, second = frames(2)
    copy_out = Ring.copy_out

    def copied_out(*arguments: Any) -> dict[str, Any]:
        return {name: TooLarge() for name in copy_out(*arguments)}

    with monkeypatch.context() as patch:
        patch.setattr(Ring, "copy_out", copied_out)
        pending = session.submit({"image": first})

    after = session.submit({"image": second})

    np.testing.assert_array_equal(labels_of(after), expected(second))
    with pytest.raises(MemoryError, match="no room for 3 GiB"):
        pending.result()


# ---------------------------------------------------------------------- CUDA graphs


def test_a_run_is_recorded_when_its_shape_comes_again(lazy: World) -> None:
    session = open_session(lazy.engine, depth=1, cuda_graphs=True)
    images = frames(4)

    results = [session.infer({"image": image})["labels"] for image in images]

    assert lazy.driver.calls.count("begin_capture") == 1
    assert lazy.driver.calls.count("launch") == 3
    for image, labels in zip(images, results, strict=True):
        np.testing.assert_array_equal(labels, expected(image))


def test_a_graph_of_a_buffer_that_moved_is_not_launched(lazy: World) -> None:
    session = open_session(lazy.engine, depth=1, cuda_graphs=True)
    small = frames(3, 8, 8)
    for image in small:
        session.infer({"image": image})

    session.infer({"image": frames(1, 30, 30)[0]})  # the slot's buffers grow and move
    after = [session.infer({"image": image})["labels"] for image in small]

    for image, labels in zip(small, after, strict=True):
        np.testing.assert_array_equal(labels, expected(image))


def test_a_graph_is_launched_again_when_its_shape_was_run_again(lazy: World) -> None:
    session = open_session(lazy.engine, depth=1, cuda_graphs=True)
    (other,) = frames(1, 8, 8)
    first, second, third, fourth = frames(4)
    for image in (first, second, other):
        session.infer({"image": image})
    lazy.driver.calls.clear()

    third_labels = session.infer({"image": third})["labels"]
    in_between = list(lazy.driver.calls)
    fourth_labels = session.infer({"image": fourth})["labels"]

    assert "launch" not in in_between  # what was put off at the change of shapes runs first
    assert lazy.driver.calls.count("launch") == 1
    assert "begin_capture" not in lazy.driver.calls
    np.testing.assert_array_equal(third_labels, expected(third))
    np.testing.assert_array_equal(fourth_labels, expected(fourth))


def test_graphs_that_were_not_used_for_long_are_freed(lazy: World) -> None:
    session = open_session(lazy.engine, depth=1, cuda_graphs=True)
    session.infer({"image": frames(1, 32, 32)[0]})  # the largest first: no buffer moves after it

    for side in range(1, 21):
        for image in frames(2, side, 16):
            np.testing.assert_array_equal(
                session.infer({"image": image})["labels"], expected(image)
            )

    assert len(lazy.driver.graphs) == 16


def test_rtx_records_its_graphs_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(library="tensorrt-rtx")
    configs: list[Any] = []
    create = ICudaEngine.create_execution_context

    def noted(engine: ICudaEngine, runtime_config: Any) -> Any:
        configs.append(runtime_config)
        return create(engine, runtime_config)

    monkeypatch.setattr(ICudaEngine, "create_execution_context", noted)
    (frame,) = frames(1)

    session = open_session(world.engine, cuda_graphs=True)
    for _ in range(3):
        session.infer({"image": frame})

    assert "begin_capture" not in world.driver.calls
    assert [each.cuda_graph_strategy.name for each in configs] == ["WHOLE_GRAPH_CAPTURE"]
    world.close()


def test_graphs_that_the_device_cannot_record_are_an_error(lazy: World) -> None:
    lazy.device.has_graphs = False

    with pytest.raises(BackendUnavailableError, match="records no CUDA graphs"):
        open_session(lazy.engine, cuda_graphs=True)


# ---------------------------------------------------------------------- what is set, and when


def test_addresses_and_shapes_are_set_when_they_change_only(
    lazy: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(lazy.engine, depth=1)
    told: list[str] = []

    def noted(name: str) -> Callable[..., object]:
        original = getattr(IExecutionContext, name)

        def call(*arguments: object) -> object:
            told.append(name)
            return original(*arguments)

        return call

    for name in ("set_input_shape", "set_tensor_address"):
        monkeypatch.setattr(IExecutionContext, name, noted(name))

    for image in frames(3):
        session.infer({"image": image})

    assert told == ["set_input_shape", "set_tensor_address", "set_tensor_address"]


def test_buffers_grow_and_results_stay_right(world: World) -> None:
    session = open_session(world.engine, depth=2)
    images = [frames(1, side, 32)[0] for side in range(4, 33, 4)]

    pending = [session.submit({"image": image}) for image in images]

    for image, each in zip(images, pending, strict=True):
        np.testing.assert_array_equal(labels_of(each), expected(image))


def test_buffers_grow_by_half_at_least_and_are_kept(lazy: World) -> None:
    session = open_session(lazy.engine, depth=1)
    for side in range(16, 33):
        session.infer({"image": frames(1, side, 32)[0]})

    assert lazy.driver.calls.count("alloc") <= 6
    assert session.device_bytes >= 32 * 32 * 4


# ---------------------------------------------------------------------- refusals


def test_a_shape_that_fits_no_profile_lists_them_all(lazy: World) -> None:
    session = open_session(lazy.engine)

    with pytest.raises(ShapeError, match="fits none of 2 profiles") as caught:
        session.infer({"image": np.zeros((1, 100, 64, 3), np.uint8)})

    assert "profile 0: image [1, 1, 1, 3]..[2, 32, 32, 3]" in str(caught.value)
    assert "profile 1: image [1, 16, 16, 3]..[4, 96, 96, 3]" in str(caught.value)
    assert "axis 1 is 100, not 16..96" in str(caught.value)


@pytest.mark.parametrize(
    ("feeds", "error", "message"),
    [
        ({}, ShapeError, "takes"),
        ({"frame": np.zeros((1, 8, 8, 3), np.uint8)}, ShapeError, r"got \['frame'\]"),
        ({"image": np.zeros((1, 8, 8, 3))}, DTypeError, "float64; expected uint8"),
        ({"image": np.zeros((1, 8, 8, 4), np.uint8)}, ShapeError, "8, 4"),
        ({"image": np.zeros((0, 8, 8, 3), np.uint8)}, ShapeError, "0, 8"),
    ],
)
def test_a_feed_of_another_kind_is_refused(
    lazy: World, feeds: dict[str, Array], error: type[Exception], message: str
) -> None:
    session = open_session(lazy.engine)

    with pytest.raises(error, match=message):
        session.infer(feeds)


def test_a_run_that_tensorrt_refuses_is_an_error_and_the_next_one_works(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(world.engine, depth=1)
    first, second = frames(2)

    def refuse(context: IExecutionContext, stream: int) -> bool:
        return context.set_optimization_profile_async(99, stream)  # False, and a line in the log

    with monkeypatch.context() as patch:
        patch.setattr(IExecutionContext, "execute_async_v3", refuse)
        with pytest.raises(ExecutionError, match=r"failed in .* with input .* index 99 is out of"):
            session.infer({"image": first})

    np.testing.assert_array_equal(session.infer({"image": second})["labels"], expected(second))


def test_a_run_that_cannot_be_recorded_is_an_error_and_leaves_no_graph(
    lazy: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(lazy.engine, depth=1, cuda_graphs=True)
    first, second, third = frames(3)
    session.infer({"image": first})  # what has not run yet is not recorded

    with monkeypatch.context() as patch:
        patch.setattr(IExecutionContext, "execute_async_v3", lambda context, stream: False)
        with pytest.raises(ExecutionError, match="it gave no reason"):
            session.infer({"image": second})

    assert lazy.driver.graphs == set()
    np.testing.assert_array_equal(session.infer({"image": third})["labels"], expected(third))
    assert len(lazy.driver.graphs) == 1


def test_a_refused_runs_copies_are_over_before_its_buffers_move(
    lazy: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(lazy.engine, depth=1)
    (small,), (large,) = frames(1, 8, 8), frames(1, 30, 30)

    with monkeypatch.context() as patch:
        patch.setattr(IExecutionContext, "execute_async_v3", lambda context, stream: False)
        with pytest.raises(ExecutionError, match="it gave no reason"):
            session.infer({"image": small})

    np.testing.assert_array_equal(session.infer({"image": large})["labels"], expected(large))


def test_a_run_that_fails_on_the_gpu_is_its_callers_error_only(lazy: World) -> None:
    session = open_session(lazy.engine, depth=1)
    first, second = frames(2)
    pending = session.submit({"image": first})
    lazy.driver.fail_at["execution"] = ExecutionError("an illegal address")

    with pytest.raises(ExecutionError, match="an illegal address"):
        pending.result()
    lazy.driver.recover()
    after = session.submit({"image": second})

    np.testing.assert_array_equal(labels_of(after), expected(second))
    assert pending.done()
    with pytest.raises(ExecutionError, match="an illegal address"):
        pending.result()


def test_too_little_memory_for_buffers_says_how_much_is_needed() -> None:
    world = make_world(total_bytes=3000, memory=1)
    session = open_session(world.engine, depth=1)

    with pytest.raises(DeviceMemoryError, match=r"MiB are needed.*MiB are free"):
        session.infer({"image": frames(1, 32, 32)[0]})

    (frame,) = frames(1, 8, 8)
    np.testing.assert_array_equal(session.infer({"image": frame})["labels"], expected(frame))
    world.close()


def test_growth_that_does_not_fit_takes_what_is_needed_exactly() -> None:
    # 16x32 frames take 1536 + 512 bytes, 18x32 ones 1792 (half as much again is 2304) + 768
    world = make_world(total_bytes=2600, memory=1)
    session = open_session(world.engine, depth=1)
    (first,), (second,) = frames(1, 16, 32), frames(1, 18, 32)

    session.infer({"image": first})
    labels = session.infer({"image": second})["labels"]

    np.testing.assert_array_equal(labels, expected(second))
    world.close()


def test_too_little_memory_for_a_context_says_how_much_is_needed() -> None:
    world = make_world(total_bytes=1 << 20, memory=5 << 20)

    with pytest.raises(
        DeviceMemoryError,
        match=r"working memory of .*: 5\.0 MiB are needed, 1\.0 of 1\.0",
    ):
        open_session(world.engine)

    world.close()


def test_a_depth_of_none_is_refused(lazy: World) -> None:
    with pytest.raises(ValueError, match="depth is 0"):
        open_session(lazy.engine, depth=0)


# ---------------------------------------------------------------------- the end


def test_closing_waits_for_what_is_under_way(world: World) -> None:
    session = open_session(world.engine, depth=3)
    images = frames(2)
    pending = [session.submit({"image": image}) for image in images]

    session.close()
    session.close()

    for image, each in zip(images, pending, strict=True):
        np.testing.assert_array_equal(labels_of(each), expected(image))
    with pytest.raises(ClosedError, match=r"session of 'model\.plan' is closed"):
        session.infer({"image": images[0]})


def test_a_session_that_is_closed_by_another_thread_meanwhile_refuses(
    lazy: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(lazy.engine)
    original = lazy.engine.select_profile

    def close_first(shapes: Any) -> int:
        session.close()
        return original(shapes)

    monkeypatch.setattr(lazy.engine, "select_profile", close_first)

    with pytest.raises(ClosedError, match=r"session of 'model\.plan' is closed"):
        session.infer({"image": frames(1)[0]})


def test_closing_the_engine_closes_its_sessions(lazy: World) -> None:
    session = open_session(lazy.engine)
    other = open_session(lazy.engine, cuda_graphs=True)
    for _ in range(5):
        other.infer({"image": frames(1)[0]})

    lazy.engine.close()
    lazy.engine.close()

    assert lazy.driver.leftovers() == []
    with pytest.raises(ClosedError, match="closed"):
        session.submit({"image": frames(1)[0]})
    with pytest.raises(ClosedError, match=r"engine 'model\.plan' is closed"):
        open_session(lazy.engine)


def test_closing_the_engine_waits_for_a_session_that_is_being_made(
    lazy: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = lazy.engine.new_context
    inside, go_on, closed = threading.Event(), threading.Event(), threading.Event()
    made: list[InferenceSession] = []

    def slow(native_graphs: bool, /) -> Any:
        inside.set()
        go_on.wait(5)
        return original(native_graphs)

    def close() -> None:
        lazy.engine.close()
        closed.set()

    monkeypatch.setattr(lazy.engine, "new_context", slow)
    making = threading.Thread(target=lambda: made.append(open_session(lazy.engine)))
    making.start()
    inside.wait(5)
    closing = threading.Thread(target=close)
    closing.start()

    overtaken = closed.wait(0.2)
    go_on.set()
    making.join()
    closing.join()

    assert not overtaken
    assert lazy.driver.leftovers() == []
    with pytest.raises(ClosedError, match="closed"):
        made[0].submit({"image": frames(1)[0]})


def test_a_session_is_a_context_manager(lazy: World) -> None:
    with open_session(lazy.engine) as session:
        session.infer({"image": frames(1)[0]})

    assert isinstance(session, InferenceSession)
    assert len([handle for handle in lazy.driver.streams if handle]) == 0


# ---------------------------------------------------------------------- times


def test_times_tell_the_run_from_the_copies(lazy: World) -> None:
    session = open_session(lazy.engine, timing=True)

    times = session.submit({"image": frames(1)[0]}).times()

    assert times is not None
    assert 0 < times.compute_ms < times.transfer_ms


def test_page_locked_memory_is_filled_before_a_copy_is_timed(
    lazy: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(lazy.engine, timing=True)
    order = []

    def noted(what: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*arguments: Any) -> Any:
            order.append(what)
            return call(*arguments)

        return noting

    monkeypatch.setattr(BufferPool, "pinned", noted("fill", BufferPool.pinned))
    monkeypatch.setattr(lazy.device, "record", noted("record", lazy.device.record))

    session.submit({"image": frames(1)[0]}).result()

    assert order[:2] == ["fill", "record"]


def test_there_are_no_times_where_none_were_asked_for(lazy: World) -> None:
    pending = open_session(lazy.engine).submit({"image": frames(1)[0]})

    assert pending.times() is None


def test_a_measurement_that_fails_waits_for_its_copies(
    lazy: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session(lazy.engine, depth=1)
    (small,), (large,) = frames(1, 8, 8), frames(1, 30, 30)

    with monkeypatch.context() as patch:
        patch.setattr(IExecutionContext, "execute_async_v3", lambda context, stream: False)
        with pytest.raises(ExecutionError, match="it gave no reason"):
            session.profile_layers({"image": small})

    np.testing.assert_array_equal(session.infer({"image": large})["labels"], expected(large))


def test_layers_are_measured_one_by_one(world: World) -> None:
    session = open_session(world.engine)

    layers = session.profile_layers({"image": frames(1)[0]}, runs=4)

    assert [(layer.name, layer.mean_ms) for layer in layers] == [("backbone", 1.0), ("head", 2.0)]
    (frame,) = frames(1)
    np.testing.assert_array_equal(session.infer({"image": frame})["labels"], expected(frame))
