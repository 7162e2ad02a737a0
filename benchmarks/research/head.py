"""Measure the head against PyTorch, ONNX Runtime, OpenVINO, and writing the labels alone.

    python benchmarks/research/head.py

Every way gets the same scores and gives labels of the same size, with all usable cores. Ways take
turns, so that all of them meet the same neighbours on the machine. Tables are Markdown.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import onnx
import torch

from fcn_deploy.head import upsample_argmax, upsample_confidence
from fcn_deploy.machine import describe_machine, usable_cores
from fcn_deploy.names import Array
from fcn_deploy.telemetry import import_onnxruntime, import_openvino

Way = Callable[[], object]

FULL_HD = (1080, 1920)

onnxruntime = import_onnxruntime()
openvino = import_openvino()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="calls of each way (default: 15)")
    parser.add_argument("--part", choices=("peers", "mixed", "ratios", "start"), default=None)
    options = parser.parse_args(arguments)
    torch.set_num_threads(usable_cores())
    write(
        f"{describe_machine().cpu}, {usable_cores()} cores, load {os.getloadavg()[0]:.1f}; "
        f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, "
        f"openvino {openvino.__version__.split('-')[0]}; median [quartiles] of {options.rounds} "
        "rounds, ways taking turns\n"
    )
    parts = {"peers": compare, "mixed": vary_mixed, "ratios": vary_ratio, "start": time_start}
    for name, part in parts.items():
        if options.part in (None, name):
            part(options.rounds)
    return 0


def compare(rounds: int) -> None:
    """Time all ways on smooth maps and on noise, for 21 and 150 classes."""
    write("| scores 135x240 → 1080x1920 | mixed cells | way | ms | ratio | labels unlike torch's |")
    write("|---|---|---|---|---|---|")
    for classes in (21, 150):
        for name, scores in (
            ("smooth", smooth(classes, (135, 240), 12)),
            ("noise", noise(classes, (135, 240))),
        ):
            ways = {"this head": head(scores, FULL_HD), **peers(scores, FULL_HD)}
            expected = np.asarray(ways["torch"]())
            unlike = {w: int((np.asarray(call()) != expected).sum()) for w, call in ways.items()}
            times = take_turns({**ways, "memset of the labels": memset(FULL_HD)}, rounds)
            base = np.median(times["this head"])
            for way, taken in times.items():
                write(
                    f"| {name}, {classes} classes | {mixed_share(scores):.1%} | {way} | "
                    f"{spread(taken)} | {np.median(taken) / base:.3g} | {unlike.get(way, '')} |"
                )
    write("")


def vary_mixed(rounds: int) -> None:
    """Time the head against the share of mixed cells."""
    write("| classes | mixed cells | ns per pixel | ms | ms, one thread | confidence, ms |")
    write("|---|---|---|---|---|---|")
    for classes in (2, 21, 150):
        maps = [smooth(classes, (135, 240), blur) for blur in (100, 24, 12, 6, 3)]
        for scores in (*maps, noise(classes, (135, 240))):
            times = take_turns(
                {
                    "all": head(scores, FULL_HD),
                    "one": head(scores, FULL_HD, num_threads=1),
                    "confidence": confidence(scores, FULL_HD),
                },
                rounds,
            )
            pixel = np.median(times["all"]) * 1e6 / (FULL_HD[0] * FULL_HD[1])
            write(
                f"| {classes} | {mixed_share(scores):.1%} | {pixel:.2f} | {spread(times['all'])} | "
                f"{spread(times['one'])} | {spread(times['confidence'])} |"
            )
    write("")


def vary_ratio(rounds: int) -> None:
    """Time the head and PyTorch from sizes around to 1080x1920."""
    write("| 21 smooth classes | mixed cells | head, ms | torch, ms | ratio |")
    write("|---|---|---|---|---|")
    for size in ((17, 30), (34, 60), (68, 120), (135, 240), (270, 480), (540, 960), (1080, 1920)):
        scores = smooth(21, size, size[1] / 20)
        write_ratio(scores, FULL_HD, rounds)
    write_ratio(smooth(21, FULL_HD, 96), (270, 480), rounds)
    write("")


def write_ratio(scores: Array, size: tuple[int, int], rounds: int) -> None:
    times = take_turns(
        {"head": head(scores, size), "torch": in_torch(scores, size)}, min(rounds, 7)
    )
    ratio = np.median(times["torch"]) / np.median(times["head"])
    (height, width), (rows, columns) = scores.shape[1:], size
    write(
        f"| {height}x{width} → {rows}x{columns} | {mixed_share(scores):.1%} | "
        f"{spread(times['head'])} | {spread(times['torch'])} | {ratio:.3g} |"
    )


def time_start(rounds: int) -> None:
    """Time the first call in a new process, without and with the machine code on disk."""
    code = (
        "import time, numpy as np; from fcn_deploy.head import upsample_argmax;"
        "scores = np.zeros((2, 4, 4), np.float32);"
        "start = time.perf_counter(), time.process_time();"
        "upsample_argmax(scores, (8, 8));"
        "print(time.perf_counter() - start[0], time.process_time() - start[1])"
    )
    write("| first call of a process | seconds | of CPU |")
    write("|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        for name in ("compiles", "loads from disk", "loads from disk again"):
            command = [sys.executable, "-c", code]
            done = subprocess.run(
                command, env=environment, check=True, capture_output=True, text=True
            )
            wall, cpu = map(float, done.stdout.split())
            write(f"| {name} | {wall:.2f} | {cpu:.2f} |")
    write("")


def smooth(classes: int, size: tuple[int, int], blur: float) -> Array:
    """Make blurred noise, as smooth as a trained network's scores where `blur` is a 20th of w."""
    rng = np.random.default_rng(1)
    planes = [
        cv2.GaussianBlur(rng.standard_normal(size).astype(np.float32), (0, 0), blur)
        for _ in range(classes)
    ]
    scores: Array = np.stack(planes)
    scores /= scores.std()
    return scores


