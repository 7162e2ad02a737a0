"""From a path to everything a Segmenter needs: an artifact, a file in one, or anyone's graph."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from fcn_deploy.artifact import Artifact, is_artifact
from fcn_deploy.backends.base import Backend, ExecutionContext, LabellingContext, ModelSource
from fcn_deploy.backends.execution_providers import ProviderList
from fcn_deploy.choice import choose_backend, choose_plan, choose_precision, parse_precision
from fcn_deploy.errors import (
    ArtifactError,
    ArtifactMissingError,
    BackendUnavailableError,
    ManifestError,
    UntrustedArtifactError,
)
from fcn_deploy.manifest import Manifest, Preprocess
from fcn_deploy.onnx_scan import OnnxGraph, scan_onnx
from fcn_deploy.peel import PeeledTail, peel_tail
from fcn_deploy.plain_files import read_plain_file
from fcn_deploy.preprocess import InputFormat, input_format
from fcn_deploy.tail import find_tail
from fcn_deploy.tensors import ColorOrder, NetworkColor, Precision, TensorSpec
from fcn_deploy.tuned import kept_rows

__all__ = ["ModelFile", "OpenedModel", "OutputFormat", "locate_model", "open_model"]

_log = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
        graph = scan_onnx(self.data, name=f"'{self.path}'", folder=self.path.parent)
        if self.artifact is not None:
            for name in graph.external_files:
                self.artifact.check(name)
        return graph

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


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """What a graph's outputs mean.

    Attributes:
        kind: ``"labels"``, or ``"scores"`` where the argmax is left to the runtime.
        name: of the output that holds them.
        class_axis: of scores: 1 for [N, C, H, W], 3 for [N, H, W, C].
        threshold: of a single class's score, above which a pixel is of the class.
        confidence: name of the output with the label's probability, or None.
        inner_scores: name of the tensor that holds the scores before upsampling, or None where
            they are the output itself or unknown.
        inner_class_axis: of that tensor.
        on_device: whether the labels are made of the inner scores where the network runs, and not
            in its graph.
        not_on_device_because: a phrase, where a device might have labelled its scores.
        peeled: what the runtime does in place of the graph's tail; None where nothing.
        not_peeled_because: a phrase, where the graph makes the labels itself.
    """

    kind: Literal["labels", "scores"]
    name: str
    class_axis: int = 1
    threshold: float = 0.0
    confidence: str | None = None
    inner_scores: str | None = None
    inner_class_axis: int = 1
    on_device: bool = False
    not_on_device_because: str | None = None
    peeled: PeeledTail | None = None
    not_peeled_because: str | None = None


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A loaded network and how to feed and read it.

    Attributes:
        scores_context: gives the class scores as well, where labels are made on the device.
    """

    file: ModelFile
    backend: Backend
    precision: Precision
    reason: str
    context: ExecutionContext
    input_format: InputFormat
    output_format: OutputFormat
    num_streams: int = 1
    scores_context: ExecutionContext | None = None


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
    if place.is_dir():
        artifact = Artifact.open(place)
        plan, why = choose_plan(artifact.manifest, backend=backend, precision=precision)
        if plan is not None:
            file = artifact.path / plan.file
            return ModelFile(file, artifact, plan.precision, plan.backend, why)
        wanted = Precision.FP32 if precision == "auto" else parse_precision(precision)
        variant = artifact.variant(wanted)
        return ModelFile(artifact.path / variant.file, artifact, reason=why)
    if not place.exists():
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


def _precision_in_name(plan: Path) -> Precision:
    """Read the precision from a plan's name, as fcn-export gives it: model.fp16.tensorrt.plan."""
    for part in plan.name.split("."):
        if part in list(Precision):
            return Precision(part)
    _log.warning("'%s' does not say its precision in its name; it is reported as fp32.", plan)
    return Precision.FP32


