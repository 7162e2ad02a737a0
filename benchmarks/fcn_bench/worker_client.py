"""Start a worker process, send it requests, and read its answers."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from fcn_bench.agreement import Agreement
from fcn_bench.rounds import Workload
from fcn_bench.timing import Slice, Timing, WarmUp
from fcn_deploy import errors
from fcn_deploy.backends.base import ContextManaged
from fcn_deploy.errors import BenchmarkError, FcnDeployError

__all__ = ["Worker"]

_END_SECONDS = 5.0


class Worker(ContextManaged):
    """A process that holds one network. It ends with `close()`, or when this process does.

    Args:
        name: of the row, for messages.
        log: file that takes what the worker and its libraries print.
    """

    def __init__(self, name: str, *, log: Path) -> None:
        super().__init__()
        self.name = name
        self.num_classes: int | None = None  # where the network says it
        self.open_ms: float | None = None
        self._log = log
        with log.open("wb") as stream:
            self._child = subprocess.Popen(
                # -P: the working directory is searched only where this process searches it
                [sys.executable, "-P", "-m", "fcn_bench.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env={**os.environ, "PYTHONPATH": _search_path()},
                text=True,
                encoding="utf-8",
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    def open(self, network: dict[str, Any], *, streams: int) -> None:
        """Load a network as `fcn_bench.opening.open_network` describes it."""
        opened = self._ask("open", network=network, streams=streams)
        self.num_classes, self.open_ms = opened["num_classes"], opened["open_ms"]

    def frames(self, file: Path, *, batch: int) -> None:
        """Take frames, uint8 [count, H, W, 3] in an .npy file, in batches of this many."""
        self._ask("frames", file=str(file), batch=batch)

    def stream(self, rate_fps: float, folder: Path) -> None:
        """Say at which rate the frames of a stream arrive, and where its labels are written."""
        self._ask("stream", rate_fps=rate_fps, folder=str(folder))

    def warm_up(self, workload: Workload, *, calls: int | None) -> WarmUp:
        return WarmUp(**self._ask("warm_up", workload=workload, calls=calls))

    def measure(self, workload: Workload, *, seconds: float, min_calls: int) -> Slice:
        answer = self._ask("measure", workload=workload, seconds=seconds, min_calls=min_calls)
        columns = (answer[name] for name in ("frame_ms", "compute_ms", "transfer_ms"))
        timings = tuple(Timing(*durations) for durations in zip(*columns, strict=True))
        return Slice(timings, answer["calls_per_second"], answer["unwritten"])

    def write_reference(self, folder: Path) -> None:
        """Write labels and scores of every frame for the other workers to compare with."""
        self._ask("reference", folder=str(folder))

    def agreement(self, reference: Path | None) -> Agreement:
        answer = self._ask("agreement", folder=None if reference is None else str(reference))
        return Agreement(**{**answer, "faults": tuple(answer["faults"])})

    def confusion(self, images: Path, labels: Path, *, num_labels: int) -> list[list[int]]:
        """Segment labelled images at their own size: [num_labels, num_labels] counts."""
        counts: list[list[int]] = self._ask(
            "confusion", images=str(images), labels=str(labels), num_labels=num_labels
        )
        return counts

    def peak_rss_bytes(self) -> int | None:
        peak: int | None = self._ask("peak_rss_bytes")
        return peak

    def close(self) -> None:
        """End the process, which holds nothing worth saving. May be called twice."""
        super().close()
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                # it may have ended with a request unread
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._child.terminate()
        try:
            self._child.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _ask(self, do: str, **arguments: Any) -> Any:
        request, answers = self._child.stdin, self._child.stdout
        if request is None or answers is None:
            raise RuntimeError("the worker has no pipes")
        try:
            request.write(json.dumps({"do": do, **arguments}) + "\n")
            request.flush()
            line = answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise self._ended()
        answer = json.loads(line)
        if "error" in answer:
            raise _same_error(answer, self.name)
        return answer["result"]

    def _ended(self) -> BenchmarkError:
        status = self._child.wait()
        said = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        hint = (
            "Its memory may not suffice: try a smaller --size or --batch." if status == -9 else None
        )
        return BenchmarkError(
            f"the process of {self.name} ended with status {status}"
            + (f": {said[-1].strip()[:300]}." if said else "."),
            hint=hint,
        )


def _same_error(answer: dict[str, Any], name: str) -> FcnDeployError:
    kind = getattr(errors, answer["error"], None)
    if not (isinstance(kind, type) and issubclass(kind, FcnDeployError)):
        kind = BenchmarkError
    return kind(f"{name}: {answer['message']}", hint=answer["hint"])


def _search_path() -> str:
    """Let the worker import what this process can: pytest and editable installs extend sys.path."""
    return os.pathsep.join(entry or os.getcwd() for entry in sys.path)
