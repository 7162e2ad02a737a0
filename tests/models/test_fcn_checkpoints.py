"""Networks of the FCN family: saved, recognised, exported with no option."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fcn_deploy.artifact.folder import Artifact
from fcn_deploy.artifact.manifest import ClassInfo, Preprocess
from fcn_deploy.errors import UnsupportedModelError
from fcn_deploy.preprocess import default_preprocess
from fcn_export import cli, load_fcn
from fcn_export.graph_spec import GraphSpec
from fcn_export.load.torch_model import load_model
from fcn_export.trace.argmax_head import FrameNetwork
from fcn_export.trace.to_onnx import trace
from fcn_models import FCN, Backbone, save_checkpoint
from fcn_models.checkpoints import build_fcn, describe_fcn, recognise_fcn
from fcn_models.fcn import GEOMETRIES, VARIANTS, Geometry, Variant
from fcn_models.upsampling import Upsampling
from tests.export.tiny_networks import seeded
from tests.models.networks import with_scores

PREPROCESS = Preprocess((0.5, 0.4, 0.3), (0.2, 0.25, 0.3), "bgr")
CLASSES = tuple(ClassInfo(name, (9, 9, index)) for index, name in enumerate("abcd"))
VGG = Backbone("vgg11", 0.125, window=3, fc_width=24)


def network(
    backbone: Backbone = VGG,
    variant: Variant = "8s",
    upsampling: Upsampling = "learned",
    geometry: Geometry = "aligned",
) -> FCN:
    def make() -> FCN:
        return with_scores(FCN(backbone, variant, 4, upsampling=upsampling, geometry=geometry))

    made: FCN = seeded(make)
    return made


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_a_saved_network_comes_back_with_its_scores_and_facts(tmp_path: Path, ending: str) -> None:
    model = network()
    image = torch.randn(1, 3, 75, 64, generator=torch.Generator().manual_seed(1))
    path = tmp_path / f"model{ending}"

    save_checkpoint(model, path, preprocess=PREPROCESS, classes=CLASSES)
    loaded = load_model(path)

    assert loaded.arch == "fcn8s_vgg11"
    assert loaded.num_classes == 4
    assert loaded.info is not None
    assert loaded.info.preprocess == PREPROCESS
    assert loaded.info.classes == CLASSES
    with torch.no_grad():
        assert torch.equal(loaded.scores(image), model(image))
    assert load_fcn(path).backbone_spec == VGG


def test_what_was_loaded_can_be_trained_on(tmp_path: Path) -> None:
    save_checkpoint(network(VGG, "32s"), tmp_path / "model.pt", preprocess=PREPROCESS)

    model = FCN.from_coarser(load_fcn(tmp_path / "model.pt"))

    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_pt_file_holds_nothing_but_tensors_and_text(tmp_path: Path) -> None:
    save_checkpoint(network(), tmp_path / "model.pt", preprocess=PREPROCESS)

    stored = torch.load(tmp_path / "model.pt", weights_only=True)

    assert set(stored) == {"state_dict", "fcn_deploy"}
    assert json.loads(stored["fcn_deploy"])["architecture"]["backbone"]["name"] == "vgg11"


@pytest.mark.parametrize(
    ("backbone", "variant", "upsampling", "geometry"),
    [
        (VGG, "32s", "learned", "aligned"),
        (VGG, "16s", "fixed", "paper"),
        (Backbone("vgg13_bn", 0.25, fc_width=8), "8s", "interpolate", "aligned"),
        (Backbone("alexnet", 0.125, fc_width=8), "8s", "learned", "paper"),
        (Backbone("googlenet", 0.25), "16s", "interpolate", "aligned"),
        (Backbone("resnet34", 0.25), "8s", "fixed", "aligned"),
        (Backbone("resnet50", 0.125), "32s", "interpolate", "paper"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_weights_alone_tell_the_network(
    backbone: Backbone, variant: Variant, upsampling: Upsampling, geometry: Geometry
) -> None:
    model = FCN(backbone, variant, 4, upsampling=upsampling, geometry=geometry)

    found = recognise_fcn(model.state_dict())

    assert found == describe_fcn(model)


def test_foreign_weights_are_not_of_the_family() -> None:
    state = network().state_dict()
    odd = {key.replace("features", "encoder"): value for key, value in state.items()}

    assert recognise_fcn({"score.weight": torch.ones(2, 2, 1, 1)}) is None
    assert recognise_fcn(odd) is None


def test_what_the_user_says_must_fit_the_file(tmp_path: Path) -> None:
    save_checkpoint(network(), tmp_path / "model.pt", preprocess=PREPROCESS)

    assert load_model(tmp_path / "model.pt", arch="fcn8s_vgg11").num_classes == 4
    with pytest.raises(
        UnsupportedModelError, match=r"'fcn16s_vgg11' was given, but .* fcn8s_vgg11"
    ):
        load_model(tmp_path / "model.pt", arch="fcn16s_vgg11")
    with pytest.raises(UnsupportedModelError, match=r"num_classes 7 was given, but .* 4 classes"):
        load_model(tmp_path / "model.pt", arch_args={"num_classes": 7})


def _saved_with(tmp_path: Path, change: dict[str, Any]) -> Path:
    save_checkpoint(network(), tmp_path / "model.pt", preprocess=PREPROCESS)
    stored = torch.load(tmp_path / "model.pt", weights_only=True)
    stored["fcn_deploy"] = json.dumps({**json.loads(stored["fcn_deploy"]), **change})
    torch.save(stored, tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "metadata of version 2; this release reads 1"),
        ({"preprocess": {"mean": [1], "std": [1], "color": "rgb"}}, "malformed metadata: mean has"),
        (
            {"classes": [{"name": "a"}]},
            r"malformed metadata: .* at 'classes\[0\]': Object missing required field `color`",
        ),
        ({"architecture": ["fcn"]}, "at 'architecture': Expected `object . null`, got `array`"),
        ({"architecture": {}}, "description of its network is malformed: KeyError"),
    ],
)
def test_malformed_facts_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        load_model(_saved_with(tmp_path, change))


def test_what_cannot_be_saved_is_refused(tmp_path: Path) -> None:
    model = network()

    with pytest.raises(UnsupportedModelError, match=r"'\.bin'; expected \.pt"):
        save_checkpoint(model, tmp_path / "model.bin", preprocess=PREPROCESS)
    with pytest.raises(UnsupportedModelError, match=r"2 classes are named, .* scores 4"):
        save_checkpoint(model, tmp_path / "a.pt", preprocess=PREPROCESS, classes=CLASSES[:2])
    model.backbone_spec = None
    with pytest.raises(UnsupportedModelError, match=r"not known by name.*--arch"):
        save_checkpoint(model, tmp_path / "a.pt", preprocess=PREPROCESS)
    with pytest.raises(UnsupportedModelError, match="family 'unet' is not known"):
        build_fcn({"family": "unet"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("backbone", "variant", "upsampling", "geometry"),
    [
        *((VGG, variant, "learned", geometry) for variant in VARIANTS for geometry in GEOMETRIES),
        (VGG, "16s", "interpolate", "paper"),
        (Backbone("resnet18", 0.125), "8s", "learned", "aligned"),
        (Backbone("googlenet", 0.25), "32s", "fixed", "aligned"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_graph_agrees_with_pytorch_at_odd_sizes(
    rng: np.random.Generator,
    backbone: Backbone,
    variant: Variant,
    upsampling: Upsampling,
    geometry: Geometry,
) -> None:
    import onnxruntime

    model = network(backbone, variant, upsampling, geometry)
    spec = GraphSpec(default_preprocess(), 4, head="scores", upsample=False, min_size=(64, 64))

    graph = trace(model, spec)

    assert (graph.exporter, graph.fixed) == ("dynamo", ())
    session = onnxruntime.InferenceSession(graph.model.SerializeToString())
    for shape in ((1, 64, 97), (2, 131, 77), (1, 160, 128)):
        frames = rng.integers(0, 256, (*shape, 3), np.uint8)
        (found,) = session.run(None, {"image": frames})
        with torch.no_grad():
            expected = FrameNetwork(model, spec)(torch.from_numpy(frames))
        assert isinstance(expected, torch.Tensor)
        scale = float(expected.abs().max())
        # convolutions of 0.2 M products in float32, summed in another order
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4 * scale, rtol=0)


def test_a_checkpoint_exports_with_no_option(tmp_path: Path) -> None:
    save_checkpoint(network(), tmp_path / "model.pt", preprocess=PREPROCESS, classes=CLASSES)

    status = cli.main(
        [str(tmp_path / "model.pt"), "-q", "--size", "96x64", "--max-size", "160x160"]
    )

    assert status == 0
    manifest = Artifact.open(tmp_path / "model.fcn").manifest
    assert manifest.source.arch == "fcn8s_vgg11"
    assert manifest.preprocess == PREPROCESS
    assert manifest.classes == CLASSES
    assert manifest.shapes.multiple_of == 1
    assert manifest.receptive_field is not None
    assert manifest.receptive_field.stride == (8, 8)
    assert manifest.receptive_field.offset == (3.5, 3.5)
