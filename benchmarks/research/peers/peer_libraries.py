"""Run other libraries as their documentation says, all behind one protocol.

All of them get the graph that a user would export: normalised float image in, labels of the
image's size out, with Resize and ArgMax in the graph, and its input bound to one size, which is
the fastest that they know. `fcn_bench.network.Network` is the protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fcn_bench.network import Network
from fcn_deploy.names import Array
from fcn_deploy.preprocess import IMAGENET_MEAN, IMAGENET_STD
from fcn_deploy.telemetry import import_onnxruntime, import_openvino

__all__ = ["LIBRARIES", "OpenCv", "OpenVino", "OrtSession", "with_gates_apart"]

_MEAN_255 = [255 * value for value in IMAGENET_MEAN]
_STD_255 = [255 * value for value in IMAGENET_STD]


class _Library:
    """What the libraries share: labels come out of the graph at the frames' size."""

    num_classes: int | None = None  # the graph hides them behind its ArgMax

    def finish(self, computed: Any, frames_bgr: Sequence[Array]) -> list[Array]:
        return list(computed)

    def labels_and_scores(self, frame_bgr: Array) -> tuple[Array, Array | None]:
        raise NotImplementedError("only labels are compared here")

    def close(self) -> None:
        pass


class OrtSession(_Library):
    """ONNX Runtime on the CPU: a session with default optimisations, and OpenCV's blob."""

    def __init__(self, graph: Path, *, precision: str, threads: int) -> None:
        onnxruntime = import_onnxruntime()
        _require(precision == "fp32", f"ONNX Runtime has no {precision} on the CPU")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            str(graph), options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name

    def prepare(self, frames_bgr: Sequence[Array]) -> Any:
        return _blob(frames_bgr)

    def compute(self, prepared: Any) -> Any:
        return self._session.run(None, {self._input: prepared})[0]


class OpenCv(_Library):
    """OpenCV's own dnn module: readNetFromONNX, blobFromImages, forward.

    Its importer takes `HardSigmoid(x) * y` for HardSwish whatever `y` is, and then computes
    `HardSwish(x)`. `with_gates_apart` keeps it from that.
    """

    def __init__(self, graph: Path, *, precision: str, threads: int) -> None:
        import cv2

        _require(precision == "fp32", f"OpenCV's dnn has no {precision} on the CPU")
        cv2.setNumThreads(threads)
        self._net = cv2.dnn.readNetFromONNX(np.frombuffer(with_gates_apart(graph), np.uint8))

    def prepare(self, frames_bgr: Sequence[Array]) -> Any:
        return _blob(frames_bgr)

    def compute(self, prepared: Any) -> Any:
        self._net.setInput(prepared)
        return self._net.forward()

    def finish(self, computed: Any, frames_bgr: Sequence[Array]) -> list[Array]:
        return list(computed.astype(np.uint8))  # it gives class ids as floats


class OpenVino(_Library):
    """OpenVINO: PrePostProcessor takes the uint8 frame, compiled for latency."""

    def __init__(self, graph: Path, *, precision: str, threads: int) -> None:
        openvino = import_openvino()
        core = openvino.Core()
        model = self._with_preprocessing(openvino, core.read_model(graph))
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
            "INFERENCE_NUM_THREADS": threads,
        }
        self._request = core.compile_model(model, "CPU", config).create_infer_request()
        self._tensor = openvino.Tensor

    def prepare(self, frames_bgr: Sequence[Array]) -> Any:
        if len(frames_bgr) == 1:
            return np.ascontiguousarray(frames_bgr[0])[None]
        return np.stack(frames_bgr)

    def compute(self, prepared: Any) -> Any:
        tensor = self._tensor(prepared, shared_memory=True)
        # nothing is copied: the labels are good until the next call
        return self._request.infer([tensor], share_outputs=True)[0]

    @staticmethod
    def _with_preprocessing(openvino: Any, model: Any) -> Any:
        steps = openvino.preprocess
        chain = steps.PrePostProcessor(model)
        tensor = chain.input().tensor()
        tensor.set_element_type(openvino.Type.u8)
        tensor.set_layout(openvino.Layout("NHWC"))
        tensor.set_color_format(steps.ColorFormat.BGR)
        conversion = chain.input().preprocess()
        conversion.convert_element_type(openvino.Type.f32)
        conversion.convert_color(steps.ColorFormat.RGB)
        conversion.mean(_MEAN_255).scale(_STD_255)
        chain.input().model().set_layout(openvino.Layout("NCHW"))
        return chain.build()


LIBRARIES: dict[str, Callable[..., Network]] = {
    "ONNX Runtime": OrtSession,
    "OpenVINO": OpenVino,
    "OpenCV dnn": OpenCv,
}


def with_gates_apart(graph: Path) -> bytes:
    """Put an Identity behind each HardSigmoid that gates another tensor than its own input.

    These are the gates of squeeze-and-excitation blocks. The graph computes what it did before.
    """
    import onnx

    model = onnx.load(graph)
    sources = {node.output[0]: node for node in model.graph.node if node.op_type == "HardSigmoid"}
    gates = set()
    for node in model.graph.node:
        if node.op_type == "Mul":
            for gate, gated in (node.input, reversed(node.input)):
                if gate in sources and sources[gate].input[0] != gated:
                    gates.add(gate)
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.output[0] in gates:
            apart = f"{node.output[0]}_apart"
            nodes.append(onnx.helper.make_node("Identity", [apart], [node.output[0]]))
            node.output[0] = apart
    ordered = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(ordered)
    data: bytes = model.SerializeToString()
    return data


def _blob(frames_bgr: Sequence[Array]) -> Array:
    """Normalise as OpenCV's users do: float32 [N, 3, H, W], RGB."""
    import cv2

    blob: Array = cv2.dnn.blobFromImages(list(frames_bgr), 1.0, mean=_MEAN_255, swapRB=True)
    for channel, deviation in enumerate(_STD_255):
        blob[:, channel] /= np.float32(deviation)
    return blob


def _require(able: bool, otherwise: str) -> None:
    if not able:
        raise ValueError(otherwise)
