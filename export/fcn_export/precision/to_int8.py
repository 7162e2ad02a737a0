"""Make the INT8 graph of a network: fold, place, quantise the weights, write Q/DQ."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from fcn_deploy.errors import UnsupportedModelError
from fcn_deploy.names import Array
from fcn_export.onnx_values import array_of, name_of, take_proto
from fcn_export.precision.calibration_table import CalibrationTable
from fcn_export.precision.passes.fold_batch_norm import FoldBatchNorm
from fcn_export.precision.passes.insert_qdq import InsertQdq
from fcn_export.precision.passes.int8_weights import (
    MAX_SCALE,
    MIN_SCALE,
    QuantizedWeight,
    quantize_weight,
)
from fcn_export.precision.passes.name_nodes import NameNodes
from fcn_export.precision.place_qdq import Placement, place_qdq, quantizable_nodes
from fcn_export.precision.thresholds import Method

if TYPE_CHECKING:
    import onnx

__all__ = ["Int8Builder", "Int8Graph", "prepare"]

_LEVELS = 127


@dataclass(frozen=True, slots=True)
class Int8Graph:
    """A graph with Q/DQ.

    Attributes:
        quantized: convolutions that compute in int8.
        kept: convolutions that compute in float, with the reason; `asked` where the caller did.
    """

    asked: ClassVar[str] = "kept in fp32 as asked"

    model: onnx.ModelProto = field(repr=False)
    quantized: tuple[str, ...]
    kept: Mapping[str, str]


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Give a float32 graph made ready: nodes named, normalisations folded.

    Args:
        model: not modified.

    Raises:
        UnsupportedModelError: nothing in it can be quantised.
    """
    ready = ir.from_proto(model)  # the weights are shared
    for change in (NameNodes(), FoldBatchNorm(into_convolutions=True), RemoveUnusedNodesPass()):
        change(ready)
    if not quantizable_nodes(ready.graph):
        raise UnsupportedModelError(
            "the graph has no convolution with constant weights: there is nothing to quantise.",
            hint="Export it without int8.",
        )
    return take_proto(ready)


class Int8Builder:
    """Makes INT8 graphs of one network that differ in what stays float; weights are kept.

    Args:
        model: as `prepare` gives it; not modified.
        table: calibrated on that very model.

    Attributes:
        graph: of the model, to look at.
        nodes: names of the convolutions that can be quantised.
    """

    def __init__(self, model: onnx.ModelProto, table: CalibrationTable) -> None:
        self.model = model
        self.table = table
        self._model = ir.from_proto(model)  # its weights are shared with all that are built
        self.graph = self._model.graph
        self.nodes = quantizable_nodes(self.graph)
        self._nodes = {name_of(node): node for node in self.graph}
        self._weights: dict[str, QuantizedWeight | None] = {}

    def build(self, *, method: Method, keep_float: Collection[str] = ()) -> Int8Graph:
        """Make the graph.

        Args:
            method: of the thresholds.
            keep_float: names of convolutions to leave in float. Others stay float where the scale
                of what they read would be no normal FP16 number; the result says so.

        Raises:
            ValueError: `keep_float` names what is no convolution of `nodes`.
        """
        unknown = sorted(set(keep_float) - set(self.nodes))
        if unknown:
            raise ValueError(f"{unknown} are no convolutions that could be quantised")
        kept = dict.fromkeys((name for name in self.nodes if name in keep_float), Int8Graph.asked)
        kept |= {name: reason for name, reason in self._unfit_weights().items() if name not in kept}
        placement, thresholds = self._place(kept, method)
        weights = {name: self._weight(name) for name in placement.weights}
        insert = InsertQdq(
            placement.edges,
            thresholds=thresholds,
            weights={name: weight for name, weight in weights.items() if weight is not None},
        )
        built = insert(self._model.clone()).model
        return Int8Graph(take_proto(built), tuple(placement.weights), placement.kept)

    def work(self, name: str) -> float:
        """Give the multiply-adds of a convolution at the largest calibration image."""
        node = self._nodes[name]
        shape = self._constant(node).shape
        groups = node.attributes.get_int("group", 1)
        # of Conv, weights are [C_out, C_in / groups, ...]; of ConvTranspose, [C_in, ...]
        inputs = shape[1] if node.op_type == "Conv" else shape[0] // groups
        return float(self.table.outputs.get(name, 0) * inputs * np.prod(shape[2:]))

    def _place(self, kept: Mapping[str, str], method: Method) -> tuple[Placement, dict[str, float]]:
        """Place, and place again without the convolutions whose input has no usable scale."""
        reasons = dict(kept)
        while True:
            placement = place_qdq(self.graph, keep_float=reasons)
            thresholds = {
                name: self._threshold(placement, name, method) for name in placement.edges
            }
            unfit = {
                name: value
                for name, value in thresholds.items()
                if not MIN_SCALE <= value / _LEVELS <= MAX_SCALE
            }
            readers = {
                node: f"its input is within {value:.2g}, which no FP16 scale spans"
                for name, value in unfit.items()
                for node, _ in placement.edges[name]
                if node in placement.weights
            }
            if not readers:
                edges = {n: edge for n, edge in placement.edges.items() if n not in unfit}
                return replace(placement, edges=edges), thresholds
            reasons |= readers

    def _threshold(self, placement: Placement, name: str, method: Method) -> float:
        """Give the one threshold of all tensors that share a scale; 0 where all are 0."""
        group = placement.groups[name]
        return max(
            (
                self.table.tensors[member][method]
                for member in group
                if member in self.table.tensors
            ),
            default=0.0,
        )

    def _unfit_weights(self) -> dict[str, str]:
        return {
            name: "its weights are too large for FP16 scales"
            for name in self.nodes
            if self._weight(name) is None
        }

    def _weight(self, name: str) -> QuantizedWeight | None:
        if name not in self._weights:
            node = self._nodes[name]
            self._weights[name] = quantize_weight(
                self._constant(node),
                axis=0 if node.op_type == "Conv" else 1,
                groups=node.attributes.get_int("group", 1),
            )
        return self._weights[name]

    def _constant(self, node: ir.Node) -> Array:
        weight = array_of(node.inputs[1])
        if weight is None:
            raise ValueError(f"the weights of '{node.name}' are no constant")
        return weight
