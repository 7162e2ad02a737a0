"""Read what is to be benchmarked: an artifact, a file in one, or a bare graph."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fcn_deploy.artifact.folder import Artifact
from fcn_deploy.artifact.manifest import Manifest, Preprocess, Variant
from fcn_deploy.artifact.plain_files import sha256_of
from fcn_deploy.backends import backend_names, get_backend, plan_backend_names
from fcn_deploy.errors import BackendUnavailableError, BenchmarkError
from fcn_deploy.names import Precision
from fcn_deploy.opening.locate import locate_model

__all__ = ["Candidate", "Target", "find_candidates", "read_target"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Something that backends can run.

    Attributes:
        path: as `Segmenter.open` takes it.
        kind: ``"artifact"``, ``"onnx"``, ``"xml"`` or ``"plan"``.
        precisions: that its graphs can be run in, where a backend can.
        plans: precisions of its engine plans, by backend.
        sha256: tells one network from another: of the PyTorch model an artifact was made from,
            or else of the file.
        manifest: of the artifact; None for a bare graph.
    """

    path: Path
    kind: str
    precisions: tuple[Precision, ...]
    sha256: str
    manifest: Manifest | None
    suffix: str
    plans: Mapping[str, tuple[Precision, ...]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        files: Mapping[str, str] = (
            {entry.name: entry.sha256 for entry in self.manifest.files} if self.manifest else {}
        )
        return {
            "name": self.path.name,
            "path": str(self.path),
            "kind": self.kind,
            "sha256": self.sha256,
            "files": dict(files),
        }


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run the target."""

    backend: str
    precision: Precision


def read_target(path: str | os.PathLike[str], *, trust_code: bool = False) -> Target:
    """Find out what a path is.

    Args:
        trust_code: take a ``.plan`` that is in no artifact: it holds code that is run.

    Raises:
        ArtifactError: it is missing, damaged, or nothing that can be run.
        UntrustedArtifactError: it is a plan outside an artifact, and `trust_code` is False.
    """
    place = Path(path)
    if place.is_dir():
        artifact = Artifact.open(place)
        manifest = artifact.manifest
        held = [variant.precision for variant in manifest.variants if variant.backend is None]
        return Target(
            path=place,
            kind="artifact",
            precisions=_runnable(held),
            sha256=_identity(manifest),
            manifest=manifest,
            suffix=".onnx",
            plans=_plans(manifest.variants),
        )
    file = locate_model(place, trust_code=trust_code)
    if place.suffix == ".plan":
        held = [file.precision or Precision.FP32]
        owners = plan_backend_names() if file.backend is None else (file.backend,)
        plans = {name: tuple(held) for name in owners}
        if file.manifest is not None:
            identity = _identity(file.manifest)
            return Target(
                path=place,
                kind="artifact",
                precisions=(),
                sha256=identity,
                manifest=file.manifest,
                suffix=".plan",
                plans=plans,
            )
        with place.open("rb") as stream:
            return Target(
                path=place,
                kind="plan",
                precisions=(),
                sha256=sha256_of(stream),
                manifest=None,
                suffix=".plan",
                plans=plans,
            )
    if file.manifest is not None:
        held = [Precision.FP32 if file.precision is None else file.precision]
        return Target(
            path=place,
            kind="artifact",
            precisions=_runnable(held),
            sha256=_identity(file.manifest),
            manifest=file.manifest,
            suffix=".onnx",
        )
    with place.open("rb") as stream:
        digest = sha256_of(stream)
    kind = place.suffix.removeprefix(".")
    return Target(
        path=place,
        kind=kind,
        precisions=_runnable([Precision.FP32]),
        sha256=digest,
        manifest=None,
        suffix=place.suffix,
    )


def find_candidates(
    target: Target, *, backend: str | None = None, precisions: Sequence[Precision] = ()
) -> tuple[tuple[Candidate, ...], tuple[str, ...]]:
    """Give every backend and precision that can run the target here, and notes on those left out.

    Args:
        backend: only this one; None takes every one installed.
        precisions: only these; empty takes all.

    Raises:
        BackendUnavailableError: a backend or precision that was asked for cannot run it here.
        BenchmarkError: nothing can.
    """
    known = (*backend_names(), *plan_backend_names())
    if backend is not None and backend not in known:
        raise BackendUnavailableError(
            f"there is no backend '{backend}' in this release; it has {', '.join(known)}."
        )
    notes: list[str] = []
    lacking: list[str] = []
    found: list[Candidate] = []
    for name in known if backend is None else (backend,):
        library = get_backend(name)
        if name in plan_backend_names():
            able, why = _plan_precisions(target, name, asked=backend is not None)
            if why is not None:
                lacking.append(why)
                notes.append(f"{why}, so its plans have no rows.")
            found += [
                Candidate(name, precision)
                for precision in able
                if not precisions or precision in precisions
            ]
            continue
        if target.suffix not in library.suffixes:
            if backend is not None:
                raise BackendUnavailableError(
                    f"{name} does not read '{target.suffix}' files; "
                    f"it reads {', '.join(library.suffixes)}."
                )
            continue
        if backend is None and not library.available():
            lacking.append(f"{name} is not installed")
            notes.append(f"{lacking[-1]}, so it has no rows.")
            continue
        able = library.precisions()  # raises with the command that installs it
        found += [
            Candidate(name, precision)
            for precision in target.precisions
            if precision in able and (not precisions or precision in precisions)
        ]
    missing = [p for p in precisions if p not in {candidate.precision for candidate in found}]
    if missing:
        raise BackendUnavailableError(
            f"nothing here runs '{target.path}' in {', '.join(missing)}.",
            hint="fcn-doctor says what each backend can do here; fcn-export --precision makes "
            "further variants.",
        )
    if not found:
        raise BenchmarkError(
            f"nothing here can run '{target.path}'{': ' if lacking else ''}{'; '.join(lacking)}.",
            hint="A plan runs where an NVIDIA GPU and its driver are; fcn-doctor says what is "
            "missing."
            if target.path.suffix == ".plan"
            else "pip install 'fcn-deploy[cpu]'",
        )
    return tuple(found), tuple(notes)


def _plan_precisions(
    target: Target, name: str, *, asked: bool
) -> tuple[tuple[Precision, ...], str | None]:
    """Give the precisions of the plans that a backend can run here, and why it cannot run any."""
    held = target.plans.get(name, ())
    try:
        if held or asked:
            get_backend(name).version()
    except BackendUnavailableError as error:
        if asked:
            raise
        return (), error.message.removesuffix(".")
    if asked and not held:
        raise BackendUnavailableError(
            f"'{target.path}' has no plan for {name}.",
            hint=f"Export the model again with --engine {name}.",
        )
    return held, None


def _plans(variants: Sequence[Variant]) -> dict[str, tuple[Precision, ...]]:
    found: dict[str, tuple[Precision, ...]] = {}
    for variant in variants:
        if variant.backend is not None:
            found[variant.backend] = (*found.get(variant.backend, ()), variant.precision)
    return found


def preprocess_of(target: Target, given: Preprocess | None) -> Preprocess:
    """Give what the network expects: the manifest's word, the caller's, or ImageNet's.

    Raises:
        BenchmarkError: both the manifest and the caller say something.
    """
    from fcn_deploy.preprocess import default_preprocess

    if target.manifest is None:
        return given or default_preprocess()
    if given is not None:
        raise BenchmarkError(
            f"'{target.path}' says itself what its network expects.",
            hint="Leave --mean, --std and --color out; they are for bare graphs.",
        )
    return target.manifest.preprocess


def _runnable(held: Sequence[Precision]) -> tuple[Precision, ...]:
    """Add bf16, which is computed from fp32's graph."""
    order = list(Precision)
    precisions = {*held, *([Precision.BF16] if Precision.FP32 in held else [])}
    return tuple(sorted(precisions, key=order.index))


def _identity(manifest: Manifest) -> str:
    if manifest.source.sha256 is not None:
        return manifest.source.sha256
    names = {variant.file for variant in manifest.variants}
    return next(entry.sha256 for entry in manifest.files if entry.name in names)
