"""Model in, artifact out, from Python: everything or nothing."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import segmentation

from fcn_deploy.artifact.folder import Artifact, ArtifactWriter
from fcn_deploy.backends.openvino import OpenVinoBackend
from fcn_deploy.backends.tensorrt.backend import TensorRtBackend
from fcn_deploy.errors import (
    ArtifactBusyError,
    ArtifactError,
    BudgetError,
    ManifestError,
    NonFiniteWeightsError,
    OutputExistsError,
    ParityError,
    UnsupportedModelError,
)
from fcn_deploy.graph.analyse import analyse
from fcn_deploy.graph.scan import scan_onnx
from fcn_deploy.machine import CpuAbilities
from fcn_deploy.names import Precision
from fcn_deploy.segmenter import Segmenter
from fcn_export.check.measure import runners
from fcn_export.check.sample_frames import natural_frame
from fcn_export.export import ExportReport, ExportRequest, default_output, export_model
from fcn_export.steps import StepEvent
from fcn_export.terminal import show_report
from fcn_export.trace import to_onnx as graph
from tests.export.tiny_networks import (
    BakedHeight,
    BakedWidth,
    HalfResolution,
    Patches,
    PoolingBranch,
    PyramidPooling,
    RoundingUp,
    UNet,
    seeded,
)

SMALL = {"size": (96, 80), "min_size": (32, 32), "max_size": (160, 200), "engine": "none"}


def request(**options: Any) -> ExportRequest:
    return ExportRequest(**{**SMALL, **options})


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """HalfResolution in an artifact, exported once for all tests that only look at it."""
    folder = tmp_path_factory.mktemp("exported")
    return export_model(seeded(HalfResolution), folder / "model.fcn", request=request())


def labels_by_torch(network: nn.Module, frame: Any) -> Any:
    """ImageNet normalisation, the network, upsampling, argmax; written out once more."""
    rgb = frame[..., ::-1].astype(np.float32) / 255
    values = (rgb - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    x = torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1)[None]
    with torch.no_grad():
        scores = nn.functional.interpolate(network.eval()(x), frame.shape[:2], mode="bilinear")
    return scores.argmax(1)[0].numpy()


def test_the_manifest_says_of_each_graph_what_its_analysis_finds(exported: ExportReport) -> None:
    artifact = Artifact.open(exported.path)
    manifest = artifact.manifest

    assert manifest.output is not None
    assert (manifest.output.activation, manifest.output.threshold) == ("logits", 0.5)
    assert manifest.output.stop_at == "network_scores"
    assert {variant.precision for variant in manifest.variants} == {Precision.FP32, Precision.FP16}
    for variant in manifest.variants:
        found = analyse(scan_onnx(artifact.read(variant.file)))
        assert (variant.output or manifest.output) == found.measured()
        assert found.receptive_field() == manifest.receptive_field


@pytest.mark.parametrize("head", ["scores", "confidence"])
def test_a_graph_that_cannot_be_stopped_says_so_in_the_manifest(tmp_path: Path, head: str) -> None:
    options = request(head=head, precisions=("fp32",))
    report = export_model(seeded(HalfResolution), tmp_path / "m.fcn", request=options)

    output = Artifact.open(report.path).manifest.output

    assert output is not None
    assert (output.activation, output.stop_at, output.finish) == ("logits", None, None)
    assert output.scores == "network_scores"
    assert output.whole_because == (None if head == "scores" else "it has several outputs")


def test_the_artifact_runs_and_gives_pytorchs_labels(exported: ExportReport) -> None:
    frame = natural_frame(75, 91, seed=7)
    expected = labels_by_torch(seeded(HalfResolution), frame)

    for backend in ("openvino", "onnxruntime"):
        with Segmenter.open(exported.path, backend=backend, precision="fp32") as segmenter:
            labels = segmenter(frame).labels

        assert np.mean(labels == expected) > 0.999  # near ties may go either way


def test_the_manifest_says_what_was_made_and_measured(exported: ExportReport) -> None:
    manifest = Artifact.open(exported.path).manifest

    assert [entry.name for entry in manifest.files] == [
        "model.fp16.onnx",
        "model.onnx",
        "report.json",
    ]
    assert [(t.name, t.dtype, t.layout, t.color) for t in manifest.inputs] == [
        ("image", "uint8", "NHWC", "bgr")
    ]
    assert [(t.name, t.dtype, t.shape) for t in manifest.outputs] == [
        ("labels", "uint8", (None, None, None))
    ]
    assert manifest.shapes.opt == (1, 96, 80)
    assert manifest.shapes.multiple_of == 1
    assert len(manifest.classes) == 5
    assert manifest.source.arch == "tests.export.tiny_networks.HalfResolution"
    assert manifest.provenance["torch"] == torch.__version__.split("+")[0]
    assert [(v.file, v.precision) for v in manifest.variants] == [
        ("model.onnx", Precision.FP32),
        ("model.fp16.onnx", Precision.FP16),
    ]
    for variant in manifest.variants:
        measured = {(entry.backend, entry.precision) for entry in variant.fidelity}
        assert {("openvino", variant.precision), ("onnxruntime", variant.precision)} <= measured
        for entry in variant.fidelity:
            assert 0.99 < entry.label_agreement <= 1
            assert entry.miou_vs_baseline is not None
            assert 0.9 < entry.miou_vs_baseline <= 1
            assert entry.worst_image is not None
            assert entry.worst_image.name.endswith(".jpg")
            assert entry.worst_image.label_agreement <= entry.label_agreement
            assert entry.worst_image.worst_class_iou is not None
            assert entry.worst_class_iou is not None
            assert 0.9 < entry.worst_class_iou <= 1
            assert (entry.images, entry.pixels) == (12, 10 * 53 * 80 + 2 * 96 * 64)
            assert entry.status in ("ok", "below")


def test_the_report_has_figures_and_timings_for_every_step(exported: ExportReport) -> None:
    document = json.loads(Artifact.open(exported.path).read("report.json"))

    assert len(document["parity"]["rows"]) >= 5
    assert all(row["real_share"] <= 1e-3 for row in document["parity"]["rows"])
    assert document["exporter"] == "dynamo"
    assert list(document["timings_seconds"]) == sorted(
        ["load", "check weights", "try sizes", "trace", "verify", "fp16", "measure"]
    )
    assert document["peak_rss_bytes"] > 1e8
    assert {"openvino", "onnxruntime"} == {entry["backend"] for entry in document["variants"]}
    files = {(file["precision"], file["name"]): file for file in document["files"]}
    assert files["fp16", "model.fp16.onnx"]["size_bytes"] < document["size_bytes"]
    assert files["fp16", "model.fp16.onnx"]["figures"]["fp16_nodes"] == 3
    rows = {(row["precision"], row["file"]) for row in document["variants"]}
    assert any("onnxruntime fp16 was measured with" in note for note in document["notes"])
    assert {("fp32", "model.onnx"), ("fp16", "model.fp16.onnx")} <= rows


@pytest.mark.cpu_abilities
def test_the_report_says_of_every_row_which_arithmetic_it_was_measured_in(
    cpu: CpuAbilities, tmp_path: Path
) -> None:
    report = export_model(seeded(HalfResolution), tmp_path / "model.fcn", request=request())

    document = json.loads(Artifact.open(report.path).read("report.json"))
    arithmetic = {
        (row["backend"], row["precision"]): row["arithmetic"] for row in document["variants"]
    }
    bf16 = {("openvino", "bf16"): "bf16"} if cpu.bf16 else {}
    assert arithmetic == {
        ("openvino", "fp32"): "fp32",
        ("openvino", "fp16"): "fp16 weights, fp32 arithmetic",
        ("onnxruntime", "fp32"): "fp32",
        ("onnxruntime", "fp16"): "fp16 values, fp32 arithmetic inside most nodes",
        **bf16,
    }


def test_an_existing_artifact_is_kept_unless_force_is_given(
    exported: ExportReport, tmp_path: Path
) -> None:
    events: list[StepEvent] = []

    with pytest.raises(OutputExistsError, match=r"model.fcn' exists\. Replace it with --force"):
        export_model(seeded(HalfResolution), exported.path, on_step=events.append)

    assert events == []


def test_an_artifact_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    with (
        ArtifactWriter(tmp_path / "model.fcn"),
        pytest.raises(ArtifactBusyError, match="is writing"),
    ):
        export_model(seeded(HalfResolution), tmp_path / "model.fcn")


def test_force_replaces_only_after_everything_passed(tmp_path: Path) -> None:
    output = tmp_path / "model.fcn"
    export_model(seeded(HalfResolution), output, request=request())
    before = (output / "model.onnx").read_bytes()
    spoiled = seeded(HalfResolution)
    spoiled.stem.weight.data[0, 0, 0, 0] = float("nan")

    with pytest.raises(NonFiniteWeightsError, match=r"stem.weight"):
        export_model(spoiled, output, request=request(force=True))

    assert (output / "model.onnx").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.fcn"]


@pytest.mark.parametrize("step", ["load", "trace", "verify", "fp16", "measure", "write"])
def test_an_interruption_leaves_nothing_and_gives_the_module_back(
    tmp_path: Path, step: str
) -> None:
    network = seeded(HalfResolution).train()

    def interrupt(event: StepEvent) -> None:
        if event.step == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_model(network, tmp_path / "model.fcn", request=request(), on_step=interrupt)

    assert list(tmp_path.iterdir()) == []
    assert all(part.training for part in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_unet_is_exported_for_multiples_and_the_runtime_pads(tmp_path: Path) -> None:
    network = seeded(UNet)
    frame = natural_frame(50, 61, seed=3)
    padded = cv2.copyMakeBorder(frame, 0, 6, 0, 3, cv2.BORDER_REPLICATE)
    expected = labels_by_torch(network, padded)[:50, :61]

    report = export_model(network, tmp_path / "unet.fcn", request=request())

    assert report.shapes.multiple_of == 8
    assert report.exporter == "dynamo"
    assert any("multiples of 8 px" in note for note in report.notes)
    with Segmenter.open(report.path, precision="fp32") as segmenter:
        labels = segmenter(frame).labels
    assert labels.shape == (50, 61)
    assert np.mean(labels == expected) > 0.999


def test_a_pooling_branch_is_right_at_sizes_never_seen(tmp_path: Path) -> None:
    report = export_model(seeded(PoolingBranch), tmp_path / "model.fcn", request=request())

    assert len(report.parity) >= 5
    assert max(row.max_score_error for row in report.parity) < 1e-4


def test_a_pyramid_of_bins_is_right_in_every_precision(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    for seed in range(4):
        frame = natural_frame(96, 80, seed=seed)
        cv2.imwrite(str(tmp_path / "frames" / f"{seed}.png"), frame)

    report = export_model(
        seeded(PyramidPooling),
        tmp_path / "m.fcn",
        # its random weights saturate in OpenVINO's int8 without VNNI
        request=request(calibrate=tmp_path / "frames", allow_broken=True),
    )

    assert {file.precision for file in report.files} == {
        *(Precision.FP32, Precision.FP16, Precision.INT8)
    }
    assert all(entry.failure is None for entry in report.measured)
    agreement = {
        (entry.runner.backend, entry.runner.precision): entry.disagreement.label_agreement
        for entry in report.measured
        if entry.runner is not None
    }
    # OpenVINO's int8 saturates on a CPU without VNNI, with whatever network
    assert (
        min(agreement["onnxruntime", precision] for precision in Precision if precision != "bf16")
        > 0.9
    )
    assert (
        min(agreement["openvino", precision] for precision in (Precision.FP32, Precision.FP16))
        > 0.97
    )
    assert max(row.max_score_error for row in report.parity) < 1e-4
    field = Artifact.open(tmp_path / "m.fcn").manifest.receptive_field
    assert field is not None
    assert any("reads the whole image" in text for text in field.whole_image)


def test_a_size_that_no_exporter_can_free_is_named_with_its_node(tmp_path: Path) -> None:
    with pytest.raises(
        ParityError, match=r"holds the size as a constant in '.*Resize' \(Resize: \[151\]"
    ):
        export_model(seeded(BakedWidth), tmp_path / "model.fcn", request=request())

    assert list(tmp_path.iterdir()) == []


def test_a_model_that_every_exporter_binds_to_a_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "EXPORTERS", {"dynamo": graph.EXPORTERS["dynamo"]})

    with pytest.raises(
        UnsupportedModelError, match=r"bound to the size .* \(H=107, W=151\): .* \(Resize"
    ):
        export_model(seeded(BakedHeight), tmp_path / "model.fcn", request=request())

    assert list(tmp_path.iterdir()) == []


def test_a_binary_network_has_two_labels_and_its_mean_iou_is_measured(tmp_path: Path) -> None:
    network = seeded(HalfResolution, 1, form="dict")
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    for index in range(2):
        frame = natural_frame(70, 53, index)
        cv2.imwrite(str(images / f"{index}.png"), frame)
        truth = (frame[..., 1] > 110).astype(np.uint8)
        truth[:5] = 255
        cv2.imwrite(str(labels / f"{index}.png"), truth)

    report = export_model(
        network, tmp_path / "model.fcn", request=request(eval_folders=(images, labels))
    )

    assert [entry.name for entry in report.classes] == ["0", "1"]
    assert report.images == "2 labelled images"
    model = report.to_json()["model"]
    assert sum(entry["pixels"] for entry in model["per_class"]) == 2 * 65 * 53
    for entry in report.measured:
        fidelity = entry.fidelity(report.model)
        assert fidelity.miou is not None
        assert fidelity.miou_drop == pytest.approx(100 * (model["miou"] - fidelity.miou))
        if fidelity.precision is Precision.FP32:
            assert abs(fidelity.miou_drop or 0.0) < 0.1


def test_a_variant_beyond_the_budget_ends_the_export_and_is_named(tmp_path: Path) -> None:
    network = seeded(HalfResolution)
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    for index in range(6):  # PyTorch's own labels: it is right everywhere, fp16 nearly so
        frame = natural_frame(75, 91, seed=index)
        cv2.imwrite(str(images / f"{index}.png"), frame)
        truth = labels_by_torch(network, frame).astype(np.uint8)
        cv2.imwrite(str(labels / f"{index}.png"), truth)
    options = {"eval_folders": (images, labels), "precisions": ("fp16",)}

    with pytest.raises(BudgetError, match=r"0\.\d+ points of mean IoU .*; 0\.0001 are allowed"):
        export_model(network, tmp_path / "m.fcn", request=request(**options, max_miou_drop=1e-4))
    assert not (tmp_path / "m.fcn").exists()

    report = export_model(network, tmp_path / "m.fcn", request=request(**options))

    manifest = Artifact.open(report.path).manifest
    assert manifest.provenance["max_miou_drop"] == "1"
    fp16 = next(v for v in manifest.variants if v.precision is Precision.FP16)
    for entry in fp16.fidelity:
        assert entry.miou_drop is not None
        assert 0 < entry.miou_drop < 1
        assert entry.boundary_share is not None
        # with PyTorch's labels for truth, the two mean IoUs are one
        assert entry.miou_vs_baseline == pytest.approx(entry.miou)


def test_class_names_must_be_as_many_as_the_network_tells_apart(tmp_path: Path) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("road\nsky\n")

    with pytest.raises(ManifestError, match="2 classes are named, but the network tells 5 apart"):
        export_model(
            seeded(HalfResolution), tmp_path / "m.fcn", request=request(classes_file=names)
        )

    assert not (tmp_path / "m.fcn").exists()


class OneSize(nn.Module):
    """A classifier's Linear after Flatten: bound to the size it was made for."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 96 * 80, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.linear(x.flatten(1))[..., None, None])


