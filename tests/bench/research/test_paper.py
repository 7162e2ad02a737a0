"""The table beside the paper's times: which rows it takes, and what it says of them."""

from __future__ import annotations

import pytest

from research.paper import NETWORKS, main, report
from research.peers.contenders import OURS, Contender
from research.peers.race import ContenderResult, Race


def result(
    library: str, mode: str, precision: str, ms: float, agreement: float = 1.0
) -> ContenderResult:
    contender = Contender(library, mode, precision, {"backend": mode.removeprefix("on ")})
    return ContenderResult(contender, [[ms, ms * 1.1]] * 6, [[ms / 2]] * 6, agreement)


def test_the_fastest_of_each_side_is_compared_with_eager_and_with_the_best_of_pytorch() -> None:
    race = Race(
        (
            result("PyTorch", "eager", "fp32", 1000),
            result("PyTorch", "channels_last", "fp32", 500),
            result(OURS, "on openvino", "fp32", 250),
            result(OURS, "on openvino", "int8", 100, agreement=0.9),
        ),
        rounds=6,
        foreign_cpu=0.02,
    )

    lines = report(NETWORKS[1:2], [race], threads=2).splitlines()

    row = next(line for line in lines if line.startswith("| FCN-VGG16"))
    assert row == (
        "| FCN-VGG16 | 210 | 1050 | 525 (channels_last) | 105 (openvino int8) "
        "| 10 [10, 10] | 5 [5, 5] |"
    )
    # every row stands in the second table, with its labels' agreement
    assert "| FCN-VGG16 | fcn-deploy, on openvino | int8 | 105 | 10 [10, 10] | 90.00% |" in lines


def test_the_papers_networks_have_the_papers_times() -> None:
    assert {one.title: one.paper_ms for one in NETWORKS} == {
        "FCN-AlexNet": "50",
        "FCN-VGG16": "210",
        "FCN-GoogLeNet": "59",
        "FCN-8s-VGG16": "about 175",
    }


def test_an_unknown_network_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--only", "fcn32s_lenet"])

    assert "fcn8s_vgg16" in capsys.readouterr().err
