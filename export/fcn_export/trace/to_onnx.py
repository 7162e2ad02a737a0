"""nn.Module to one ONNX graph with dynamic batch, height and width."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
from torch import nn

from fcn_deploy.errors import UnsupportedModelError
from fcn_export.graph_spec import INPUT_NAME, GraphSpec
from fcn_export.onnx_values import standard_opset, take_proto
from fcn_export.trace.adaptive_pooling import FollowingPools
from fcn_export.trace.argmax_head import FrameNetwork
from fcn_export.trace.exporter_messages import quiet_exporters
from fcn_export.trace.finish import FinishGraph, fixed_dims

if TYPE_CHECKING:
    import onnx

__all__ = ["EXPORTERS", "TracedGraph", "example_size", "trace"]

log = logging.getLogger(__name__)

_TRACED_BATCH = 2  # torch.export freezes dimensions whose example is 1
_TORCHSCRIPT_MAX_OPSET = 20
# what torch's exporters raise for a model that they cannot take; RuntimeError covers their own
_FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)


@dataclass(frozen=True, slots=True)
class TracedGraph:
    """An ONNX graph as an exporter gave it, with our names.

    Attributes:
        exporter: ``"dynamo"``, ``"dynamo-strict"`` or ``"torchscript"``.
        opset: that the graph is written in; lower than asked for with ``"torchscript"``.
        note: why not the first exporter; None where it was.
        fixed: sizes that ended up as constants in the input's shape, by dimension name.
    """

    model: onnx.ModelProto
    exporter: str
    opset: int
    note: str | None = None
    fixed: tuple[tuple[str, int], ...] = ()


def example_size(spec: GraphSpec, *, variation: int = 0) -> tuple[int, int]:
    """Choose the (height, width) in px to trace at: unequal, and odd multiples of the rule's step.

    Sizes with a special form (powers of two, equal sides) would let the tracer see equalities
    that do not hold in general.

    Args:
        variation: 1 gives another such size, to compare two traces.
    """
    _, height, width = spec.fixed
    if height is not None and width is not None:
        return height, width
    step = spec.multiple_of
    least = max(3, -(-max(*spec.min_size, 96) // step))
    height, width = (least | 1) + 10 // step, (least | 1) + 52 // step + 2
    return (height | 1) * step + 4 * variation * step, (width | 1) * step + 6 * variation * step


def trace(
    network: nn.Module,
    spec: GraphSpec,
    *,
    size: tuple[int, int] | None = None,
    exporters: Sequence[str] | None = None,
    on_attempt: Callable[[str], None] = lambda text: None,
) -> TracedGraph:
    """Export `network`, in the state that it is in, with preprocessing and head.

    Tries torch.export, then torch.export through bytecode (which follows sizes made `int`), then
    the TorchScript tracer, and takes the first that leaves batch, height and width dynamic.

    Args:
        network: in evaluation mode, on the CPU, float32 (see `borrowed`).
        size: (height, width) in px to trace at; None means `example_size(spec)`.
        exporters: to try, in this order; None means all, as above.
        on_attempt: told which exporter works, at which size, before each that is tried.

    Raises:
        UnsupportedModelError: no exporter takes the model; the first one's error is chained.
    """
    module = FrameNetwork(network, spec)
    module.eval()
    height, width = size or example_size(spec)
    image = torch.zeros(_TRACED_BATCH, height, width, 3, dtype=torch.uint8)
    image[:, ::2, ::3] = 200
    failures: list[BaseException] = []
    bound: TracedGraph | None = None
    if exporters is None:
        exporters = ("torchscript",) if _is_scripted(module) else tuple(EXPORTERS)
    for name in exporters:
        on_attempt(f"{name}, at {height}x{width} px")
        try:
            with quiet_exporters(), torch.no_grad(), FollowingPools():
                model = EXPORTERS[name](module, image, spec)
        except _FAILURES as error:
            log.debug("exporter %s failed", name, exc_info=True)
            failures.append(error)
            continue
        opset = standard_opset(model)
        fixed = tuple(dim for dim in fixed_dims(model) if dim[0] not in _dims_meant_fixed(spec))
        FinishGraph(spec)(model)
        graph = TracedGraph(take_proto(model), name, opset, _note(failures, bound), fixed)
        if not fixed:
            return graph
        bound = bound or graph
    if bound is not None:
        return bound
    raise UnsupportedModelError(
        f"torch cannot export this model to ONNX: {_root_cause(failures[0])}",
        hint="Run again with --debug for torch's own account; the line of the model that it names "
        "has to change.",
    ) from failures[0]


def _export_dynamo(module: FrameNetwork, image: torch.Tensor, spec: GraphSpec) -> ir.Model:
    if _dims_meant_fixed(spec):
        return _to_onnx(module, image, spec, dynamic_shapes=({0: torch.export.Dim("N")},))
    step = spec.multiple_of
    # a lower bound, as sizes at which a feature map is one pixel wide are a case of their own
    least_height, least_width = (max(2, least // step) for least in spec.min_size)
    if step == 1:
        height = torch.export.Dim("H", min=least_height)
        width = torch.export.Dim("W", min=least_width)
    else:
        height = step * torch.export.Dim("h", min=least_height)
        width = step * torch.export.Dim("w", min=least_width)
    dims = {0: torch.export.Dim("N"), 1: height, 2: width}
    return _to_onnx(module, image, spec, dynamic_shapes=(dims,))


def _export_dynamo_strict(module: FrameNetwork, image: torch.Tensor, spec: GraphSpec) -> ir.Model:
    free = torch.export.Dim.AUTO
    axes = (0,) if _dims_meant_fixed(spec) else (0, 1, 2)
    program = torch.export.export(
        module, (image,), dynamic_shapes=(dict.fromkeys(axes, free),), strict=True
    )
    return _to_onnx(program, None, spec)


def _to_onnx(module: Any, image: torch.Tensor | None, spec: GraphSpec, **options: Any) -> ir.Model:
    program = torch.onnx.export(
        module,
        () if image is None else (image,),
        dynamo=True,
        opset_version=spec.opset,
        input_names=[INPUT_NAME],
        output_names=[output.name for output in spec.outputs],
        verbose=False,
        **options,
    )
    if program is None:  # only with a file name, which is not given
        raise RuntimeError("torch.onnx.export gave no program")
    model: ir.Model = program.model  # its weights are the network's own
    return model


def _export_torchscript(module: FrameNetwork, image: torch.Tensor, spec: GraphSpec) -> ir.Model:
    import onnx

    axes = {0: "N"} if _dims_meant_fixed(spec) else {0: "N", 1: "H", 2: "W"}
    module.for_torchscript = True
    traced: nn.Module = module
    if _is_scripted(module):  # the exporter's own tracer takes no scripted parts; jit.trace does
        traced = torch.jit.trace(module, image, check_trace=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "traced.onnx"
        torch.onnx.export(
            traced,
            (image,),
            path,
            dynamo=False,
            opset_version=min(spec.opset, _TORCHSCRIPT_MAX_OPSET),
            input_names=[INPUT_NAME],
            output_names=[output.name for output in spec.outputs],
            dynamic_axes={INPUT_NAME: axes},
        )
        return ir.from_proto(onnx.load_model(path))


EXPORTERS: dict[str, Callable[[FrameNetwork, torch.Tensor, GraphSpec], ir.Model]] = {
    "dynamo": _export_dynamo,
    "dynamo-strict": _export_dynamo_strict,
    "torchscript": _export_torchscript,
}
"""torch's exporters by name, in the order in which they are tried."""


def _dims_meant_fixed(spec: GraphSpec) -> tuple[str, ...]:
    """Name the dimensions that are to be constants, of a network that takes one size."""
    return () if spec.fixed[1] is None else ("H", "W")


def _is_scripted(module: nn.Module) -> bool:
    return any(isinstance(part, torch.jit.ScriptModule) for part in module.modules())


def _note(failures: list[BaseException], bound: TracedGraph | None) -> str | None:
    if bound is not None:
        sizes = ", ".join(f"{name}={value}" for name, value in bound.fixed)
        return f"{bound.exporter} bound the graph to {sizes}"
    if failures:
        return f"dynamo failed: {_root_cause(failures[0])}"
    return None


def _root_cause(error: BaseException) -> str:
    """Give the line that says what is wrong: torch's exporter wraps the cause in advice."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0][:300]}" if lines else type(cause).__name__
