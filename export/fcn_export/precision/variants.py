"""Make the graphs of an artifact: the verified one, and one for each other precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import cast

from fcn_deploy.names import Precision
from fcn_deploy.opening.choose import graph_precision
from fcn_export.staged import GraphVariant, VariantInputs

__all__ = ["make_variants"]

_VariantBuilder = Callable[[VariantInputs], GraphVariant]

# fp32 is the verified graph itself; bf16 has no file, backends compute in it from fp32's
_BUILDERS: Mapping[Precision, tuple[str, str]] = {
    Precision.FP16: ("fcn_export.precision.fp16", "make_fp16"),
    Precision.INT8: ("fcn_export.precision.int8", "make_int8"),
}


def make_variants(
    inputs: VariantInputs, precisions: Sequence[Precision]
) -> tuple[GraphVariant, ...]:
    """Make every graph that was asked for, the verified one first.

    Raises:
        ExportError: one cannot be made as asked.
    """
    variants = [GraphVariant(Precision.FP32, inputs.staged.file)]
    for precision in precisions:
        if graph_precision(precision) is Precision.FP32:
            continue
        with inputs.steps.step(str(precision)):
            variants.append(_builder(precision)(inputs))
    return tuple(variants)


def _builder(precision: Precision) -> _VariantBuilder:
    module, function = _BUILDERS[precision]
    return cast(_VariantBuilder, getattr(import_module(module), function))
