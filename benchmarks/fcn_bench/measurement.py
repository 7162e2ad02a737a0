"""Measure one size and batch of a benchmark: start the processes, time them, check their labels."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fcn_bench.agreement import Agreement
from fcn_bench.baseline_model import BaselineModel, find_baseline
from fcn_bench.environment import ForeignCpu, describe_environment
from fcn_bench.inputs import read_frames, synthetic_frames, video_rate_fps
from fcn_bench.options import BenchmarkOptions
from fcn_bench.report import Row
from fcn_bench.rounds import Interrupted, Series, TimingTask, interleave
from fcn_bench.rows import GroundTruth, Outcome, make_rows
from fcn_bench.scenarios import (
    Job,
    check_scenarios,
    list_jobs,
    measured_rows,
    torch_modes,
)
from fcn_bench.targets import Candidate, Target, find_candidates, preprocess_of
from fcn_bench.torch_baseline import TorchMode
from fcn_bench.worker_client import Worker
from fcn_deploy.artifact.manifest import Preprocess
from fcn_deploy.errors import FcnDeployError
from fcn_deploy.machine import throughput_streams, usable_cores
from fcn_deploy.names import Array
from fcn_models.labelled_images import EvalSet

__all__ = ["Measurement"]

_DEFAULT_SIZE = (512, 512)
_CAMERA_FPS = 30.0
_NO_BASELINE = "no PyTorch baseline, so no speed-up and no label agreement"


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a benchmark measures and how, the same for all sizes and batches."""

    target: Target
    options: BenchmarkOptions
    baseline: BaselineModel | None
    preprocess: Preprocess
    jobs: tuple[Job, ...]
    threads: int
    rate_fps: float | None  # of frames that arrive; None without the scenario stream
    environment: Mapping[str, Any]
    notes: tuple[str, ...]
    on_step: Callable[[str], None]
    truth: dict[tuple[str, str, str], GroundTruth] = field(default_factory=dict)
    lost_baseline: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, target: Target, options: BenchmarkOptions, on_step: Callable[[str], None]
    ) -> Measurement:
        scenarios = check_scenarios(options.scenarios)
        if options.labelled is not None:
            EvalSet.find(*map(Path, options.labelled))  # refused now, not after minutes
        candidates, notes = find_candidates(
            target, backend=options.backend, precisions=options.precisions
        )
        preprocess = preprocess_of(target, options.preprocess)
        baseline, reason = find_baseline(
            target,
            model=options.baseline,
            arch=options.arch,
            arch_args=options.arch_args,
            output_key=options.output_key,
            trust_code=options.trust_code,
        )
        modes, mode_notes = torch_modes(baseline=baseline is not None, compile=options.compile)
        if reason is not None:
            notes = (*notes, f"{_NO_BASELINE}: {reason}")
        threads = usable_cores()
        streams = throughput_streams(threads)
        rate_fps = _rate_fps(options) if "stream" in scenarios else None
        environment = describe_environment(threads=threads, streams=streams)
        return cls(
            target=target,
            options=options,
            baseline=baseline,
            preprocess=preprocess,
            jobs=list_jobs(candidates, modes, scenarios, streams=streams),
            threads=threads,
            rate_fps=rate_fps,
            environment={**environment, "stream_rate_fps": rate_fps},
            notes=(*notes, *mode_notes),
            on_step=on_step,
        )

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        if self.options.sizes:
            return tuple(self.options.sizes)
        manifest = self.target.manifest
        return (_DEFAULT_SIZE if manifest is None else manifest.shapes.opt[1:],)

    def baseline_json(self) -> dict[str, Any] | None:
        """Describe the baseline; None where there is none, or it could not be loaded."""
        if self.baseline is None or self.lost_baseline:
            return None
        return self.baseline.to_json()

    def measure(self, height: int, width: int, batch: int) -> tuple[list[Row], bool]:
        """Measure one size and batch: its rows, and whether it came to its end."""
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fcn-bench-")))
            np.save(folder / "frames.npy", self._frames(height, width, batch))
            started = self._start_all(stack, folder, batch)
            tasks = [
                TimingTask(job.name, worker, workload)
                for job, worker in started
                for workload in job.workloads
            ]
            pids = [os.getpid(), *(worker.pid for _, worker in started)]
            every: list[Series] = []
            outcomes = [Outcome() for _ in started]
            finished = False
            try:
                every = interleave(
                    tasks,
                    self.options.schedule,
                    foreign_cpu=ForeignCpu(lambda: pids),
                    on_step=self.on_step,
                )
                outcomes = self._check(started, folder)
                finished = True
            except Interrupted as interrupted:
                every = interrupted.series
            except KeyboardInterrupt:  # while the labels were checked
                self.on_step("interrupted")
            if not every:
                return [], False
            measured = []
            rest = iter(zip(tasks, every, strict=True))
            for (job, _), outcome in zip(started, outcomes, strict=True):
                parts = list(islice(rest, len(job.workloads)))
                rows = measured_rows(
                    job, parts, batch=batch, height=height, width=width, rate_fps=self.rate_fps
                )
                measured += [(row, outcome) for row in rows]
            return make_rows(measured), finished

    def _frames(self, height: int, width: int, batch: int) -> Array:
        if self.options.input is not None:
            return read_frames(self.options.input, height, width, batch=batch)
        return synthetic_frames(height, width, batch=batch)

    def _start_all(self, stack: ExitStack, folder: Path, batch: int) -> list[tuple[Job, Worker]]:
        started: list[tuple[Job, Worker]] = []
        for index, job in enumerate(self.jobs):
            if job.candidate is None and self.lost_baseline:
                continue
            self.on_step(f"loading {job.name}")
            log = folder / f"worker_{index}.log"
            worker = stack.enter_context(Worker(job.name, log=log))
            try:
                worker.open(self._network(job), streams=job.streams)
            except FcnDeployError as error:
                if job.torch_mode != "eager" or not self._baseline_is_a_guess:
                    raise
                self.lost_baseline.append(f"{_NO_BASELINE}: {error}")
                worker.close()
                continue
            worker.frames(folder / "frames.npy", batch=batch)
            if self.rate_fps is not None and "stream" in job.workloads:
                worker.stream(self.rate_fps, folder / f"written_{index}")
            started.append((job, worker))
        return started

    @property
    def _baseline_is_a_guess(self) -> bool:
        return self.options.baseline is None and self.options.arch is None

    def _network(self, job: Job) -> dict[str, Any]:
        """Describe what a job loads, for `fcn_bench.opening.open_network`."""
        if job.candidate is not None:
            given, bare = self.options.preprocess, self.target.manifest is None
            return {
                "kind": "segmenter",
                "path": str(self.target.path),
                "backend": job.candidate.backend,
                "precision": str(job.candidate.precision),
                "threads": self.threads,
                "mean": None if given is None else list(given.mean),
                "std": None if given is None else list(given.std),
                "color": None if given is None else given.color,
                "trust_code": self.options.trust_code,
                "activation": self.options.activation if bare else "auto",
                "threshold": self.options.threshold if bare else None,
                # with a baseline it is that one's
                "output_key": None
                if not bare or self.options.baseline is not None
                else self.options.output_key,
            }
        if self.baseline is None:
            raise RuntimeError("a PyTorch job without a baseline")
        manifest = self.target.manifest
        return {
            "kind": "torch",
            "path": str(self.baseline.path),
            "arch": self.baseline.arch,
            "arch_args": {key: repr(value) for key, value in self.baseline.arch_args.items()},
            "output_key": self.baseline.output_key,
            "trust_code": self.baseline.trust_code,
            "mode": job.torch_mode,
            "threads": self.threads,
            "multiple_of": 1 if manifest is None else manifest.shapes.multiple_of,
            "preprocess": {
                "mean": list(self.preprocess.mean),
                "std": list(self.preprocess.std),
                "color": self.preprocess.color,
            },
            **self._baseline_meaning(),
        }

    def _baseline_meaning(self) -> dict[str, Any]:
        """Say what PyTorch's output is: by the user, or by the manifest of what was made of it."""
        options, manifest = self.options, self.target.manifest
        source = None if manifest is None else manifest.source
        activation, threshold = options.activation, options.threshold
        if activation == "auto" and source is not None and source.activation is not None:
            activation = source.activation
        if threshold is None and source is not None and source.threshold != 0.5:
            threshold = source.threshold
        return {"activation": activation, "threshold": threshold}

    def _check(self, started: Sequence[tuple[Job, Worker]], folder: Path) -> list[Outcome]:
        """Ask for memory first, since checking the labels takes more of it."""
        peaks = [worker.peak_rss_bytes() for _, worker in started]
        reference = None
        for job, worker in started:
            if job.torch_mode == "eager":
                self.on_step("segmenting with PyTorch for reference")
                worker.write_reference(folder)
                reference = folder
        agreements: dict[Candidate | TorchMode | None, Agreement] = {}
        outcomes = []
        eager = None
        for (job, worker), peak in zip(started, peaks, strict=True):
            what = job.candidate or job.torch_mode
            if what not in agreements:
                self.on_step(f"comparing the labels of {job.name}")
                agreements[what] = worker.agreement(reference)
            truth = self._ground_truth(job, worker)
            eager = truth if job.torch_mode == "eager" else eager
            outcomes.append(
                Outcome(
                    worker.open_ms,
                    peak_rss_bytes=peak,
                    agreement=agreements[what],
                    truth=truth,
                    eager_truth=eager,
                )
            )
        return outcomes

    def _ground_truth(self, job: Job, worker: Worker) -> GroundTruth | None:
        if self.options.labelled is None:
            return None
        key = (job.backend, job.precision, job.torch_mode or "")
        if key not in self.truth:
            self.on_step(f"measuring the mean IoU of {job.name}")
            images, labels = map(Path, self.options.labelled)
            counts = worker.confusion(images, labels, num_labels=worker.num_classes or 255)
            self.truth[key] = GroundTruth.of(np.array(counts))
        return self.truth[key]


def _rate_fps(options: BenchmarkOptions) -> float:
    if options.rate_fps is not None:
        return options.rate_fps
    own = None if options.input is None else video_rate_fps(options.input)
    return own or _CAMERA_FPS
