"""fcn-doctor: what can run here, what is missing, and what a model would run on."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from fcn_deploy.cli.run import (
    EXIT_CHECK_FAILED,
    EXIT_OK,
    Parser,
    add_common_options,
    run_command,
    write_json,
)

if TYPE_CHECKING:
    from fcn_deploy.artifact.manifest import Fidelity, SeenByNetwork
    from fcn_deploy.doctor import Diagnosis, ModelDiagnosis
    from fcn_deploy.libraries import LibraryStatus
    from fcn_deploy.machine import Machine

__all__ = ["main"]

# the colour of a line on a terminal, by its kind
_STYLES = {"heading": "bold", "good": "green", "bad": "red", "plain": ""}

Line = tuple[str, str]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and give its exit status."""
    return run_command(run, build_parser(), argv)


def build_parser() -> Parser:
    """Describe the command's options."""
    parser = Parser(
        prog="fcn-doctor",
        description="Say which backends, devices and library versions are here, what is missing "
        "and the command that installs it; of a model, what would run it and how.",
        epilog="Exit status: 0 something here can run (the model, if one is given); 1 nothing can; "
        "2 the model is missing, damaged or malformed.",
    )
    add_arguments(parser)
    return parser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="an artifact or an .onnx file to look at"
    )
    parser.add_argument("--json", metavar="FILE", help="write the diagnosis as JSON (-: stdout)")
    parser.add_argument(
        "--trust-code",
        action="store_true",
        help="take a .plan that is in no artifact: it holds code that is run",
    )
    add_common_options(parser)


def run(args: argparse.Namespace) -> int:
    """Diagnose, and print or write what was found."""
    from fcn_deploy.doctor import diagnose

    diagnosis = diagnose(args.model, trust_code=args.trust_code)
    if args.json is not None:
        write_json(args.json, diagnosis.to_json())
    if args.json != "-" and not args.quiet:
        _print(diagnosis)
    return EXIT_OK if diagnosis.healthy else EXIT_CHECK_FAILED


def _print(diagnosis: Diagnosis) -> None:
    from rich.console import Console
    from rich.text import Text

    # no wrapping: the commands are there to be copied
    console = Console(soft_wrap=True, highlight=False)
    for kind, text in _lines(diagnosis):
        console.print(Text(text, style=_STYLES[kind]))


def _lines(diagnosis: Diagnosis) -> Iterator[Line]:
    machine = diagnosis.machine
    yield (
        "heading",
        (
            f"fcn-deploy {diagnosis.version}, Python {machine.python}, "
            f"{machine.system} {machine.architecture}"
        ),
    )
    if diagnosis.model is not None:
        yield from _model_lines(diagnosis.model)
    yield from _machine_lines(machine, diagnosis.thread_settings.items())
    yield from _section("Backends")
    for backend in diagnosis.backends:
        if backend.problem is None:
            precisions = ", ".join(backend.precisions)
            yield "good", f"  {backend.name:<24}{backend.version:<14}{precisions}"
            if backend.providers:
                yield "plain", f"  {'':<24}{'':<14}with {', '.join(backend.providers)}"
        else:
            yield "plain", f"  {backend.name:<24}{'-':<14}{backend.problem}"
    yield from _section("Libraries")
    for status in diagnosis.libraries:
        yield _library_line(status)
    for decoder in diagnosis.decoders:
        version = "-" if decoder.libavcodec is None else f"libavcodec {decoder.libavcodec}"
        yield "plain", f"  {'FFmpeg in ' + decoder.library:<24}{version}"
    for library, setting in diagnosis.telemetry.items():
        yield "plain", f"  {'telemetry':<24}{library}: {setting}"
    yield from _section("What to do")
    for text in diagnosis.advice:
        yield "plain", f"  {text}"
    if not diagnosis.advice:
        yield "good", "  nothing: everything is here and up to date"


def _section(title: str) -> Iterator[Line]:
    yield "plain", ""
    yield "heading", title


def _machine_lines(machine: Machine, thread_settings: Iterable[tuple[str, str]]) -> Iterator[Line]:
    physical = "unknown" if machine.physical_cores is None else machine.physical_cores
    quota = "none" if machine.quota_cores is None else f"{machine.quota_cores:g}"
    settings = ", ".join(f"{name}={value}" for name, value in thread_settings)
    yield from _section("Machine")
    yield "plain", f"  {'CPU':<24}{machine.cpu or 'unknown: this system does not say'}"
    yield "plain", f"  {'instructions':<24}{_features(machine)}"
    yield (
        "plain",
        (
            f"  {'cores':<24}{machine.usable_cores} usable ({machine.logical_cores} logical, "
            f"{physical} physical, {machine.affinity_cores} by affinity, quota {quota})"
        ),
    )
    yield (
        "plain",
        (
            f"  {'threads':<24}{machine.usable_cores} by default"
            f"{'; set: ' + settings if settings else ''}"
        ),
    )
    yield "plain", f"  {'GPU':<24}{', '.join(machine.gpus) or 'no NVIDIA driver here'}"


