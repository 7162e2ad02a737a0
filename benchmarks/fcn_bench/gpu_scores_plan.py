"""The steps of make gpu-check for a plan that ends in scores, which the GPU labels behind it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fcn_bench.gpu_case import PlanCase, feed_of
from fcn_bench.gpu_labels import (
    ScoresGraph,
    check_gpu_labels,
    cut_at_scores,
    label_sizes,
    time_gpu_labels,
)
from fcn_bench.gpu_measure import time_plan
from fcn_bench.gpu_report import GpuReport
from fcn_deploy.backends.tensorrt.engine import TrtEngine
from fcn_deploy.segmenter import Segmenter

__all__ = ["ScoresPlanCheck"]


@dataclass
class ScoresPlanCheck:
    """The plan of a graph that was cut before its upsampling, run by a Segmenter as users run it.

    Attributes:
        runs: how often each thing is timed.
    """

    case: PlanCase
    report: GpuReport
    runs: int

    def run(self) -> None:
        """Do every step that the graph allows."""
        variant, title = self.case.variant, self.case.title
        cut = cut_at_scores(
            self.case.graph(), name=f"'{variant.file}'", folder=self.case.artifact.path
        )
        if isinstance(cut, str):
            self.report.step(f"{title} labels made on the GPU", lambda: {"skipped": cut})
            return
        graph = self.case.folder / f"model.{variant.precision}.scores.onnx"
        graph.write_bytes(cut.data)
        plan = self.case.folder / f"model.{variant.precision}.scores.{self.case.library}.plan"
        if not self.report.step(f"{title} scores build", partial(self.case.build, graph, plan)):
            return
        self.report.step(f"{title} labels made on the GPU", partial(self._labels, plan, cut))
        self.report.step(f"{title} times, labels made on the GPU", partial(self._times, plan))

    def _labels(self, plan: Path, cut: ScoresGraph) -> dict[str, Any]:
        reference = self.case.reference((cut.scores, cut.labels))
        try:
            with self._segmenter(plan) as segmenter:
                found = [
                    check_gpu_labels(
                        segmenter,
                        cut,
                        self.case.frames_of(size),
                        reference=reference,
                        least=self.case.least_agreement,
                    )
                    for size in label_sizes(self.case.artifact.manifest.shapes)
                ]
        finally:
            reference.close()
        return {"sizes": found}

    def _times(self, plan: Path) -> dict[str, Any]:
        """Time three things: the scores alone, with the labels of them, and the whole graph."""

        def time(engine: TrtEngine) -> dict[str, Any]:
            feed = feed_of(engine, self.case.frames)
            return dict(time_plan(engine, feed, runs=self.runs, cuda_graphs=False))

        with self._segmenter(plan) as segmenter:
            behind = time_gpu_labels(segmenter, self.case.frames, runs=self.runs)
        scores_ms = self.case.with_engine(time, plan=plan)["compute_ms"]
        inside = self.case.with_engine(time)
        return {
            "labels_behind_the_plan": behind,
            "labels_in_the_graph": {name: inside[name] for name in behind},
            "scores_alone": {"compute_ms": scores_ms},
            "label_stage_ms": behind["compute_ms"] - scores_ms,
            "tail_in_the_graph_ms": inside["compute_ms"] - scores_ms,
        }

    def _segmenter(self, plan: Path) -> Segmenter:
        color = self.case.artifact.manifest.inputs[0].color
        return Segmenter.open(
            plan,
            backend=self.case.library,
            color="rgb" if color == "rgb" else "bgr",
            trust_code=True,
        )
