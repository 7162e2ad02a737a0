"""Measure what the runtime adds to the network and the head, and the share of the CPU's peak."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fcn_bench.stats import Ratio, ratio_of_medians
from fcn_deploy import Segmenter
from fcn_deploy.graph.peel import peel_tail
from fcn_deploy.graph.tail import find_tail
from fcn_deploy.head import upsample_argmax
from fcn_deploy.names import Array
from fcn_deploy.telemetry import import_openvino
from research.peers.benchmark_app import run_benchmark_app
from research.peers.subject import Subject, fixed_graph, network_alone

if TYPE_CHECKING:
    from torch import nn

__all__ = ["OverheadTimes", "count_flops", "measure_overhead"]

_MATMUL_SIDE = 2048  # 16 MiB a matrix in fp32: beyond the caches, and 17 GFLOP a product
_BENCHMARK_APP_SECONDS = 5
_HINTS = {"fp32": "f32", "bf16": "bf16"}


@dataclass(frozen=True, slots=True)
class OverheadTimes:
    """Medians in ms, measured in turns in one process, and figures computed of them.

    Attributes:
        frame_ms: `Segmenter(frame)`.
        bare_ms: OpenVINO's `infer` of the same network on an input that is ready.
        benchmark_app_ms: OpenVINO's own tool on the network alone, before and after the others.
        head_ms: `upsample_argmax` of the scores that it gave.
        parts_ms: the frame's steps: check and prepare, execute, finish.
        overhead: frame over bare and head together.
        peak_gflops: of a large matrix product in the same precision.
        network_gflop: that the network needs for a frame, by PyTorch's count.
    """

    frame_ms: float
    bare_ms: float
    benchmark_app_ms: tuple[float, float]
    head_ms: float
    parts_ms: tuple[float, float, float]
    overhead: Ratio
    peak_gflops: float
    network_gflop: float

    @property
    def peak_share(self) -> float:
        return self.network_gflop / (self.bare_ms / 1e3) / self.peak_gflops


def measure_overhead(
    subject: Subject,
    frame_bgr: Array,
    *,
    precision: str,
    threads: int,
    rounds: int,
    network_gflop: float,
) -> OverheadTimes:
    """Time a frame, the bare network and the head in turns, and a matrix product between.

    Raises:
        BenchmarkError: OpenVINO's benchmark_app failed.
    """
    size = (frame_bgr.shape[0], frame_bgr.shape[1])
    before = _benchmark_app(subject, size, precision=precision, threads=threads)
    path = subject.artifact
    with Segmenter.open(
        path, backend="openvino", precision=precision, num_threads=threads
    ) as segmenter:
        bare, scores = _bare_call(subject, frame_bgr, precision=precision, threads=threads)
        prepared = segmenter.prepare([frame_bgr])
        executed = segmenter.execute(prepared)
        product, flop = _matmul(precision, threads)
        ways: dict[str, Callable[[], Any]] = {
            "frame": lambda: segmenter(frame_bgr),
            "bare": bare,
            "head": lambda: upsample_argmax(scores, size),
            "prepare": lambda: segmenter.prepare([frame_bgr]),
            "execute": lambda: segmenter.execute(prepared),
            "finish": lambda: segmenter.finish(executed, [frame_bgr]),
            "matmul": product,
        }
        times = _take_turns(ways, rounds)
    after = _benchmark_app(subject, size, precision=precision, threads=threads)
    medians = {name: float(np.median(taken)) for name, taken in times.items()}
    both = [[bare + head] for bare, head in zip(times["bare"], times["head"], strict=True)]
    return OverheadTimes(
        frame_ms=medians["frame"],
        bare_ms=medians["bare"],
        benchmark_app_ms=(before, after),
        head_ms=medians["head"],
        parts_ms=(medians["prepare"], medians["execute"], medians["finish"]),
        overhead=ratio_of_medians([[value] for value in times["frame"]], both),
        peak_gflops=flop / (min(times["matmul"]) / 1e3) / 1e9,
        network_gflop=network_gflop,
    )


def count_flops(module: nn.Module, size: tuple[int, int]) -> float:
    """Count a network's multiplications and additions for one frame, in 1e9, with PyTorch."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        module(torch.zeros(1, 3, *size))
    return float(counter.get_total_flops()) / 1e9


def _benchmark_app(
    subject: Subject, size: tuple[int, int], *, precision: str, threads: int
) -> float:
    """Run it on the user's graph, cut off before the last Resize: the median in ms."""
    with tempfile.TemporaryDirectory() as folder:
        fixed = fixed_graph(subject.graph, (1, *size), target=Path(folder) / "fixed.onnx")
        alone = network_alone(fixed, target=Path(folder) / "alone.onnx")
        return run_benchmark_app(
            alone, precision=precision, threads=threads, seconds=_BENCHMARK_APP_SECONDS
        )


def _bare_call(
    subject: Subject, frame_bgr: Array, *, precision: str, threads: int
) -> tuple[Callable[[], Any], Array]:
    """Give OpenVINO's own call of the peeled network, and a copy of the scores it gives."""
    from fcn_deploy.graph.scan import scan_onnx, with_outputs

    openvino = import_openvino()
    file = subject.artifact / "model.onnx"
    data = file.read_bytes()
    graph = scan_onnx(data, name=f"'{file}'", folder=file.parent)
    peeled = peel_tail(graph, find_tail(graph))
    if isinstance(peeled, str):
        raise ValueError(f"'{file}' is not peeled: {peeled}")
    core = openvino.Core()
    config = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
    }
    model = core.read_model(with_outputs(data, (peeled.scores,)))
    request = core.compile_model(model, "CPU", config).create_infer_request()
    image = np.ascontiguousarray(frame_bgr)[None]
    request.set_input_tensor(openvino.Tensor(image, shared_memory=True))
    request.infer()
    scores = np.array(request.get_output_tensor(0).data)

    def call() -> Any:
        request.infer()
        return image  # held: a tensor that shares memory does not keep its array alive

    return call, scores


def _matmul(precision: str, threads: int) -> tuple[Callable[[], Any], float]:
    """Give a large matrix product, and its number of multiplications and additions."""
    import torch

    torch.set_num_threads(threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    left, right, out = (torch.ones(_MATMUL_SIDE, _MATMUL_SIDE, dtype=dtype) for _ in range(3))
    return lambda: torch.mm(left, right, out=out), 2.0 * _MATMUL_SIDE**3


def _take_turns(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for call in ways.values():
        call()
    for _ in range(rounds):
        for name, call in ways.items():
            call()  # what ran before has left its threads spinning and its data in the caches
            start = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - start) * 1e3)
    return times
