"""Plans are built for real, by TensorRT-RTX, which needs no GPU for it."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import convert_model_to_external_data

from fcn_deploy.errors import (
    ArtifactError,
    ArtifactMissingError,
    BuildCancelledError,
    BuildError,
    ProfileError,
    UnsupportedOpError,
)
from fcn_deploy.names import Precision
from fcn_export.engine import BuildConfig, BuildProgress, InputShapes, build_engine
from fcn_export.engine.refusals import plain_reason
from tests.deploy.graphs import segmentation_graph
from tests.export.engine_graphs import PROFILE, network, single_op, write

CONFIG = BuildConfig(library="tensorrt-rtx", profiles=(PROFILE,), compute_capabilities=("8.6",))
PLANES = BuildConfig(
    library="tensorrt-rtx",
    profiles=({"x": InputShapes((1, 3, 8, 8), (1, 3, 8, 8), (1, 3, 64, 64))},),
)


@pytest.mark.parametrize(
    ("kind", "precision"),
    [("float32", Precision.FP32), ("float16", Precision.FP16), ("int8", Precision.INT8)],
)
def test_every_layer_computes_as_its_graph_says(
    tmp_path: Path, kind: str, precision: Precision
) -> None:
    path = write(network(kind), tmp_path)
    config = BuildConfig(
        library="tensorrt-rtx",
        profiles=(PROFILE,),
        precision=precision,
        compute_capabilities=("8.9", "8.6"),
    )

    engine = build_engine(path, config)

    assert engine.layer_shares == {kind: 1.0}
    assert engine.float_layers == ()
    assert engine.plan[:4] == b"vtrt"
    assert engine.compute_capabilities == ("8.6", "8.9")
    assert engine.precision is precision
    assert engine.library == "tensorrt-rtx"
    assert engine.onnx_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [str(spec) for spec in engine.inputs] == ["image: uint8 [?, ?, ?, 3]"]
    assert [str(spec) for spec in engine.outputs] == ["labels: uint8 [?, ?, ?]"]
    assert list(tmp_path.iterdir()) == [path]


def test_quantised_transposed_convolution_that_stays_float_is_named(tmp_path: Path) -> None:
    path = write(network("int8", transposed=True), tmp_path)

    engine = build_engine(path, CONFIG)

    assert engine.layer_shares == {"int8": 0.5, "float32": 0.5}
    assert engine.float_layers == ("classifier",)


def test_nodes_without_names_are_proven_too(tmp_path: Path) -> None:
    model = network("float16")
    for node in model.graph.node:
        node.name = ""

    engine = build_engine(write(model, tmp_path), CONFIG)

    assert engine.layer_shares == {"float16": 1.0}


def test_several_profiles_go_into_one_plan(tmp_path: Path) -> None:
    path = write(network(), tmp_path)
    large = {"image": InputShapes((1, 256, 256, 3), (1, 256, 256, 3), (1, 256, 512, 3))}
    config = BuildConfig(library="tensorrt-rtx", profiles=(PROFILE, large))

    engine = build_engine(path, config)

    assert engine.profiles == (PROFILE, large)
    assert engine.layer_shares == {"float32": 1.0}


def test_a_network_that_ends_in_low_resolution_scores_becomes_a_plan(tmp_path: Path) -> None:
    path = tmp_path / "scores.onnx"
    path.write_bytes(segmentation_graph(head="scores"))
    shapes = InputShapes((1, 16, 16, 3), (1, 64, 64, 3), (4, 96, 96, 3))

    built = build_engine(path, BuildConfig(library="tensorrt-rtx", profiles=({"image": shapes},)))

    assert built.layer_shares == {"float32": 1.0}
    assert len(built.plan) > 1000


def test_options_that_the_library_takes_are_set(tmp_path: Path) -> None:
    path = write(network(), tmp_path)
    config = BuildConfig(
        library="tensorrt-rtx",
        profiles=(PROFILE,),
        workspace_bytes=1 << 28,
        optimization_level=1,
        tf32=False,
    )

    assert build_engine(path, config).layer_shares == {"float32": 1.0}


def test_weights_beside_the_graph_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    convert_model_to_external_data(model, location="model.onnx.data", size_threshold=0)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    monkeypatch.chdir(tmp_path.parent)  # where TensorRT looks if it is given bytes

    engine = build_engine(path, CONFIG)

    assert (tmp_path / "model.onnx.data").exists()
    assert engine.layer_shares == {"float32": 1.0}


@pytest.mark.parametrize(
    ("workspace_bytes", "message"),
    [
        (1 << 20, r"no tactics.*Allow more with --workspace-mb, or lower --max-size"),
        (128 << 20, r"OutOfMemory.*Allow more with --workspace-mb: \d+ at least"),
    ],
)
def test_too_small_workspace_says_what_to_do(
    tmp_path: Path, workspace_bytes: int, message: str
) -> None:
    path = write(network(), tmp_path)
    shapes = InputShapes((1, 64, 64, 3), (1, 512, 512, 3), (8, 2048, 2048, 3))
    config = BuildConfig(
        library="tensorrt-rtx", profiles=({"image": shapes},), workspace_bytes=workspace_bytes
    )

    with pytest.raises(BuildError, match=message):
        build_engine(path, config)
    assert list(tmp_path.iterdir()) == [path]


def test_operator_that_tensorrt_lacks_is_named_with_its_reason(tmp_path: Path) -> None:
    path = write(
        single_op(helper.make_node("Det", ["x"], ["labels"], name="det"), rank=2), tmp_path
    )

    with pytest.raises(
        UnsupportedOpError,
        match=r"could not parse 'model\.onnx': node 0 'det' \(Det\): there is no such operator",
    ):
        build_engine(path, PLANES)
    assert list(tmp_path.iterdir()) == [path]


def _antialias() -> onnx.ModelProto:
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    node = helper.make_node(
        "Resize", ["x", "", "scales"], ["labels"], name="up", mode="linear", antialias=1
    )
    return single_op(node, [scales])


def _uint8_inside() -> onnx.ModelProto:
    node = helper.make_node("Transpose", ["x"], ["labels"], name="turn", perm=[0, 1, 3, 2])
    return single_op(node, elem_type=TensorProto.UINT8)


def _crop() -> onnx.ModelProto:
    sizes = numpy_helper.from_array(np.array([24, 24]), "sizes")
    node = helper.make_node("CenterCropPad", ["x", "sizes"], ["labels"], name="crop", axes=[2, 3])
    return single_op(node, [sizes])


def _bf16_transposed() -> onnx.ModelProto:
    weights = helper.make_tensor("w", TensorProto.BFLOAT16, [3, 2, 2, 2], [1.0] * 24)
    node = helper.make_node("ConvTranspose", ["x", "w"], ["labels"], name="up", strides=[2, 2])
    return single_op(node, [weights], elem_type=TensorProto.BFLOAT16)


def _with_constant(name: str, value: np.ndarray) -> onnx.ModelProto:
    """Give the int8 network with one of its constants replaced."""
    model = network("int8")
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(value, name))
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_antialias, "Resize 'up' has antialias=1"),
        (_uint8_inside, "uint8 tensor 'x' goes into Transpose 'turn'; Cast it first"),
        (_crop, r"TensorRT has no CenterCropPad \('crop'\)"),
        (_bf16_transposed, "BF16 ConvTranspose 'up'"),
        (
            lambda: _with_constant("stem.zero", np.array(0, np.uint8)),
            r"node 'stem_q' quantises to UINT8 \(TensorRT would read it as INT8 and clip at 127\)",
        ),
        (
            lambda: _with_constant("stem.zero", np.array(12, np.int8)),
            r"non-zero zero point 12 in 'stem_q'; .*\(2 such faults in all\)",
        ),
    ],
)
def test_mistake_is_told_before_tensorrt_sees_the_graph(
    tmp_path: Path, make: Callable[[], onnx.ModelProto], message: str
) -> None:
    path = write(make(), tmp_path)
    config = CONFIG if make().graph.input[0].name == "image" else PLANES

    with pytest.raises(
        UnsupportedOpError, match=f"TensorRT cannot build 'model.onnx': .*{message}"
    ):
        build_engine(path, config)
    assert list(tmp_path.iterdir()) == [path]


def test_fp8_needs_gpus_that_have_it(tmp_path: Path) -> None:
    scale = numpy_helper.from_array(np.array(0.1, np.float32), "s")
    zero = helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, [], [0.0])
    quantize = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q")
    model = single_op(quantize, [scale, zero], check=False)
    model.graph.node.append(
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["labels"], name="dq")
    )
    path = write(model, tmp_path)

    with pytest.raises(BuildError, match=r"FP8 Q/DQ, which needs .* 8\.9 or later; 8\.6 was asked"):
        build_engine(path, PLANES)


def test_file_that_is_no_onnx_is_refused_before_tensorrt_sees_it(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\xff" * 100)

    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        build_engine(path, CONFIG)


def test_empty_file_is_refused(tmp_path: Path) -> None:
    # TensorRT's parser takes it for an empty network, without complaint
    path = tmp_path / "model.onnx"
    path.write_bytes(b"")

    with pytest.raises((ArtifactError, BuildError), match=r"model\.onnx"):
        build_engine(path, CONFIG)


def test_missing_file_is_reported_as_missing(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissingError, match=r"nowhere\.onnx"):
        build_engine(tmp_path / "nowhere.onnx", CONFIG)


def test_profile_error_comes_before_the_build(tmp_path: Path) -> None:
    path = write(network(), tmp_path)
    shapes = InputShapes((1, 64, 64, 3), (1, 32, 64, 3), (1, 64, 64, 3))
    config = BuildConfig(library="tensorrt-rtx", profiles=({"image": shapes},))

    with pytest.raises(ProfileError, match=r"min \(1, 64, 64, 3\) > opt .* at axis 1"):
        build_engine(path, config)


def test_progress_rises_to_its_end(tmp_path: Path) -> None:
    path = write(network(), tmp_path)
    heard: list[BuildProgress] = []

    build_engine(path, CONFIG, on_progress=heard.append)

    fractions = [progress.fraction for progress in heard]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0.0
    assert 0.5 < fractions[-1] <= 1.0
    assert heard[0].phase == "Building engine"


def test_listener_that_says_no_cancels_the_build(tmp_path: Path) -> None:
    path = write(network(), tmp_path)

    with pytest.raises(BuildCancelledError, match=r"build of 'model\.onnx' was cancelled"):
        build_engine(path, CONFIG, on_progress=lambda progress: False)


def test_exception_of_the_listener_comes_out_of_the_build(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(network(), tmp_path)

    def fail(progress: BuildProgress) -> None:
        raise RuntimeError("the progress bar broke")

    with pytest.raises(RuntimeError, match="the progress bar broke"):
        build_engine(path, CONFIG, on_progress=fail)
    assert capfd.readouterr() == ("", "")


@contextmanager
def sigint_handled(handler: Any) -> Iterator[None]:
    """Set the handler of SIGINT, whatever the tests were started with; it must be left in place."""
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_interrupt_ends_the_build_and_is_raised_after_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(network(), tmp_path)
    heard: list[BuildProgress] = []

    def press_once(progress: BuildProgress) -> None:
        heard.append(progress)
        if len(heard) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with sigint_handled(signal.default_int_handler), pytest.raises(KeyboardInterrupt):
        build_engine(path, CONFIG, on_progress=press_once)
    assert len(heard) < 10
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == [path]


def test_interrupt_that_is_ignored_does_not_end_the_build(tmp_path: Path) -> None:
    path = write(network(), tmp_path)

    def press(progress: BuildProgress) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with sigint_handled(signal.SIG_IGN):  # as under nohup, and in a shell's background
        built = build_engine(path, CONFIG, on_progress=press)

    assert len(built.plan) > 1000


def test_builder_still_works_after_a_cancelled_build(tmp_path: Path) -> None:
    path = write(network(), tmp_path)
    with pytest.raises(BuildCancelledError, match="cancelled"):
        build_engine(path, CONFIG, on_progress=lambda progress: False)

    assert build_engine(path, CONFIG).layer_shares == {"float32": 1.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timing_cache": Path("cache")}, r"takes no --timing-cache: it compiles kernels where"),
        ({"hardware_compatible": True}, r"--hardware-compatible: it ignores it.*one plan holds"),
        ({"version_compatible": True}, r"--version-compatible: it lacks the library"),
    ],
)
def test_option_that_rtx_would_ignore_is_refused(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    path = write(network(), tmp_path)
    config = BuildConfig(library="tensorrt-rtx", profiles=(PROFILE,), **options)  # type: ignore[arg-type] # one of several options

    with pytest.raises(BuildError, match=message):
        build_engine(path, config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compute_capabilities": ("9.9",)}, r"compute capability is '9\.9'; .*8\.6, 8\.9"),
        ({"compute_capabilities": ()}, "empty; expected one"),
        ({"workspace_bytes": 0}, "workspace_bytes is 0"),
        ({"optimization_level": 6}, "optimization_level is 6; expected 0 to 5"),
    ],
)
def test_config_refuses(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BuildConfig(library="tensorrt-rtx", **options)  # type: ignore[arg-type] # wrong on purpose


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        ("false", "there is no such operator in TensorRT"),
        ('(antialias == 0) && "Antialiasing is not supported."', "Antialiasing is not supported."),
        (
            "Assertion failed: creator && version(creator) == Creator::kV3ONE: plugin not found.",
            "plugin not found.",
        ),
        (
            "Assertion failed: shiftIsAllZeros(zeroPoint): Non-zero zero point.",
            "Non-zero zero point.",
        ),
        (
            "t: first input has type UInt8. In checkType at /_src/common/nodeBase.cpp:456\n"
            "[checkMacros.cpp] Error Code 1: (cudaError 35: CUDA driver version is insufficient)",
            "t: first input has type UInt8",
        ),
    ],
)
def test_reason_is_taken_out_of_tensorrts_own_code(description: str, reason: str) -> None:
    assert plain_reason(description) == reason
