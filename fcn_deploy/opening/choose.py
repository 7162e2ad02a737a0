"""Which backend and precision run a model where the user leaves the choice to us, and why."""

from __future__ import annotations

from typing import cast

from fcn_deploy import machine
from fcn_deploy.artifact.manifest import Fidelity, Manifest, Variant
from fcn_deploy.backends import backend_names, get_backend, plan_backend_names
from fcn_deploy.backends.base import Backend, PlanBackend
from fcn_deploy.backends.execution_providers import ProviderList
from fcn_deploy.errors import ArtifactMissingError, BackendUnavailableError
from fcn_deploy.names import Precision
from fcn_deploy.opening.tuned import TunedRows

__all__ = [
    "MIN_CLASS_IOU",
    "MIN_IMAGES",
    "MIN_LABEL_AGREEMENT",
    "choose_backend",
    "choose_plan",
    "choose_precision",
    "graph_precision",
    "lacks_evidence",
    "parse_precision",
    "shortfall",
]

MIN_LABEL_AGREEMENT = 0.999
"""Share of PyTorch's labels that a reduced precision must keep to be taken unasked."""

MIN_CLASS_IOU = 0.99
"""What its worst class must keep: a small class is lost long before the agreement shows it."""

MIN_IMAGES = 4
"""On how many natural images with more than one class that must have been measured at export."""


def graph_precision(precision: Precision) -> Precision:
    """Give the precision of the graph that is run for a precision: bf16 runs fp32's."""
    return Precision.FP32 if precision is Precision.BF16 else precision


def parse_precision(text: str) -> Precision:
    """Read a precision's name.

    Raises:
        ValueError: there is none of this name.
    """
    if text not in list(Precision):
        raise ValueError(f"precision is {text!r}; expected auto, {', '.join(Precision)}")
    return Precision(text)


def lacks_evidence(fidelity: Fidelity) -> bool:
    """Tell whether too few images count for a measurement to show anything, or too few classes."""
    return fidelity.images < MIN_IMAGES or fidelity.worst_class_iou is None


def shortfall(fidelity: Fidelity) -> str | None:
    """Say what keeps a reduced precision from being taken unasked.

    It must have been measured on at least `MIN_IMAGES` images with more than one class, and keep
    `MIN_LABEL_AGREEMENT` of PyTorch's labels and `MIN_CLASS_IOU` of its worst class.

    Returns:
        A phrase; None where nothing does.
    """
    name = fidelity.precision
    if fidelity.images < MIN_IMAGES:
        return (
            f"{name} was measured on {fidelity.images or 'no'} natural images with more than one "
            f"class ({MIN_IMAGES} needed: fcn-export --samples PATH)"
        )
    if fidelity.worst_class_iou is None:
        return (
            f"{name} was measured on images that show one class nearly alone (fcn-export --samples "
            "PATH takes others)"
        )
    if fidelity.label_agreement < MIN_LABEL_AGREEMENT:
        return f"{_kept(fidelity)} ({MIN_LABEL_AGREEMENT:.1%} needed)"
    if fidelity.worst_class_iou < MIN_CLASS_IOU:
        return f"{_kept(fidelity)} (IoU {MIN_CLASS_IOU:g} needed)"
    return None


def _kept(fidelity: Fidelity) -> str:
    return (
        f"{fidelity.precision} kept {fidelity.label_agreement:.4%} of PyTorch's labels, IoU "
        f"{fidelity.worst_class_iou:.4f} of the worst class, on {fidelity.images} images at export"
    )


