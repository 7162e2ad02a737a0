"""The processes that rows run in: what they answer, what they refuse, and how they end."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcn_bench.worker import serve
from fcn_bench.worker_client import Worker
from fcn_deploy import Segmenter
from fcn_deploy.errors import ArtifactMissingError, BenchmarkError
from fcn_deploy.names import Array
from fcn_export.check.sample_frames import natural_frame
from tests.bench.conftest import TinyModel
from tests.deploy.graphs import segmentation_graph

SIZE = (48, 80)


def describe(path: Path, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "segmenter",
        "path": str(path),
        "backend": "openvino",
        "precision": "fp32",
        "threads": 1,
        "mean": None,
        "std": None,
        "color": None,
        **changes,
    }


def describe_torch(tiny: TinyModel, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "torch",
        "path": str(tiny.checkpoint),
        "arch": tiny.arch,
        "arch_args": {"width": "8"},
        "output_key": None,
        "trust_code": False,
        "mode": "eager",
        "threads": 1,
        "multiple_of": 1,
        "preprocess": {
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "color": "rgb",
        },
        **changes,
    }


def frames_file(folder: Path, *, count: int = 2) -> Path:
    np.save(folder / "frames.npy", np.stack([natural_frame(*SIZE, seed=n) for n in range(count)]))
    return folder / "frames.npy"


@contextmanager
def served(network: dict[str, Any], folder: Path, *, streams: int = 1) -> Iterator[Worker]:
    with Worker("the row", log=folder / "worker.log") as worker:
        worker.open(network, streams=streams)
        worker.frames(frames_file(folder), batch=1)
        yield worker


def ask(*requests: dict[str, Any]) -> list[dict[str, Any]]:
    """Let this process answer, so that coverage and debuggers see it."""
    answers = io.StringIO()
    serve(io.StringIO("".join(json.dumps(request) + "\n" for request in requests)), answers)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def test_worker_times_frames_and_the_network_in_them(tiny: TinyModel, tmp_path: Path) -> None:
    with served(describe(tiny.artifact), tmp_path) as worker:
        warm = worker.warm_up("frame", calls=2)
        part = worker.measure("frame", seconds=0, min_calls=4)
        peak, open_ms = worker.peak_rss_bytes(), worker.open_ms

    assert (warm.calls, warm.steady) == (2, None)
    assert warm.first_ms is not None
    assert open_ms is not None
    assert min(warm.first_ms, open_ms) > 0
    assert len(part.timings) == 4
    assert all(0 < timing.compute_ms < timing.frame_ms for timing in part.timings)
    assert peak is not None
    assert peak > 50e6


@pytest.mark.parametrize("workload", ["frame", "compute"])
def test_worker_with_two_streams_shares_the_calls_out(
    tiny: TinyModel, tmp_path: Path, workload: Any
) -> None:
    with served(describe(tiny.artifact), tmp_path, streams=2) as worker:
        part = worker.measure(workload, seconds=0, min_calls=5)

    assert len(part.timings) == 6
    assert part.calls_per_second > 0


def test_three_steps_give_the_labels_of_a_plain_call(tiny: TinyModel) -> None:
    from fcn_bench.network import segment
    from fcn_bench.opening import open_network

    frames = [natural_frame(*SIZE, seed=n) for n in range(2)]
    network = open_network(describe(tiny.artifact), streams=1)

    found = segment(network, frames)
    network.close()

    with Segmenter.open(tiny.artifact, backend="openvino", precision="fp32") as segmenter:
        for labels, frame in zip(found, frames, strict=True):
            np.testing.assert_array_equal(labels, segmenter(frame).labels)


@pytest.mark.parametrize("mode", ["eager", "channels_last"])
def test_pytorch_and_the_artifact_agree_through_the_same_steps(
    tiny: TinyModel, tmp_path: Path, mode: str
) -> None:
    with served(describe_torch(tiny), tmp_path) as eager:
        eager.write_reference(tmp_path)
    with served(describe_torch(tiny, mode=mode), tmp_path) as torch_again:
        torch_agreement = torch_again.agreement(tmp_path)
    with served(describe(tiny.artifact), tmp_path) as artifact:
        agreement = artifact.agreement(tmp_path)

    assert torch_agreement.label_agreement == 1.0
    assert agreement.label_agreement is not None
    # sums in another order move scores by about 1e-6: pixels differ at near ties alone
    assert agreement.label_agreement > 0.999
    assert agreement.score_error is not None
    assert 0 < agreement.score_error < 1e-4
    assert agreement.miou_vs_baseline is not None
    assert agreement.miou_vs_baseline > 0.99
    assert agreement.faults == ()


def test_other_weights_do_not_agree(tiny: TinyModel, tmp_path: Path) -> None:
    wrong = describe_torch(tiny)
    wrong["preprocess"] = {"mean": [0.0] * 3, "std": [1.0] * 3, "color": "bgr"}
    with served(wrong, tmp_path) as eager:
        eager.write_reference(tmp_path)
    with served(describe(tiny.artifact), tmp_path) as artifact:
        agreement = artifact.agreement(tmp_path)

    assert agreement.label_agreement is not None
    assert agreement.label_agreement < 0.99


def test_constant_output_is_found_without_a_baseline(tmp_path: Path) -> None:
    path = tmp_path / "bare.onnx"
    path.write_bytes(segmentation_graph())
    black: Array = np.zeros((1, *SIZE, 3), np.uint8)
    np.save(tmp_path / "black.npy", black)

    *_, answer = ask(
        {"do": "open", "network": describe(path), "streams": 1},
        {"do": "frames", "file": str(tmp_path / "black.npy"), "batch": 1},
        {"do": "agreement", "folder": None},
    )

    assert answer["result"]["label_agreement"] is None
    assert "constant output: every pixel" in answer["result"]["faults"][0]


def test_ground_truth_is_counted_at_the_images_own_size(tiny: TinyModel, tmp_path: Path) -> None:
    _, answer = ask(
        {"do": "open", "network": describe(tiny.artifact), "streams": 1},
        {
            "do": "confusion",
            "images": str(tiny.images),
            "labels": str(tiny.labels),
            "num_labels": 4,
        },
    )

    counts = np.array(answer["result"])
    assert counts.sum() == 2 * 48 * 80
    # the truth is the network's own answer but for a corner of 12 x 20 px
    assert np.trace(counts) == 2 * (48 * 80 - 12 * 20)


def test_networks_error_comes_back_with_its_kind_and_hint(tmp_path: Path) -> None:
    with (
        Worker("the row", log=tmp_path / "worker.log") as worker,
        pytest.raises(ArtifactMissingError, match=r"the row: there is no .*gone.onnx") as caught,
    ):
        worker.open(describe(tmp_path / "gone.onnx"), streams=1)

    assert caught.value.hint is not None


def test_killed_process_is_reported_by_its_row(tmp_path: Path) -> None:
    with Worker("openvino bf16", log=tmp_path / "worker.log") as worker:
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(BenchmarkError, match=r"openvino bf16 ended with status -9.*memory"):
            worker.peak_rss_bytes()


def test_crash_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with (
        Worker("the row", log=tmp_path / "worker.log") as worker,
        pytest.raises(BenchmarkError, match=r"status 1: .*the first request must be 'open'"),
    ):
        worker.warm_up("frame", calls=1)


def test_closing_ends_the_process_and_may_be_done_twice(tmp_path: Path) -> None:
    worker = Worker("the row", log=tmp_path / "worker.log")

    worker.close()
    worker.close()

    with pytest.raises(ProcessLookupError, match="No such process"):
        os.kill(worker.pid, 0)
