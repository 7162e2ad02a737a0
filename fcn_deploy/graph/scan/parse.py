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
from fcn_deploy.graph.scan.operators import find_arity
from fcn_deploy.graph.scan.parts import PartsParser, standard_domain
from fcn_deploy.graph.scan.schema import (
    GRAPH,
    MAX_IR_VERSION,
    MAX_OPSET,
    MODEL,
    OPSET,
)
from fcn_deploy.graph.scan.tensor import shown
from fcn_deploy.graph.scan.wire import Reader, Span

__all__ = ["parse_model"]


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
    reader = Reader(view, name=name, max_fields=limits.max_fields, max_depth=limits.max_depth)
    return _ModelParser(reader, limits, PartsParser(reader, limits)).model()


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
        opset = self._versions(ir_version, opsets)
        return self._graph(graph_spans, ir_version, opset)

    def _opset(self, span: Span) -> tuple[str, int]:
        entry: dict[str, Any] = {"domain": "", "version": 0}
        entry.update(self.reader.fields(OPSET, (span,)))
        return standard_domain(entry["domain"]), entry["version"]

    def _versions(self, ir_version: int, opsets: dict[str, int]) -> int:
        if "" not in opsets:
            raise self.parts.invalid("does not say which version of the standard operators it uses")
        for what, found, newest in (
            ("IR version", ir_version, MAX_IR_VERSION),
            ("opset", opsets[""], MAX_OPSET),
        ):
            if not 1 <= found <= newest:
                raise UnsupportedOpError(
                    f"{self.reader.name} has {what} {found}; known are 1..{newest}.",
                    hint="Export it for an older opset, such as 21.",
                )
        return opsets[""]

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
            self._check_arity(node, opset)
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

    def _check_arity(self, node: Node, opset: int) -> None:
        arity = find_arity(node.op_type, opset)
        if arity is None:
            raise UnsupportedOpError(
                f"node {node.label} is {shown(node.op_type)}, which is no standard operator.",
                hint="Export the model without custom operators.",
            )
        given = len(node.inputs)
        required = given if arity.max_inputs is None else arity.min_inputs
        if node.op_type == "Resize":  # exporters leave out the region in opsets 11 and 12 too
            required = 1
        most = given if arity.max_inputs is None else arity.max_inputs
        outputs = len(node.outputs)
        if (
            not arity.min_inputs <= given <= most
            or not all(node.inputs[:required])
            or (arity.max_outputs is not None and outputs > arity.max_outputs)
        ):
            raise self.parts.invalid(
                f"has the node {node.label} ({node.op_type}) with {given} inputs "
                f"{[shown(name) for name in node.inputs[:8]]} and {outputs} outputs; in opset "
                f"{opset} it takes {arity.min_inputs} to {arity.max_inputs or 'any number'} and "
                f"gives at most {arity.max_outputs or 'any number'}"
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
