"""From a path to what a Segmenter holds: a loaded network, and how to feed and read it."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fcn_deploy.artifact.manifest import ClassInfo, Preprocess
from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.backends.base import Backend, ExecutionContext, LabellingContext
from fcn_deploy.backends.execution_providers import ProviderList
from fcn_deploy.draw import voc_palette
from fcn_deploy.errors import ArtifactError, BackendUnavailableError, ManifestError
from fcn_deploy.graph.peel import PeeledTail, peel_tail
from fcn_deploy.graph.tail import find_tail
from fcn_deploy.names import ColorOrder, NetworkColor, Precision
from fcn_deploy.opening.choose import choose_backend, choose_precision
from fcn_deploy.opening.locate import ModelFile, locate_model
from fcn_deploy.opening.output_format import OutputFormat, output_format
from fcn_deploy.opening.tuned import kept_rows
from fcn_deploy.preprocess import (
    InputFormat,
    default_preprocess,
    input_format,
)

__all__ = ["OpenedModel", "open_model"]

_log = logging.getLogger(__name__)


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

    @property
    def shapes(self) -> ShapeRange | None:
        """Shapes that the artifact was verified for; None for a bare graph."""
        manifest = self.file.manifest
        return None if manifest is None else manifest.shapes

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """Name and colour of each class id; empty where a bare graph does not say how many."""
        if self.file.manifest is not None:
            return self.file.manifest.classes
        count = self._channels() or 0
        names = range(2 if count == 1 else count)
        return tuple(
            ClassInfo(str(label), color)
            for label, color in zip(names, voc_palette(len(names)), strict=True)
        )

    def _channels(self) -> int | None:
        form, context = self.output_format, self.context
        name = form.name
        if form.kind != "scores":
            if self.scores_context is None or form.inner_scores is None:
                return None
            name, context = form.inner_scores, self.scores_context
        spec = next(spec for spec in context.outputs if spec.name == name)
        return spec.shape[form.class_axis]


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
            output_format=output_format(file, context.outputs, peeled),
            num_streams=num_streams,
        )
        return _label_on_device(model)
    except BaseException:
        context.close()
        raise


def _plan_precision(file: ModelFile, wanted: str) -> tuple[Precision, str]:
    held = file.precision
    if held is None:
        _log.warning(
            "'%s' does not say its precision in its name; it is reported as fp32.", file.path
        )
        held = Precision.FP32
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
    usual = default_preprocess(color or "rgb")
    return Preprocess(
        mean=usual.mean if mean is None else tuple(mean),
        std=usual.std if std is None else tuple(std),
        color=usual.color,
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
