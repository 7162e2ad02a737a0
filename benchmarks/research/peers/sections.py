"""Measure the sections of RESULTS.md; each gives Markdown."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fcn_bench.rounds import Schedule
from fcn_bench.stats import ratio_of_medians
from fcn_deploy import machine
from fcn_deploy.errors import BenchmarkError
from fcn_deploy.names import Array
from research.peers.contenders import OURS, contenders
from research.peers.overhead import count_flops, measure_overhead
from research.peers.race import ContenderResult, Race, run_race
from research.peers.results import (
    OTHER_LABELS,
    describe_run,
    noise_text,
    number,
    race_table,
    ratio_text,
    table,
)
from research.peers.subject import Subject, fixed_graph, make_subject
from research.scenes.generate import NUM_CLASSES, make_scene
from research.scenes.train import cache_folder, trained

if TYPE_CHECKING:
    from torch import nn

__all__ = ["SECTIONS", "Setting", "best_ours", "growth", "prepare", "race_on", "targets"]

_LRASPP = "lraspp_mobilenet_v3_large"
_FCN = "fcn_resnet50"
_FRAMES = 3
_CLASSES = (2, 60, 150)  # beside the 21 that the scenes have
_SIZES = ((512, 512), (720, 1280), (1080, 1920), (2160, 3840), (4320, 7680))
_BATCHES = (1, 2, 4, 8)
_FRAME_SEED = 2_000_000  # scenes that neither the training nor its measure has seen
_LARGEST_SCENE = (1080, 1920)  # larger frames are made of such scenes, side by side
_APART_PIXELS = 12e6  # above, contenders are loaded one after another: each needs gigabytes


@dataclass(frozen=True, slots=True)
class Setting:
    """What all sections share.

    Attributes:
        rounds: of frames below a second; slower ones get fewer.
    """

    threads: int
    rounds: int
    say: Callable[[str], None]


def prepare(setting: Setting) -> None:
    """Train and export everything that the sections need."""
    _trained_subject(_FCN, setting)
    for classes in (None, *_CLASSES):
        _lraspp_subject(classes, setting)


def race_on(
    subject: Subject,
    size: tuple[int, int],
    setting: Setting,
    *,
    frames_bgr: Sequence[Array] | None = None,
    batch: int = 1,
    schedule: Schedule | None = None,
    brief: bool = False,
) -> Race:
    """Race everybody on frames of one size."""
    frames = scenes(size, max(_FRAMES, batch)) if frames_bgr is None else frames_bgr
    if batch > 1:
        frames = frames[:batch]
    with tempfile.TemporaryDirectory() as folder:
        graph = fixed_graph(subject.graph, (batch, *size), target=Path(folder) / "fixed.onnx")
        return run_race(
            contenders(subject, graph, threads=setting.threads, brief=brief),
            frames,
            batch=batch,
            schedule=schedule
            or Schedule(rounds=setting.rounds, min_duration_seconds=0.4 * setting.rounds),
            say=setting.say,
            apart=size[0] * size[1] * batch > _APART_PIXELS,
        )


def scenes(size: tuple[int, int], count: int) -> list[Array]:
    """Make held-out frames of a size: uint8 [H, W, 3] each."""
    part = (min(size[0], _LARGEST_SCENE[0]), min(size[1], _LARGEST_SCENE[1]))
    down, across = -(-size[0] // part[0]), -(-size[1] // part[1])
    frames = []
    for index in range(count):
        frame = np.tile(make_scene(*part, _FRAME_SEED + index)[0], (down, across, 1))
        frames.append(np.ascontiguousarray(frame[: size[0], : size[1]]))
    return frames


def _machine(setting: Setting) -> str:
    return describe_run(threads=setting.threads)


def _lraspp(setting: Setting) -> str:
    return _frame_to_labels(_trained_subject(_LRASPP, setting), (720, 1280), setting)


def _fcn(setting: Setting) -> str:
    # a call takes seconds: single calls of one frame, and the one that gives labels warms up
    rounds = min(5, setting.rounds)
    schedule = Schedule(rounds=rounds, min_duration_seconds=0.0, warmup_calls=0, min_calls=1)
    return _frame_to_labels(_trained_subject(_FCN, setting), (512, 512), setting, schedule=schedule)


def _frame_to_labels(
    subject: Subject, size: tuple[int, int], setting: Setting, *, schedule: Schedule | None = None
) -> str:
    frames = scenes(size, _FRAMES if schedule is None else 1)
    race = race_on(subject, size, setting, frames_bgr=frames, schedule=schedule)
    return "\n".join([*race_table(race, base=best_ours(race)), "", *targets(race)])


def targets(race: Race) -> list[str]:
    """Say how our fastest row stands to the peers, at the same precision where they have it."""
    ours = best_ours(race)
    rows = []
    for library, precision in (
        ("PyTorch", "fp32"),
        ("ONNX Runtime", "fp32"),
        ("OpenVINO", ours.contender.precision),
        ("OpenCV dnn", "fp32"),
    ):
        other = race.results[0] if library == "PyTorch" else race.fastest(library, precision)
        if other is not None:
            rows.append(
                (
                    f"{other.contender.name}, {precision}",
                    f"{OURS}, {ours.contender.precision}",
                    ratio_text(race.ratio(other, ours)),
                )
            )
    return table(("times as long as ours", "ours", "ratio"), rows)


def _overhead(setting: Setting) -> str:
    rows = []
    for arch, size, rounds in ((_LRASPP, (720, 1280), 10), (_FCN, (512, 512), 4)):
        module = trained(arch, say=setting.say)
        subject = make_subject(arch, module, folder=cache_folder(), say=setting.say)
        frame = scenes(size, 1)[0]
        for precision in ("fp32", "bf16") if machine.cpu_abilities().bf16 else ("fp32",):
            found = measure_overhead(
                subject,
                frame,
                precision=precision,
                threads=setting.threads,
                rounds=min(rounds, setting.rounds),
                network_gflop=count_flops(module, size),
            )
            apps = [number(value) for value in found.benchmark_app_ms]
            prepare, execute, finish = map(number, found.parts_ms)
            overhead = found.overhead
            rows.append(
                (
                    f"{arch} {size[0]}x{size[1]}, {precision}",
                    number(found.frame_ms),
                    number(found.bare_ms),
                    ", ".join(apps),
                    number(found.head_ms),
                    f"{overhead.value - 1:.1%} [{overhead.low - 1:.1%}, {overhead.high - 1:.1%}]",
                    f"{prepare} + {execute} + {finish}",
                    f"{found.network_gflop:.3g}",
                    f"{found.peak_gflops:.0f}",
                    f"{found.peak_share:.0%}",
                )
            )
    header = (
        "network",
        "frame, ms",
        "bare network call, ms",
        "OpenVINO's benchmark_app, ms",
        "head, ms",
        "frame over both",
        "prepare + execute + finish, ms",
        "GFLOP",
        "matmul, GFLOP/s",
        "network's share of it",
    )
    return "\n".join(
        [
            *table(header, rows),
            "",
            "All in one process, taking turns, but for `benchmark_app`: it runs before and after, "
            "on the user's graph up to the scores before the last Resize, which takes normalised "
            "floats (medians of its runs). The matrix product is of two 2048x2048 matrices in "
            "PyTorch, its fastest call.",
        ]
    )


def _head(setting: Setting) -> str:
    from research import head

    rows = []
    rounds = min(7, setting.rounds)  # PyTorch takes seconds for 150 classes
    for classes in (21, 150):
        scores = head.smooth(classes, (135, 240), 12)
        ways = {OURS: head.head(scores, head.FULL_HD), **head.peers(scores, head.FULL_HD)}
        expected = np.asarray(ways["torch"]())
        unlike = {way: int((np.asarray(call()) != expected).sum()) for way, call in ways.items()}
        times = head.take_turns(ways, rounds)
        ours = [[value] for value in times[OURS]]
        for way, taken in times.items():
            ratio = ratio_of_medians([[value] for value in taken], ours)
            rows.append(
                (
                    classes,
                    f"{head.mixed_share(scores):.1%}",
                    way,
                    number(float(np.median(taken))),
                    "" if way == OURS else ratio_text(ratio),
                    unlike[way],
                )
            )
    header = ("classes", "mixed cells", "way", "ms", f"it / {OURS}", "labels unlike torch's")
    return "\n".join(
        [
            *table(header, rows),
            "",
            "Smooth scores [C, 135, 240] to labels [1080, 1920], all in one process, taking turns "
            f"over {rounds} rounds (`benchmarks/research/head.py` measures more cases).",
        ]
    )


def _pixels(setting: Setting) -> str:
    subject = _trained_subject(_LRASPP, setting)
    runs = []
    for size in _SIZES:
        pixels = size[0] * size[1]
        setting.say(f"{size[0]}x{size[1]}")
        schedule = _short_schedule(setting, pixels)
        frames = scenes(size, 1)
        race = race_on(subject, size, setting, frames_bgr=frames, schedule=schedule, brief=True)
        runs.append((f"{size[0]}x{size[1]}, {pixels / 1e6:.2f}", race))
    return growth("LR-ASPP, megapixels", runs)


def _classes(setting: Setting) -> str:
    runs = []
    for classes in sorted((NUM_CLASSES, *_CLASSES)):
        subject = _lraspp_subject(None if classes == NUM_CLASSES else classes, setting)
        schedule = _short_schedule(setting, 720 * 1280)
        frames = scenes((720, 1280), 1)
        race = race_on(
            subject, (720, 1280), setting, frames_bgr=frames, schedule=schedule, brief=True
        )
        runs.append((str(classes), race))
    return growth("LR-ASPP at 720x1280, classes", runs)


def _batch(setting: Setting) -> str:
    subject = _trained_subject(_LRASPP, setting)
    runs = []
    for batch in _BATCHES:
        schedule = _short_schedule(setting, 512 * 512 * batch)
        race = race_on(subject, (512, 512), setting, batch=batch, schedule=schedule, brief=True)
        runs.append((str(batch), race))
    return growth("LR-ASPP at 512x512, frames in a call", runs)


def with_classes(module: nn.Module, classes: int) -> nn.Module:
    """Give an LR-ASPP as many classes, in place: its own ones, and weaker copies of them.

    The copies keep the maps as smooth as those of a trained network, and their scores apart.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    classifier: Any = module.classifier
    for layer in (classifier.low_classifier, classifier.high_classifier):
        rows = torch.arange(classes) % layer.out_channels
        weight, bias = layer.weight.data[rows], layer.bias.data[rows]
        scale = torch.where(torch.arange(classes) < layer.out_channels, 1.0, 0.9)
        noise = torch.randn(weight.shape, generator=generator) * weight.std() * 0.1
        copies = (torch.arange(classes) >= layer.out_channels).view(-1, 1, 1, 1)
        layer.weight.data = weight * scale.view(-1, 1, 1, 1) + noise * copies
        layer.bias.data = bias * scale
        layer.out_channels = classes
    return module


