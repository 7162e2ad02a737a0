"""Run plans behind the runtime's protocols, with TensorRT or TensorRT-RTX."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence

from fcn_deploy.artifact.manifest import Manifest, Variant
from fcn_deploy.backends.base import ContextManaged, ModelSource, RunTimes
from fcn_deploy.backends.tensorrt.api import installed, load_tensorrt
from fcn_deploy.backends.tensorrt.device import device_problem, open_device, require_device
from fcn_deploy.backends.tensorrt.device_labelling import DeviceLabelling
from fcn_deploy.backends.tensorrt.engine import TrtEngine
from fcn_deploy.backends.tensorrt.head_kernel import HeadKernel, label_dtype
from fcn_deploy.backends.tensorrt.plan_check import PlanRecord, check_plan
from fcn_deploy.backends.tensorrt.session import InferenceSession, open_session
from fcn_deploy.backends.tensorrt.slots import PendingResult
from fcn_deploy.backends.tensorrt.surface import LibraryName
from fcn_deploy.errors import BackendUnavailableError, EngineMismatchError
from fcn_deploy.names import Array, Precision, TensorSpec

__all__ = ["TensorRtBackend", "TensorRtRtxBackend", "TrtContext", "TrtLabels"]

_DEPTH = 3
"""Runs under way in a session: one copied in, one executed, one copied out."""


class TensorRtBackend:
    """Runs plans that TensorRT built for this GPU."""

    name: LibraryName = "tensorrt"
    suffixes = (".plan",)

    def available(self) -> bool:
        return installed(self.name) and device_problem() is None

    def version(self) -> str:
        try:
            library = load_tensorrt(self.name)
        except BackendUnavailableError as error:
            # installing it is of no use where it could not run
            require_device(what=f"{error.message.removesuffix('.')}; {self.name}")
            raise
        require_device(what=self.name)
        return library.release

    def precisions(self) -> tuple[Precision, ...]:
        self.version()
        return tuple(Precision)  # a plan's precision is its own; its builder knew the GPU

    def arithmetic(self, precision: Precision) -> str:
        return f"{precision}, in the types that the plan was built with"

    def obstacle(self, variant: Variant, manifest: Manifest) -> str | None:
        """Say why a plan of an artifact cannot run here, or None. Opens the GPU for a moment."""
        try:
            library = load_tensorrt(self.name)
            device = open_device()
        except BackendUnavailableError as error:
            return error.message
        try:
            check_plan(PlanRecord.of(variant, manifest), library, device.info, name=variant.file)
        except EngineMismatchError as error:
            return error.message
        finally:
            device.close()
        return None

    def open(
        self,
        source: ModelSource,
        /,
        *,
        precision: Precision = Precision.FP32,
        num_threads: int | None = None,
        num_streams: int = 1,
    ) -> TrtContext:
        self.version()
        if source.data is None or source.outputs is not None:
            raise ValueError(f"'{source.path}' is a plan: it comes as bytes and runs whole")
        record = None
        if source.manifest is not None:
            for variant in source.manifest.variants:
                if variant.file == source.path.name:
                    record = PlanRecord.of(variant, source.manifest)
        engine = TrtEngine(
            source.data,
            library=load_tensorrt(self.name),
            device=open_device(),
            name=source.path.name,
            record=record,
        )
        return TrtContext(engine, num_streams=num_streams)


class TensorRtRtxBackend(TensorRtBackend):
    """Runs plans that TensorRT-RTX built, for one or several kinds of GPU."""

    name: LibraryName = "tensorrt-rtx"


class TrtContext(ContextManaged):
    """An engine and one session a stream; threads take the sessions in turn.

    Runs that are timed have sessions of their own, so that the others record no events for it.
    """

    def __init__(self, engine: TrtEngine, *, num_streams: int) -> None:
        super().__init__()
        self.engine = engine
        self.inputs = engine.inputs
        self.outputs = engine.outputs
        self._num_streams = num_streams
        self._sessions: dict[bool, list[InferenceSession]] = {False: [], True: []}
        self._turns = itertools.count()
        self._lock = threading.Lock()
        self._kernel: HeadKernel | None = None

    def execute(
        self, feeds: Mapping[str, Array], /, *, outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        return self.submit(feeds, outputs=outputs).result()

    def execute_timed(self, feeds: Mapping[str, Array], /) -> tuple[dict[str, Array], RunTimes]:
        return timed_result(self.submit(feeds, timed=True))

    def labelling(
        self, scores: str, *, axes: tuple[int, int], threshold: float, give_scores: bool = False
    ) -> TrtLabels:
        with self._lock:
            self._require_usable(f"the network '{self.engine.name}'")
            if self._kernel is None:
                with self.engine.device.current():
                    self._kernel = HeadKernel(self.engine.device)
        labelling = DeviceLabelling(
            self._kernel, scores, self.inputs[0].name, axes=axes, threshold=threshold
        )
        return TrtLabels(self, labelling, give_scores=give_scores)

    def submit(
        self,
        feeds: Mapping[str, Array],
        *,
        outputs: Sequence[str] | None = None,
        labelling: DeviceLabelling | None = None,
        timed: bool = False,
    ) -> PendingResult:
        """Start a run of the network; feeds have the shapes and dtypes of its inputs.

        Args:
            labelling: labels the scores on the GPU; None copies them back.
        """
        return self._session(timed).submit(feeds, outputs=outputs, labelling=labelling)

    def close(self) -> None:
        with self._lock:  # no session is made from here on
            if self._closed:
                return
            super().close()
        for session in (*self._sessions[False], *self._sessions[True]):
            session.close()  # before the kernel that their runs use
        if self._kernel is not None:
            with self.engine.device.current():
                self._kernel.close()
        self.engine.close()

    def _session(self, timed: bool) -> InferenceSession:
        with self._lock:
            self._require_usable(f"the network '{self.engine.name}'")
            made = self._sessions[timed]
            if len(made) < self._num_streams:
                made.append(open_session(self.engine, depth=_DEPTH, timing=timed))
                return made[-1]
            return made[next(self._turns) % self._num_streams]


class TrtLabels:
    """The labels of an engine that ends in scores, made on the GPU."""

    def __init__(
        self, context: TrtContext, labelling: DeviceLabelling, *, give_scores: bool
    ) -> None:
        self._context = context
        self._labelling = labelling
        self.inputs = context.inputs
        (scores,) = (spec for spec in context.outputs if spec.name == labelling.scores)
        classes = scores.shape[1]
        # a plan that leaves the number of classes open is taken to have few of them
        dtype = label_dtype(classes or 1).name
        labels = TensorSpec(labelling.labels, dtype, (scores.shape[0], None, None))
        self.outputs = (labels, scores) if give_scores else (labels,)

    def execute(
        self, feeds: Mapping[str, Array], /, *, outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        wanted = [spec.name for spec in self.outputs] if outputs is None else outputs
        found = self._submit(feeds, wanted).result()
        return {name: found[name] for name in wanted}

    def execute_timed(self, feeds: Mapping[str, Array], /) -> tuple[dict[str, Array], RunTimes]:
        return timed_result(self._submit(feeds, [spec.name for spec in self.outputs], timed=True))

    def close(self) -> None:
        self._context.close()

    def _submit(
        self, feeds: Mapping[str, Array], wanted: Sequence[str], *, timed: bool = False
    ) -> PendingResult:
        return self._context.submit(
            feeds,
            outputs=[name for name in wanted if name == self._labelling.scores],
            labelling=self._labelling,
            timed=timed,
        )


def timed_result(pending: PendingResult) -> tuple[dict[str, Array], RunTimes]:
    """Wait for a run of a session that times its runs.

    Returns:
        The outputs by name, of the shapes and dtypes that the plan gives, and the times.

    Raises:
        RuntimeError: the session does not time its runs.
    """
    outputs, times = pending.result(), pending.times()
    if times is None:
        raise RuntimeError("a session with timing gave no times")
    return outputs, times