def choose_backend(
    name: str,
    suffix: str,
    *,
    manifest: Manifest | None = None,
    tuned: TunedRows | None = None,
    providers: ProviderList | None = None,
) -> tuple[Backend, str]:
    """Find the backend for a file.

    Unasked, a backend whose fp32 export found to differ from PyTorch by more than rounding explains
    is taken only where no other is here.

    Args:
        name: a backend's name, or ``"auto"``.
        suffix: the file's ending, such as ``".onnx"``.
        manifest: of the artifact that the file is in; None for a bare file.
        tuned: what was measured here, where backend and precision are both left to us.
        providers: as `get_backend` takes them.

    Returns:
        The backend, and why it was taken.

    Raises:
        BackendUnavailableError: it is not installed, or none is, or it does not read such files.
        ValueError: there is no backend of this name, or it has no providers.
    """
    if name != "auto" or providers is not None:
        backend = get_backend(name, providers=providers)
        if suffix not in backend.suffixes:
            raise BackendUnavailableError(
                f"{name} does not read '{suffix}' files; it reads {', '.join(backend.suffixes)}.",
                hint=f"Plans are run by {' or '.join(plan_backend_names())}, whichever built them."
                if suffix == ".plan"
                else None,
            )
        backend.version()  # raises with the command that installs it
        if providers is not None:
            names = " and ".join(each if isinstance(each, str) else each[0] for each in providers)
            return backend, f"{name} with {names} was asked for"
        return backend, f"{name} was asked for"
    best = None if tuned is None else tuned.best(backends=_installed(suffix))
    if best is not None:
        return get_backend(best.backend), f"{best.backend} is the fastest that was measured here"
    known = (*backend_names(), *plan_backend_names())
    able = [each for each in known if suffix in get_backend(each).suffixes]
    here = [candidate for candidate in able if get_backend(candidate).available()]
    unsound = {} if manifest is None else _unsound(manifest)
    for candidate in here:
        if candidate not in unsound:
            passed = "; ".join(unsound[other] for other in here[: here.index(candidate)])
            why = f"{passed}, so {candidate} was taken" if passed else ""
            return get_backend(candidate), (
                why or f"{candidate} is the first of {', '.join(able)} here"
            )
    if here:
        return get_backend(here[0]), f"{unsound[here[0]]}, and no other backend is here"
    if able and able[0] in plan_backend_names():
        raise BackendUnavailableError(
            f"no backend of plans can run here: {'; '.join(map(_unavailable, able))}.",
            hint="A plan runs where an NVIDIA GPU and its driver are, by the library that built "
            "it; fcn-doctor says what is missing.",
        )
    raise BackendUnavailableError(
        f"no backend that reads '{suffix}' files is installed.",
        hint="pip install 'fcn-deploy[cpu]'",
    )


def choose_plan(manifest: Manifest, *, backend: str, precision: str) -> tuple[Variant | None, str]:
    """Find the plan of an artifact that runs here, if any does and graphs were not asked for.

    Unasked, a plan is taken where its library and a GPU that it was built for are here, in the
    first of fp16, int8 and fp32 that was asked for, or in whose graph `shortfall` finds nothing on
    any backend that ran it at export; fp32 needs no measurement.

    Args:
        backend, precision: names, or ``"auto"``.

    Returns:
        The plan and why it was taken; or None and why none was, a phrase that may be empty.

    Raises:
        ArtifactMissingError: a plan's backend was asked for, and the artifact has no such plan.
        BackendUnavailableError: it was asked for and cannot run here.
    """
    if backend != "auto" and backend not in plan_backend_names():
        return None, ""
    wanted = None if precision == "auto" else parse_precision(precision)
    left_out: list[str] = []
    for name in plan_backend_names() if backend == "auto" else (backend,):
        library = get_backend(name)
        held = [variant for variant in manifest.variants if variant.backend == name]
        fitting = [v for v in _preferred(manifest, held) if wanted in (None, v.precision)]
        if backend != "auto":
            library.version()  # raises with what is missing
            if not fitting:
                plans = ", ".join(f"{v.file}" for v in held) or "none"
                raise ArtifactMissingError(
                    f"the artifact has no {wanted or 'usable'} plan for {name}; "
                    f"its plans for it: {plans}.",
                    hint=f"Export the model again with --engine {name}.",
                )
            return fitting[0], f"{name} was asked for"
        if wanted is None:
            proven = [plan for plan in fitting if _is_faithful(manifest, plan)]
            if fitting and not proven:
                left_out.append(
                    f"the plan '{fitting[0].file}' was left out: export did not show that "
                    f"{fitting[0].precision} keeps the labels"
                )
            fitting = proven
        if not fitting:
            continue
        obstacle = _unavailable(name) or cast(PlanBackend, library).obstacle(fitting[0], manifest)
        if obstacle is None:
            return fitting[0], f"{name} has a plan for this GPU"
        left_out.append(f"the plan '{fitting[0].file}' was left out: {obstacle}")
    return None, "; ".join(left_out)


def _unavailable(name: str) -> str:
    """Say in a phrase why a backend cannot be used here; an empty one where it can."""
    try:
        get_backend(name).version()
    except BackendUnavailableError as error:
        return error.message.removesuffix(".")
    return ""


def _preferred(manifest: Manifest, plans: list[Variant]) -> list[Variant]:
    """Sort plans: those that may be taken unasked first, the fastest first; then the others."""
    order = (Precision.FP16, Precision.INT8, Precision.BF16, Precision.FP32)

    def key(plan: Variant) -> tuple[bool, int]:
        return not _is_faithful(manifest, plan), order.index(plan.precision)

    return sorted(plans, key=key)


def _is_faithful(manifest: Manifest, plan: Variant) -> bool:
    if plan.precision is Precision.FP32:
        return True
    measured = [
        fidelity
        for variant in manifest.variants
        if variant.precision is plan.precision
        for fidelity in variant.fidelity
        if fidelity.precision is plan.precision
    ]
    return bool(measured) and all(shortfall(fidelity) is None for fidelity in measured)


