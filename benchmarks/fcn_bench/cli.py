"""fcn-bench: time an artifact or a graph on this machine, against PyTorch."""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fcn_deploy.cli.run import (
    EXIT_CHECK_FAILED,
    EXIT_OK,
    Parser,
    add_common_options,
    add_meaning_options,
    parse_size,
    run_command,
    write_json,
    write_text,
)
from fcn_deploy.errors import BenchmarkError
from fcn_deploy.names import NETWORK_COLORS, Precision

if TYPE_CHECKING:
    from fcn_bench.options import BenchmarkOptions
    from fcn_bench.report import BenchmarkReport
    from fcn_deploy.artifact.manifest import Preprocess

__all__ = ["build_parser", "main"]

_EPILOG = """\
scopes: compute (the network alone), transfer (with the copies to a GPU and back), frame (frame in,
labels out), stream (from a frame's arrival to its written labels)

plans are timed by CUDA events, and beside trtexec --loadEngine=FILE --shapes=image:NxHxWx3
  compute     is its "GPU Compute Time", which --noDataTransfers leaves alone
  transfer    is its "Latency": copy in, compute and copy out
  latency     is one call at a time, without CUDA graphs; trtexec enqueues one ahead, and where it
              has --useCudaGraph and --useSpinWait its times may be shorter
  throughput  is calls from several threads: --infStreams=N
  --warmup N, --rounds N, --min-duration S stand for --warmUp (in ms), --iterations, --duration
"""

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    return run_command(_run, build_parser(), argv)


def build_parser() -> Parser:
    """Make the parser of all options."""
    parser = Parser(
        prog="fcn-bench",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_arguments(parser)
    return parser


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="artifact folder, a file in one, or a bare .onnx, .xml or .plan",
    )
    add = parser.add_argument_group("PyTorch baseline").add_argument
    add("--baseline", metavar="MODEL", help="checkpoint (default: the one the manifest names)")
    add("--arch", metavar="NAME", help="its architecture, or package.module:factory")
    add("--arch-arg", metavar="KEY=VALUE", action="append", default=[], help="for the factory")
    add(
        "--output-key",
        metavar="NAME",
        help="which output holds the scores; a bare graph's where there is no --baseline",
    )
    add("--trust-code", action="store_true", help="allow models that carry or name code")
    add("--compile", action="store_true", help="add a torch.compile row")
    what = parser.add_argument_group("what to run")
    add = what.add_argument
    add("--backend", metavar="NAME", help="such as openvino, tensorrt (default: all that can)")
    add("--precision", metavar="LIST", type=_precisions, default=(), help="such as fp32,bf16")
    add("--size", metavar="HxW[,HxW...]", type=_sizes, default=(), help="frame sizes")
    add("--batch", metavar="LIST", type=_batches, default=(1,), help="frames a call (default: 1)")
    add("--input", metavar="PATH", help="images folder, image or video (default: synthetic)")
    add("--mean", metavar="M,M,M", type=_numbers, help="a bare graph's, of values in 0..1")
    add("--std", metavar="S,S,S", type=_numbers, help="a bare graph's, of values in 0..1")
    add("--color", choices=NETWORK_COLORS, help="what a bare graph's network expects")
    add_meaning_options(what, of="a bare graph's, or the baseline's,")
    add("--eval", nargs=2, metavar=("IMAGES", "LABELS"), help="labelled folders, for the mIoU")
    add(
        "--scenario",
        metavar="LIST",
        type=_names,
        default=("latency", "throughput"),
        help="latency (one call at a time), throughput (saturated), stream (frames at a fixed "
        "rate, each from its arrival to its written labels); default: latency,throughput",
    )
    add("--rate", metavar="FPS", type=float, help="of a stream (default: the video's, or 30)")
    add = parser.add_argument_group("how long (default: until steady)").add_argument
    add("--rounds", metavar="N", type=_count, help="turns of each row")
    add("--min-duration", metavar="S", type=float, default=5.0, help="seconds a row (default: 5)")
    add("--warmup", metavar="N", type=int, help="calls before the first round")
    add = parser.add_argument_group("reports ('-': stdout) and gates").add_argument
    add("--json", metavar="FILE", help="all figures")
    add("--csv", metavar="FILE", help="one line a row")
    add("--html", metavar="FILE", help="one page with charts")
    add("--markdown", metavar="FILE", help="tables")
    add("--compare", metavar="OLD.json", type=Path, help="fail where a row became slower")
    add("--max-regression", metavar="PCT", type=_percent, help="slower by this is allowed (10)")
    add(
        "--assert",
        metavar="EXPR",
        action="append",
        default=[],
        dest="assertions",
        help="such as p95_ms<=12, speedup>=3, compute.p50_ms<8; must hold for every row",
    )
    add(
        "--tune",
        action="store_true",
        help="keep the fastest variant within the budget as this machine's choice for "
        "precision auto",
    )
    add_common_options(parser)


