"""One benchmark under way: what stays the same over its sizes, and how one size is measured."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fcn_bench.agreement import Agreement
from fcn_bench.baseline import BaselineModel, find_baseline
from fcn_bench.environment import ForeignCpu, describe_environment
from fcn_bench.inputs import labelled_pairs, read_frames, synthetic_frames
from fcn_bench.options import BenchmarkOptions
from fcn_bench.remote import Worker
from fcn_bench.report import Row
from fcn_bench.rounds import Interrupted, Series, Track, interleave
from fcn_bench.rows import GroundTruth, Outcome, make_rows
from fcn_bench.scenarios import (
    Job,
    check_scenarios,
    measured_rows,
    plan_jobs,
    throughput_streams,
)
from fcn_bench.targets import Candidate, Target, find_candidates, preprocess_of
from fcn_bench.torch_network import TorchMode
from fcn_deploy.errors import BenchmarkError
from fcn_deploy.machine import describe_machine, usable_cores
from fcn_deploy.manifest import Preprocess
from fcn_deploy.tensors import Array

__all__ = ["Session"]

_DEFAULT_SIZE = (512, 512)


@dataclass(frozen=True, slots=True)
class Session:
    """Everything that stays the same over sizes and batches."""

    target: Target
    options: BenchmarkOptions
    baseline: BaselineModel | None
    preprocess: Preprocess
    jobs: tuple[Job, ...]
    pairs: list[tuple[Path, Path]]
    threads: int
    environment: Mapping[str, Any]
    notes: tuple[str, ...]
    on_step: Callable[[str], None]
    truth: dict[tuple[str, str, str], GroundTruth] = field(default_factory=dict)

    @classmethod
    def of(
        cls, target: Target, options: BenchmarkOptions, on_step: Callable[[str], None]
    ) -> Session:
        scenarios = check_scenarios(options.scenarios)
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
        modes, mode_notes = _torch_modes(baseline is not None, options.compile)
        if reason is not None:
            notes = (*notes, f"no PyTorch baseline, so no speed-up and no agreement: {reason}")
        threads = usable_cores()
        streams = throughput_streams(threads)
        return cls(
            target=target,
            options=options,
            baseline=baseline,
            preprocess=preprocess,
            jobs=plan_jobs(candidates, modes, scenarios, streams=streams),
            pairs=[] if options.labelled is None else labelled_pairs(*options.labelled),
            threads=threads,
            environment=describe_environment(threads=threads, streams=streams),
            notes=(*notes, *mode_notes),
            on_step=on_step,
        )

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        if self.options.sizes:
            return tuple(self.options.sizes)
        manifest = self.target.manifest
        return (_DEFAULT_SIZE if manifest is None else manifest.shapes.opt[1:],)

    def measure(self, height: int, width: int, batch: int) -> tuple[list[Row], bool]:
        """Measure one size and batch: its rows, and whether it came to its end."""
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fcn-bench-")))
            np.save(folder / "frames.npy", self._frames(height, width, batch))
            workers = [self._start(stack, index, folder, batch) for index in range(len(self.jobs))]
            pids = [os.getpid(), *(worker.pid for worker in workers)]
            owners = [index for index, job in enumerate(self.jobs) for _ in job.works]
            tracks = [
                Track(job.name, worker, work)
                for job, worker in zip(self.jobs, workers, strict=True)
                for work in job.works
            ]
            every: list[Series] = []
            outcomes = [Outcome() for _ in workers]
            finished = False
            try:
                every = interleave(
                    tracks,
                    self.options.plan,
                    foreign_cpu=ForeignCpu(lambda: pids),
                    on_step=self.on_step,
                )
                outcomes = self._check(workers, folder)
                finished = True
            except Interrupted as interrupted:
                every = interrupted.series
            except KeyboardInterrupt:  # while the labels were checked
                self.on_step("interrupted")
            if not every:
                return [], False
            measured = []
            for index, job in enumerate(self.jobs):
                parts = [
                    (track, series)
                    for owner, track, series in zip(owners, tracks, every, strict=True)
                    if owner == index
                ]
                rows = measured_rows(job, parts, batch=batch, height=height, width=width)
                measured += [(row, outcomes[index]) for row in rows]
            return make_rows(measured), finished

    def _frames(self, height: int, width: int, batch: int) -> Array:
        if self.options.input is not None:
            return read_frames(self.options.input, height, width, batch=batch)
        return synthetic_frames(height, width, batch=batch)

    def _start(self, stack: ExitStack, index: int, folder: Path, batch: int) -> Worker:
        job = self.jobs[index]
        self.on_step(f"loading {job.name}")
        worker = stack.enter_context(Worker(job.name, log=folder / f"worker_{index}.log"))
        worker.open(self._network(job), streams=job.streams)
        worker.frames(folder / "frames.npy", batch=batch)
        return worker

    def _network(self, job: Job) -> dict[str, Any]:
        """Describe what a job loads, for `fcn_bench.opening.open_network`."""
        if job.candidate is not None:
            given = self.options.preprocess
            return {
                "kind": "segmenter",
                "path": str(self.target.path),
                "backend": job.candidate.backend,
                "precision": str(job.candidate.precision),
                "threads": self.threads,
                "mean": None if given is None else list(given.mean),
                "std": None if given is None else list(given.std),
                "color": None if given is None else given.color,
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
        }

    def _check(self, workers: Sequence[Worker], folder: Path) -> list[Outcome]:
        """Ask for memory first, since checking the labels takes more of it."""
        peaks = [worker.peak_rss_bytes() for worker in workers]
        reference = None
        for job, worker in zip(self.jobs, workers, strict=True):
            if job.torch_mode == "eager":
                self.on_step("segmenting with PyTorch for reference")
                reference = folder
                worker.write_reference(folder)
        agreements: dict[Candidate | TorchMode | None, Agreement] = {}
        outcomes = []
        for job, worker, peak in zip(self.jobs, workers, peaks, strict=True):
            what = job.candidate or job.torch_mode
            if what not in agreements:
                self.on_step(f"comparing the labels of {job.name}")
                agreements[what] = worker.agreement(reference)
            outcomes.append(Outcome(peak, agreements[what], self._ground_truth(job, worker)))
        eager = next(
            (o.truth for o, j in zip(outcomes, self.jobs, strict=True) if j.torch_mode == "eager"),
            None,
        )
        return [replace(outcome, eager_truth=eager) for outcome in outcomes]

    def _ground_truth(self, job: Job, worker: Worker) -> GroundTruth | None:
        if not self.pairs:
            return None
        key = (job.backend, job.precision, job.torch_mode or "")
        if key not in self.truth:
            self.on_step(f"measuring the mean IoU of {job.name}")
            counts = worker.confusion(self.pairs, num_classes=worker.num_classes or 255)
            self.truth[key] = GroundTruth.of(np.array(counts))
        return self.truth[key]


def _torch_modes(baseline: bool, compile: bool) -> tuple[tuple[TorchMode, ...], tuple[str, ...]]:
    """Give PyTorch's rows; bf16 only where the CPU has it, as without it is many times slower."""
    if not baseline:
        if compile:
            raise BenchmarkError("--compile needs a PyTorch baseline.", hint="Name --baseline.")
        return (), ()
    modes: list[TorchMode] = ["eager", "channels_last"]
    notes: tuple[str, ...] = ()
    if any(f.name in ("BF16", "AMX") and f.present for f in describe_machine().features):
        modes.append("bf16-autocast")
    else:
        notes = ("this CPU has no bf16, so PyTorch has no bf16-autocast row.",)
    if compile:
        modes.append("compile")
    return tuple(modes), notes
