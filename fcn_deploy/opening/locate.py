"""The file that a path means: an artifact's variant, a file in an artifact, or anyone's file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from fcn_deploy.artifact.folder import Artifact, is_artifact
from fcn_deploy.artifact.manifest import Manifest
from fcn_deploy.artifact.output_meaning import OutputMeaning
from fcn_deploy.artifact.plain_files import read_plain_file
from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.backends.base import ModelSource
from fcn_deploy.errors import (
    ArtifactError,
    ArtifactMissingError,
    ManifestError,
    UntrustedArtifactError,
)
from fcn_deploy.graph.analyse import analyse
from fcn_deploy.graph.scan import OnnxGraph, scan_onnx
from fcn_deploy.names import Precision
from fcn_deploy.opening.choose import choose_plan, parse_precision

__all__ = ["ModelFile", "locate_model"]


@dataclass(frozen=True)
class ModelFile:
    """One graph on disk, and the artifact that vouches for it, if any.

    Attributes:
        precision: that the file is meant for; None leaves it to the caller.
        backend: that alone runs it, of plans; None for graphs.
        reason: why this file of several, a phrase.
    """

    path: Path
    artifact: Artifact | None
    precision: Precision | None = None
    backend: str | None = None
    reason: str = ""

    @property
    def manifest(self) -> Manifest | None:
        """The artifact's manifest; None for a bare file."""
        return self.artifact.manifest if self.artifact is not None else None

    @property
    def shapes(self) -> ShapeRange | None:
        """Shapes that the artifact was verified for; None for a bare file."""
        return None if self.manifest is None else self.manifest.shapes

    def meaning(self) -> OutputMeaning | None:
        """Say what an artifact's graph gives: by its manifest, or where that is silent by analysis.

        Returns:
            None of plans, and of bare files.

        Raises:
            ManifestError: the manifest names a tensor that no node of the graph makes.
            ArtifactError: what the output means is not known.
        """
        if self.artifact is None or self.graph is None:
            return None
        said = self.said()
        for name in () if said is None else said.tensors:
            if self.graph.producer(name) is None:
                raise ManifestError(
                    f"the manifest's output names {name!r}, which no node of '{self.path.name}' "
                    "makes.",
                    hint="Export the model again.",
                )
        return analyse(self.graph).meaning() if said is None else said

    def said(self) -> OutputMeaning | None:
        """Give what the manifest says of the file's output, or of all graphs'."""
        if self.manifest is None:
            return None
        of_file = [v.output for v in self.manifest.variants if v.file == self.path.name]
        return next(filter(None, of_file), self.manifest.output)

    @cached_property
    def data(self) -> bytes:
        """The file's bytes, checked against the manifest's digest where there is one."""
        if self.artifact is not None:
            return self.artifact.read(self.path.name)
        return read_plain_file(self.path)

    @cached_property
    def graph(self) -> OnnxGraph | None:
        """The scanned graph; None for OpenVINO's own format and for plans."""
        if self.path.suffix != ".onnx":
            return None
        graph = scan_onnx(
            self.data,
            name=f"'{self.path}'",
            folder=self.path.parent,
            foreign=self.artifact is None,
        )
        if self.artifact is not None:
            for name in graph.external_files:
                self.artifact.check(name)
        return graph

    def in_precision(self, precision: Precision) -> ModelFile:
        """Give the artifact's graph that is run in a precision; itself where it was chosen so.

        Raises:
            ArtifactMissingError: the artifact was exported without it.
        """
        if self.artifact is None or self.precision is not None:
            return self
        path = self.artifact.path / self.artifact.variant(precision).file
        return self if path == self.path else replace(self, path=path)

    def source(self, *, outputs: Sequence[str] | None = None, cached: bool = False) -> ModelSource:
        """Give what a backend opens.

        Args:
            outputs: tensors to give out in place of the graph's own; None keeps these.
            cached: let the backend keep the compiled network in the user's cache.

        Raises:
            ArtifactError: the file is damaged, foreign or unsafe to parse.
        """
        if self.path.suffix == ".plan":
            return ModelSource(self.path, self.data, manifest=self.manifest)
        if self.graph is None or self.graph.external_files:
            return ModelSource(self.path)
        digest = hashlib.sha256(self.data).hexdigest() if cached else None
        return ModelSource(
            self.path, self.data, None if outputs is None else tuple(outputs), digest=digest
        )


def locate_model(
    path: str | os.PathLike[str],
    *,
    backend: str = "auto",
    precision: str = "auto",
    trust_code: bool = False,
) -> ModelFile:
    """Find the file that a path means: an artifact's variant, a file in an artifact, a bare file.

    Args:
        backend: chooses between an artifact's plans and its graphs; ``"auto"`` takes a plan where
            it can run here.
        precision: chooses among an artifact's variants; ``"auto"`` takes fp32's graph, which
            bf16 runs too.
        trust_code: take a plan that is in no artifact: it holds code that is run.

    Raises:
        ArtifactMissingError: nothing is there, or the artifact has no such variant.
        ArtifactError: the file is of no kind that can be run.
        BackendUnavailableError: the backend of plans that was asked for cannot run here.
        UntrustedArtifactError: it is a plan in no artifact, and nobody vouched for it.
    """
    place = Path(path)
    if os.path.isdir(place):
        artifact = Artifact.open(place)
        plan, why = choose_plan(artifact.manifest, backend=backend, precision=precision)
        if plan is not None:
            file = artifact.path / plan.file
            return ModelFile(file, artifact, plan.precision, plan.backend, why)
        wanted = Precision.FP32 if precision == "auto" else parse_precision(precision)
        variant = artifact.variant(wanted)
        return ModelFile(artifact.path / variant.file, artifact, reason=why)
    if not os.path.exists(place):
        raise ArtifactMissingError(
            f"there is no '{place}'.", hint="Give an artifact folder or an .onnx file."
        )
    if place.suffix not in (".onnx", ".xml", ".plan"):
        raise ArtifactError(
            f"'{place}' cannot be run; expected an artifact folder, an .onnx, .xml or .plan file.",
            hint="A PyTorch checkpoint becomes an artifact by fcn-export.",
        )
    if is_artifact(place.parent):
        artifact = Artifact.open(place.parent)
        for variant in artifact.manifest.variants:
            if variant.file == place.name:
                return ModelFile(place, artifact, variant.precision, variant.backend)
    if place.suffix != ".plan":
        return ModelFile(place, None)
    if not trust_code:
        raise UntrustedArtifactError(
            f"'{place}' is a plan outside of an artifact: it holds code that is run.",
            hint="Run it with --trust-code if you trust where it comes from.",
        )
    return ModelFile(place, None, _precision_in_name(place))


def _precision_in_name(plan: Path) -> Precision | None:
    """Read the precision from a plan's name, as fcn-export gives it: model.fp16.tensorrt.plan."""
    for part in plan.name.split("."):
        if part in list(Precision):
            return Precision(part)
    return None
