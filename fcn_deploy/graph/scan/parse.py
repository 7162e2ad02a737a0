"""A ModelProto as an OnnxGraph; constructs that no plain network needs are refused on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fcn_deploy.errors import ArtifactError, UnsupportedOpError, UntrustedArtifactError
from fcn_deploy.graph.scan.limits import ScanLimits
from fcn_deploy.graph.scan.onnx_graph import (
    GraphTensor,
    Node,
    OnnxGraph,
    StoredTensor,
)
from fcn_deploy.graph.scan.operators import required_inputs
from fcn_deploy.graph.scan.parts import PartsParser, standard_domain
from fcn_deploy.graph.scan.schema import (
    GRAPH,
    IR_VERSION,
    MODEL,
    OPSET,
)
from fcn_deploy.graph.scan.tensor import shown
from fcn_deploy.graph.scan.wire import Reader, Span

__all__ = ["make_reader", "parse_model"]

_MAX_OPSET = 1000
"""OpenVINO 2026.4.1 counts down from a file's number to the one it knows: minutes from 2^31."""


def parse_model(data: bytes | memoryview, *, name: str, limits: ScanLimits) -> OnnxGraph:
    """Read the graph; nothing outside the file is looked at.

    Raises:
        ArtifactError: the bytes are not a valid model.
        UntrustedArtifactError: it is larger than a network needs to be, or holds sparse tensors.
        UnsupportedOpError: it holds functions, control flow, sequences, or foreign operators.
    """
    view = memoryview(data).cast("B")
    if len(view) > limits.max_bytes:
        raise ArtifactError(
            f"{name} has {len(view)} bytes; at most {limits.max_bytes} can be one ONNX file.",
            hint="Keep large weights as external data.",
        )
    reader = make_reader(view, name=name, limits=limits)
    return _ModelParser(reader, limits, PartsParser(reader, limits)).model()


def make_reader(data: bytes | memoryview, *, name: str, limits: ScanLimits) -> Reader:
    """Give a reader of a whole file; only of one newer than the tables it skips what they lack."""

    def make(skip_unknown: bool) -> Reader:
        return Reader(
            memoryview(data),
            name=name,
            max_fields=limits.max_fields,
            max_depth=limits.max_depth,
            skip_unknown=skip_unknown,
        )

    fields = make(True).fields(MODEL, ((0, len(data)),))
    versions = [value for field, value in fields if field == "ir_version"]
    return make(bool(versions) and versions[-1] > IR_VERSION)


@dataclass(slots=True)
class _GraphParts:
    inputs: list[GraphTensor] = field(default_factory=list)
    outputs: list[GraphTensor] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    initializers: dict[str, StoredTensor] = field(default_factory=dict)
    value_infos: dict[str, GraphTensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _ModelParser:
    reader: Reader
    limits: ScanLimits
    parts: PartsParser

    def model(self) -> OnnxGraph:
        ir_version = 0
        opsets: dict[str, int] = {}
        graph_spans: list[Span] = []
        for name, value in self.reader.fields(MODEL, ((0, len(self.reader.data)),)):
            if name == "ir_version":
                ir_version = value
            elif name == "opset_import":
                domain, version = self._opset(value)
                if opsets.setdefault(domain, version) != version:
                    raise self.parts.invalid(
                        f"imports two versions of the operators {shown(domain)}"
                    )
            elif name == "graph":
                graph_spans.append(value)
            elif name == "functions":
                raise UnsupportedOpError(
                    f"{self.reader.name} defines local functions.",
                    hint="Inline them: onnx.inliner.inline_local_functions(model).",
                )
            elif name == "training_info":
                raise UnsupportedOpError(f"{self.reader.name} holds a training graph.")
            else:
                self.parts.check_form(MODEL, name, value)
        if not graph_spans:
            raise self.parts.invalid("holds no graph", "It may be cut, or not an ONNX file at all.")
        if not 1 <= opsets.get("", 0) <= _MAX_OPSET:
            raise self.parts.invalid(
                f"has the opset {opsets.get('', 'of no standard operator')}; "
                f"expected 1..{_MAX_OPSET}"
            )
        return self._graph(graph_spans, ir_version, opsets[""])

    def _opset(self, span: Span) -> tuple[str, int]:
        entry: dict[str, Any] = {"domain": "", "version": 0}
        entry.update(self.reader.fields(OPSET, (span,)))
        return standard_domain(entry["domain"]), entry["version"]

    def _graph(self, spans: list[Span], ir_version: int, opset: int) -> OnnxGraph:
        found = _GraphParts()
        for name, value in self.reader.fields(GRAPH, spans):
            if name == "node":
                if len(found.nodes) >= self.limits.max_nodes:
                    raise UntrustedArtifactError(
                        f"{self.reader.name} has more than {self.limits.max_nodes} nodes."
                    )
                found.nodes.append(self.parts.node(value))
            elif name == "initializer":
                tensor = self.parts.tensor([value], "the graph")
                if not tensor.name or tensor.name in found.initializers:
                    raise self.parts.invalid(
                        f"has two initializers named {shown(tensor.name)}, or none"
                    )
                found.initializers[tensor.name] = tensor
            elif name == "input":
                found.inputs.append(self.parts.value_info(value))
            elif name == "output":
                found.outputs.append(self.parts.value_info(value))
            elif name == "value_info":
                described = self.parts.value_info(value)
                found.value_infos[described.name] = described
            elif name == "sparse_initializer":
                raise UntrustedArtifactError(
                    f"{self.reader.name} has a sparse initializer, which can grow without bound "
                    "when it is loaded.",
                    hint="Store it as a dense tensor.",
                )
            else:
                self.parts.check_form(GRAPH, name, value)
        self._check_names(found)
        for node in found.nodes:
            required = required_inputs(node.op_type, len(node.inputs), opset)
            if not all(node.inputs[:required]) or len(node.inputs) < required:
                raise self.parts.invalid(
                    f"has the node {node.label} ({shown(node.op_type)}) with the inputs "
                    f"{[shown(name) for name in node.inputs[:8]]}; in opset {opset} it takes "
                    f"{required} or more"
                )
        inputs = tuple(t for t in found.inputs if t.name not in found.initializers)
        return OnnxGraph(
            ir_version=ir_version,
            opset=opset,
            inputs=inputs,
            outputs=tuple(found.outputs),
            nodes=tuple(found.nodes),
            initializers=found.initializers,
            value_infos=found.value_infos,
        )

    def _check_names(self, found: _GraphParts) -> None:
        """Each tensor is made once, before it is read."""
        known = set(found.initializers)
        seen_inputs: set[str] = set()
        for tensor in found.inputs:
            if not tensor.name or tensor.name in seen_inputs:
                raise self.parts.invalid(
                    f"has two inputs named {shown(tensor.name)}, or one unnamed"
                )
            seen_inputs.add(tensor.name)
        known |= seen_inputs
        for node in found.nodes:
            for name in node.inputs:
                if name and name not in known:
                    raise self.parts.invalid(
                        f"has the node {node.label} ({shown(node.op_type)}) that reads "
                        f"{shown(name)}, which nothing before it gives"
                    )
            for name in node.outputs:
                if name and name in known:
                    raise self.parts.invalid(f"makes the tensor {shown(name)} twice")
                known.add(name)
        names = [tensor.name for tensor in found.outputs]
        if not names or len(set(names)) < len(names):
            raise self.parts.invalid("has no output, or one twice")
        for name in names:
            if not name or name not in known:
                raise self.parts.invalid(f"has the output {shown(name)}, which nothing gives")
