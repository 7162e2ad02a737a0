"""Run the steps of make gpu-check for one plan: build it, compare its labels, time it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fcn_bench.gpu_check.case import DEVICES, PlanCase, feed_of
from fcn_bench.gpu_check.gpu_report import GpuReport
from fcn_bench.gpu_check.labels import label_sizes
from fcn_bench.gpu_check.timings import (
    agreement_with,
    head_agreement,
    run_trtexec,
    time_plan,
    torch_interop_agreement,
)
from fcn_deploy.backends.tensorrt.device import device_problem
from fcn_deploy.backends.tensorrt.engine import TrtEngine
from fcn_deploy.backends.tensorrt.session import open_session
from fcn_deploy.errors import FcnDeployError

__all__ = ["PlanCheck"]


@dataclass
class PlanCheck:
    """A plan that makes its labels itself.

    Attributes:
        runs: how often each thing is timed.
    """

    case: PlanCase
    report: GpuReport
    runs: int

    def run(self) -> bool:
        """Do every step that this plan allows; says whether it was built."""
        title = self.case.title
        if not self.report.step(f"{title} build", self._build):
            return False
        for name in DEVICES:
            if device_problem(name) is None:
                self._step(f"{title} labels over {name}", self._labels, device=name)
        for cuda_graphs in (False, True):
            self._step(
                f"{title} times{', CUDA graphs' if cuda_graphs else ''}",
                partial(self._times, cuda_graphs=cuda_graphs),
            )
        self._step(f"{title} labels, CUDA graphs", self._graph_labels)
        self._step(f"{title} layers", self._layers)
        self.report.step(f"{title} trtexec", self._trtexec)
        self.report.step(f"{title} on PyTorch's tensors", self._interop)
        self._step(f"{title} head kernel", self._head)
        return True

    def _step(
        self, name: str, work: Callable[[TrtEngine], dict[str, Any]], *, device: str = "auto"
    ) -> None:
        self.report.step(name, partial(self.case.with_engine, work, device=device))

    def _build(self) -> dict[str, Any]:
        return self.case.build(self.case.artifact.check(self.case.variant.file), self.case.plan)

    def _labels(self, engine: TrtEngine) -> dict[str, Any]:
        name = engine.outputs[0].name
        feed = feed_of(engine, self.case.frames)
        with open_session(engine) as session:
            alone = session.infer(feed)[name]
            # many under way at once must give the same labels as one
            pending = [session.submit(feed) for _ in range(20)]
            same = all(np.array_equal(each.result()[name], alone) for each in pending)
        share, least = agreement_with(self.case.wanted, alone), self.case.least_agreement
        if not same or share < least:
            raise FcnDeployError(
                f"{share:.5f} of the labels are ONNX Runtime's; at least {least} expected; "
                f"20 runs at once {'agree' if same else 'DISAGREE'} with one."
            )
        return {"label_agreement": share, "runs_at_once_agree": same}

    def _times(self, engine: TrtEngine, *, cuda_graphs: bool) -> dict[str, Any]:
        feed = feed_of(engine, self.case.frames)
        return dict(time_plan(engine, feed, runs=self.runs, cuda_graphs=cuda_graphs))

    def _graph_labels(self, engine: TrtEngine) -> dict[str, Any]:
        """Compare recorded runs with plain ones, where sizes come, go and come again."""
        name = engine.outputs[0].name
        sizes = label_sizes(self.case.artifact.manifest.shapes)
        feeds = [feed_of(engine, self.case.frames_of(size)) for size in sizes]
        with open_session(engine) as session:
            wanted = [session.infer(feed)[name] for feed in feeds]
        turns = [index for index in (*range(len(feeds)), 0) for _ in range(6)]
        with open_session(engine, depth=2, cuda_graphs=True) as session:
            found = [session.infer(feeds[index])[name] for index in turns]
        least = min(
            agreement_with(wanted[index], labels)
            for index, labels in zip(turns, found, strict=True)
        )
        if least < 1:
            raise FcnDeployError(f"recorded runs give {least:.5f} of the labels of plain ones.")
        return {"sizes": [list(size) for size in sizes], "label_agreement": least}

    def _layers(self, engine: TrtEngine) -> dict[str, Any]:
        with open_session(engine) as session:
            layers = session.profile_layers(feed_of(engine, self.case.frames), runs=10)
        slowest = sorted(layers, key=lambda layer: -layer.mean_ms)[:10]
        return {"layers": len(layers), "slowest": {x.name[:120]: x.mean_ms for x in slowest}}

    def _trtexec(self) -> dict[str, Any]:
        if self.case.library != "tensorrt":
            return {"skipped": "trtexec is of TensorRT"}
        name = self.case.artifact.manifest.inputs[0].name
        return dict(run_trtexec(self.case.plan, {name: self.case.frames}))

    def _interop(self) -> dict[str, Any]:
        import torch

        if not torch.cuda.is_available():
            return {"skipped": "this PyTorch has no CUDA"}

        def compare(engine: TrtEngine) -> dict[str, Any]:
            share = torch_interop_agreement(engine, self.case.frames, self.case.wanted)
            return {"label_agreement": share}

        return self.case.with_engine(compare)

    def _head(self, engine: TrtEngine) -> dict[str, Any]:
        size = self.case.artifact.manifest.shapes.opt[1:]
        share = head_agreement(engine, classes=21, size=size)
        if share < 0.9999:  # ties within rounding
            raise FcnDeployError(f"the kernel labels {share:.5f} of the pixels as the head does.")
        return {"label_agreement": share}
