"""Find the PyTorch model that a target is compared with: the given one, or the manifest's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fcn_bench.targets import Target
from fcn_deploy.artifact.manifest import Source
from fcn_deploy.artifact.plain_files import sha256_of
from fcn_deploy.errors import ArtifactMissingError
from fcn_export.load.factory import is_factory

__all__ = ["BaselineModel", "find_baseline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineModel:
    """A PyTorch model and how to load it, as `fcn_export.load_model` takes it.

    Attributes:
        named_by: ``"caller"`` or ``"manifest"``.
    """

    path: Path
    arch: str | None = None
    arch_args: Mapping[str, Any] = field(default_factory=dict)
    output_key: str | None = None
    trust_code: bool = False
    named_by: str = "caller"

    def to_json(self) -> dict[str, Any]:
        with self.path.open("rb") as stream:
            digest = sha256_of(stream)
        return {
            "name": self.path.name,
            "path": str(self.path),
            "arch": self.arch,
            "arch_args": {key: repr(value) for key, value in self.arch_args.items()},
            "output_key": self.output_key,
            "sha256": digest,
            "named_by": self.named_by,
        }


def find_baseline(
    target: Target,
    *,
    model: str | os.PathLike[str] | None = None,
    arch: str | None = None,
    arch_args: Mapping[str, Any] | None = None,
    output_key: str | None = None,
    trust_code: bool = False,
) -> tuple[BaselineModel | None, str | None]:
    """Decide on the baseline.

    A manifest is data, perhaps of somebody else's: a model file that it names is taken only with
    the digest that it states, and a factory that it names is called only if the caller trusts it.

    Args:
        model: the caller's choice; None takes the manifest's.
        arch, arch_args, output_key, trust_code: as for `fcn_export.load_model`; they also
            complete what a manifest says.

    Returns:
        The model, or None and the reason why there is none.

    Raises:
        ArtifactMissingError: the caller's model is not there.
    """
    if model is not None:
        path = Path(model)
        if not path.is_file():
            raise ArtifactMissingError(f"there is no baseline model '{path}'.")
        same = _same_network(target, path)
        if same is not None and arch in (None, same.arch) and _trusted(same, arch, trust_code):
            # the model that the artifact was made from, named once more
            return _complete(
                same,
                path=path,
                arch_args=arch_args,
                output_key=output_key,
                trust_code=trust_code,
                named_by="caller",
            ), None
        return BaselineModel(
            path=path,
            arch=arch,
            arch_args=dict(arch_args or {}),
            output_key=output_key,
            trust_code=trust_code,
        ), None
    if target.manifest is None:
        return None, "a bare graph names no PyTorch model; name one with --baseline."
    source = target.manifest.source
    place = _find_source(source, beside=target.path)
    if isinstance(place, str):
        return None, f"{place} Name the model with --baseline."
    if arch not in (None, source.arch):
        given = dict(arch_args or {})
        return BaselineModel(
            path=place,
            arch=arch,
            arch_args=given,
            output_key=output_key,
            trust_code=trust_code,
            named_by="manifest",
        ), None
    if not _trusted(source, arch, trust_code):
        return None, (
            f"the manifest names the factory '{source.arch}' for '{place}', and code that a file "
            f"names is not run unasked. Pass --arch {source.arch}, or --trust-code if the "
            "artifact is yours."
        )
    return _complete(
        source,
        path=place,
        arch_args=arch_args,
        output_key=output_key,
        trust_code=trust_code,
        named_by="manifest",
    ), None


def _complete(
    source: Source,
    path: Path,
    arch_args: Mapping[str, Any] | None,
    output_key: str | None,
    trust_code: bool,
    named_by: str,
) -> BaselineModel:
    from fcn_export.load.torch_model import parse_arch_args

    said = parse_arch_args([f"{key}={value}" for key, value in source.arch_args.items()])
    return BaselineModel(
        path=path,
        arch=source.arch,
        arch_args=said if arch_args is None else dict(arch_args),
        output_key=output_key or source.output_key,
        trust_code=trust_code,
        named_by=named_by,
    )


def _trusted(source: Source, arch: str | None, trust_code: bool) -> bool:
    """Say whether building the network runs no code, or code that the caller vouches for."""
    named = arch is not None and arch == source.arch
    return trust_code or named or source.arch is None or not is_factory(source.arch)


def _same_network(target: Target, path: Path) -> Source | None:
    """Give the manifest's word on a file if it is the very one the artifact was made from."""
    source = None if target.manifest is None else target.manifest.source
    if source is None or source.sha256 is None or _digest(path) != source.sha256:
        return None
    return source


def _find_source(source: Source, *, beside: Path) -> Path | str:
    """Find the model file where it was, or beside the artifact; else say why not."""
    if source.sha256 is None:
        return "the manifest names no model file."
    if source.file.endswith(".onnx"):
        return f"the artifact was made from '{source.file}', which is no PyTorch model."
    artifact = beside if beside.is_dir() else beside.parent
    places = [Path(source.path)] if source.path else []
    places.append(artifact.parent / Path(source.file).name)
    there = [place for place in places if place.is_file()]
    for place in there:
        if _digest(place) == source.sha256:
            return place
    if there:
        return (
            f"'{there[0]}' is not the model that the artifact was made from (its SHA-256 differs)."
        )
    return f"the model '{source.path or source.file}' that the manifest names is not there."


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return sha256_of(stream)
