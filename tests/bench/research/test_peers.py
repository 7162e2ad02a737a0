"""The comparison with other runtimes, on a network of three layers."""

from __future__ import annotations

import importlib
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from fcn_bench.network import segment
from fcn_bench.rounds import Schedule
from fcn_deploy.errors import BenchmarkError
from fcn_deploy.machine import CpuAbilities
from fcn_export.check.sample_frames import natural_frame
from research.peers.benchmark_app import run_benchmark_app
from research.peers.contenders import OURS, Contender, contenders
from research.peers.peer_libraries import LIBRARIES, OpenCv, OrtSession
from research.peers.process import Process
from research.peers.race import ContenderResult, Race, run_race
from research.peers.results import (
    OTHER_LABELS,
    TITLES,
    noise_text,
    number,
    race_table,
    write_section,
)
from research.peers.sections import SECTIONS, Setting, best_ours, growth, race_on, targets
from research.peers.subject import Subject, export_as_a_user, fixed_graph, network_alone
from tests.bench.conftest import TinyModel


@pytest.fixture(scope="session")
def subject(exported: TinyModel) -> Subject:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(exported.folder))
        module = importlib.import_module("tiny_fcn").build()
        patch.delitem(sys.modules, "tiny_fcn")
    module.load_state_dict(torch.load(exported.checkpoint, weights_only=True))
    graph = exported.folder / "user.onnx"
    export_as_a_user(module.eval(), graph)
    return Subject("tiny", exported.checkpoint, exported.artifact, graph, arch=exported.arch)


SETTING = Setting(threads=1, rounds=2, say=lambda line: None)
QUICK = Schedule(rounds=2, min_duration_seconds=0.0, warmup_calls=1, min_calls=1)


@pytest.mark.parametrize("batch", [1, 3])
def test_everybody_gives_the_labels_of_pytorch(
    subject: Subject, tiny: TinyModel, tmp_path: Path, batch: int
) -> None:
    frames = [natural_frame(72, 90, seed) for seed in range(batch)]
    graph = fixed_graph(subject.graph, (batch, 72, 90), target=tmp_path / "fixed.onnx")
    reference, *others = contenders(subject, graph, threads=1)
    with closing(reference.open()) as network:
        expected = np.stack([labels.copy() for labels in segment(network, frames)])

    assert {row.library for row in others} == {"PyTorch", "fcn-deploy", *LIBRARIES}
    for row in others:
        with closing(row.open()) as network:
            found = np.stack([labels.copy() for labels in segment(network, frames)])
        # random weights have no margins: rounding may flip a pixel in a thousand, and in bf16
        # up to a fifth of them
        least = 0.999 if row.precision == "fp32" else 0.8
        assert np.mean(found == expected) >= least, row.name


def test_race_times_and_compares_every_contender(subject: Subject, tiny: TinyModel) -> None:
    race = race_on(subject, (48, 64), SETTING, schedule=QUICK, brief=True)

    assert {result.contender.library for result in race.results} == {
        *LIBRARIES,
        "PyTorch",
        OURS,
    } - {"OpenCV dnn"}
    check_results(race)
    lines = growth("megapixels", [("48x64", race)]).splitlines()
    assert len(race.results) == lines[0].count(", ms")
    assert lines[2].startswith("| 48x64 | ")


def test_contenders_one_after_another_are_compared_too(
    subject: Subject, tiny: TinyModel, tmp_path: Path
) -> None:
    graph = fixed_graph(subject.graph, (1, 72, 90), target=tmp_path / "fixed.onnx")
    rows = contenders(subject, graph, threads=1)
    who = [row for row in rows if row.name in ("OpenCV dnn, full graph", f"{OURS}, on onnxruntime")]
    frames = [natural_frame(72, 90, seed) for seed in range(2)]

    race = run_race(who, frames, batch=1, schedule=QUICK, say=SETTING.say, apart=True)

    assert [result.contender for result in race.results] == who
    check_results(race)
    assert "2 rounds, rows taking turns, one after another where" in noise_text(race)


def check_results(race: Race) -> None:
    assert race.rounds == 2
    for result in race.results:
        # random weights, as above
        assert result.agreement >= (0.999 if result.contender.precision == "fp32" else 0.8)
        assert [len(part) >= 1 for part in result.frames_ms] == [True, True]
        assert result.network_median_ms <= result.median_ms


def result(library: str, ms: float, agreement: float) -> ContenderResult:
    contender = Contender(library, "", "fp32", {})
    return ContenderResult(contender, [[ms, ms]] * 3, [[ms, ms]] * 3, agreement)


