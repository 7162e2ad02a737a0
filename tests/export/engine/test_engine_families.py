"""Every family of networks becomes a plan in every precision, for sizes from small to large."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.names import Precision
from fcn_export.engine import BuildConfig, BuiltPlan, build_engine, image_profile
from fcn_export.precision.uncalibrated import in_precision
from tests.export.engine_families import FAMILIES, FCNS, traced
from tests.export.engine_graphs import IMAGE, write

PROFILES = (
    ShapeRange((1, 64, 64), (1, 256, 256), (4, 512, 512)),
    ShapeRange((1, 512, 512), (1, 720, 1280), (1, 1088, 1920)),
)


@pytest.fixture(scope="module")
def graph() -> Callable[[str], onnx.ModelProto]:
    """Trace each network once."""
    held: dict[str, onnx.ModelProto] = {}

    def get(family: str) -> onnx.ModelProto:
        if family not in held:
            held[family] = traced(family)
        return held[family]

    return get


def build(model: onnx.ModelProto, precision: Precision, folder: Path) -> BuiltPlan:
    path = write(in_precision(model, precision), folder)
    config = BuildConfig(
        library="tensorrt-rtx",
        precision=precision,
        profiles=tuple(image_profile(IMAGE, shapes) for shapes in PROFILES),
    )
    return build_engine(path, config)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_plan_computes_in_what_was_asked_for(
    family: str, graph: Callable[[str], onnx.ModelProto], tmp_path: Path
) -> None:
    shares = {}

    for precision in (Precision.FP32, Precision.FP16, Precision.INT8):
        engine = build(graph(family), precision, tmp_path)
        shares[precision] = engine.layer_shares
        assert engine.plan[:4] == b"vtrt"
        assert len(engine.profiles) == 2

    # the last enlargement, one layer, stays float32 in all of them, as a Resize does
    last = {"float32"} if family in FCNS else set()
    assert shares[Precision.FP32] == {"float32": 1.0}
    assert set(shares[Precision.FP16]) == {"float16"} | last
    assert shares[Precision.FP16]["float16"] > 0.9
    # what else is not quantised, a ConvTranspose or a classifier, computes in FP16
    assert set(shares[Precision.INT8]) <= {"int8", "float16"} | last
    assert shares[Precision.INT8]["int8"] > 0.5


@pytest.mark.slow
def test_layer_whose_weights_need_scales_below_fp16_is_int8_in_the_plan(
    graph: Callable[[str], onnx.ModelProto], tmp_path: Path
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(graph("fcn_resnet"))
    conv = [node for node in model.graph.node if node.op_type == "Conv"][5]
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == conv.input[1])
    small = numpy_helper.to_array(weight) * np.float32(1e-4)
    weight.CopyFrom(numpy_helper.from_array(small, weight.name))

    engine = build(model, Precision.INT8, tmp_path)

    assert engine.layer_shares == {"int8": 1.0}
    assert not engine.float_layers
