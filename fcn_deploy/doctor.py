"""Diagnose what can run here, what is missing, and what a model would run on and why."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fcn_deploy import __version__
from fcn_deploy.artifact.manifest import Fidelity, Manifest, SeenByNetwork
from fcn_deploy.backends import backend_names, get_backend, plan_backend_names
from fcn_deploy.backends.onnxruntime import OnnxRuntimeBackend
from fcn_deploy.errors import BackendUnavailableError, ExecutionError, InputError
from fcn_deploy.graph.analyse import analyse
from fcn_deploy.libraries import LibraryStatus, check_libraries
from fcn_deploy.machine import Machine, describe_machine, distribution_version, version_numbers
from fcn_deploy.names import Precision
from fcn_deploy.opening.load import open_located
from fcn_deploy.opening.locate import ModelFile, locate_model
from fcn_deploy.opening.options import OpenOptions
from fcn_deploy.segmenter import Segmenter
from fcn_deploy.telemetry import telemetry_settings
from fcn_deploy.tiling.self_test import TilingError, tiling_self_test

__all__ = [
    "BackendStatus",
    "Decoder",
    "Diagnosis",
    "ModelDiagnosis",
    "VariantStatus",
    "diagnose",
]

SCHEMA_VERSION = 1

_TILING_SECONDS = 20.0
"""Seconds that trying tiles may take, since the user waits for the rest of the report."""

# of FFmpeg 8.1.2, the first release without CVE-2026-8461 (out of bounds write, MagicYUV)
_SAFE_LIBAVCODEC = "62.28.102"

# these change how many threads a backend or PyTorch starts
_THREAD_SETTINGS = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendStatus:
    """A backend of this release, as found here.

    Attributes:
        version: None where it cannot be used.
        precisions: what this machine computes in with it; empty where it cannot be used.
        problem: why it cannot be used, and the command that helps; None where it can.
        providers: of ONNX Runtime: its execution providers, by name.
    """

    name: str
    version: str | None
    precisions: tuple[Precision, ...]
    problem: str | None
    providers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Decoder:
    """A library that reads video, and the FFmpeg that it was built with.

    Attributes:
        libavcodec: version of FFmpeg's decoders; None where it has none, or cannot be imported.
        problem: why it cannot be imported; None where it can.
    """

    library: str
    libavcodec: str | None
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantStatus:
    """One file of an artifact: its size in bytes, and how it fared at export, where it can run.

    Attributes:
        backend, library_version, compute_capabilities: of plans only: what built it, and the GPUs
            that it is for.
    """

    file: str
    precision: Precision
    size: int | None
    fidelity: tuple[Fidelity, ...]
    backend: str | None = None
    library_version: str | None = None
    compute_capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelDiagnosis:
    """The backend, precision and head that would run a model here.

    Attributes:
        classes: their names; None for a bare graph, which has none.
        backend, precision, reason: what `Segmenter.open` takes by itself, and why.
        head: where the class map is computed; None where nothing can run the model.
        receptive_field: what the network sees, as the manifest says, or as its graph does where
            there is none; None where it cannot be told.
        problem: why nothing here can run it, and the command that helps.
        tiling: what tiles of a small frame change; None where this was not tried.
        tiling_untried: why not; None where it was, or where nothing can run the model.
    """

    path: str
    classes: tuple[str, ...] | None
    variants: tuple[VariantStatus, ...]
    backend: str | None = None
    precision: Precision | None = None
    reason: str | None = None
    head: str | None = None
    problem: str | None = None
    receptive_field: SeenByNetwork | None = None
    tiling: TilingError | None = None
    tiling_untried: str | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """This machine, and a model on it.

    Attributes:
        version: of fcn-deploy.
        thread_settings: environment variables that are set and change the number of threads.
        telemetry: by library, ``"off"`` or what the user has set.
        advice: what to do, most useful first; empty where all is well.
    """

    version: str
    machine: Machine
    thread_settings: Mapping[str, str]
    telemetry: Mapping[str, str]
    backends: tuple[BackendStatus, ...]
    libraries: tuple[LibraryStatus, ...]
    decoders: tuple[Decoder, ...]
    advice: tuple[str, ...]
    model: ModelDiagnosis | None = None

    @property
    def healthy(self) -> bool:
        """Whether something here can run: the model, or any where none was given."""
        if self.model is not None:
            return self.model.problem is None
        return any(backend.problem is None for backend in self.backends)

    def to_json(self) -> dict[str, Any]:
        """Give the diagnosis as a JSON object."""
        return {"schema_version": SCHEMA_VERSION, "healthy": self.healthy, **asdict(self)}


def diagnose(
    model: str | os.PathLike[str] | None = None,
    *,
    trust_code: bool = False,
    decoders: tuple[Decoder, ...] | None = None,
) -> Diagnosis:
    """Look at this machine and, where one is given, at a model.

    Args:
        model: an artifact or an ``.onnx`` file; it is opened as `Segmenter.open` opens it.
        trust_code: take a plan that is in no artifact: it holds code that is run.
        decoders: of video; None: those of the libraries here.

    Raises:
        ArtifactError: the model is missing, damaged or malformed. That nothing here can run it is
            no error: the diagnosis says so.
    """
    backends = tuple(_diagnose_backend(name) for name in (*backend_names(), *plan_backend_names()))
    libraries = check_libraries()
    if decoders is None:
        decoders = _decoders()
    return Diagnosis(
        version=__version__,
        machine=describe_machine(),
        thread_settings={
            name: os.environ[name] for name in _THREAD_SETTINGS if os.environ.get(name)
        },
        telemetry=telemetry_settings(),
        backends=backends,
        libraries=libraries,
        decoders=decoders,
        advice=_advice(backends, libraries, decoders),
        model=None if model is None else _diagnose_model(Path(model), trust_code=trust_code),
    )


def _diagnose_backend(name: str) -> BackendStatus:
    backend = get_backend(name)
    try:
        providers = backend.providers() if isinstance(backend, OnnxRuntimeBackend) else ()
        return BackendStatus(
            name=name,
            version=backend.version(),
            precisions=backend.precisions(),
            problem=None,
            providers=providers,
        )
    except BackendUnavailableError as error:
        problem = str(error)
        if backend.available() and error.__cause__ is not None:
            # installed, but it does not load: a missing system library, or a mixture of versions
            problem = f"installed, but it cannot be imported: {error.__cause__}"
        return BackendStatus(name=name, version=None, precisions=(), problem=problem)


def _diagnose_model(path: Path, *, trust_code: bool) -> ModelDiagnosis:
    file = locate_model(path, trust_code=trust_code)
    manifest = file.manifest
    variants = () if manifest is None else _variants(manifest)
    classes = None if manifest is None else tuple(entry.name for entry in manifest.classes)
    seen = _seen(file)
    try:
        with Segmenter(open_located(file, OpenOptions(trust_code=trust_code))) as segmenter:
            tiled = _try_tiles(segmenter)
            return ModelDiagnosis(
                path=str(path),
                classes=classes,
                variants=variants,
                backend=segmenter.backend,
                precision=segmenter.precision,
                reason=segmenter.reason,
                head=segmenter.head,
                receptive_field=seen,
                tiling=None if isinstance(tiled, str) else tiled,
                tiling_untried=tiled if isinstance(tiled, str) else None,
            )
    except BackendUnavailableError as error:
        problem = str(error)
        return ModelDiagnosis(str(path), classes, variants, problem=problem, receptive_field=seen)


def _try_tiles(segmenter: Segmenter) -> TilingError | str:
    try:
        return tiling_self_test(segmenter, most_seconds=_TILING_SECONDS)
    except (InputError, ExecutionError) as error:  # the model may run on other frames all the same
        return str(error)


def _seen(file: ModelFile) -> SeenByNetwork | None:
    if file.manifest is not None and file.manifest.receptive_field is not None:
        return file.manifest.receptive_field
    found = None if file.graph is None else analyse(file.graph).receptive_field()
    return None if isinstance(found, str) else found


def _variants(manifest: Manifest) -> tuple[VariantStatus, ...]:
    sizes = {entry.name: entry.size for entry in manifest.files}
    return tuple(
        VariantStatus(
            file=variant.file,
            precision=variant.precision,
            size=sizes.get(variant.file),
            fidelity=tuple(variant.fidelity),
            backend=variant.backend,
            library_version=variant.library_version,
            compute_capabilities=variant.compute_capabilities,
        )
        for variant in manifest.variants
    )


def _decoders() -> tuple[Decoder, ...]:
    """Ask the video libraries which FFmpeg they carry: their own version does not tell."""
    decoders = []
    try:
        import cv2

        build = re.search(r"avcodec:\s+YES \(([\d.]+)\)", cv2.getBuildInformation())
        decoders.append(Decoder("cv2", build[1] if build else None, None))
    except ImportError as error:
        decoders.append(Decoder("cv2", None, f"cannot be imported: {error}"))
    if distribution_version("av") is None:
        return tuple(decoders)
    try:
        import av

        version = ".".join(str(number) for number in av.library_versions["libavcodec"])
        decoders.append(Decoder("av", version, None))
    except ImportError as error:
        decoders.append(Decoder("av", None, f"cannot be imported: {error}"))
    return tuple(decoders)


def _advice(
    backends: Sequence[BackendStatus],
    libraries: Sequence[LibraryStatus],
    decoders: Sequence[Decoder],
) -> tuple[str, ...]:
    advice = []
    if all(backend.problem is not None for backend in backends):
        advice.append("no backend can run here: pip install 'fcn-deploy[cpu]'")
    urgent = {"outdated": "update", "conflict": "repair"}
    for status in libraries:
        if status.state in urgent:
            verb = urgent[status.state]
            advice.append(f"{verb} {status.distribution} {status.version}: {status.advice}")
    advice += [text for decoder in decoders if (text := _decoder_advice(decoder))]
    missing: dict[str, list[str]] = {}
    for status in libraries:
        if status.state == "missing" and status.advice:
            missing.setdefault(status.advice, []).append(status.distribution)
    advice += [f"for {', '.join(names)}: {command}" for command, names in missing.items()]
    return tuple(advice)


def _decoder_advice(decoder: Decoder) -> str | None:
    if decoder.problem is not None:
        return f"repair {decoder.library}: {decoder.problem}"
    if decoder.libavcodec is None or version_numbers(decoder.libavcodec) >= version_numbers(
        _SAFE_LIBAVCODEC
    ):
        return None
    return (
        f"read no video from strangers with {decoder.library}: its FFmpeg (libavcodec "
        f"{decoder.libavcodec}) is older than {_SAFE_LIBAVCODEC}, which closed CVE-2026-8461"
    )
