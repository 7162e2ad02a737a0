"""Open what a worker process is told to load: an artifact on a backend, or the PyTorch baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from fcn_bench.network import Network
from fcn_deploy.artifact.manifest import Preprocess
from fcn_deploy.artifact.output_meaning import Activation
from fcn_deploy.backends import plan_backend_names
from fcn_deploy.backends.base import RunTimes
from fcn_deploy.errors import ArtifactError, BenchmarkError
from fcn_deploy.graph.meaning import asked_meaning, check_values
from fcn_deploy.names import Array, NetworkColor
from fcn_deploy.segmenter import Segmenter

if TYPE_CHECKING:
    from torch import nn

    from fcn_export.graph_spec import GraphSpec

__all__ = ["PlanNetwork", "SegmenterNetwork", "open_network"]


class SegmenterNetwork:
    """A Segmenter behind the protocol `fcn_bench.network.Network`.

    `compute` is `Segmenter.execute`: of an artifact the whole graph, from uint8 frame to labels;
    of a bare graph what that graph holds.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        self._segmenter = segmenter

    @property
    def num_classes(self) -> int | None:
        return len(self._segmenter.classes) or None

    def prepare(self, frames_bgr: Sequence[Array]) -> Any:
        return self._segmenter.prepare(frames_bgr)

    def compute(self, prepared: Any) -> Any:
        return self._segmenter.execute(prepared)

    def finish(self, computed: Any, frames_bgr: Sequence[Array]) -> list[Array]:
        return [result.labels for result in self._segmenter.finish(computed, frames_bgr)]

    def labels_and_scores(self, frame_bgr: Array) -> tuple[Array, Array | None]:
        # the labels come from the network that is timed, not from the one that gives scores too
        return self._segmenter(frame_bgr).labels, self._scores(frame_bgr)

    def close(self) -> None:
        self._segmenter.close()

    def _scores(self, frame_bgr: Array) -> Array | None:
        try:
            found = self._segmenter(frame_bgr, scores=True).scores
        except ArtifactError:  # the graph ends in labels and its scores cannot be told
            return None
        if found is None:
            return None
        return self._segmenter.scores_at_pixels(found, (frame_bgr.shape[0], frame_bgr.shape[1]))


class PlanNetwork(SegmenterNetwork):
    """A plan on a GPU behind the protocol `fcn_bench.network.TimedNetwork`."""

    def compute_timed(self, prepared: Any) -> tuple[Any, RunTimes]:
        outputs, times = self._segmenter.execute_timed(prepared)
        if times is None:
            raise RuntimeError("a plan gave no times")
        return outputs, times


def open_network(network: dict[str, Any], *, streams: int) -> Network:
    """Load what a description names.

    Args:
        network: of kind ``"segmenter"``: path, backend, precision, threads, trust_code, and for a
            bare graph mean, std, color, activation, threshold and output_key; of kind
            ``"torch"``: path, arch, arch_args, output_key, trust_code, mode, threads, multiple_of,
            preprocess, activation and threshold.

    Raises:
        FcnDeployError: as `Segmenter.open` or `fcn_export.load_model` say.
    """
    if network["kind"] == "torch":
        return _open_torch(network)
    kind = PlanNetwork if network["backend"] in plan_backend_names() else SegmenterNetwork
    return kind(
        Segmenter.open(
            network["path"],
            backend=network["backend"],
            precision=network["precision"],
            num_threads=network["threads"],
            num_streams=streams,
            mean=network["mean"],
            std=network["std"],
            color=network["color"],
            activation=network.get("activation", "auto"),
            threshold=network.get("threshold"),
            output_key=network.get("output_key"),
            trust_code=network.get("trust_code", False),
        )
    )


def _open_torch(network: dict[str, Any]) -> Network:
    from fcn_bench.torch_baseline import TorchNetwork
    from fcn_export.graph_spec import GraphSpec
    from fcn_export.load.torch_model import load_model, parse_arch_args, probe

    preprocess = Preprocess(
        tuple(network["preprocess"]["mean"]),
        tuple(network["preprocess"]["std"]),
        cast(NetworkColor, network["preprocess"]["color"]),
    )
    multiple_of = network["multiple_of"]
    model = load_model(
        network["path"],
        arch=network["arch"],
        # as literals: JSON knows no tuples
        arch_args=parse_arch_args([f"{k}={v}" for k, v in network["arch_args"].items()]),
        output_key=network["output_key"],
        trust_code=network["trust_code"],
    )
    classes = model.num_classes
    if classes is None:
        side = -(-128 // multiple_of) * multiple_of
        classes = probe(
            model.module,
            channels=len(preprocess.mean),
            size=(side, side),
            output_key=model.output_key,
        )[1]
    spec = GraphSpec(preprocess, classes, output_key=model.output_key, multiple_of=multiple_of)
    spec = _with_meaning(model.module, spec, network)
    return TorchNetwork(model.module, spec, mode=network["mode"], threads=network["threads"])


def _with_meaning(module: nn.Module, spec: GraphSpec, network: dict[str, Any]) -> GraphSpec:
    """Hold what is said of the baseline's output against its values.

    A manifest's word counts, or the user's; without one scores are logits, or of several classes a
    softmax, where the values are. Nothing else is known of a module.
    """
    from fcn_export.check.reference import TorchReference, meaning_of
    from fcn_export.check.sample_frames import varied_batches
    from fcn_export.graph_spec import decided

    side = -(-128 // spec.multiple_of) * spec.multiple_of
    outputs = [TorchReference(module, spec).raw(batch) for batch in varied_batches(side, side)]
    said = network.get("activation") or "auto"
    if said == "auto":
        whole = outputs[0].dtype.kind in "iu"
        said = "ids" if whole else "softmax" if _is_softmax(outputs) else "logits"
    spec = replace(spec, activation=cast(Activation, said))
    found = meaning_of(spec)
    if said == "ids":
        found = replace(found, num_classes=None)
    found = asked_meaning(found, threshold=network.get("threshold"), error=BenchmarkError)
    return decided(spec, check_values(found, outputs, error=BenchmarkError), outputs)


def _is_softmax(outputs: Sequence[Array]) -> bool:
    """Say whether the values of several classes are shares of one."""
    several = outputs[0].shape[1] > 1
    return several and all(
        bool((one >= 0).all() and (abs(one.sum(axis=1) - 1) < 1e-3).all()) for one in outputs
    )