class FixedPositions(nn.Module):
    """Scores with an offset for each pixel, as fixed position embeddings give."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Conv2d(3, 4, 3, padding=1)
        self.positions = nn.Parameter(torch.randn(1, 4, 96, 80))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.scores(x) + self.positions)


def test_a_network_of_one_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="mat1 and mat2"):
        export_model(seeded(OneSize), tmp_path / "m.fcn", request=request())


def test_a_network_of_one_size_is_exported_where_no_other_is_asked_for(tmp_path: Path) -> None:
    only = {"size": (96, 80), "min_size": (96, 80), "max_size": (96, 80)}
    network = seeded(FixedPositions)

    report = export_model(network, tmp_path / "m.fcn", request=request(**only))

    manifest = Artifact.open(tmp_path / "m.fcn").manifest
    assert manifest.shapes.min[1:] == manifest.shapes.max[1:] == (96, 80)
    assert manifest.inputs[0].shape == (None, 96, 80, 3)
    assert any("96x80 px only" in note for note in report.notes)
    assert {(row.height, row.width) for row in report.parity} == {(96, 80)}


def test_a_network_that_refuses_the_only_size_is_refused(tmp_path: Path) -> None:
    only = {"size": (96, 96), "min_size": (96, 96), "max_size": (96, 96)}

    with pytest.raises(UnsupportedModelError, match=r"\[1, 3, 96, 96\]: .*mat1 and mat2"):
        export_model(seeded(OneSize), tmp_path / "m.fcn", request=request(**only))


@pytest.mark.parametrize(
    ("make", "step"),
    [(lambda: Patches(14), 14), (lambda: RoundingUp(4), 2)],
    ids=["patches of 14 px", "a decoder that overshoots"],
)
def test_a_network_of_an_uncommon_step_runs_at_any_size(
    tmp_path: Path, make: Callable[[], nn.Module], step: int
) -> None:
    network = seeded(make).eval()

    export_model(network, tmp_path / "m.fcn", request=request())

    shapes = Artifact.open(tmp_path / "m.fcn").manifest.shapes
    assert shapes.multiple_of == step
    assert {side % step for shape in shapes for side in shape[1:]} == {0}
    frame = natural_frame(75, 109, seed=0)
    with Segmenter.open(tmp_path / "m.fcn", backend="onnxruntime") as segmenter:
        labels = segmenter(frame).labels
    assert labels.shape == (75, 109)


def test_torchvisions_lraspp_keeps_its_low_resolution_scores_in_reach(tmp_path: Path) -> None:
    network = seeded(
        segmentation.lraspp_mobilenet_v3_large,
        weights=None,
        weights_backbone=None,
        num_classes=21,
    )

    report = export_model(network, tmp_path / "m.fcn", request=request(batch=(1, 1, 2)))

    assert (report.exporter, report.num_classes) == ("dynamo", 21)
    assert max(row.disagreement.real_share for row in report.parity) <= 1e-3
    with Segmenter.open(report.path, precision="fp32") as segmenter:
        result = segmenter(natural_frame(90, 123, seed=2), scores=True)
    assert result.labels.shape == (90, 123)
    assert result.scores is not None
    assert result.scores.shape == (21, 12, 16)  # a stride of 8 px


def test_files_that_carry_code_are_exported_when_trusted(tmp_path: Path) -> None:
    network = seeded(HalfResolution).eval()
    example = torch.zeros(2, 3, 65, 97)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript as such is deprecated
        torch.jit.trace(network, example).save(str(tmp_path / "script.pt"))
    sizes = {0: torch.export.Dim("n")}
    sizes |= {axis: torch.export.Dim(f"d{axis}", min=9) for axis in (2, 3)}
    program = torch.export.export(network, (example,), dynamic_shapes=(sizes,))
    torch.export.save(program, tmp_path / "program.pt2")

    exporters = [
        export_model(tmp_path / name, tmp_path / "m.fcn", request=trusting).exporter
        for name in ("script.pt", "program.pt2")
        for trusting in [request(trust_code=True, force=True)]
    ]

    assert exporters == ["torchscript", "dynamo"]


def test_a_backend_that_fails_takes_nothing_from_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise ArtifactError("openvino refused 'model.onnx'")

    monkeypatch.setattr(OpenVinoBackend, "open", refuse)

    report = export_model(seeded(HalfResolution), tmp_path / "m.fcn", request=request())

    for variant in Artifact.open(report.path).manifest.variants:
        assert [entry.backend for entry in variant.fidelity] == ["onnxruntime"]
    assert any("openvino fp32 failed: openvino refused" in note for note in report.notes)
    assert report.to_json()["variants"][0]["failure"] == "openvino refused 'model.onnx'"
    show_report(report)


def test_a_backend_that_reads_plans_only_is_no_candidate_for_a_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TensorRtBackend, "available", lambda self: True)  # as beside a GPU

    found = runners((Precision.FP32, Precision.FP16))

    assert {runner.backend for runner in found} == {"openvino", "onnxruntime"}
    assert {runner.precision for runner in found} >= {Precision.FP32, Precision.FP16}


def test_the_artifact_goes_beside_the_model() -> None:
    assert default_output(Path("a/b.state.pt")) == Path("a/b.state.fcn")


@pytest.mark.parametrize(("options", "message"), [
    ({"size": (32, 32), "min_size": (64, 64)}, "height has min 64, opt 32"),
    ({"opset": 12}, "opset is 12; 18 or later"),
    ({"head": "masks"}, "head is 'masks'"),
    ({"precisions": ("fp64",)}, "precision is 'fp64'"),
    ({"precisions": ()}, "precisions is empty"),
    ({"mean": (0.5,)}, "mean has 1 and std 3 values"),
    ({"std": (0.5, 0.5, 0.0)}, "above 0"),
    ({"engine": "trt"}, "engine is 'trt'; expected one of auto, none, tensorrt, tensorrt-rtx"),
    ({"workspace_mb": 0}, "workspace_mb is 0"),
    ({"compute_capabilities": ("7.0",)}, "compute capability is '7.0'"),
    ({"engine": "none", "tf32": False}, "tf32 is given, but engine is 'none'"),
])  # fmt: skip
def test_contradictions_are_refused_before_any_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExportRequest(**options)
