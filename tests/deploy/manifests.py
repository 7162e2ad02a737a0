"""A manifest that says the least, and one in which every kind of entry occurs."""

from __future__ import annotations

from fcn_deploy.artifact.manifest import (
    ClassInfo,
    Fidelity,
    FileEntry,
    Manifest,
    Preprocess,
    SeenByNetwork,
    Source,
    TensorInfo,
    Variant,
    WorstImage,
)
from fcn_deploy.artifact.output_meaning import Finish, OutputMeaning
from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.names import Precision

__all__ = ["MANIFEST", "example_manifest"]

_SHA256 = "0" * 64

MANIFEST = Manifest(
    inputs=(TensorInfo("image", "uint8", (None, None, None, 3), "NHWC", "bgr"),),
    outputs=(TensorInfo("labels", "uint8", (None, None, None), "NHW"),),
    shapes=ShapeRange((1, 64, 64), (1, 64, 64), (1, 64, 64)),
    preprocess=Preprocess((0.5,), (0.5,), "gray"),
    classes=(ClassInfo("one", (0, 0, 0)),),
    variants=(Variant("model.onnx", Precision.FP32),),
    source=Source("model.pt", None, None),
    provenance={},
)


def example_manifest() -> Manifest:
    return Manifest(
        inputs=(TensorInfo("image", "uint8", (None, None, None, 3), "NHWC", "bgr"),),
        outputs=(TensorInfo("labels", "uint8", (None, None, None), "NHW"),),
        shapes=ShapeRange((1, 64, 64), (1, 512, 512), (8, 2048, 2048), multiple_of=8),
        preprocess=Preprocess((0.5, 0.4, 0.3), (0.2, 0.2, 0.2), "rgb"),
        classes=(ClassInfo("background", (0, 0, 0)), ClassInfo("road", (128, 64, 128))),
        variants=(
            Variant(
                "model.onnx",
                Precision.FP32,
                fidelity=(
                    Fidelity("openvino", Precision.BF16, 0.9995, 0.0004, 0.71, 0.02),
                    Fidelity(
                        "onnxruntime",
                        Precision.FP32,
                        0.9999,
                        0.0001,
                        miou_vs_baseline=0.998,
                        boundary_share=0.9,
                        worst_image=WorstImage("slice 90", 0.997, 0.98),
                        worst_class_iou=0.99,
                        images=12,
                        pixels=1_179_648,
                        relative_score_error=2e-3,
                        status="differs",
                    ),
                ),
                output=OutputMeaning("sigmoid", None, 3, whole_because="it is odd"),
            ),
            Variant(
                "model.fp16.tensorrt.plan",
                Precision.FP16,
                backend="tensorrt",
                compute_capabilities=("8.0+",),
                profiles=(ShapeRange((1, 64, 64), (1, 512, 512), (8, 1024, 1024), 32),),
                library_version="11.4.0.106",
                version_compatible=True,
                graph="model.onnx",
                graph_sha256=_SHA256,
            ),
        ),
        source=Source("model.pt", _SHA256, "net:make", "/data/model.pt", {"width": "8"}, "out"),
        provenance={"torch": "2.14.1"},
        files=(
            FileEntry("model.onnx", 12, _SHA256),
            FileEntry("model.fp16.tensorrt.plan", 34, _SHA256),
        ),
        receptive_field=SeenByNetwork(
            (8, 8), (3.5, 3.5), (414, 414), (211, 211), (218, 218), (32, 32), ("Softmax is wide",)
        ),
        output=OutputMeaning(
            "logits",
            stop_at="low",
            finish=Finish("half_pixel", (8, 8), 0.0, (3.5, 3.5), (0, -8)),
            scores="low",
            bytes_per_px=310.5,
        ),
    )
