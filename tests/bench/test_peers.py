"""The comparison with other runtimes, on a network of three layers."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fcn_bench.rounds import Plan
from fcn_deploy.errors import BenchmarkError
from fcn_export.frames import natural_frame
from peers.contenders import Contender, contenders, has_bf16
from peers.libraries import LIBRARIES
from peers.process import Process
from peers.results import TITLES, number, write_section
from peers.sections import SECTIONS, Setting, race_on
from peers.subject import Subject, export_as_a_user, fixed_graph, network_alone
from tests.bench.conftest import TinyModel


@pytest.fixture
def subject(tiny: TinyModel, monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.syspath_prepend(str(tiny.folder))
    module = importlib.import_module("tiny_fcn").build()
    monkeypatch.delitem(sys.modules, "tiny_fcn")
    module.load_state_dict(torch.load(tiny.checkpoint, weights_only=True))
    graph = tiny.folder / "user.onnx"
    if not graph.is_file():
        export_as_a_user(module.eval(), graph)
    return Subject("tiny", tiny.checkpoint, tiny.artifact, graph, arch=tiny.arch)


@pytest.fixture
def setting() -> Setting:
    return Setting(threads=1, rounds=2, say=lambda line: None)


QUICK = Plan(rounds=2, min_duration_seconds=0.0, warmup_calls=1, min_calls=1)


def test_everybody_gives_the_labels_of_pytorch(subject: Subject, setting: Setting) -> None:
    frames = [natural_frame(72, 90, seed) for seed in range(2)]

    race, _ = race_on(subject, (72, 90), setting, frames_bgr=frames, plan=QUICK)

    libraries = {lane.contender.library for lane in race.lanes}
    assert libraries == {"PyTorch", "fcn-deploy", *LIBRARIES}
    for lane in race.lanes:
        # random weights have no margins: rounding may flip a pixel in a thousand, and in bf16
        # up to a fifth of them
        least = 0.999 if lane.contender.precision == "fp32" else 0.8
        assert lane.agreement >= least, lane.contender.name
        assert [len(part) >= 1 for part in lane.frames_ms] == [True, True]
        assert lane.network_median_ms <= lane.median_ms


def test_batches_give_the_labels_of_pytorch(subject: Subject, setting: Setting) -> None:
    frames = [natural_frame(64, 80, seed) for seed in range(3)]

    race, _ = race_on(
        subject, (64, 80), setting, frames_bgr=frames, batch=3, plan=QUICK, brief=True
    )

    assert (
        min(lane.agreement for lane in race.lanes if lane.contender.precision == "fp32") >= 0.999
    )  # near ties, as above


def test_bf16_takes_part_only_where_the_cpu_has_it(subject: Subject) -> None:
    rows = contenders(subject, subject.graph, threads=1)

    assert any(row.precision == "bf16" for row in rows) == has_bf16()


def test_network_alone_ends_in_the_scores(subject: Subject, tmp_path: Path) -> None:
    import onnxruntime

    fixed = fixed_graph(subject.graph, (1, 64, 96), target=tmp_path / "fixed.onnx")
    alone = network_alone(fixed, target=tmp_path / "alone.onnx")

    session = onnxruntime.InferenceSession(str(alone), providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape == [1, 4, 32, 48]  # half the frame, four classes


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