def open_model(
    path: str | os.PathLike[str],
    *,
    backend: str = "auto",
    precision: str = "auto",
    providers: ProviderList | None = None,
    num_threads: int | None = None,
    num_streams: int = 1,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    color: NetworkColor | None = None,
    peel: bool = True,
    cache: bool = True,
    trust_code: bool = False,
) -> OpenedModel:
    """Locate, check, choose and load. For the arguments and errors see `Segmenter.open`."""
    file = locate_model(path, backend=backend, precision=precision, trust_code=trust_code)
    if file.backend is not None and backend == "auto":
        backend = file.backend
    # a file that was named itself, a plan or a precision leave nothing to what was measured
    open_choice = precision == "auto" and file.precision is None and providers is None
    tuned = kept_rows(file.manifest) if open_choice and file.manifest is not None else None
    chosen, backend_reason = choose_backend(
        backend, file.path.suffix, tuned=tuned, providers=providers
    )
    if file.backend is not None and file.backend != chosen.name:
        raise BackendUnavailableError(
            f"'{file.path.name}' is a plan of {file.backend}; {chosen.name} cannot run it.",
            hint=f"Use --backend {file.backend}.",
        )
    if file.reason:
        backend_reason = f"{file.reason}; {backend_reason}" if file.backend is None else file.reason
    if file.path.suffix == ".plan":
        decided, precision_reason = _plan_precision(file, precision)
    else:
        decided, precision_reason = choose_precision(
            precision,
            chosen,
            file.manifest,
            file_precision=file.precision,
            tuned=tuned,
            measured=providers is None,
        )
        if file.artifact is not None and file.precision is None:
            file = locate_model(path, backend=chosen.name, precision=decided)
    preprocess = _preprocess(file, mean=mean, std=std, color=color)
    peeled = _peel(file) if peel else "it was asked for whole"
    outputs = (peeled.scores,) if isinstance(peeled, PeeledTail) else None
    context = chosen.open(
        file.source(outputs=outputs, cached=cache),
        precision=decided,
        num_threads=num_threads,
        num_streams=num_streams,
    )
    try:
        model = OpenedModel(
            file=file,
            backend=chosen,
            precision=decided,
            reason=f"{backend_reason}; {precision_reason}",
            context=context,
            input_format=_input_format(file, context, preprocess),
            output_format=_output_format(file, context, peeled),
            num_streams=num_streams,
        )
        return _label_on_device(model)
    except BaseException:
        context.close()
        raise


def _plan_precision(file: ModelFile, wanted: str) -> tuple[Precision, str]:
    held = file.precision or Precision.FP32
    if wanted not in ("auto", held):
        raise BackendUnavailableError(
            f"'{file.path.name}' is a plan in {held}; it cannot compute in {wanted}.",
            hint=f"Leave --precision out, or export the model with --precision {wanted}.",
        )
    return held, f"{held} is the plan's own"


def _preprocess(
    file: ModelFile,
    *,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    color: NetworkColor | None,
) -> Preprocess:
    given = {"mean": mean, "std": std, "color": color}
    named = [key for key, value in given.items() if value is not None]
    if file.manifest is not None:
        if named:
            raise ValueError(
                f"{', '.join(named)} cannot be given: the artifact's graph has its preprocessing"
            )
        return file.manifest.preprocess
    gray = color == "gray"
    return Preprocess(
        mean=tuple(mean if mean is not None else (0.449,) if gray else IMAGENET_MEAN),
        std=tuple(std if std is not None else (0.226,) if gray else IMAGENET_STD),
        color=color or "rgb",
    )


def _input_format(
    file: ModelFile, context: ExecutionContext, preprocess: Preprocess
) -> InputFormat:
    if len(context.inputs) != 1:
        raise ArtifactError(
            f"'{file.path}' has {len(context.inputs)} inputs "
            f"({', '.join(spec.name for spec in context.inputs)}); expected one image."
        )
    spec = context.inputs[0]
    if file.manifest is not None:
        declared = file.manifest.inputs[0]
        if (spec.name, spec.dtype) != (declared.name, declared.dtype):
            raise ManifestError(
                f"the manifest says input '{declared.name}' of {declared.dtype}; "
                f"'{file.path.name}' has {spec}."
            )
        found = input_format(spec, preprocess, color="rgb" if declared.color == "rgb" else "bgr")
    else:
        order: ColorOrder = "bgr" if preprocess.color == "bgr" else "rgb"
        found = input_format(spec, preprocess, color=order)
        how = (
            "as it is"
            if found.normalise is None
            else f"less {preprocess.mean}, by {preprocess.std}"
        )
        _log.warning(
            "'%s' has no manifest: its %s input is fed %s frames, %s.",
            file.path, found.layout, found.color, how,
        )  # fmt: skip
    return found


