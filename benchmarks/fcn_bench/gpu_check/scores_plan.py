"""Run the steps of make gpu-check for a plan that ends in scores, which the GPU then labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcn_bench.gpu_check.case import PlanCase, feed_of
from fcn_bench.gpu_check.gpu_report import GpuReport
from fcn_bench.gpu_check.labels import (
    ScoresGraph,
    check_gpu_labels,
    cut_at_scores,
    label_sizes,
    time_gpu_labels,
)
from fcn_bench.gpu_check.timings import time_plan
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
        title = self.case.title
        if self.report.step(f"{title} scores build", self._build):
            self.report.step(f"{title} labels made on the GPU", self._labels)
            self.report.step(f"{title} times, labels made on the GPU", self._times)

    @property
    def plan(self) -> Path:
        """The plan of the graph that was cut."""
        return (
            self.case.folder
            / f"model.{self.case.variant.precision}.scores.{self.case.library}.plan"
        )

    def _build(self) -> dict[str, Any]:
        cut = self._cut()
        if isinstance(cut, str):
            return {"skipped": cut}
        graph = self.case.folder / f"model.{self.case.variant.precision}.scores.onnx"
        graph.write_bytes(cut.data)
        return self.case.build(graph, self.plan)

    def _cut(self) -> ScoresGraph | str:
        name, folder = f"'{self.case.variant.file}'", self.case.artifact.path
        return cut_at_scores(self.case.graph(), name=name, folder=folder)

    def _labels(self) -> dict[str, Any]:
        cut = self._cut()
        if isinstance(cut, str):
            return {"skipped": cut}
        reference = self.case.reference((cut.scores, cut.labels))
        try:
            with self._segmenter() as segmenter:
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

    def _times(self) -> dict[str, Any]:
        """Time three things: the scores alone, with the labels of them, and the whole graph."""

        def time(engine: TrtEngine) -> dict[str, Any]:
            feed = feed_of(engine, self.case.frames)
            return dict(time_plan(engine, feed, runs=self.runs, cuda_graphs=False))

        with self._segmenter() as segmenter:
            behind = time_gpu_labels(segmenter, self.case.frames, runs=self.runs)
        scores_ms = self.case.with_engine(time, plan=self.plan)["compute_ms"]
        inside = self.case.with_engine(time)
        return {
            "labels_behind_the_plan": behind,
            "labels_in_the_graph": {name: inside[name] for name in behind},
            "scores_alone": {"compute_ms": scores_ms},
            "label_stage_ms": behind["compute_ms"] - scores_ms,
            "tail_in_the_graph_ms": inside["compute_ms"] - scores_ms,
        }

    def _segmenter(self) -> Segmenter:
        color = self.case.artifact.manifest.inputs[0].color
        return Segmenter.open(
            self.plan,
            backend=self.case.library,
            color="rgb" if color == "rgb" else "bgr",
            trust_code=True,
        )