SECTIONS: dict[str, Callable[[Setting], str]] = {
    "machine": _machine,
    "lraspp": _lraspp,
    "fcn": _fcn,
    "head": _head,
    "overhead": _overhead,
    "pixels": _pixels,
    "classes": _classes,
    "batch": _batch,
}
"""In the order in which they run."""


def _trained_subject(arch: str, setting: Setting) -> Subject:
    module = trained(arch, say=setting.say)
    return make_subject(arch, module, folder=cache_folder(), say=setting.say)


def _lraspp_subject(classes: int | None, setting: Setting) -> Subject:
    """Give the trained LR-ASPP, or its variant with another number of classes."""
    if classes is None:
        return _trained_subject(_LRASPP, setting)
    module = with_classes(trained(_LRASPP, say=setting.say), classes)
    return make_subject(f"{_LRASPP}-{classes}", module, folder=cache_folder(), say=setting.say)


def best_ours(race: Race) -> ContenderResult:
    """Give our fastest row, of those with eager PyTorch's labels.

    Raises:
        BenchmarkError: there is none.
    """
    ours = [
        result for result in race.results if result.contender.is_ours and result.has_same_labels
    ]
    if not ours:
        raise BenchmarkError(f"no row of {OURS} was run and gave eager PyTorch's labels.")
    return min(ours, key=lambda result: result.median_ms)