def _peel(file: ModelFile) -> PeeledTail | str:
    """Decide whether the graph may stop at its low-resolution scores, or say why not."""
    graph = file.graph
    if graph is None:
        return "only ONNX files are peeled"
    if graph.external_files:
        return "its weights lie in files of their own"
    if len(graph.outputs) != 1:
        return "it has several outputs"
    return peel_tail(graph, find_tail(graph))


def _output_format(
    file: ModelFile, context: ExecutionContext, peeled: PeeledTail | str
) -> OutputFormat:
    if isinstance(peeled, PeeledTail):
        return OutputFormat("scores", peeled.scores, threshold=peeled.threshold, peeled=peeled)
    outputs = {spec.name: spec for spec in context.outputs}
    confidence = "confidence" if file.manifest is not None and "confidence" in outputs else None
    main = _main_output(file, [spec for spec in context.outputs if spec.name != confidence])
    tail = find_tail(file.graph, output=main.name) if file.graph is not None else None
    scores, class_axis = None, 1
    if tail is not None:
        # a crop or a transposed convolution says more than sizes where scores lie
        inner = None if tail.crops or tail.coordinates == "transposed" else tail.low_scores
        scores = inner or tail.scores
        class_axis = tail.class_axis if inner is None else tail.low_class_axis
    found = OutputFormat(
        kind="labels" if main.dtype.startswith(("int", "uint", "bool")) else "scores",
        name=main.name,
        class_axis=1 if tail is None else tail.class_axis,
        threshold=0.5 if tail is not None and (tail.activation or tail.probabilities) else 0.0,
        confidence=confidence,
        inner_scores=scores if scores != main.name else None,
        inner_class_axis=class_axis,
        not_peeled_because=peeled if tail is not None and tail.labels is not None else None,
    )
    if found.kind == "scores" and len(main.shape) != 4:
        raise ArtifactError(
            f"'{file.path}' gives {main}; expected labels [N, H, W] or scores [N, C, H, W]."
        )
    return found


def _label_on_device(model: OpenedModel) -> OpenedModel:
    """Let the device that has the scores make the labels of them, where it can."""
    context, form = model.context, model.output_format
    if not isinstance(context, LabellingContext) or form.kind != "scores":
        return model
    (scores,) = (spec for spec in context.outputs if spec.name == form.name)
    layout = model.input_format.layout
    axes, threshold = (layout.index("H"), layout.index("W")), form.threshold
    problem = None if scores.dtype == "float32" else f"they are {scores.dtype}"
    try:
        if problem is None:
            labels = context.labelling(scores.name, axes=axes, threshold=threshold)
            with_scores = context.labelling(
                scores.name, axes=axes, threshold=threshold, give_scores=True
            )
    except BackendUnavailableError as error:
        problem = str(error)
    if problem is not None:
        _log.warning("The scores of '%s' are labelled on the CPU: %s", model.file.path, problem)
        return replace(model, output_format=replace(form, not_on_device_because=problem))
    made = replace(
        form,
        kind="labels",
        name=labels.outputs[0].name,
        inner_scores=scores.name,
        inner_class_axis=form.class_axis,
        on_device=True,
    )
    return replace(model, context=labels, scores_context=with_scores, output_format=made)


def _main_output(file: ModelFile, outputs: Sequence[TensorSpec]) -> TensorSpec:
    """Pick the output to label by: the only one, or the one with the usual name."""
    if len(outputs) == 1:
        return outputs[0]
    for name in ("labels", "out", "scores", "logits", "output"):
        for spec in outputs:
            if spec.name == name:
                return spec
    images = [spec for spec in outputs if len(spec.shape) == 4]
    if len(images) == 1:
        return images[0]
    raise ArtifactError(
        f"'{file.path}' has several outputs: {'; '.join(map(str, outputs))}.",
        hint="Export it again with fcn-export and --output-key.",
    )
