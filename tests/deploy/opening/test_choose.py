"""What `auto` takes where nothing was measured here: by the CPU and by what export measured."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from fcn_deploy.artifact.manifest import Fidelity, Manifest, Variant
from fcn_deploy.backends import get_backend
from fcn_deploy.machine import CpuAbilities
from fcn_deploy.names import Precision
from fcn_deploy.opening.choose import choose_backend, choose_precision, shortfall
from tests.deploy.manifests import MANIFEST

pytestmark = pytest.mark.cpu_abilities


def measured(precision: Precision, agreement: float, **figures: Any) -> Fidelity:
    """What counts as evidence, unless figures say otherwise."""
    usual = {"worst_class_iou": 0.995, "images": 12, "pixels": 1_000_000}
    return Fidelity("openvino", precision, agreement, 0.0, **{**usual, **figures})


def holding(*fidelity: Fidelity) -> Manifest:
    return replace(MANIFEST, variants=(replace(MANIFEST.variants[0], fidelity=fidelity),))


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
    fidelity = () if agreement is None else (measured(Precision.BF16, agreement),)
    manifest = holding(*fidelity)
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
        fidelity = (measured(Precision.INT8, agreement),)
        variants = (*variants, Variant("model.int8.onnx", Precision.INT8, fidelity=fidelity))
    backend: Any = Cpu(Precision.FP32, Precision.INT8)

    precision, reason = choose_precision("auto", backend, replace(MANIFEST, variants=variants))

    assert precision is chosen
    assert why in reason
    assert "openvino has no bf16 on this CPU" in reason or precision is Precision.INT8


@pytest.mark.parametrize(
    ("figures", "why"),
    [
        (
            {"worst_class_iou": 0.769},
            r"IoU 0\.7690 of the worst class, on 12 images .*0\.99 needed",
        ),
        ({"images": 3}, r"on 3 natural images with more than one class \(4 needed: .*--samples"),
        ({"images": 0}, r"on no natural images .*fcn-export --samples PATH"),
        ({"worst_class_iou": None}, r"one class nearly alone \(fcn-export --samples PATH"),
    ],
)
def test_auto_stays_at_fp32_without_evidence_and_says_how_to_give_some(
    figures: dict[str, Any], why: str
) -> None:
    manifest = holding(measured(Precision.BF16, 1.0, **figures))
    backend: Any = Cpu(Precision.FP32, Precision.BF16)

    precision, reason = choose_precision("auto", backend, manifest)

    assert precision is Precision.FP32
    assert re.search(why, reason)


def test_what_earlier_releases_measured_is_no_evidence() -> None:
    old = Fidelity("openvino", Precision.BF16, 1.0, 0.0)

    assert "no natural images" in str(shortfall(old))


def test_auto_passes_a_backend_over_whose_fp32_is_not_pytorchs() -> None:
    off = measured(Precision.FP32, 0.97, status="differs", relative_score_error=0.025)

    backend, why = choose_backend("auto", ".onnx", manifest=holding(off))

    assert backend.name == "onnxruntime"
    assert "openvino's fp32 scores differ from PyTorch's by 2.50%" in why
    assert choose_backend("openvino", ".onnx", manifest=holding(off))[0].name == "openvino"


def test_auto_takes_a_backend_that_differs_where_no_other_is_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    off = measured(Precision.FP32, 0.97, status="broken", relative_score_error=0.4)
    monkeypatch.setattr(type(get_backend("onnxruntime")), "available", lambda self: False)

    backend, why = choose_backend("auto", ".onnx", manifest=holding(off))

    assert backend.name == "openvino"
    assert "no other backend is here" in why
