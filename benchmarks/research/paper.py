"""Time the FCN paper's networks at its size, 500x500, beside the times that the paper gives.

    python -m benchmarks.research.paper    everything: export, verify, measure, write PAPER.md
    python -m benchmarks.research.paper --prepare     export and verify only, so that a run measures
    python -m benchmarks.research.paper --only fcn8s_vgg16

Networks are full-size, with random weights: these change no time, but labels say nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fcn_bench.rounds import Schedule
from fcn_deploy.artifact.partial_files import write_whole
from fcn_deploy.errors import FcnDeployError
from fcn_deploy.machine import usable_cores
from research.peers.contenders import our_row, torch_rows
from research.peers.race import ContenderResult, Race, run_race
from research.peers.results import describe_run, noise_text, number, ratio_text, table
from research.peers.subject import Subject

if TYPE_CHECKING:
    from collections.abc import Callable

    from fcn_models import FCN
    from fcn_models.fcn import Variant

SIZE = (500, 500)
"""Height and width in px at which the paper timed."""

CLASSES = 21

_OUTPUT = Path(__file__).resolve().parents[1] / "PAPER.md"
_CACHE = Path("build/paper")
_FRAMES = 4
_SEED = 60

_SOURCES = """\
The paper's times are forward passes on a Tesla K40c in Caffe: 50, 210 and 59 ms by its Table 1
(averaged over 20 trials for a 500x500 input), about 175 ms for FCN-8s by its table of test results
(J. Long, E. Shelhamer, T. Darrell: Fully Convolutional Networks for Semantic Segmentation, CVPR
2015, arXiv:1411.4038v2). They stand here for scale: another machine, eleven years earlier, which
padded the image by 100 px and computed 698x698."""

_RULES = """\
Both sides run the same network in the aligned geometry, on the same uint8 BGR frames, and give
uint8 labels of the frame's size. Weights are random, so that labels say little. Times are medians;
ratios are of medians, with 95 % bootstrap intervals. Each row has a process of its own, and all
rows of a network take turns."""


@dataclass(frozen=True, slots=True)
class PaperNetwork:
    """One of the paper's networks.

    Attributes:
        title: the paper's name.
        paper_ms: its forward time.
    """

    title: str
    backbone: str
    variant: Variant
    paper_ms: str

    @property
    def name(self) -> str:
        return f"fcn{self.variant}_{self.backbone}"

    def make(self) -> FCN:
        """Build it with random weights."""
        import torch

        from research.peers.random_networks import random_fcn

        torch.manual_seed(_SEED)
        return random_fcn(self.backbone, self.variant, CLASSES)


NETWORKS = (
    PaperNetwork("FCN-AlexNet", "alexnet", "32s", "50"),
    PaperNetwork("FCN-VGG16", "vgg16", "32s", "210"),
    PaperNetwork("FCN-GoogLeNet", "googlenet", "32s", "59"),
    PaperNetwork("FCN-8s-VGG16", "vgg16", "8s", "about 175"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; give its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.research.paper",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [network.name for network in NETWORKS]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--prepare", action="store_true", help="export and verify, measure nothing")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of every row")
    parser.add_argument("--cache", type=Path, default=_CACHE, metavar="DIR")
    parser.add_argument("--output", type=Path, default=_OUTPUT, metavar="FILE")
    options = parser.parse_args(arguments)
    chosen = [network for network in NETWORKS if network.name in options.only]
    schedule = Schedule(rounds=options.rounds, min_duration_seconds=3.0)
    try:
        subjects = [prepare(network, options.cache, say=_say) for network in chosen]
        if options.prepare:
            return 0
        races = [race(subject, schedule, threads=options.threads, say=_say) for subject in subjects]
    except FcnDeployError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    _write(options.output, report(chosen, races, threads=options.threads))
    sys.stdout.write(options.output.read_text(encoding="utf-8"))
    return 0


def prepare(network: PaperNetwork, folder: Path, *, say: Callable[[str], None]) -> Subject:
    """Export a network in fp32 and int8, verified, or take what is there."""
    from fcn_deploy.artifact.folder import is_artifact
    from fcn_deploy.preprocess import default_preprocess
    from fcn_export.export import ExportRequest, export_model
    from fcn_models import save_checkpoint

    place = folder / network.name
    subject = Subject(network.name, place / "model.pt", place / "model.fcn", place / "none.onnx")
    if is_artifact(subject.artifact):
        say(f"{network.name}: taken from '{place}'")
        return subject
    place.mkdir(parents=True, exist_ok=True)
    save_checkpoint(network.make(), subject.checkpoint, preprocess=default_preprocess())
    request = ExportRequest(
        precisions=("fp32", "int8"),
        calibrate=_calibration_frames(folder / "frames"),
        engine="none",
        size=SIZE,
        min_size=(256, 256),
        max_size=(520, 520),
        batch=(1, 1, 1),
        force=True,
        allow_broken=True,  # weights are random: labels of near ties that anything may tip
    )
    found = export_model(subject.checkpoint, subject.artifact, request=request)
    worst = max(row.max_score_error for row in found.parity)
    say(f"{network.name}: exported, {len(found.parity)} shapes, largest score error {worst:.1e}")
    return subject


def race(subject: Subject, schedule: Schedule, *, threads: int, say: Callable[[str], None]) -> Race:
    """Let PyTorch's ways and this project's variants take turns."""
    from fcn_export.check.sample_frames import natural_frame

    ours = [("openvino", "fp32"), ("openvino", "int8"), ("onnxruntime", "fp32")]
    contenders = [
        *torch_rows(subject, threads=threads),
        *(our_row(subject, backend, kind, threads=threads) for backend, kind in ours),
    ]
    frames = [natural_frame(*SIZE, seed) for seed in range(_SEED, _SEED + _FRAMES)]
    return run_race(contenders, frames, batch=1, schedule=schedule, say=say)


def report(networks: Sequence[PaperNetwork], races: Sequence[Race], *, threads: int) -> str:
    """Give the tables as Markdown."""
    rows, details = [], []
    for network, run in zip(networks, races, strict=True):
        eager, *_ = run.results
        torch = min(_of(run, ours=False), key=lambda result: result.median_ms)
        ours = min(_of(run, ours=True), key=lambda result: result.median_ms)
        rows.append(
            (
                network.title,
                network.paper_ms,
                number(eager.median_ms),
                f"{number(torch.median_ms)} ({torch.contender.mode})",
                f"{number(ours.median_ms)} ({_way(ours)})",
                ratio_text(run.ratio(eager, ours)),
                ratio_text(run.ratio(torch, ours)),
            )
        )
        for result in run.results:
            way = (network.title, result.contender.name, result.contender.precision)
            ratio = ratio_text(run.ratio(eager, result))
            details.append((*way, number(result.median_ms), ratio, f"{result.agreement:.2%}"))
    heading = ("network", "paper, K40c", "eager", "best PyTorch", "fcn-deploy's fastest")
    lines = [
        "# The paper's networks on this machine",
        "",
        "Written by `make paper` (`python -m benchmarks.research.paper`); do not edit. Frame to",
        f"labels at {SIZE[0]}x{SIZE[1]}, {CLASSES} classes, in ms.",
        "",
        *table((*heading, "eager / ours", "best PyTorch / ours"), rows),
        "",
        _SOURCES,
        "",
        *table(("network", "row", "precision", "ms", "eager / it", "labels as eager's"), details),
        "",
        noise_text(*races),
        "",
        "## The machine",
        "",
        describe_run(threads=threads, rules=_RULES),
    ]
    return "\n".join(lines) + "\n"


def _of(run: Race, *, ours: bool) -> list[ContenderResult]:
    return [result for result in run.results if result.contender.is_ours is ours]


def _way(result: ContenderResult) -> str:
    return f"{result.contender.description['backend']} {result.contender.precision}"


def _calibration_frames(folder: Path) -> Path:
    """Write frames that look somewhat like photographs, other than those that are timed."""
    import cv2

    from fcn_export.check.sample_frames import natural_frame

    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(_FRAMES):
        cv2.imwrite(str(folder / f"{seed}.png"), natural_frame(*SIZE, seed))
    return folder


def _write(file: Path, text: str) -> None:
    write_whole(file, text.encode())


def _say(line: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