def _unsound(manifest: Manifest) -> dict[str, str]:
    """Say of each backend whose fp32 export found wanting what was found, in a phrase."""
    return {
        fidelity.backend: f"{fidelity.backend}'s fp32 scores differ from PyTorch's by "
        f"{fidelity.relative_score_error or 0.0:.2%} of the largest, measured at export"
        for variant in manifest.variants
        for fidelity in variant.fidelity
        if fidelity.precision is Precision.FP32 and fidelity.status in ("differs", "broken")
    }


def choose_precision(
    wanted: str,
    backend: Backend,
    manifest: Manifest | None,
    *,
    file_precision: Precision | None = None,
    tuned: TunedRows | None = None,
    measured: bool = True,
) -> tuple[Precision, str]:
    """Decide the precision.

    `auto` takes what `fcn-bench --tune` measured to be fastest here. Without it bf16 where the CPU
    computes in it, else int8 where the CPU has instructions for it, if export measured that labels
    stay, see `shortfall`. Otherwise fp32.

    Args:
        wanted: a precision, or ``"auto"``.
        manifest: of the artifact; None for a bare graph, which runs in fp32.
        file_precision: of the one file that was asked for; None leaves the choice of the file.
        tuned: what was measured here of this artifact; None where nothing was kept.
        measured: whether what export measured holds for the backend as it is set up: on a CPU.

    Returns:
        The precision, and why it was taken.

    Raises:
        BackendUnavailableError: the backend cannot compute in it here.
        ArtifactMissingError: the file that was asked for is of another precision.
        ValueError: there is no such precision.
    """
    able = backend.precisions()
    if wanted == "auto" and file_precision not in (None, Precision.FP32):
        wanted = str(file_precision)
    if wanted != "auto":
        return _asked_for(wanted, backend, able, manifest, file_precision)
    if manifest is None:
        return Precision.FP32, "fp32, as nothing was measured of this file"
    if not measured:
        return Precision.FP32, "fp32, as nothing was measured with these providers"
    best = None if tuned is None else tuned.best(backends=(backend.name,))
    if tuned is not None and best is not None and best.precision in able:
        height, width = tuned.size
        return best.precision, (
            f"{best.precision}, as fcn-bench --tune measured {best.latency_ms:.3g} ms a frame of "
            f"{height}x{width}, the fastest within the budget ({best.reason})"
        )
    reasons = []
    for precision in (Precision.BF16, Precision.INT8):
        if file_precision is not None and graph_precision(precision) is not file_precision:
            continue
        taken, reason = _default(precision, backend, able, manifest)
        if taken:
            return precision, reason
        reasons.append(reason)
    return Precision.FP32, f"fp32, as {' and '.join(reasons)}"


def _asked_for(
    wanted: str,
    backend: Backend,
    able: tuple[Precision, ...],
    manifest: Manifest | None,
    file_precision: Precision | None,
) -> tuple[Precision, str]:
    precision = parse_precision(wanted)
    if precision not in able:
        raise BackendUnavailableError(
            f"{backend.name} cannot compute in {precision} on this machine; "
            f"it can in {', '.join(able)}.",
            hint="Choose one of these with --precision.",
        )
    held = Precision.FP32 if manifest is None else file_precision
    graph = graph_precision(precision)
    if held is not None and graph is not held:
        raise ArtifactMissingError(
            f"the file holds the {held} graph and cannot be run in {precision}.",
            hint="Give the artifact's folder."
            if manifest is not None
            else f"fcn-export --precision {precision} makes an {precision} graph of it.",
        )
    if graph is Precision.FP32:
        return precision, f"{precision} was asked for"
    return precision, f"{precision} was asked for ({backend.arithmetic(precision)})"


def _default(
    precision: Precision, backend: Backend, able: tuple[Precision, ...], manifest: Manifest
) -> tuple[bool, str]:
    """Say whether a reduced precision may be taken unasked, and a phrase that says why."""
    graph = graph_precision(precision)
    variants = [v for v in manifest.variants if v.backend is None and v.precision is graph]
    if not variants:
        return False, f"the artifact has no {graph} graph"
    if precision not in able:
        return False, f"{backend.name} has no {precision} on this CPU"
    if precision is Precision.INT8 and not machine.cpu_abilities().int8:
        return False, "this CPU has no instructions for int8 (fcn-bench --tune finds the fastest)"
    measured = [
        fidelity
        for variant in variants
        for fidelity in variant.fidelity
        if (fidelity.backend, fidelity.precision) == (backend.name, precision)
    ]
    if not measured:
        return False, f"{precision} was not measured at export"
    short = [phrase for fidelity in measured if (phrase := shortfall(fidelity)) is not None]
    if short:
        return False, short[0]
    return True, f"{_kept(measured[0])} ({MIN_LABEL_AGREEMENT:.1%} and {MIN_CLASS_IOU:g} needed)"


def _installed(suffix: str) -> tuple[str, ...]:
    backends = [get_backend(name) for name in backend_names()]
    return tuple(b.name for b in backends if suffix in b.suffixes and b.available())
