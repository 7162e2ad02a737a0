"""Compare the CPU runtime's choices with their alternatives, on one artifact.

    python benchmarks/research/choices.py model.fcn --size 720x1280

Frames to class scores, in OpenVINO and fp32 throughout. Ways take turns. Tables are Markdown.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numba
import numpy as np
import onnx

from fcn_deploy import Segmenter
from fcn_deploy.artifact.folder import Artifact
from fcn_deploy.artifact.manifest import Preprocess
from fcn_deploy.graph.scan import scan_onnx, with_outputs
from fcn_deploy.graph.tail import find_tail
from fcn_deploy.machine import describe_machine, usable_cores
from fcn_deploy.names import Array
from fcn_deploy.telemetry import import_openvino
from research.head import Way, spread, take_turns, write

openvino = import_openvino()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", help="with BGR frames in and labels out")
    parser.add_argument("--size", default="720x1280", metavar="HxW")
    parser.add_argument("--rounds", type=int, default=15, help="calls of each way (default: 15)")
    options = parser.parse_args(arguments)
    height, width = map(int, options.size.split("x"))
    artifact = Artifact.open(options.artifact)
    data = artifact.read("model.onnx")
    tail = find_tail(scan_onnx(data))
    if tail is None or tail.low_scores is None:
        parser.error(f"'{options.artifact}' does not end in upsampled scores")
    graph = with_outputs(data, (tail.low_scores,))
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    write(
        f"{describe_machine().cpu}, {usable_cores()} cores, load {os.getloadavg()[0]:.1f}; "
        f"openvino {openvino.__version__.split('-')[0]}; '{artifact.path.name}' at {options.size}; "
        f"median [quartiles] of {options.rounds} rounds, ways taking turns\n"
    )
    parts = {
        "shapes": shapes(graph, frame),
        "preprocessing": preprocessing(graph, frame, artifact.manifest.preprocess),
        "start": starts(graph),
        "four frames": four_frames(options.artifact, frame),
    }
    for title, ways in parts.items():
        table(title, ways, options.rounds)
    return 0


def table(title: str, ways: dict[str, Way], rounds: int) -> None:
    """Time ways against the first, which is what the runtime does."""
    times = take_turns(ways, rounds)
    chosen = float(np.median(next(iter(times.values()))))
    write(f"| {title} | ms | times the first |\n|---|--:|--:|")
    for way, taken in times.items():
        write(f"| {way} | {spread(taken)} | {np.median(taken) / chosen:.3f} |")
    write("")


def compiled(model: Any, *, streams: int = 1) -> Any:
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": usable_cores(),
    }
    return openvino.Core().compile_model(model, "CPU", settings)


def read(graph: bytes) -> Any:
    return openvino.Core().read_model(io.BytesIO(graph))


def runs(model: Any, batch: Array) -> Way:
    request = compiled(model).create_infer_request()

    def call() -> object:
        request.set_input_tensor(openvino.Tensor(batch, shared_memory=True))
        return request.infer()

    return call


def shapes(graph: bytes, frame: Array) -> dict[str, Way]:
    """One network for all sizes, against networks compiled for this size."""
    size, whole = read(graph), read(graph)
    size.reshape([openvino.Dimension(), *frame.shape])
    whole.reshape([1, *frame.shape])
    batch = frame[None]
    return {
        "any batch and size": runs(read(graph), batch),
        "this size": runs(size, batch),
        "this size and batch": runs(whole, batch),
    }


def preprocessing(graph: bytes, frame: Array, preprocess: Preprocess) -> dict[str, Way]:
    """The artifact's own preprocessing, against OpenVINO's and two passes before the network."""
    network, planes_name = without_preprocessing(graph)
    floats = runs_floats(read(network), planes_name, frame)
    mean, std = (255 * np.array(v, np.float32) for v in (preprocess.mean, preprocess.std))
    parameters = cv2.dnn.Image2BlobParams()
    parameters.scalefactor = tuple((1 / std).tolist())
    parameters.mean = tuple(mean.tolist())
    parameters.swapRB = preprocess.color == "rgb"
    flip = preprocess.color == "rgb"
    planes = np.empty((1, 3, *frame.shape[:2]), np.float32)

    def blob() -> object:
        return floats(cv2.dnn.blobFromImageWithParams(frame, parameters))

    def fused() -> object:
        fill_planes(frame, mean, 1 / std, flip, planes[0])
        return floats(planes)

    return {
        "in the artifact's graph": runs(read(graph), frame[None]),
        "OpenVINO's PrePostProcessor": runs_floats(
            with_openvino(network, planes_name, mean, std, flip), planes_name, frame, frame[None]
        ),
        "cv2.dnn.blobFromImageWithParams": blob,
        "a fused pass in Numba": fused,
    }


def without_preprocessing(graph: bytes) -> tuple[bytes, str]:
    """Cut a graph at its first convolution's input, float32 [N, 3, H, W]; gives its name, too.

    The frame stays an input, because the graph takes its sizes from there; nothing else of it.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(graph))
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    outputs = [value.name for value in model.graph.output]
    inputs = [first.input[0], model.graph.input[0].name]
    data: bytes = onnx.utils.Extractor(model).extract_model(inputs, outputs).SerializeToString()
    return data, first.input[0]


