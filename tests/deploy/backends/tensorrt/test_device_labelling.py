"""Plans that end in scores: the GPU labels them behind the run; labels alone leave it."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fcn_deploy import Segmenter, VideoPipeline
from fcn_deploy.backends.tensorrt import head_kernel
from fcn_deploy.backends.tensorrt.device import DeviceBackend
from fcn_deploy.backends.tensorrt.device_labelling import DeviceLabelling
from fcn_deploy.backends.tensorrt.head_kernel import HeadKernel
from fcn_deploy.backends.tensorrt.session import open_session
from fcn_deploy.errors import (
    BackendUnavailableError,
    ClosedError,
    ExecutionError,
    NonFiniteOutputError,
)
from fcn_deploy.graph.scan import scan_onnx, with_outputs
from fcn_deploy.graph.tail import find_tail
from fcn_deploy.head import upsample_argmax
from fcn_deploy.names import Array, Precision
from tests.deploy.backends.tensorrt.fake_driver import build_host_kernel
from tests.deploy.backends.tensorrt.simulated_driver import SimDevice, SimDriver
from tests.deploy.backends.tensorrt.simulated_tensorrt import make_plan
from tests.deploy.backends.tensorrt.test_backend import write_artifact
from tests.deploy.backends.tensorrt.worlds import (
    GRAPH,
    LARGE,
    SMALL,
    World,
    expected,
    frames,
    make_world,
    use_head,
    use_simulation,
)
from tests.deploy.clips import write_clip
from tests.deploy.graphs import segmentation_graph
from tests.deploy.interpolation import interpolate

SCORES = segmentation_graph(head="scores")


@pytest.fixture(scope="module")
def host_kernel(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return ctypes.CDLL(str(build_host_kernel(tmp_path_factory.mktemp("head")))).head_labels_on_host


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, host_kernel: Any) -> Iterator[SimDriver]:
    made = SimDriver(seed=0)
    use_simulation(monkeypatch, made)
    use_head(monkeypatch, host_kernel)
    yield made
    assert made.leftovers() == []


def write_plan(folder: Path, graph: bytes = SCORES) -> Path:
    path = folder / "mine.fp32.plan"
    path.write_bytes(make_plan(graph, [SMALL, LARGE]))
    return path


def frame(height: int = 24, width: int = 32) -> Array:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)


def scores_of(graph: bytes, frames_nhwc: Array) -> Array:
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    found: Array = session.run(["out"], {"image": frames_nhwc})[0]
    return found


def rgb(image: Array) -> Array:
    """Give what a bare graph is fed of a BGR frame."""
    return np.ascontiguousarray(image[np.newaxis, ..., ::-1])


def record_downloads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note how many bytes each copy from the GPU has."""
    sizes: list[int] = []
    original = SimDevice.download

    def download(self: SimDevice, target: Array, address: int, stream: int) -> None:
        sizes.append(target.nbytes)
        original(self, target, address, stream)

    monkeypatch.setattr(SimDevice, "download", download)
    return sizes


