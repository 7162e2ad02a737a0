"""What the output of a file of anyone's making means: by its graph, its user and its values."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from fcn_deploy.artifact.output_meaning import OutputMeaning
from fcn_deploy.backends.base import ExecutionContext
from fcn_deploy.errors import ArtifactError, ExecutionError, InputError
from fcn_deploy.graph.analyse import GraphAnalysis, analyse
from fcn_deploy.graph.meaning import (
    Activation,
    FoundMeaning,
    asked_meaning,
    check_values,
    find_queries,
    require_known,
)
from fcn_deploy.graph.scan import GraphTensor
from fcn_deploy.names import Array, TensorSpec
from fcn_deploy.opening.choose_reader import main_output
from fcn_deploy.opening.locate import ModelFile
from fcn_deploy.opening.options import OpenOptions
from fcn_deploy.preprocess import InputFormat

__all__ = ["TRIED_SIZES", "BareOutput", "read_graph", "read_specs", "varied_frames"]

_log = logging.getLogger(__name__)

TRIED_SIZES = (
    ((128, 192), (160, 96)),
    ((64, 96), (96, 64)),
    ((256, 384), (320, 224)),
    ((512, 512), (512, 768)),
)
"""Pairs to try, (height, width) in px: multiples of what networks usually want."""

_GUESSES: tuple[Activation, ...] = ("softmax", "log_softmax")


@dataclass(frozen=True, slots=True)
class BareOutput:
    """What is known of an output before the network has run.

    Attributes:
        analysis: of the graph; None of a file whose operators are not read.
    """

    found: FoundMeaning
    analysis: GraphAnalysis | None

    @property
    def peeled(self) -> OutputMeaning | None:
        """What the runtime may do in place of the graph's tail; None where it has to run it."""
        if self.analysis is None or self.found.asked or self.found.kind != "labels":
            return None
        meaning = self.analysis.meaning()
        return meaning if meaning.makes_labels else None

    def meaning(self, context: ExecutionContext, taken: InputFormat) -> OutputMeaning:
        """Run the network on a few varied frames, and hold what is known against its values.

        Raises:
            ArtifactError: what the output means is not known, or the values contradict it.
        """
        if self.peeled is not None:  # an ArgMax or a comparison gives class ids
            return self.peeled
        if self.analysis is not None:
            require_known(self.found)
        outputs = _try(context, taken, self.found.output)
        found = self.found
        if self.analysis is None and found.activation == "unknown":
            found = _by_values(found, outputs)
        if outputs:
            found = check_values(found, outputs)
        else:
            require_known(found)
            _log.warning(
                "'%s' takes none of the sizes that were tried: its output is taken for %s unseen.",
                found.output,
                found.activation,
            )
        if self.analysis is not None:
            return self.analysis.meaning(found)
        said = replace(found, activation="logits") if found.activation == "log_softmax" else found
        return OutputMeaning(
            said.activation,  # type: ignore[arg-type]  # not unknown, as was checked
            threshold=0.5 if said.threshold is None else said.threshold,
            class_axis=said.class_axis,  # type: ignore[arg-type]  # 1 or 3, as was checked
        )


def read_graph(file: ModelFile, options: OpenOptions) -> BareOutput | None:
    """Choose an ONNX graph's output, and find what it means.

    Returns:
        None of what is no ONNX graph.

    Raises:
        ArtifactError: there is no such output, several are as good, it is of a query network, or
            an option does not fit it.
    """
    graph = file.graph
    if graph is None:
        return None
    queries = find_queries(graph)
    if queries is not None and options.output_key in (None, queries.output, queries.class_output):
        require_known(queries)
    last = [one for one in graph.outputs if not graph.consumers(one.name)]
    # of labels and the scores that they are made of, the labels
    outputs = graph.outputs if options.output_key is not None else last or graph.outputs
    if options.output_key is None and len(held := [one for one in outputs if _is_labels(one)]) == 1:
        outputs = held
    ranks = [(one.name, None if one.dims is None else len(one.dims)) for one in outputs]
    name = main_output(file, ranks, asked=options.output_key)
    analysis = analyse(graph, output=name)
    return BareOutput(_asked(analysis.found, options), analysis)


def _is_labels(output: GraphTensor) -> bool:
    """Say whether an output is declared as whole numbers for each pixel."""
    whole = (output.dtype or "").startswith(("int", "uint"))
    return whole and (output.dims is None or len(output.dims) >= 3)


def read_specs(file: ModelFile, specs: tuple[TensorSpec, ...], options: OpenOptions) -> BareOutput:
    """Choose an output of a file whose operators are not read, such as a plan.

    Raises:
        ArtifactError: as `read_graph`.
    """
    name = main_output(
        file, [(one.name, len(one.shape)) for one in specs], asked=options.output_key
    )
    (spec,) = (one for one in specs if one.name == name)
    shape = spec.shape
    whole = spec.dtype.startswith(("int", "uint", "bool"))
    ids = whole and (len(shape) == 3 or (len(shape) == 4 and 1 in (shape[1], shape[3])))
    found = FoundMeaning(
        output=name,
        kind="labels" if ids else "scores",
        activation="ids" if ids else "unknown",
        class_axis=None,
        num_classes=None,
        threshold=None,
        evidence=f"{'whole numbers' if whole else 'an operator'} of a {file.path.suffix} file",
        rank=len(shape),
    )
    return BareOutput(_asked(found, options), None)


def _asked(found: FoundMeaning, options: OpenOptions) -> FoundMeaning:
    return asked_meaning(found, activation=options.activation, threshold=options.threshold)


def varied_frames(height: int, width: int) -> list[Array]:
    """Make frames that a network has no reason to answer all alike.

    Returns:
        uint8 [height, width, 3] each: a smooth one, noise, black, white.
    """
    random = np.random.default_rng((height, width))
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = [np.sin(rows / 9 + channel) + np.cos(columns / (7 + channel)) for channel in range(3)]
    smooth = np.clip(127 + 63 * np.stack(waves, axis=-1), 0, 255).astype(np.uint8)
    noise = random.integers(0, 256, (height, width, 3), np.uint8)
    return [smooth, noise, np.zeros_like(noise), np.full_like(noise, 255)]


def _try(context: ExecutionContext, taken: InputFormat, name: str) -> list[Array]:
    """Give the output for varied frames of the first sizes that the network takes."""
    for pair in TRIED_SIZES:
        sizes = dict.fromkeys(
            tuple(
                size if fixed is None else fixed
                for size, fixed in zip(one, taken.size, strict=True)
            )
            for one in pair
        )
        try:
            outputs = []
            for size in sizes:
                for frame in varied_frames(*size):
                    feed = taken.convert([frame] * (taken.batch_size or 1))
                    outputs.append(context.execute({taken.spec.name: feed})[name])
        except (ExecutionError, InputError) as error:
            _log.debug("%s is not taken: %s", pair, error)
            continue
        return outputs
    return []


def _by_values(found: FoundMeaning, outputs: list[Array]) -> FoundMeaning:
    """Tell scores of several classes by their values, where the operators cannot be read.

    Labels are the best class's whatever activated them; a single class needs its threshold.
    """
    if not outputs or outputs[0].ndim != 4:
        return found
    for activation in _GUESSES:
        try:
            return check_values(
                replace(found, activation=activation, evidence="its values"), outputs
            )
        except ArtifactError:
            continue
    outside = min(map(np.min, outputs)) < 0 or max(map(np.max, outputs)) > 1
    taken = replace(found, activation="logits", evidence="its values")
    if not outside or check_values(taken, outputs).num_classes == 1:
        return found
    return taken
