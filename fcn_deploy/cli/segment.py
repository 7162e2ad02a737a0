"""fcn-segment: segment images, folders, videos and cameras, and write the pictures."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fcn_deploy.cli.run import (
    EXIT_OK,
    Parser,
    add_common_options,
    add_meaning_options,
    run_command,
    write_json,
)

if TYPE_CHECKING:
    from fcn_deploy.segmenter import Segmenter
    from fcn_deploy.video.frames import SegmentedFrame
    from fcn_deploy.video.jobs import SegmentJob
    from fcn_deploy.video.runs import JobReport

__all__ = ["build_parser", "main"]

# written out here so that --help does not load NumPy; a test compares them with the library's
_VIEWS = ("overlay", "labels", "color", "side-by-side")
_POLICIES = ("every", "latest")
_WRITERS = ("opencv", "pyav")
_BACKENDS = ("auto", "openvino", "onnxruntime", "tensorrt", "tensorrt-rtx")
_COLORS = ("rgb", "bgr", "gray")
_PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")

_JSON_VERSION = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run fcn-segment; see the contract of all commands in `fcn_deploy.cli.run`."""
    return run_command(run, build_parser(), argv)


def build_parser() -> Parser:
    """Make the parser of all options."""
    parser = Parser(
        prog="fcn-segment",
        description="Segment images, folders of images, videos, webcams and network streams.",
    )
    add_arguments(parser)
    return parser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="an image, a folder of images, a video, a webcam's number, rtsp:// or http://",
    )
    parser.add_argument(
        "-m", "--model", required=True, metavar="ARTIFACT", help="artifact folder or .onnx file"
    )
    parser.add_argument(
        "-o",
        "--output",
        default="segmented",
        metavar="OUT",
        help="a folder, or a video file for one video (default: segmented/)",
    )
    parser.add_argument(
        "--view",
        choices=_VIEWS,
        default="overlay",
        help="labels: PNG files of class ids, also for videos (default: overlay)",
    )
    parser.add_argument(
        "--alpha", type=_share, default=0.5, help="share of colour in the overlay (default: 0.5)"
    )
    parser.add_argument(
        "--policy",
        choices=_POLICIES,
        default=None,
        help="when the network is slower than the source: keep every frame (default for files)"
        " or only the latest (default for live sources)",
    )
    parser.add_argument("--backend", choices=_BACKENDS, default="auto", help="(default: auto)")
    parser.add_argument("--precision", choices=_PRECISIONS, default="auto", help="(default: auto)")
    parser.add_argument(
        "--trust-code",
        action="store_true",
        help="take a .plan that is in no artifact: it holds code that is run",
    )
    parser.add_argument(
        "--max-frames", type=_count, default=None, metavar="N", help="stop each source after N"
    )
    parser.add_argument(
        "--writer",
        choices=_WRITERS,
        default="opencv",
        help="of videos; pyav needs fcn-deploy[video] and leaves files that play even if the"
        " program is killed (default: opencv)",
    )
    parser.add_argument("--show", action="store_true", help="show the frames; q ends")
    parser.add_argument("--json", metavar="FILE", help="write a report (-: stdout)")
    group = parser.add_argument_group("a bare .onnx or .xml file")
    group.add_argument(
        "--mean", type=_numbers, metavar="R,G,B", help="of values in 0..1 (default: ImageNet's)"
    )
    group.add_argument("--std", type=_numbers, metavar="R,G,B", help="(default: ImageNet's)")
    group.add_argument(
        "--color", choices=_COLORS, help="channels that the network expects (default: rgb)"
    )
    group.add_argument(
        "--output-key", metavar="NAME", help="output to label by, where there are several"
    )
    add_meaning_options(group, of="its")
    add_common_options(parser)


def run(args: argparse.Namespace) -> int:
    """Segment every source, then say what was written."""
    # FFmpeg prints addresses with their passwords, and both repeat what we report
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    from fcn_deploy.machine import throughput_streams, usable_cores
    from fcn_deploy.video.jobs import connected, segment_jobs, want_throughput
    from fcn_deploy.video.runs import JobReport, run_job

    report = Path(args.json) if args.json not in (None, "-") else None
    jobs = segment_jobs(args.sources, args.output, view=args.view, report=report)
    streams = throughput_streams(usable_cores()) if want_throughput(jobs, args.policy) else 1
    reports: list[JobReport] = []
    complete = False
    try:
        with (
            connected(jobs),
            _open(args, streams) as segmenter,
            _progress(args) as follow,
        ):
            for job in jobs:
                reports.append(JobReport(job.source.name))
                run_job(
                    job,
                    segmenter,
                    reports[-1],
                    view=args.view,
                    alpha=args.alpha,
                    policy=args.policy,
                    writer=args.writer,
                    max_frames=args.max_frames,
                    show=args.show,
                    on_frame=follow(job),
                )
        complete = True
    finally:
        _tell(args, reports, complete=complete)
    return EXIT_OK


def _open(args: argparse.Namespace, streams: int) -> Segmenter:
    from fcn_deploy.errors import FcnDeployError
    from fcn_deploy.segmenter import Segmenter

    try:
        return Segmenter.open(
            args.model,
            backend=args.backend,
            precision=args.precision,
            num_streams=streams,
            mean=args.mean,
            std=args.std,
            color=args.color,
            activation=args.activation,
            threshold=args.threshold,
            output_key=args.output_key,
            trust_code=args.trust_code,
        )
    except ValueError as error:  # options of bare files, with an artifact
        raise FcnDeployError(f"{error}.", hint="Leave them out.") from error


def _tell(args: argparse.Namespace, reports: Sequence[JobReport], *, complete: bool) -> None:
    from fcn_deploy.video.frame_counts import combine

    for report in reports:
        if args.quiet:
            break
        for notice in report.notices:
            sys.stderr.write(f"fcn-segment: {report.source}: {notice}\n")
        if args.json != "-" and (complete or report.stats.delivered):
            where = ", ".join(report.outputs) or "nothing written"
            sys.stdout.write(
                f"{report.source}: {report.stats.delivered} frames at {report.stats.fps:.1f}"
                f" frames/s -> {where}\n"
            )
    if args.json is not None and reports:
        total = combine(report.stats for report in reports).to_json()
        document = total | {
            "schema_version": _JSON_VERSION,
            "complete": complete,
            "outputs": [path for report in reports for path in report.outputs],
            "sources": [report.to_json() for report in reports],
        }
        write_json(args.json, document)


@contextlib.contextmanager
def _progress(
    args: argparse.Namespace,
) -> Iterator[Callable[[SegmentJob], Callable[[SegmentedFrame], None] | None]]:
    """Show a bar for each job on a terminal; nothing with -q or where stderr is a file."""
    if args.quiet or not sys.stderr.isatty():
        yield lambda job: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:

        def follow(job: SegmentJob) -> Callable[[SegmentedFrame], None]:
            task = progress.add_task(escape(job.source.name), total=None)

            def advance(item: SegmentedFrame) -> None:
                total = job.source.frame_count
                if total is not None and args.max_frames is not None:
                    total = min(total, args.max_frames)
                progress.update(task, advance=1, total=total)

            return advance

        yield follow


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(_number(part) for part in text.split(","))


def _share(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)