def test_row_with_other_labels_has_no_ratio_and_wins_nothing() -> None:
    eager, wrong, right = (
        result("PyTorch", 90, 1),
        result("OpenVINO", 1, 0.9989),
        result(OURS, 30, 0.999),
    )
    race = Race((eager, wrong, right, result(OURS, 2, 0.5)), 3, None)

    table = [line.split(" | ") for line in race_table(race, base=best_ours(race))]
    compared = targets(race)
    grown = growth("px", [("1", race)])

    assert best_ours(race) is right
    assert table[3][4:] == [OTHER_LABELS, OTHER_LABELS, "99.890% |"]
    assert table[4][4:6] == ["3 [3, 3]", "1 [1, 1]"]
    assert race.fastest("OpenVINO") is None
    assert [row.split(" | ")[0] for row in compared[2:]] == ["| PyTorch, fp32"]
    assert "| 90 (3x) | 1 (other labels, 99.890%) | 30 | 2 (other labels, 50.000%) |" in grown


def test_nothing_is_compared_when_all_our_rows_have_other_labels() -> None:
    race = Race((result("PyTorch", 90, 1), result(OURS, 30, 0.9)), 3, None)

    with pytest.raises(BenchmarkError, match="gave eager PyTorch's labels"):
        best_ours(race)


def test_opencv_computes_a_gate_as_it_stands(tmp_path: Path) -> None:
    graph = tmp_path / "gated.onnx"
    graph.write_bytes(gated_graph().SerializeToString())
    frame = natural_frame(8, 12, 0)

    expected, found = (
        np.asarray(network.compute(network.prepare([frame])))
        for network in (
            library(graph, precision="fp32", threads=1) for library in (OrtSession, OpenCv)
        )
    )

    assert found.shape == expected.shape == (1, 3, 8, 12)
    # both compute in float32; values are up to 3
    np.testing.assert_allclose(found, expected, atol=1e-5)


def gated_graph() -> onnx.ModelProto:
    """Make a squeeze-and-excitation gate: HardSigmoid of the channels' means, times the image."""
    node = onnx.helper.make_node
    float32 = onnx.TensorProto.FLOAT
    image, out = (
        onnx.helper.make_tensor_value_info(name, float32, (1, 3, 8, 12)) for name in ("image", "y")
    )
    nodes = [
        node("ReduceMean", ["image", "axes"], ["means"], keepdims=1),
        node("HardSigmoid", ["means"], ["gate"], alpha=1 / 6, beta=0.5),
        node("Mul", ["gate", "image"], ["y"]),
    ]
    axes = onnx.numpy_helper.from_array(np.array([2, 3], np.int64), "axes")
    made = onnx.helper.make_graph(nodes, "gated", [image], [out], [axes])
    return onnx.helper.make_model(
        made, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10
    )


@pytest.mark.cpu_abilities
def test_bf16_takes_part_only_where_the_cpu_has_it(subject: Subject, cpu: CpuAbilities) -> None:
    rows = contenders(subject, subject.graph, threads=1)

    libraries = {row.library for row in rows if row.precision == "bf16"}
    assert libraries == ({"PyTorch", "OpenVINO", OURS} if cpu.bf16 else set())


def test_network_alone_ends_in_the_scores_and_benchmark_app_runs_it(
    subject: Subject, tmp_path: Path
) -> None:
    fixed = fixed_graph(subject.graph, (1, 64, 96), target=tmp_path / "fixed.onnx")
    alone = network_alone(fixed, target=tmp_path / "alone.onnx")

    session = onnxruntime.InferenceSession(str(alone), providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape == [1, 4, 32, 48]  # half the frame, four classes
    assert run_benchmark_app(alone, precision="fp32", threads=1, seconds=1) > 0


def test_benchmark_app_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"benchmark_app failed: .*missing\.onnx"):
        run_benchmark_app(tmp_path / "missing.onnx", precision="fp32", threads=1, seconds=1)


def test_contender_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    described = {"kind": "library", "graph": str(tmp_path / "missing.onnx"), "threads": 1}
    contender = Contender("ONNX Runtime", "full graph", "fp32", described)

    with (
        Process(contender, [[np.zeros((8, 8, 3), np.uint8)]]) as process,
        pytest.raises(BenchmarkError, match=r"ONNX Runtime, full graph failed: .*missing\.onnx"),
    ):
        process.wait_until_open()


def test_section_is_replaced_and_the_others_stay(tmp_path: Path) -> None:
    file = tmp_path / "RESULTS.md"
    write_section(file, "head", "old\n\nlines")
    write_section(file, "lraspp", "kept")

    write_section(file, "head", "new")

    text = file.read_text()
    assert "old" not in text
    assert text.index("kept") < text.index("new")  # in the order of the titles
    assert text.count("<!-- begin ") == 2


def test_every_section_has_a_title() -> None:
    assert list(SECTIONS) == list(TITLES)


@pytest.mark.parametrize(("value", "text"), [(1234.5, "1234"), (0.01234, "0.0123"), (12.0, "12")])
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text
