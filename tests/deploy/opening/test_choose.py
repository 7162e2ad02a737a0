"""What `auto` takes where nothing was measured here: by the CPU and by what export measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fcn_deploy.artifact.manifest import Fidelity, Variant
from fcn_deploy.machine import CpuAbilities
from fcn_deploy.names import Precision
from fcn_deploy.opening.choose import choose_precision
from tests.deploy.manifests import MANIFEST

pytestmark = pytest.mark.cpu_abilities


class Cpu:
    """A backend as far as the choice looks at it."""

    name = "openvino"
    suffixes = (".onnx",)

    def __init__(self, *precisions: Precision) -> None:
        self._precisions = precisions

    def precisions(self) -> tuple[Precision, ...]:
        return self._precisions


@pytest.mark.parametrize(
    ("agreement", "able", "chosen", "why"),
    [
        (0.9995, True, Precision.BF16, "kept 99.95"),
        (0.9985, True, Precision.FP32, "kept 99.85"),
        (None, True, Precision.FP32, "not measured"),
        (0.9995, False, Precision.FP32, "no bf16 on this CPU"),
    ],
)
def test_auto_takes_bf16_only_where_labels_were_measured_to_stay(
    agreement: float | None, able: bool, chosen: Precision, why: str
) -> None:
    fidelity = () if agreement is None else (Fidelity("openvino", Precision.BF16, agreement, 0.0),)
    manifest = replace(MANIFEST, variants=(replace(MANIFEST.variants[0], fidelity=fidelity),))
    backend: Any = Cpu(Precision.FP32, *([Precision.BF16] if able else []))

    precision, reason = choose_precision("auto", backend, manifest)

    assert precision is chosen
    assert why in reason


@pytest.mark.parametrize(
    ("agreement", "instructions", "chosen", "why"),
    [
        (0.9995, True, Precision.INT8, "int8 kept 99.95"),
        (0.9985, True, Precision.FP32, "int8 kept 99.85"),
        (0.9995, False, Precision.FP32, "no instructions for int8"),
        (None, True, Precision.FP32, "no int8 graph"),
    ],
)
def test_auto_takes_int8_only_where_the_cpu_is_made_for_it_and_labels_stay(
    agreement: float | None,
    instructions: bool,
    chosen: Precision,
    why: str,
    set_cpu: Callable[[CpuAbilities], None],
) -> None:
    set_cpu(CpuAbilities(bf16=False, int8=instructions))
    variants = MANIFEST.variants[:1]
    if agreement is not None:
        fidelity = (Fidelity("openvino", Precision.INT8, agreement, 0.0),)
        variants = (*variants, Variant("model.int8.onnx", Precision.INT8, fidelity=fidelity))
    backend: Any = Cpu(Precision.FP32, Precision.INT8)

    precision, reason = choose_precision("auto", backend, replace(MANIFEST, variants=variants))

    assert precision is chosen
    assert why in reason
    assert "openvino has no bf16 on this CPU" in reason or precision is Precision.INT8
