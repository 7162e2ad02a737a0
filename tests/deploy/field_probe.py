"""Which pixels a sample really depends on: found by changing the image and looking what changes."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from fcn_deploy.graph.receptive_field import ReceptiveField, Span, find_receptive_field
from fcn_deploy.graph.scan import scan_onnx

Array = npt.NDArray[Any]

OUTPUT = "out"


class Chain:
    """A graph of float images `image` [n, channels, H, W] that is written node by node."""

    def __init__(self, *, channels: int = 1, opset: int = 21, seed: int = 0) -> None:
        self.channels = channels
        self.opset = opset
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Add a node and give the name of its first output."""
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, **attributes))
        return names[0]

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def floats(self, *shape: int) -> str:
        """Give random weights, none of them near 0."""
        values = self.random.uniform(0.5, 1.5, shape) * self.random.choice([-1, 1], shape)
        return self.constant(values.astype(np.float32))

    def conv(self, source: str, kernel: tuple[int, int], **attributes: Any) -> str:
        return self.add("Conv", source, self.floats(1, 1, *kernel), **attributes)

    def model(self, output: str) -> bytes:
        """End the graph with a tensor, which is named `OUTPUT`."""
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [OUTPUT if name == output else name for name in names]
        graph = helper.make_graph(
            self.nodes,
            "probed",
            [
                helper.make_tensor_value_info(
                    "image", TensorProto.FLOAT, ["n", self.channels, "h", "w"]
                )
            ],
            [onnx.ValueInfoProto(name=OUTPUT)],
            self.constants,
        )
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        model = onnx.shape_inference.infer_shapes(
            helper.make_model(graph, opset_imports=opsets, ir_version=10)
        )
        return bytes(model.SerializeToString())


def field_of(model: bytes) -> ReceptiveField | str:
    return find_receptive_field(scan_onnx(model), OUTPUT)


def _runs(model: bytes, images: list[Array]) -> list[Array]:
    """Run images one by one: some operators mix those of a batch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return [session.run(None, {"image": image})[0] for image in images]


def probe(
    model: bytes, size: tuple[int, int], *, channels: int = 1, axes: tuple[int, int] = (2, 3)
) -> tuple[Array, Array]:
    """Change one row, then one column of an image at a time, and see which samples change.

    Args:
        axes: of the output, that run along the image's rows and columns.

    Returns:
        bool [samples, pixels] for rows and for columns: whether the sample depends on the pixels.
    """
    random = np.random.default_rng(1)
    image = random.uniform(0.5, 1.5, (1, channels, *size)).astype(np.float32)
    found = []
    for axis in (0, 1):
        changed = [image]
        for pixel in range(size[axis]):
            for amount in (-10, -1, 1, 10):  # a large value wins a maximum, a small one a minimum
                one = image.copy()
                line = one[:, :, pixel] if axis == 0 else one[:, :, :, pixel]
                line += amount * random.uniform(0.5, 1, line.shape).astype(np.float32)
                changed.append(one)
        outputs = np.concatenate(_runs(model, changed))
        # libraries round the last values of an array in another way than the others
        differs = ~np.isclose(outputs, outputs[:1], rtol=1e-4, atol=1e-5, equal_nan=True)
        others = tuple(i for i in range(1, outputs.ndim) if i != axes[axis])
        by_sample = differs.any(axis=others)[1:].reshape(size[axis], 4, -1).any(axis=1)
        found.append(by_sample.T)
    return found[0], found[1]


def predicted(span: Span, samples: int, pixels: int) -> Array:
    """Give what a span says, as `probe` does."""
    at, i = np.arange(pixels), np.arange(samples)[:, None]
    # fractions are compared exactly: all in units of the smallest
    unit = np.lcm.reduce([one.denominator for one in (span.stride, span.low, span.high)])
    stride, low, high = (int(one * unit) for one in (span.stride, span.low, span.high))
    seen: Array = (at * unit >= stride * i + low) & (at * unit <= stride * i + high)
    return seen


def reach(span: Span, depends: Array) -> tuple[Fraction, Fraction]:
    """Give the lowest and highest offset from stride * i of a pixel that sample i depends on.

    Of samples that lie so far inside that the span is whole.
    """
    samples, pixels = depends.shape
    offsets: list[Fraction] = []
    for i in range(samples):
        if span.stride * i + span.low >= 0 and span.stride * i + span.high < pixels:
            offsets += [pixel - span.stride * i for pixel in np.flatnonzero(depends[i]).tolist()]
    return min(offsets), max(offsets)
