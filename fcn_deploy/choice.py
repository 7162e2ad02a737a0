"""Which backend and precision run a model where the user leaves the choice to us, and why."""

from __future__ import annotations

from fcn_deploy.backends import backend_names, get_backend
from fcn_deploy.backends.base import Backend
from fcn_deploy.errors import ArtifactMissingError, BackendUnavailableError
from fcn_deploy.machine import describe_machine
from fcn_deploy.manifest import Manifest
from fcn_deploy.tensors import Precision
from fcn_deploy.tuned import TunedRows

__all__ = [
    "MIN_LABEL_AGREEMENT",
    "choose_backend",
    "choose_precision",
    "graph_precision",
    "parse_precision",
]

MIN_LABEL_AGREEMENT = 0.999
"""What a reduced precision must have measured at export to be taken unasked."""


_INT8_FEATURES = frozenset(("VNNI", "AMX", "DotProd", "I8MM"))
"""With any of these a CPU multiplies int8 faster than fp32; without, it depends on the network."""


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


def choose_backend(
    name: str, suffix: str, *, tuned: TunedRows | None = None
) -> tuple[Backend, str]:
    """Find the backend for a file.

    Args:
        name: a backend's name, or ``"auto"``.
        suffix: the file's ending, such as ``".onnx"``.
        tuned: what was measured here, where backend and precision are both left to us.

    Returns:
        The backend, and why it was taken.

    Raises:
        BackendUnavailableError: it is not installed, or none is, or it does not read such files.
        ValueError: there is no backend of this name.
    """
    if name != "auto":
        backend = get_backend(name)
        if suffix not in backend.suffixes:
            raise BackendUnavailableError(
                f"{name} does not read '{suffix}' files; it reads {', '.join(backend.suffixes)}."
            )
        backend.version()  # raises with the command that installs it
        return backend, f"{name} was asked for"
    best = None if tuned is None else tuned.best(backends=_installed(suffix))
    if best is not None:
        return get_backend(best.backend), f"{best.backend} is the fastest that was measured here"
    for candidate in backend_names():
        backend = get_backend(candidate)
        if suffix in backend.suffixes and backend.available():
            return backend, f"{candidate} is the first of {', '.join(backend_names())} here"
    raise BackendUnavailableError(
        f"no backend that reads '{suffix}' files is installed.",
        hint="pip install 'fcn-deploy[cpu]'",
    )


def choose_precision(
    wanted: str,
    backend: Backend,
    manifest: Manifest | None,
    *,
    file_precision: Precision | None = None,
    tuned: TunedRows | None = None,
) -> tuple[Precision, str]:
    """Decide the precision.

    `auto` takes what `fcn-bench --tune` measured to be fastest here. Without it bf16 where the CPU
    computes in it, else int8 where the CPU has instructions for it, if export measured that labels
    stay: at least `MIN_LABEL_AGREEMENT` of PyTorch's. Otherwise fp32.

    Args:
        wanted: a precision, or ``"auto"``.
        manifest: of the artifact; None for a bare graph, which runs in fp32.
        file_precision: of the one file that was asked for; None leaves the choice of the file.
        tuned: what was measured here of this artifact; None where nothing was kept.

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
    if precision is Precision.INT8 and not _has_int8_instructions():
        return False, "this CPU has no instructions for int8 (fcn-bench --tune finds the fastest)"
    measured = [
        fidelity.label_agreement
        for variant in variants
        for fidelity in variant.fidelity
        if (fidelity.backend, fidelity.precision) == (backend.name, precision)
    ]
    if not measured:
        return False, f"{precision} was not measured at export"
    agreement = min(measured)
    verdict = f"{precision} kept {agreement:.4%} of PyTorch's labels at export"
    if agreement >= MIN_LABEL_AGREEMENT:
        return True, f"{verdict} (at least {MIN_LABEL_AGREEMENT:.1%} needed)"
    return False, f"{verdict} ({MIN_LABEL_AGREEMENT:.1%} needed)"


def _installed(suffix: str) -> tuple[str, ...]:
    backends = [get_backend(name) for name in backend_names()]
    return tuple(b.name for b in backends if suffix in b.suffixes and b.available())


def _has_int8_instructions() -> bool:
    return any(f.present and f.name in _INT8_FEATURES for f in describe_machine().features)
