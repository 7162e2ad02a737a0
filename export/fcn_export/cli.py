"""fcn-export: a trained PyTorch network to an artifact."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fcn_deploy.cli.run import (
    EXIT_OK,
    Parser,
    Terminated,
    add_common_options,
    add_meaning_options,
    parse_size,
    run_command,
    write_json,
)

if TYPE_CHECKING:
    from fcn_export.request import ExportRequest

__all__ = ["build_parser", "main", "run"]

_EPILOG = """\
examples:
  fcn-export weights.pt                      recognise the network from its weights
  fcn-export weights.pt --arch my.net:build --arch-arg num_classes=4
  fcn-export model.onnx --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5
  fcn-export weights.pt --eval images labels --json -
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives its exit status."""
    return run_command(run, build_parser(), argv)


def build_parser() -> Parser:
    """Make the parser of all options."""
    parser = Parser(
        prog="fcn-export",
        description="Export a PyTorch segmentation network: one verified ONNX graph from uint8 "
        "frames to labels, in an artifact that fcn-bench, fcn-segment and Segmenter run.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help=_MODEL_HELP)
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="default: <stem>.fcn")
    _add_network_options(parser)
    _add_graph_options(parser)
    _add_engine_options(parser)
    parser.add_argument(
        "--trust-code", action="store_true", help="allow files that carry code: TorchScript, .pt2"
    )
    parser.add_argument("--force", action="store_true", help="replace an artifact, atomically")
    parser.add_argument("--json", metavar="FILE", help="write a summary; - for stdout")
    add_common_options(parser)
    return parser


_MODEL_HELP = "state dict (.pt, .pth, .safetensors), TorchScript, .pt2 or .onnx"


def _add_network_options(parser: Parser) -> None:
    group = parser.add_argument_group("the network")
    group.add_argument("--arch", metavar="NAME", help="known name, or package.module:factory")
    group.add_argument(
        "--arch-arg",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="argument of the factory (repeatable)",
    )
    group.add_argument("--output-key", metavar="NAME", help="which output, where there are several")
    add_meaning_options(group, of="the network's")
    group.add_argument(
        "--mean",
        type=_numbers,
        metavar="R,G,B",
        help="of 0..1 [what the checkpoint says, or ImageNet]",
    )
    group.add_argument("--std", type=_numbers, metavar="R,G,B", help="[ImageNet]")
    group.add_argument(
        "--color",
        choices=("rgb", "bgr", "gray"),
        help="channels that the network expects [what the checkpoint says, or rgb]",
    )
    group.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help='JSON list of {"name", "color"}, or one name a line',
    )
    group.add_argument(
        "--eval",
        type=Path,
        nargs=2,
        metavar=("IMAGES", "LABELS"),
        help="labelled folders to measure mean IoU on",
    )
    group.add_argument(
        "--samples",
        type=Path,
        metavar="PATH",
        help="images folder, image list or video to measure fidelity on, without labels [of "
        "--calibrate, those that no range is taken from; else photographs]",
    )
    group.add_argument(
        "--allow-broken",
        action="store_true",
        help="keep a variant that loses more than 1 %% of the labels",
    )
    group.add_argument(
        "--max-miou-drop",
        type=float,
        default=1.0,
        metavar="X",
        help="with --eval: points of mean IoU that a variant may lose [1.0]",
    )


def _add_graph_options(parser: Parser) -> None:
    group = parser.add_argument_group("the graph")
    group.add_argument(
        "--precision",
        type=_names,
        metavar="LIST",
        help="of fp32, bf16 (needs no file of its own), fp16, int8 [fp32,fp16; int8 too with "
        "--calibrate]",
    )
    group.add_argument(
        "--calibrate",
        type=Path,
        metavar="PATH",
        help="images folder, image list or video that int8 takes its ranges from",
    )
    group.add_argument(
        "--input-color",
        choices=("bgr", "rgb"),
        default="bgr",
        help="channels that the graph is given [bgr]",
    )
    group.add_argument(
        "--head",
        choices=("labels", "scores", "confidence"),
        default="labels",
        help="what the graph ends in [labels]",
    )
    group.add_argument(
        "--size", type=parse_size, default=(512, 512), metavar="HxW", help="usual size [512x512]"
    )
    group.add_argument("--min-size", type=parse_size, metavar="HxW", help="[64x64]")
    group.add_argument("--max-size", type=parse_size, metavar="HxW", help="[2048x2048]")
    group.add_argument(
        "--batch", type=_batch, default=(1, 1, 8), metavar="MIN:OPT:MAX", help="[1:1:8]"
    )
    group.add_argument("--opset", type=int, default=21, metavar="N", help="[21]")


def _add_engine_options(parser: Parser) -> None:
    group = parser.add_argument_group("plans for NVIDIA GPUs")
    group.add_argument(
        "--engine",
        choices=("auto", "tensorrt", "tensorrt-rtx", "none"),
        default="auto",
        help="what builds them; auto takes what is installed and able, if any [auto]",
    )
    group.add_argument(
        "--compute-capability",
        type=_names,
        metavar="LIST",
        help="GPUs of tensorrt-rtx plans, none of them need be here [8.6,8.9]",
    )
    group.add_argument(
        "--profiles",
        type=Path,
        metavar="PATH",
        help="images folder or video whose sizes decide the profiles [one profile]",
    )
    group.add_argument("--workspace-mb", type=int, metavar="N", help="memory limit of a layer")
    group.add_argument(
        "--optimization-level", type=int, metavar="0..5", help="0 builds fastest, 5 runs fastest"
    )
    group.add_argument(
        "--timing-cache",
        type=Path,
        metavar="FILE",
        help="kernel timings to use and to update (tensorrt)",
    )
    group.add_argument(
        "--no-tf32", action="store_true", help="multiply float32 exactly, not in TF32"
    )
    group.add_argument(
        "--hardware-compatible",
        action="store_true",
        help="plans for Ampere and newer GPUs, not this one alone (tensorrt)",
    )
    group.add_argument(
        "--version-compatible",
        action="store_true",
        help="plans for later releases too (tensorrt)",
    )


def run(args: argparse.Namespace) -> int:
    """Export as the parsed arguments say; gives the exit status."""
    from fcn_export.export import default_output, export_model
    from fcn_export.terminal import show_report, step_printer

    request = _request(args)
    output = args.output or default_output(args.model)
    try:
        with step_printer(quiet=args.quiet) as on_step:
            report = export_model(args.model, output, request=request, on_step=on_step)
    except (KeyboardInterrupt, Terminated):
        sys.stderr.write(f"fcn-export: nothing was written to '{output}'\n")
        raise
    if not args.quiet and args.json != "-":
        show_report(report)
    if args.json is not None:
        write_json(args.json, report.to_json())
    return EXIT_OK


def _request(args: argparse.Namespace) -> ExportRequest:
    from fcn_deploy.errors import FcnDeployError
    from fcn_export.load.factory import parse_arch_args
    from fcn_export.request import ExportRequest

    try:
        return ExportRequest(
            arch=args.arch,
            arch_args=parse_arch_args(args.arch_arg),
            output_key=args.output_key,
            precisions=args.precision,
            calibrate=args.calibrate,
            eval_folders=None if args.eval is None else (args.eval[0], args.eval[1]),
            samples=args.samples,
            allow_broken=args.allow_broken,
            max_miou_drop=args.max_miou_drop,
            size=args.size,
            min_size=args.min_size,
            max_size=args.max_size,
            batch=args.batch,
            mean=args.mean,
            std=args.std,
            color=args.color,
            input_color=args.input_color,
            classes_file=args.classes,
            head=args.head,
            activation=args.activation,
            threshold=args.threshold,
            engine=args.engine,
            compute_capabilities=args.compute_capability,
            profiles=args.profiles,
            workspace_mb=args.workspace_mb,
            optimization_level=args.optimization_level,
            timing_cache=args.timing_cache,
            tf32=not args.no_tf32,
            hardware_compatible=args.hardware_compatible,
            version_compatible=args.version_compatible,
            opset=args.opset,
            trust_code=args.trust_code,
            force=args.force,
        )
    except ValueError as error:
        raise FcnDeployError(f"{error}.", hint="See fcn-export --help.") from error


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers, such as 0.5,0.5,0.5") from None


def _batch(text: str) -> tuple[int, int, int]:
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not MIN:OPT:MAX, such as 1:1:8")
    smallest, usual, largest = map(int, parts)
    return smallest, usual, largest