def runs_floats(model: Any, planes_name: str, frame: Array, given: Array | None = None) -> Any:
    """Give a call that takes planes [1, 3, H, W]; or one that runs what was given."""
    request = compiled(model).create_infer_request()
    request.set_tensor("image", openvino.Tensor(np.ascontiguousarray(frame[None])))

    def call(planes: Array | None = given) -> object:
        request.set_tensor(planes_name, openvino.Tensor(planes, shared_memory=True))
        return request.infer()

    return call


def with_openvino(network: bytes, planes_name: str, mean: Array, std: Array, flip: bool) -> Any:
    steps = openvino.preprocess.PrePostProcessor(read(network))
    image = steps.input(planes_name)
    image.tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    image.tensor().set_color_format(openvino.preprocess.ColorFormat.BGR)
    work = image.preprocess().convert_element_type(openvino.Type.f32)
    if flip:
        work = work.convert_color(openvino.preprocess.ColorFormat.RGB)
    work.mean(mean.tolist()).scale(std.tolist())
    image.model().set_layout(openvino.Layout("NCHW"))
    return steps.build()


@numba.njit(parallel=True)
def fill_planes(frame: Array, mean: Array, factor: Array, flip: bool, planes: Array) -> None:
    for y in numba.prange(frame.shape[0]):
        for c in range(3):
            source = 2 - c if flip else c
            for x in range(frame.shape[1]):
                planes[c, y, x] = (np.float32(frame[y, x, source]) - mean[c]) * factor[c]


def starts(graph: bytes) -> dict[str, Way]:
    """Taking a compiled network from the cache, against compiling it."""
    kept = compiled(read(graph)).export_model().getvalue()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": usable_cores()}
    return {
        "from the cache": lambda: openvino.Core().import_model(io.BytesIO(kept), "CPU", settings),
        "compiled": lambda: compiled(read(graph)),
    }


def four_frames(artifact: str, frame: Array) -> dict[str, Way]:
    """Streams of one thread each, against all threads on one frame or batch at a time."""
    cores = usable_cores()
    options: dict[str, Any] = {"backend": "openvino", "precision": "fp32"}
    many = Segmenter.open(artifact, num_streams=cores, **options)
    one = Segmenter.open(artifact, **options)
    pool = ThreadPoolExecutor(cores)
    return {
        f"{cores} streams": lambda: list(pool.map(many, [frame] * 4)),
        "one stream": lambda: [one(frame) for _ in range(4)],
        "one stream, batches of two": lambda: [one.batch([frame] * 2) for _ in range(2)],
        "one stream, a batch of four": lambda: one.batch([frame] * 4),
    }


if __name__ == "__main__":
    sys.exit(main())