def _features(machine: Machine) -> str:
    if not machine.features or machine.features[0].present is None:
        return "unknown: this system does not say"
    return ", ".join(
        f"{feature.name} {'yes' if feature.present else 'no'}" for feature in machine.features
    )


def _library_line(status: LibraryStatus) -> Line:
    version = status.version or ("-" if status.state == "missing" else "unknown")
    kind = {"ok": "good", "missing": "plain"}.get(status.state, "bad")
    note = status.library.purpose if status.state == "ok" else status.state
    if status.state == "missing":
        note = f"missing ({status.library.purpose})"
    return kind, f"  {status.distribution:<24}{version:<14}{note}"


def _model_lines(model: ModelDiagnosis) -> Iterator[Line]:
    yield from _section(f"Model {model.path}")
    if model.problem is not None:
        yield "bad", f"  {'cannot run here':<24}{model.problem}"
    else:
        yield "good", f"  {'runs on':<24}{model.backend} in {model.precision}"
        yield "plain", f"  {'because':<24}{model.reason}"
        yield "plain", f"  {'class map':<24}{model.head}"
        yield from _tiling_lines(model)
    if model.receptive_field is not None:
        yield "plain", f"  {'receptive field':<24}{_seen(model.receptive_field)}"
    if model.classes:
        yield "plain", f"  {'classes':<24}{len(model.classes)}: {_shortened(model.classes)}"
    for variant in model.variants:
        size = "" if variant.size is None else f"{variant.size / 1e6:.1f} MB"
        yield "plain", f"  {variant.file:<30}{variant.precision:<6}{size}"
        if variant.backend is not None:
            gpus = ", ".join(variant.compute_capabilities) or "unknown"
            built = f"{variant.backend} {variant.library_version or 'of unknown version'}"
            yield "plain", f"    a plan of {built}, for GPUs of compute capability {gpus}"
        for entry in variant.fidelity:
            yield "plain", f"    at export, {entry.backend} {entry.precision}: {_fidelity(entry)}"


def _fidelity(entry: Fidelity) -> str:
    """Say what was measured at export, and on how much it rests."""
    told = f"{entry.label_agreement:.4%} of PyTorch's labels"
    if entry.worst_class_iou is not None:
        told += f", IoU {entry.worst_class_iou:.4f} of the worst class"
    if entry.images:
        told += f", on {entry.images} images"
    elif entry.precision != "fp32":
        told += ", on no image with more than one class: no evidence"
    if entry.miou is not None:
        told += f", mean IoU {entry.miou:.4f}"
    if entry.status in ("differs", "broken"):
        told += f" ({entry.status})"
    return told


def _tiling_lines(model: ModelDiagnosis) -> Iterator[Line]:
    found = model.tiling
    if found is None:
        yield "plain", f"  {'tiles':<24}not tried: {model.tiling_untried}"
        return
    height, width = found.size
    kind, note = "plain", ""
    if found.differs is not None:
        note = f"; {found.differs}"
    elif not found.as_promised:
        kind = "bad"
        note = (
            ", which they must not: report it, and run large frames whole, with a larger "
            "tile_pixels"
        )
    elif found.differing_labels:
        note = ": near ties, rounded in another order"
    yield (
        kind,
        (
            f"  {'tiles':<24}{found.differing_labels} of {height * width} labels differ from the "
            f"whole frame's ({height}x{width} in {found.tiles[0]}x{found.tiles[1]} tiles){note}"
        ),
    )


def _seen(field: SeenByNetwork) -> str:
    size, stride, offset = (
        "x".join(f"{one:g}" for one in pair) for pair in (field.size, field.stride, field.offset)
    )
    whole = f"; {field.whole_image[0]}" if field.whole_image else ""
    return f"{size} px a score, in steps of {stride} px, the first around pixel {offset}{whole}"


def _shortened(names: Sequence[str], *, limit: int = 8) -> str:
    shown = ", ".join(names[:limit])
    return f"{shown}, ..." if len(names) > limit else shown
