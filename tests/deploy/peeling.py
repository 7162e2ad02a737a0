"""Segmentation graphs with tails of every kind, and the comparison of peeled with whole runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from fcn_deploy.names import Array
from fcn_deploy.segmenter import Segmenter
from tests.deploy.interpolation import interpolate

SIZES = ((33, 47), (64, 48), (9, 50), (4, 4))
"""(height, width) of frames in px, none of them seen by an exporter."""


class GraphBuilder:
    """A small network, `image` -> `scores` at 1/stride, to which a test adds a tail.

    Attributes:
        image: name of the input.
        nchw: the image as the network's first convolution takes it.
        scores: name of the class scores, [N, classes, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(
        self,
        *,
        classes: int = 4,
        stride: int = 4,
        opset: int = 17,
        uint8: bool = False,
        size: tuple[int | str, int | str] = ("h", "w"),
        batch: int | str = "n",
    ) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        random = np.random.default_rng(11)
        self.image = "image"
        kind, shape = TensorProto.FLOAT, [batch, 3, *size]
        if uint8:
            kind, shape = TensorProto.UINT8, [batch, *size, 3]
        self._input = helper.make_tensor_value_info("image", kind, shape)
        self.nchw = self.image
        if uint8:
            mean = self.constant(np.full(3, 120, np.float32))
            std = self.constant(np.full((1, 1, 3), 60, np.float32))
            less = self.add("Sub", self.add("Cast", self.image, to=TensorProto.FLOAT), mean)
            flipped = self.add("Gather", less, self.constant([2, 1, 0]), axis=3)
            self.nchw = self.add("Transpose", self.add("Div", flipped, std), perm=[0, 3, 1, 2])
        first = self.constant(random.standard_normal((6, 3, 3, 3)).astype(np.float32) / 3)
        last = random.standard_normal((classes, 6, 1, 1)).astype(np.float32)
        last -= last.mean(0) if classes > 1 else 0
        self.features = self.add(
            "Relu", self.add("Conv", self.nchw, first, strides=[stride, stride], pads=[1] * 4)
        )
        self.scores = self.add("Conv", self.features, self.constant(last))

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and give the name of its output."""
        output = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(self, value: npt.ArrayLike) -> str:
        """Store a constant; integers as int64."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def shape_of(self, tensor: str, start: int, end: int) -> str:
        """Give sizes `start` to `end` of a tensor by Shape and Slice, which all opsets have."""
        bounds = [self.constant([number]) for number in (start, end, 0)]
        return self.add("Slice", self.add("Shape", tensor), *bounds)

    def sizes(self, height_and_width: str = "", scores: str = "") -> str:
        """Give what Resize's fourth input takes: by default, the image's size."""
        if not height_and_width:
            height_and_width = self.shape_of(self.nchw, 2, 4)
        return self.add(
            "Concat", self.shape_of(scores or self.scores, 0, 2), height_and_width, axis=0
        )

    def upsample(self, scores: str = "", sizes: str = "", **attributes: Any) -> str:
        """Add a bilinear Resize, by default of the scores to the image's size."""
        scores = scores or self.scores
        sizes = sizes or self.sizes(scores=scores)
        attributes = {"mode": "linear", **attributes}
        unused = [""] * 2
        if self.opset < 13:
            unused = [self.constant(np.zeros(0, np.float32)) for _ in range(2)]
        return self.add("Resize", scores, *unused, sizes, **attributes)

    def scale(self, scores: str, scales: Sequence[float], **attributes: Any) -> str:
        """Add a bilinear Resize by constant scales."""
        roi = "" if self.opset >= 13 else self.constant(np.zeros(0, np.float32))
        numbers = self.constant(np.array(scales, np.float32))
        return self.add("Resize", scores, roi, numbers, **{"mode": "linear", **attributes})

    def argmax(self, scores: str, **attributes: Any) -> str:
        """Add ArgMax over the channels."""
        return self.add("ArgMax", scores, **{"axis": 1, "keepdims": 0, **attributes})

    def build(self, output: str, *more: str, typed: bool = True) -> bytes:
        """Give the model that ends in these tensors; the first is the class map.

        Args:
            typed: find out the outputs' types, which onnx does in a time that can double with
                each node.
        """
        outputs = [onnx.ValueInfoProto(name=name) for name in (output, *more)]
        graph = helper.make_graph(self.nodes, "tail", [self._input], outputs, self.constants)
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        if not typed:
            return bytes(model.SerializeToString())
        # libraries want outputs with their types
        known = {
            value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.output
        }
        for value in model.graph.output:
            kind = known[value.name].type.tensor_type.elem_type
            value.CopyFrom(helper.make_tensor_value_info(value.name, kind, None))
        return bytes(model.SerializeToString())


def frame(size: tuple[int, int], seed: int = 0) -> Array:
    """Give a frame of soft blobs, uint8 [H, W, 3], on which small networks see several classes."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (7, 9, 3), np.uint8)
    return np.asarray(cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC))


@dataclass(frozen=True, slots=True)
class Agreement:
    """How the labels of a peeled run compare with those of the whole graph.

    Attributes:
        pixels: that were compared.
        ties: pixels with other labels whose scores are equal to within rounding.
        wrong: pixels with other labels whose scores are not.
        classes: how many there are in the labels: with one, nothing is proven.
    """

    pixels: int
    ties: int
    wrong: int
    classes: int


def compare(
    path: Path,
    *,
    backend: str,
    sizes: Sequence[tuple[int, int]] = SIZES,
    align_corners: bool = False,
    factors: tuple[int, int] | None = None,
    lead: tuple[float, float] = (0.0, 0.0),
    threshold: float = 0.0,
) -> Agreement:
    """Run a graph peeled and whole on frames of several sizes.

    Two scores tie where they differ by less than float32 can tell: coordinates of `w` samples are
    rounded by w / 2^24, weights and sums by a few units in the last place of the largest score.

    Args:
        align_corners, factors, lead, threshold: of the graph's tail, to compute the scores again.
    """
    pixels = ties = wrong = 0
    seen: set[int] = set()
    with (
        Segmenter.open(path, backend=backend, precision="fp32", num_threads=1) as peeled,
        Segmenter.open(path, backend=backend, precision="fp32", num_threads=1, peel=False) as whole,
    ):
        assert "peeled" in peeled.head, peeled.head
        assert whole.head == "in the graph, as it was asked for whole"
        for seed, size in enumerate(sizes):
            image = frame(size, seed)
            result, expected = peeled(image, scores=True), whole(image).labels
            assert result.scores is not None
            different = result.labels != expected
            low = result.scores
            if len(low) == 1:  # class 0 has the threshold as its score
                low = np.concatenate([np.full_like(low, threshold), low])
            scores = interpolate(
                low, size, align_corners=align_corners, factors=factors, lead=lead
            ).scores
            gap = np.abs(_picked(scores, result.labels) - _picked(scores, expected))
            tolerance = 2.0**-22 * max(*low.shape, 8) * max(1, float(np.abs(low).max()))
            pixels += expected.size
            ties += int((different & (gap <= tolerance)).sum())
            wrong += int((different & (gap > tolerance)).sum())
            seen |= set(np.unique(expected).tolist())
    return Agreement(pixels, ties, wrong, len(seen))


def _picked(scores: Array, labels: Array) -> Array:
    picked: Array = np.take_along_axis(scores, labels[np.newaxis].astype(np.intp), 0)[0]
    return picked
