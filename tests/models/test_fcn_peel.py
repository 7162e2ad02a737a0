"""The family's networks run peeled, whole and in tiles; what they see is what their layers give."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from fcn_deploy.artifact.manifest import SeenByNetwork
from fcn_deploy.backends import backend_names
from fcn_deploy.graph.field_summary import summarize_field
from fcn_deploy.graph.peel import PeeledTail, peel_tail
from fcn_deploy.graph.scan import scan_onnx
from fcn_deploy.graph.tail import find_tail
from fcn_deploy.preprocess import default_preprocess
from fcn_deploy.segmenter import Segmenter
from fcn_deploy.tiling.self_test import measure_tiling_error
from fcn_export.graph_spec import GraphSpec
from fcn_export.precision.passes.to_half import convert_to_fp16
from fcn_export.precision.place_qdq import classifier_nodes, quantizable_nodes
from fcn_export.trace.to_onnx import trace
from fcn_models.fcn import FCN
from tests.deploy.peeling import compare, frame
from tests.models.test_fcn import network

SPEC = GraphSpec(default_preprocess(), num_classes=4, upsample=False)


@pytest.fixture(autouse=True)
def _without_notices(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="fcn_deploy")


@pytest.fixture(scope="module")
def coarse() -> onnx.ModelProto:
    """Give an FCN-32s whose cells lie between pixels, padded and cropped as in the paper."""
    return exported(network("vgg11", "32s", geometry="paper"))


@pytest.fixture(scope="module")
def stepped() -> onnx.ModelProto:
    """Give an FCN-32s that enlarges in the steps of an FCN-8s."""
    return exported(network("vgg11", "32s"))


@pytest.fixture(scope="module")
def fine() -> onnx.ModelProto:
    """Give an FCN-8s whose cells lie on pixels."""
    return exported(network("alexnet", "8s"))


def exported(model: FCN) -> onnx.ModelProto:
    """Export without the mean of each class's scores: random weights else prefer one class."""
    image = torch.from_numpy(frame((160, 192))).permute(2, 0, 1)[None] / 64 - 2
    for name, layer in model.named_modules():
        if name.startswith("score") and isinstance(layer, nn.Conv2d):

            def take_off(layer: nn.Conv2d, inputs: object, scores: Tensor) -> None:
                if layer.bias is not None:
                    layer.bias.data -= scores.mean(dim=(0, 2, 3))

            hook = layer.register_forward_hook(take_off)
            with torch.no_grad():
                model(image)
            hook.remove()
    return trace(model, SPEC).model


def written(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("backend", backend_names())
@pytest.mark.parametrize(
    ("name", "factor", "lead"), [("coarse", 32, 3.0), ("stepped", 8, 0.0), ("fine", 8, 3.5)]
)
def test_a_network_of_the_family_is_peeled_without_changing_a_label(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    backend: str,
    name: str,
    factor: int,
    lead: float,
) -> None:
    path = written(request.getfixturevalue(name), tmp_path)

    found = compare(
        path,
        backend=backend,
        sizes=((97, 131), (64, 75)),
        factors=(factor, factor),
        lead=(lead, lead),
    )

    assert found.wrong == 0
    assert found.ties <= found.pixels / 1000
    assert found.classes > 1


@pytest.mark.parametrize(("name", "tiles"), [("coarse", (2, 3)), ("stepped", (1, 4))])
def test_tiles_of_a_peeled_network_join_where_it_crops(
    request: pytest.FixtureRequest, name: str, tiles: tuple[int, int], tmp_path: Path
) -> None:
    path = written(request.getfixturevalue(name), tmp_path)

    with Segmenter.open(path, backend="onnxruntime", precision="fp32") as segmenter:
        image = np.tile(frame((160, 192)), (3, 3, 1))
        tiled = measure_tiling_error(segmenter, image, tile_pixels=416 * 448)
        exact = segmenter.tiling.exact

    assert exact
    assert tiled.tiles == tiles
    assert tiled.as_promised, tiled
    assert tiled.label_agreement > 0.9999


def test_the_scores_at_the_pixels_are_those_of_the_labels(
    fine: onnx.ModelProto, tmp_path: Path
) -> None:
    path, image = written(fine, tmp_path), frame((97, 131))

    with Segmenter.open(path, backend="onnxruntime", precision="fp32") as segmenter:
        result = segmenter(image, scores=True)
        assert result.scores is not None
        scores = segmenter.scores_at_pixels(result.scores, (97, 131))

    assert scores.shape == (4, 97, 131)
    assert np.mean(scores.argmax(0) == result.labels) > 0.999  # the rest are ties


def test_the_last_enlargement_stays_float32_in_every_precision(coarse: onnx.ModelProto) -> None:
    half = onnx.ModelProto()
    half.CopyFrom(coarse)
    convert_to_fp16(half)
    graph = scan_onnx(half.SerializeToString())
    up = next(node.name for node in coarse.graph.node if node.op_type == "ConvTranspose")

    found = peel_tail(graph, find_tail(graph))

    assert isinstance(found, PeeledTail)
    assert graph.initializers["network.up.weight"].dtype == "float32"
    assert up not in quantizable_nodes(ir.from_proto(coarse).graph)
    assert classifier_nodes(ir.from_proto(coarse).graph) == ("node_conv2d_10",)


def test_an_fcn_32s_sees_what_its_layers_add_up_to(coarse: onnx.ModelProto) -> None:
    # VGG11: 3x3 windows at strides 1 to 16, 2x2 pools, and fc6's 7x7 cells of 32 px
    convolutions = 2 * (1 + 2 + 2 * 4 + 2 * 8 + 2 * 16)
    pools, fc6 = 1 + 2 + 4 + 8 + 16, 6 * 32

    found = summarize_field(scan_onnx(coarse.SerializeToString()))

    assert isinstance(found, SeenByNetwork)
    assert found.size == (1 + convolutions + pools + fc6,) * 2
    assert found.stride == (32, 32)
    assert found.offset == (network("vgg11", "32s", geometry="paper").grid.offset,) * 2
    # the last pixel that a score before the first one still reaches
    assert found.before[0] - found.size[0] // 2 in range(31, 33 + 16)
    assert found.whole_image == ()


def test_an_fcn_8s_sees_the_neighbours_of_its_coarser_scores_too(fine: onnx.ModelProto) -> None:
    found = summarize_field(scan_onnx(fine.SerializeToString()))

    assert isinstance(found, SeenByNetwork)
    grid = network("alexnet", "8s").grid
    assert found.size[0] > grid.receptive_field
    assert found.stride == (grid.stride,) * 2
    assert found.offset == (grid.offset,) * 2
    assert found.alignment == (32, 32)
