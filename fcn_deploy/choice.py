"""Which backend and precision run a model where the user leaves the choice to us, and why."""

from __future__ import annotations

from fcn_deploy.backends import backend_names, get_backend
from fcn_deploy.backends.base import Backend
from fcn_deploy.errors import BackendUnavailableError
from fcn_deploy.manifest import Manifest
from fcn_deploy.tensors import Precision

__all__ = ["MIN_LABEL_AGREEMENT", "choose_backend", "choose_precision", "parse_precision"]

MIN_LABEL_AGREEMENT = 0.999
"""What a reduced precision must have measured at export to be taken unasked."""


def parse_precision(text: str) -> Precision:
    """Read a precision's name.

    Raises:
        ValueError: there is none of this name.
    """
    if text not in list(Precision):
        raise ValueError(f"precision is {text!r}; expected auto, {', '.join(Precision)}")
    return Precision(text)


def choose_backend(name: str, suffix: str) -> tuple[Backend, str]:
    """Find the backend for a file.

    Args:
        name: a backend's name, or ``"auto"``.
        suffix: the file's ending, such as ``".onnx"``.

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
    for candidate in backend_names():
        backend = get_backend(candidate)
        if suffix in backend.suffixes and backend.available():
            return backend, f"{candidate} is the first of {', '.join(backend_names())} here"
    raise BackendUnavailableError(
        f"no backend that reads '{suffix}' files is installed.",
        hint="pip install 'fcn-deploy[cpu]'",
    )


def choose_precision(
    wanted: str, backend: Backend, manifest: Manifest | None
) -> tuple[Precision, str]:
    """Decide the precision.

    `auto` takes bf16 where the CPU computes in it and export measured that labels stay: at least
    `MIN_LABEL_AGREEMENT` of PyTorch's. Otherwise fp32.

    Args:
        wanted: a precision, or ``"auto"``.
        manifest: of the artifact; None for a bare graph, which runs in fp32.

    Returns:
        The precision, and why it was taken.

    Raises:
        BackendUnavailableError: the backend cannot compute in it here.
        ValueError: there is no such precision.
    """
    able = backend.precisions()
    if wanted != "auto":
        precision = parse_precision(wanted)
        if precision not in able:
            raise BackendUnavailableError(
                f"{backend.name} cannot compute in {precision} on this machine; "
                f"it can in {', '.join(able)}.",
                hint="Choose one of these with --precision.",
            )
        return precision, f"{precision} was asked for"
    if manifest is None:
        return Precision.FP32, "fp32, as nothing was measured of this file"
    if Precision.BF16 not in able:
        return Precision.FP32, f"fp32, as {backend.name} has no bf16 on this CPU"
    measured = [
        fidelity.label_agreement
        for variant in manifest.variants
        for fidelity in variant.fidelity
        if (fidelity.backend, fidelity.precision) == (backend.name, Precision.BF16)
    ]
    if not measured:
        return Precision.FP32, "fp32, as bf16 was not measured at export"
    agreement = min(measured)
    verdict = f"bf16 kept {agreement:.4%} of PyTorch's labels at export"
    if agreement >= MIN_LABEL_AGREEMENT:
        return Precision.BF16, f"{verdict} (at least {MIN_LABEL_AGREEMENT:.1%} needed)"
    return Precision.FP32, f"fp32, as {verdict} ({MIN_LABEL_AGREEMENT:.1%} needed)"
