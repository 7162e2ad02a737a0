"""The stand-ins that users' own tests are given, and what they promise beyond the protocols."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest

from fcn_deploy.artifact.manifest import ClassInfo
from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.backends.base import ModelSource
from fcn_deploy.errors import (
    BackendUnavailableError,
    ClosedError,
    DTypeError,
    ExecutionError,
    ShapeError,
)
from fcn_deploy.names import Array, Precision, TensorSpec
from fcn_deploy.segmenter import Segmenter
from fcn_deploy.testing import TWO_CLASSES, FakeBackend, FakeSegmenter
from tests.deploy.clips import is_bright, numbered_frame, wait_until

X = TensorSpec("x", "float32", (None,))
Y = TensorSpec("y", "float32", (None,))
SOURCE = ModelSource(Path("model.onnx"), b"")
ONES = {"x": np.ones(3, np.float32)}


def doubled(feeds: object) -> dict[str, Array]:
    assert isinstance(feeds, dict)
    return {"y": 2 * feeds["x"]}


def test_labels_follow_the_rule() -> None:
    segmenter = FakeSegmenter(is_bright)
    frame = numbered_frame(3)

    result = segmenter(frame)

    assert result.labels.dtype == np.uint8
    np.testing.assert_array_equal(result.labels, frame[..., 0] > 250)
    assert list(result.shares()) == ["dark", "bright"]
    assert result.overlay().shape == frame.shape


def test_given_labels_are_given_to_every_frame_and_owned_by_the_caller() -> None:
    labels = np.array([[0, 1], [2, 0]])
    classes = [ClassInfo(name, (0, 0, 0)) for name in "abc"]
    segmenter = FakeSegmenter(labels, classes=classes)

    first, second = segmenter.batch([np.zeros((2, 2, 3), np.uint8)] * 2)
    first.labels[:] = 7

    np.testing.assert_array_equal(second.labels, [[0, 1], [2, 0]])
    np.testing.assert_array_equal(labels, [[0, 1], [2, 0]])
    assert segmenter.calls == 2


def test_many_classes_have_wide_labels() -> None:
    classes = [ClassInfo(str(index), (0, 0, 0)) for index in range(300)]

    result = FakeSegmenter(np.full((1, 1), 299), classes=classes)(np.zeros((1, 1, 3), np.uint8))

    assert result.labels.dtype == np.uint16
    assert result.labels[0, 0] == 299


def test_fake_segmenter_has_what_a_segmenter_says_of_itself() -> None:
    shapes = ShapeRange((1, 8, 8), (1, 8, 8), (1, 8, 8))
    fake = FakeSegmenter(is_bright, shapes=shapes, num_streams=3)

    public = {name for name in dir(fake) if not name.startswith("_")}

    assert (fake.shapes, fake.num_streams, fake.classes) == (shapes, 3, TWO_CLASSES)
    assert public - {"calls", "most_at_once", "closed"} <= {
        *dir(Segmenter), "backend", "precision", "reason", "num_streams", "manifest"
    }  # fmt: skip


def test_fake_segmenter_refuses_what_a_segmenter_refuses() -> None:
    segmenter = FakeSegmenter(is_bright)

    with pytest.raises(DTypeError, match="float64"):
        segmenter(np.zeros((2, 2, 3)))
    with pytest.raises(ShapeError, match=r"labels are \[2, 2\]; the frame is \[4, 4, 3\]"):
        FakeSegmenter(np.zeros((2, 2), int))(np.zeros((4, 4, 3), np.uint8))
    with segmenter:
        segmenter(numbered_frame(0))
    segmenter.close()
    assert segmenter.closed
    with pytest.raises(ClosedError, match=r"FakeSegmenter\(2 classes, 1 calls\) is closed"):
        segmenter(numbered_frame(0))


def test_fake_segmenter_fails_from_the_call_it_is_told() -> None:
    segmenter = FakeSegmenter(is_bright, error=ExecutionError("no more."), fail_at=2)

    segmenter.batch([numbered_frame(0)] * 2)

    for _ in range(2):
        with pytest.raises(ExecutionError, match="no more"):
            segmenter(numbered_frame(0))
    assert segmenter.calls == 4


def test_fake_segmenter_waits_at_its_gate_and_says_how_many_did() -> None:
    gate = Event()
    segmenter = FakeSegmenter(is_bright, gate=gate)
    threads = [Thread(target=segmenter, args=(numbered_frame(0),)) for _ in range(3)]

    for thread in threads:
        thread.start()
    wait_until(lambda: segmenter.most_at_once == 3)
    gate.set()
    for thread in threads:
        thread.join()

    assert (segmenter.calls, segmenter.most_at_once) == (3, 3)


def test_threads_share_a_fake_segmenter_and_every_call_is_counted() -> None:
    segmenter = FakeSegmenter(is_bright)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(segmenter, [numbered_frame(n % 60) for n in range(200)]))

    assert segmenter.calls == len(results) == 200


def test_fake_backend_counts_fails_and_remembers_what_it_opened() -> None:
    backend = FakeBackend(doubled, inputs=[X], outputs=[Y], error=ExecutionError("hot."), fail_at=1)
    first, second = backend.open(SOURCE), backend.open(SOURCE)

    found = first.execute(ONES)["y"]
    with pytest.raises(ExecutionError, match="hot"):
        second.execute(ONES)
    second.close()

    np.testing.assert_array_equal(found, [2, 2, 2])
    assert (backend.calls, backend.most_at_once) == (2, 1)
    assert [context.closed for context in backend.opened] == [False, True]


def test_fake_backend_says_which_output_is_of_another_dtype() -> None:
    backend = FakeBackend(lambda feeds: {"y": feeds["x"].astype(np.int32)}, inputs=[X], outputs=[Y])

    with pytest.raises(ExecutionError, match=r"gave 'y' as int32; expected y: float32 \[\?\]"):
        backend.open(SOURCE).execute(ONES)


def test_function_of_a_fake_backend_cannot_write_into_its_inputs() -> None:
    def careless(feeds: object) -> dict[str, Array]:
        assert isinstance(feeds, dict)
        feeds["x"] += 1
        return {"y": feeds["x"]}

    with pytest.raises(ValueError, match="read-only"):
        FakeBackend(careless, inputs=[X], outputs=[Y]).open(SOURCE).execute(ONES)


def test_fake_backend_opens_in_the_precisions_it_is_given() -> None:
    backend = FakeBackend(
        doubled, inputs=[X], outputs=[Y], precisions=[Precision.FP32, Precision.INT8]
    )

    backend.open(SOURCE, precision=Precision.INT8)

    with pytest.raises(BackendUnavailableError, match="cannot compute in bf16; it can in fp32, i"):
        backend.open(SOURCE, precision=Precision.BF16)