def _short_schedule(setting: Setting, pixels: int) -> Schedule:
    """Measure for growth: few rounds of single calls; the call that gives labels warms up."""
    if pixels > 4e6:
        rounds = min(1 if pixels > _APART_PIXELS else 2, setting.rounds)
        return Schedule(rounds=rounds, min_duration_seconds=0.0, warmup_calls=0, min_calls=1)
    rounds = min(5, setting.rounds)
    return Schedule(rounds=rounds, min_duration_seconds=0.15 * rounds, warmup_calls=1, min_calls=1)


def growth(unit: str, runs: Sequence[tuple[str, Race]]) -> str:
    """Give one row a step, one column a contender: ms, and how many times ours that is.

    A contender with other labels has its agreement in place of the ratio.
    """
    names = [f"{c.contender.name}, {c.contender.precision}" for c in runs[0][1].results]
    rows = []
    for step, race in runs:
        ours = best_ours(race)
        cells = []
        for result in race.results:
            if not result.has_same_labels:
                beside = f" ({OTHER_LABELS}, {result.agreement:.3%})"
            elif result is ours:
                beside = ""
            else:
                beside = f" ({number(result.median_ms / ours.median_ms)}x)"
            cells.append(f"{number(result.median_ms)}{beside}")
        rows.append((step, *cells))
    header = (unit, *(f"{name}, ms" for name in names))
    return "\n".join([*table(header, rows), "", noise_text(*(race for _, race in runs))])