def noise(classes: int, size: tuple[int, int]) -> Array:
    return np.random.default_rng(1).standard_normal((classes, *size)).astype(np.float32)


def mixed_share(scores: Array) -> float:
    best = scores.argmax(0)
    corners = [best[:-1, :-1], best[1:, :-1], best[:-1, 1:], best[1:, 1:]]
    return float(np.mean(np.any([corner != corners[0] for corner in corners], axis=0)))


def head(scores: Array, size: tuple[int, int], num_threads: int | None = None) -> Way:
    return lambda: upsample_argmax(scores, size, num_threads=num_threads)


def confidence(scores: Array, size: tuple[int, int]) -> Way:
    return lambda: upsample_confidence(scores, size)


def memset(size: tuple[int, int]) -> Way:
    def call() -> object:
        return np.full(size, 3, np.uint8)

    return call


def peers(scores: Array, size: tuple[int, int]) -> dict[str, Way]:
    model = resize_argmax_model(scores, size)
    return {
        "torch": in_torch(scores, size),
        "ONNX Runtime": in_onnxruntime(model, scores),
        "OpenVINO": in_openvino(model, scores),
    }


def in_torch(scores: Array, size: tuple[int, int]) -> Way:
    batch = torch.from_numpy(scores)[None]

    def call() -> object:
        with torch.inference_mode():
            resized = torch.nn.functional.interpolate(batch, size=size, mode="bilinear")
            return resized[0].argmax(0).to(torch.uint8).numpy()

    return call


def in_onnxruntime(model: bytes, scores: Array) -> Way:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"scores": scores[None]})[0][0]


def in_openvino(model: bytes, scores: Array) -> Way:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(io.BytesIO(model)), "CPU", settings)
    request = compiled.create_infer_request()
    batch = openvino.Tensor(scores[None], shared_memory=True)
    return lambda: request.infer([batch], share_outputs=True)[0][0]


def resize_argmax_model(scores: Array, size: tuple[int, int]) -> bytes:
    shape = [1, *scores.shape]
    target = np.array([1, scores.shape[0], *size], np.int64)
    nodes = [
        onnx.helper.make_node(
            "Resize",
            ["scores", "", "", "sizes"],
            ["resized"],
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        ),
        onnx.helper.make_node("ArgMax", ["resized"], ["best"], axis=1, keepdims=0),
        onnx.helper.make_node("Cast", ["best"], ["labels"], to=onnx.TensorProto.UINT8),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "resize_argmax",
        [onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, shape)],
        [onnx.helper.make_tensor_value_info("labels", onnx.TensorProto.UINT8, [1, *size])],
        [onnx.numpy_helper.from_array(target, "sizes")],
    )
    opset = onnx.helper.make_opsetid("", 18)
    model: bytes = onnx.helper.make_model(
        graph, opset_imports=[opset], ir_version=10
    ).SerializeToString()
    return model


def take_turns(ways: dict[str, Way], rounds: int) -> dict[str, list[float]]:
    """Call every way once to warm up and then once a round; give the times in ms."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for call in ways.values():
        call()
    for _ in range(rounds):
        for way, call in ways.items():
            start = time.perf_counter()
            call()
            times[way].append((time.perf_counter() - start) * 1e3)
    return times


def spread(times: Sequence[float]) -> str:
    low, middle, high = np.percentile(times, (25, 50, 75))
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"


def write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
