"""From a path to what a Segmenter holds: a loaded network, and how to feed and read it."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace

from fcn_deploy.artifact.manifest import Preprocess
from fcn_deploy.artifact.output_meaning import OutputMeaning
from fcn_deploy.backends.base import Backend, ExecutionContext, LabellingContext
from fcn_deploy.errors import ArtifactError, BackendUnavailableError, ManifestError
from fcn_deploy.names import ColorOrder, Precision
from fcn_deploy.opening.bare_output import read_graph, read_specs
from fcn_deploy.opening.choose import choose_backend, choose_precision
from fcn_deploy.opening.choose_reader import choose_reader, main_output
from fcn_deploy.opening.locate import ModelFile, locate_model
from fcn_deploy.opening.options import OpenOptions
from fcn_deploy.opening.readers import LabelsReader, OutputReader, ScoresReader
from fcn_deploy.opening.tuned import kept_rows
from fcn_deploy.preprocess import (
    InputFormat,
    default_preprocess,
    input_format,
)

__all__ = ["OpenedModel", "open_located", "open_model"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A loaded network and how to feed and read it.

    Attributes:
        scores_context: gives the class scores as well, where labels are made on the device.
        bytes_per_px: that a run holds at once for each pixel, as the manifest says; None: unsaid.
    """

    file: ModelFile
    options: OpenOptions
    backend: Backend
    precision: Precision
    reason: str
    context: ExecutionContext
    input_format: InputFormat
    reader: OutputReader
    scores_context: ExecutionContext | None = None
    bytes_per_px: float | None = None


def open_model(path: str | os.PathLike[str], options: OpenOptions) -> OpenedModel:
    """Locate, check, choose and load. For the errors see `Segmenter.open`."""
    return open_located(
        locate_model(
            path,
            backend=options.backend,
            precision=options.precision,
            trust_code=options.trust_code,
        ),
        options,
    )


def open_located(file: ModelFile, options: OpenOptions) -> OpenedModel:
    """Check, choose and load a file that `locate_model` found; as `open_model`."""
    file, backend, precision, reason = _choose(file, options)
    preprocess = _preprocess(file, options)
    bare = read_graph(file, options) if file.manifest is None else None
    known = file.meaning() if bare is None else bare.peeled
    stop = known.stop_at if known is not None and options.peel else None
    context = backend.open(
        file.source(outputs=None if stop is None else (stop,), cached=options.cache),
        precision=precision,
        num_threads=options.num_threads,
        num_streams=options.num_streams,
    )
    try:
        taken = _input_format(file, context, preprocess)
        if file.manifest is None:
            bare = bare or read_specs(file, context.outputs, options)
            meaning, main = bare.meaning(context, taken), stop or bare.found.output
        else:
            main = _main_output(file, context)
            meaning = known or _plan_meaning(file, context, main)
        model = OpenedModel(
            file=file,
            options=options,
            backend=backend,
            precision=precision,
            reason=reason,
            context=context,
            input_format=taken,
            reader=choose_reader(file, context.outputs, meaning, main=main, peel=options.peel),
            bytes_per_px=meaning.bytes_per_px if stop == meaning.stop_at else None,
        )
        return _label_on_device(model)
    except BaseException:
        context.close()
        raise


def _main_output(file: ModelFile, context: ExecutionContext) -> str:
    """Pick the output of an artifact's network that is not its confidence."""
    named = [(one.name, len(one.shape)) for one in context.outputs if one.name != "confidence"]
    return main_output(file, named)


def _plan_meaning(file: ModelFile, context: ExecutionContext, main: str) -> OutputMeaning:
    """Say what an artifact's plan gives: labels, or the scores that its graph makes them of."""
    (spec,) = (one for one in context.outputs if one.name == main)
    said = file.said()
    if spec.dtype.startswith(("int", "uint", "bool")):
        return OutputMeaning("ids")
    if said is None:  # of an earlier release, whose networks all gave logits
        return OutputMeaning("logits")
    return OutputMeaning(said.activation, threshold=said.threshold)


def _choose(file: ModelFile, options: OpenOptions) -> tuple[ModelFile, Backend, Precision, str]:
    """Decide what runs the file, in which precision, and why; of an artifact, which file."""
    wanted, precision = options.backend, options.precision
    if file.backend is not None and wanted == "auto":
        wanted = file.backend
    # use the tuned result only if the user fixed neither file, precision nor providers
    open_choice = precision == "auto" and file.precision is None and options.providers is None
    tuned = kept_rows(file.manifest) if open_choice and file.manifest is not None else None
    backend, why = choose_backend(
        wanted,
        file.path.suffix,
        manifest=file.manifest,
        tuned=tuned,
        providers=options.providers,
    )
    if file.backend is not None and file.backend != backend.name:
        raise BackendUnavailableError(
            f"'{file.path.name}' is a plan of {file.backend}; {backend.name} cannot run it.",
            hint=f"Use --backend {file.backend}.",
        )
    if file.reason:
        why = f"{file.reason}; {why}" if file.backend is None else file.reason
    if file.path.suffix == ".plan":
        decided, reason = _plan_precision(file, precision)
        return file, backend, decided, f"{why}; {reason}"
    decided, reason = choose_precision(
        precision,
        backend,
        file.manifest,
        file_precision=file.precision,
        tuned=tuned,
        measured=options.providers is None,
    )
    return file.in_precision(decided), backend, decided, f"{why}; {reason}"


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


def _preprocess(file: ModelFile, options: OpenOptions) -> Preprocess:
    if file.manifest is not None:
        if named := options.given_preprocessing:
            raise ValueError(
                f"{', '.join(named)} cannot be given: the artifact's graph has its preprocessing"
            )
        if named := options.given_meaning:
            raise ValueError(
                f"{', '.join(named)} cannot be given: the artifact says what its output means"
            )
        return file.manifest.preprocess
    mean, std = options.mean, options.std
    usual = default_preprocess(options.color or "rgb")
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


def _label_on_device(model: OpenedModel) -> OpenedModel:
    """Let the device that has the scores make the labels of them, where it can."""
    context, reader = model.context, model.reader
    if not isinstance(context, LabellingContext) or not isinstance(reader, ScoresReader):
        return model
    (scores,) = (spec for spec in context.outputs if spec.name == reader.output)
    layout = model.input_format.layout
    axes, threshold = (layout.index("H"), layout.index("W")), reader.threshold
    problem = None if scores.dtype == "float32" else f"they are {scores.dtype}"
    if reader.class_axis != 1:
        problem = "the classes are not their second axis"
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
        return replace(model, reader=replace(reader, head=f"{reader.head}: {problem}"))
    made = LabelsReader(
        file=reader.file,
        output=labels.outputs[0].name,
        head=f"on the GPU, of the scores '{scores.name}' that the plan ends in",
        shapes=reader.shapes,
        classes=reader.classes,
        scores=scores.name,
        scores_axis=reader.class_axis,
        activation=reader.activation,
    )
    return replace(model, context=labels, scores_context=with_scores, reader=made)