def _run(args: argparse.Namespace) -> int:
    # whatever can be refused is refused before minutes are spent on measuring
    from fcn_bench.assertions import check_assertions, check_measured, parse_assertion
    from fcn_bench.compare import compare, load_report
    from fcn_bench.run_benchmark import BenchmarkInterrupted, benchmark
    from fcn_bench.tune import check_tunable, tune

    _check_outputs(args)
    if args.max_regression is not None and args.compare is None:
        raise BenchmarkError(
            f"--max-regression {args.max_regression:g} has nothing to compare with.",
            hint="Add --compare OLD.json.",
        )
    assertions = [parse_assertion(text) for text in args.assertions]
    check_measured(assertions, args.scenario, labelled=args.eval is not None)
    old = None if args.compare is None else load_report(args.compare)
    artifact = check_tunable(Path(args.target), args.scenario) if args.tune else None
    options = _options(args)
    say = _progress(args)
    try:
        report = benchmark(args.target, options, on_step=say)
    except BenchmarkInterrupted as interrupted:
        say("")
        _write(interrupted.report, args)
        raise
    say("")
    _write(report, args)
    lines, held = [], True
    if artifact is not None:
        lines += tune(report, artifact).lines()
    if old is not None:
        comparison = compare(report, old, max_regression_percent=args.max_regression)
        lines += comparison.lines()
        held = comparison.held
    for result in check_assertions(assertions, report.rows):
        lines.append(str(result))
        held = held and result.held
    stream = sys.stderr if _stdout_taken(args) else sys.stdout
    stream.writelines(f"{line}\n" for line in lines)
    return EXIT_OK if held else EXIT_CHECK_FAILED


def _options(args: argparse.Namespace) -> BenchmarkOptions:
    from fcn_bench.options import BenchmarkOptions
    from fcn_bench.rounds import Schedule
    from fcn_export.load.factory import parse_arch_args

    try:
        return BenchmarkOptions(
            baseline=args.baseline,
            arch=args.arch,
            arch_args=parse_arch_args(args.arch_arg) or None,
            output_key=args.output_key,
            trust_code=args.trust_code,
            compile=args.compile,
            backend=args.backend,
            precisions=args.precision,
            sizes=args.size,
            batches=args.batch,
            input=args.input,
            preprocess=_preprocess(args),
            activation=args.activation,
            threshold=args.threshold,
            labelled=None if args.eval is None else (args.eval[0], args.eval[1]),
            scenarios=args.scenario,
            rate_fps=args.rate,
            schedule=Schedule(args.rounds, args.min_duration, args.warmup),
        )
    except ValueError as error:
        raise BenchmarkError(f"{error}.") from error


def _preprocess(args: argparse.Namespace) -> Preprocess | None:
    from fcn_deploy.artifact.manifest import Preprocess
    from fcn_deploy.preprocess import default_preprocess

    if args.mean is None and args.std is None and args.color is None:
        return None
    usual = default_preprocess(args.color or "rgb")
    return Preprocess(args.mean or usual.mean, args.std or usual.std, usual.color)


def _check_outputs(args: argparse.Namespace) -> None:
    """Refuse two reports on one stdout, and folders that are not there."""
    files = [name for name in _outputs(args) if name is not None]
    if files.count("-") > 1:
        raise BenchmarkError("only one of --json, --csv, --html and --markdown can go to stdout.")
    for name in files:
        if name != "-" and not Path(name).parent.is_dir():
            raise BenchmarkError(f"there is no folder '{Path(name).parent}' for '{name}'.")
        if name != "-" and Path(name).is_dir():
            raise BenchmarkError(
                f"'{name}' is a folder; a report is a file.", hint="Name a file in it."
            )


def _write(report: BenchmarkReport, args: argparse.Namespace) -> None:
    from fcn_bench.html import html_text
    from fcn_bench.tables import csv_text, markdown_text, terminal_table

    if not _stdout_taken(args) and not args.quiet:
        from rich.console import Console

        Console(width=None if sys.stdout.isatty() else 160).print(terminal_table(report))
    if args.json is not None:
        write_json(args.json, report.to_json())
    texts = ((args.csv, csv_text), (args.html, html_text), (args.markdown, markdown_text))
    for name, text in texts:
        if name == "-":
            sys.stdout.write(text(report))
        elif name is not None:
            write_text(Path(name), text(report))


def _stdout_taken(args: argparse.Namespace) -> bool:
    return "-" in _outputs(args)


def _outputs(args: argparse.Namespace) -> tuple[str | None, ...]:
    return args.json, args.csv, args.html, args.markdown


def _progress(args: argparse.Namespace) -> Callable[[str], None]:
    """Give a line that is rewritten between slices; nothing moves while something is timed."""
    if args.quiet or not sys.stderr.isatty():
        return lambda message: _log.info("%s", message or "done")

    def say(message: str) -> None:
        sys.stderr.write(f"\r\x1b[K{message}")
        sys.stderr.flush()

    return say


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _precisions(text: str) -> tuple[Precision, ...]:
    try:
        return tuple(Precision(name) for name in _names(text) or [""])
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a comma list of {', '.join(Precision)}"
        ) from None


def _sizes(text: str) -> tuple[tuple[int, int], ...]:
    return tuple(parse_size(part) for part in _names(text) or [""])


def _batches(text: str) -> tuple[int, ...]:
    return tuple(_count(part) for part in _names(text) or [""])


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def _percent(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage of 0 or more, such as 5")
    return number


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in _names(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a comma list of numbers") from None


if __name__ == "__main__":
    sys.exit(main())