def test_labels_are_those_of_the_scores_and_one_byte_a_pixel_leaves(
    driver: SimDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Segmenter.open(write_plan(tmp_path), trust_code=True) as segmenter:
        sizes = record_downloads(monkeypatch)
        labels = segmenter(frame()).labels
        head, classes = segmenter.head, segmenter.classes

    (scores,) = scores_of(SCORES, rgb(frame()))
    assert scores.shape == (3, 12, 16)
    assert labels.dtype == np.uint8
    assert len(np.unique(labels)) > 1
    assert interpolate(scores, (24, 32)).allows(labels)
    assert sorted(sizes) == [4, 24 * 32]  # the mark of scores that are no numbers, and the labels
    assert head == "on the GPU, of the scores 'out' that the plan ends in"
    assert [each.name for each in classes] == ["0", "1", "2"]


def test_scores_come_as_well_where_they_are_wanted(driver: SimDriver, tmp_path: Path) -> None:
    with Segmenter.open(write_plan(tmp_path), trust_code=True) as segmenter:
        result = segmenter(frame(), scores=True)
        alone = segmenter(frame())

    np.testing.assert_array_equal(result.scores, scores_of(SCORES, rgb(frame()))[0])
    np.testing.assert_array_equal(result.labels, alone.labels)
    assert alone.scores is None


def test_an_artifacts_frames_are_padded_and_its_labels_cut(
    driver: SimDriver, tmp_path: Path
) -> None:
    path = write_artifact(
        tmp_path, {"tensorrt-rtx": (Precision.FP32,)}, graph=SCORES, multiple_of=8
    )
    image = frame(21, 30)

    with Segmenter.open(path, backend="tensorrt-rtx") as segmenter:
        labels = segmenter(image).labels
        fed = segmenter.prepare([image])["image"]

    assert fed.shape == (1, 24, 32, 3)
    (wanted,) = upsample_argmax(scores_of(SCORES, fed), (24, 32))
    assert labels.shape == (21, 30)
    np.testing.assert_array_equal(labels, wanted[:21, :30])


def test_scores_of_the_frames_own_size_are_labelled_too(driver: SimDriver, tmp_path: Path) -> None:
    tail = find_tail(scan_onnx(GRAPH, name="graph", folder=tmp_path))
    assert tail is not None
    assert tail.scores is not None
    graph = with_outputs(GRAPH, (tail.scores,))  # as fcn-export --head scores makes it
    path = write_artifact(tmp_path, {"tensorrt": (Precision.FP32,)}, graph=graph)

    with Segmenter.open(path, backend="tensorrt") as segmenter:
        result = segmenter(frame(), scores=True)

    assert result.scores is not None
    assert result.scores.shape == (3, 24, 32)
    np.testing.assert_array_equal(result.labels, result.scores.argmax(0))
    np.testing.assert_array_equal(result.labels, expected(frame()[np.newaxis])[0])


def test_frames_of_a_batch_and_of_other_sizes_follow_each_other(
    driver: SimDriver, tmp_path: Path
) -> None:
    images = [frame(16, 16), frame(16, 16), frame(40, 24), frame(16, 16)]

    with Segmenter.open(write_plan(tmp_path), trust_code=True) as segmenter:
        results = segmenter.batch(images)

    for image, result in zip(images, results, strict=True):
        (wanted,) = upsample_argmax(scores_of(SCORES, rgb(image)), image.shape[:2])
        np.testing.assert_array_equal(result.labels, wanted)


@pytest.mark.parametrize(("classes", "dtype"), [(1, np.uint8), (300, np.uint16)])
def test_one_class_and_many(
    driver: SimDriver, tmp_path: Path, classes: int, dtype: type[np.generic]
) -> None:
    graph = segmentation_graph(head="scores", classes=classes)

    # a plan's operators cannot be read: what a single class's scores are has to be said
    said = "logits" if classes == 1 else "auto"
    with Segmenter.open(write_plan(tmp_path, graph), trust_code=True, activation=said) as segmenter:
        labels = segmenter(frame()).labels

    (wanted,) = upsample_argmax(scores_of(graph, rgb(frame())), (24, 32))
    assert labels.dtype == dtype
    assert labels.max() > (0 if classes == 1 else 255)
    np.testing.assert_array_equal(labels, wanted)


def test_scores_that_are_no_numbers_are_an_error(driver: SimDriver, tmp_path: Path) -> None:
    graph = segmentation_graph(head="scores", poison=np.nan)

    with Segmenter.open(write_plan(tmp_path, graph), trust_code=True) as segmenter:
        for _ in range(2):
            with pytest.raises(NonFiniteOutputError, match="scores hold NaN or infinity"):
                segmenter(frame())


def test_without_nvrtc_the_cpu_labels_and_that_is_said(
    driver: SimDriver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def compile_head(architecture: str) -> bytes:
        raise BackendUnavailableError("NVRTC cannot be used: it is not here.")

    monkeypatch.setattr(head_kernel, "compile_head", compile_head)

    with (
        caplog.at_level(logging.WARNING),
        Segmenter.open(write_plan(tmp_path), trust_code=True) as segmenter,
    ):
        labels = segmenter(frame()).labels

    (wanted,) = upsample_argmax(scores_of(SCORES, rgb(frame())), (24, 32))
    np.testing.assert_array_equal(labels, wanted)
    assert segmenter.head == (
        "in the runtime, as the graph ends in scores: NVRTC cannot be used: it is not here."
    )
    assert "are labelled on the CPU: NVRTC cannot be used" in caplog.text


def test_scores_of_another_dtype_are_labelled_on_the_cpu(driver: SimDriver, tmp_path: Path) -> None:
    model = onnx.load_from_string(SCORES)
    model.graph.node[-1].CopyFrom(
        helper.make_node("Cast", ["network_scores"], ["out"], to=TensorProto.FLOAT16)
    )
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16

    with Segmenter.open(write_plan(tmp_path, model.SerializeToString()), trust_code=True) as opened:
        labels = opened(frame()).labels

    assert opened.head == "in the runtime, as the graph ends in scores: they are float16"
    assert labels.shape == (24, 32)


def test_the_video_pipeline_labels_on_the_gpu(driver: SimDriver, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.avi", frames=5)

    with (
        Segmenter.open(write_plan(tmp_path), trust_code=True, num_streams=2) as segmenter,
        VideoPipeline(segmenter, clip, workers=2) as pipeline,
    ):
        for item in pipeline:
            (wanted,) = upsample_argmax(scores_of(SCORES, rgb(item.frame)), item.frame.shape[:2])
            np.testing.assert_array_equal(item.labels, wanted)
        assert pipeline.stats.delivered == 5


def test_use_after_the_end_is_refused(driver: SimDriver, tmp_path: Path) -> None:
    segmenter = Segmenter.open(write_plan(tmp_path), trust_code=True)
    segmenter(frame())
    segmenter.close()
    segmenter.close()

    with pytest.raises(ClosedError, match="is closed"):
        segmenter.execute({"image": rgb(frame())})


def labelling_on(world: World) -> DeviceLabelling:
    with world.device.current():
        return DeviceLabelling(
            HeadKernel(cast(DeviceBackend, world.device)), "out", "image", (1, 2)
        )


def test_scores_of_another_rank_are_an_error(
    monkeypatch: pytest.MonkeyPatch, host_kernel: Any
) -> None:
    use_head(monkeypatch, host_kernel)
    world = make_world()
    labelling = labelling_on(world)

    with pytest.raises(ExecutionError, match=r"scores are \[1, 8, 8\]; expected \[N, C, h, w\]"):
        labelling.prepare({"image": (1, 8, 8, 3), "out": (1, 8, 8)})
    world.close()


@pytest.mark.parametrize("seed", [None, 1, 2, 3])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_runs_in_flight_do_not_mix(
    seed: int | None, cuda_graphs: bool, monkeypatch: pytest.MonkeyPatch, host_kernel: Any
) -> None:
    use_head(monkeypatch, host_kernel)
    world = make_world(seed=seed, graph=SCORES)
    session = open_session(world.engine, depth=3, cuda_graphs=cuda_graphs, timing=True)
    images = [*frames(4), *frames(3, 20, 24), *frames(2)]
    labelling = labelling_on(world)

    waiting = [
        session.submit({"image": image}, outputs=[], labelling=labelling) for image in images
    ]

    for image, pending in zip(images, waiting, strict=True):
        found, times = pending.result(), pending.times()
        wanted = upsample_argmax(scores_of(SCORES, image), (image.shape[1], image.shape[2]))
        assert list(found) == ["labels of out"]
        np.testing.assert_array_equal(found["labels of out"], wanted)
        assert times is not None
        assert 0 < times.compute_ms < times.transfer_ms
    world.close()


def test_runs_with_and_without_labels_share_a_session(
    monkeypatch: pytest.MonkeyPatch, host_kernel: Any
) -> None:
    use_head(monkeypatch, host_kernel)
    world = make_world(graph=SCORES)
    session = open_session(world.engine, depth=1)
    (image,) = frames(1)

    both = session.submit({"image": image}, labelling=labelling_on(world)).result()
    plain = session.infer({"image": image})

    assert sorted(both) == ["labels of out", "out"]
    np.testing.assert_array_equal(both["out"], plain["out"])
    assert list(plain) == ["out"]
    world.close()
