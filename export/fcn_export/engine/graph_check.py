"""Refuse a graph that would give a wrong plan or none, before TensorRT sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fcn_deploy.errors import BuildError, UnsupportedModelError, UnsupportedOpError

if TYPE_CHECKING:
    import onnx

__all__ = ["check_graph"]

_FP8_FROM = (8, 9)  # compute capability of the first GPUs with FP8 arithmetic (Ada)


def check_graph(model: onnx.ModelProto, targets: Sequence[str], *, name: str) -> None:
    """Look for what TensorRT refuses late, with an obscure message, or takes for something else.

    Args:
        targets: compute capabilities to build for; empty where they are not chosen.
        name: of the graph's file.

    Raises:
        UnsupportedOpError: a node that TensorRT cannot run, or would run wrongly; the first is
            named, and how many there are.
        BuildError: a target cannot compute in a type of the graph.
    """
    from fcn_export.precision.passes.lint import lint

    try:
        found = lint(model)
    except UnsupportedModelError as error:
        raise BuildError(f"'{name}': {error.message}", hint=error.hint) from error
    if found:
        more = f" ({len(found)} such faults in all)" if len(found) > 1 else ""
        raise UnsupportedOpError(f"TensorRT cannot build '{name}': {found[0]}{more}.")
    too_old = [target for target in targets if tuple(map(int, target.split("."))) < _FP8_FROM]
    if too_old and _has_fp8(model):
        raise BuildError(
            f"'{name}' has FP8 Q/DQ, which needs compute capability 8.9 or later; "
            f"{', '.join(too_old)} was asked for.",
            hint="Name later GPUs with --compute-capability, or quantise to INT8.",
        )


def _has_fp8(model: onnx.ModelProto) -> bool:
    import onnx_ir as ir

    from fcn_export.onnx_values import tensors_by_name
    from fcn_export.precision.passes.element_types import InferTypes

    typed = InferTypes()(ir.from_proto(model)).model
    fp8 = (ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2)
    return any(value.dtype in fp8 for value in tensors_by_name(typed.graph).values())
