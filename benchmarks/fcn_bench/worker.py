"""Serve one row in a process of its own: read requests as JSON lines, answer each with one line.

Arrays go through ``.npy`` files in the benchmark's temporary folder; nothing is unpickled. The
process ends when its input does, so that it never outlives the benchmark.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from fcn_bench.agreement import confusion_on_files, measure_agreement, write_reference
from fcn_bench.network import Network, timed_call
from fcn_bench.opening import open_network
from fcn_bench.rounds import Workload
from fcn_bench.stream import FrameStream
from fcn_bench.timing import Call, Slice, measure_saturated, measure_slice, warm_up
from fcn_deploy.errors import FcnDeployError
from fcn_deploy.names import Array
from fcn_deploy.peak_memory import peak_rss_bytes

__all__ = ["serve"]


def serve(requests: TextIO, answers: TextIO) -> None:
    """Answer requests until there are no more.

    Each request is an object with ``do``, the name of a method of `_Requests` without its
    underscore, and that method's arguments.
    """
    handlers = _Requests()
    for line in requests:
        request = json.loads(line)
        try:
            answer = {"result": handlers.actions[request.pop("do")](**request)}
        except FcnDeployError as error:
            answer = {
                "error": type(error).__name__,
                "message": error.message,
                "hint": error.hint,
            }
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class _Requests:
    """Answers requests about one network and the frames that it is timed on."""

    def __init__(self) -> None:
        self._network: Network | None = None
        self._streams = 1
        self._batches: Sequence[Sequence[Array]] = ()
        self._calls: dict[Workload, list[Call]] = {}
        self._arriving: FrameStream | None = None
        self.actions: Mapping[str, Callable[..., Any]] = {
            "open": self._open,
            "frames": self._frames,
            "stream": self._stream,
            "warm_up": self._warm_up,
            "measure": self._measure,
            "reference": self._reference,
            "agreement": self._agreement,
            "confusion": self._confusion,
            "peak_rss_bytes": peak_rss_bytes,
        }

    def _open(self, network: dict[str, Any], streams: int) -> dict[str, Any]:
        start = time.perf_counter()
        self._network = open_network(network, streams=streams)
        open_ms = 1000 * (time.perf_counter() - start)
        self._streams = streams
        return {"num_classes": self._network.num_classes, "open_ms": open_ms}

    def _frames(self, file: str, batch: int) -> None:
        frames = np.load(file, allow_pickle=False)  # [count, H, W, 3]
        self._batches = [list(frames[i : i + batch]) for i in range(0, len(frames), batch)]
        self._calls = {}

    def _stream(self, rate_fps: float, folder: str) -> None:
        self._arriving = FrameStream(
            self._opened(), self._every_frame(), rate_fps=rate_fps, folder=Path(folder)
        )

    def _warm_up(self, workload: Workload, calls: int | None) -> dict[str, Any]:
        call = self._arrivals().once if workload == "stream" else self._call(workload)[0]
        return dataclasses.asdict(warm_up(call, calls=calls))

    def _measure(self, workload: Workload, seconds: float, min_calls: int) -> dict[str, Any]:
        part = self._slice(workload, seconds, min_calls)
        return {
            "frame_ms": [timing.frame_ms for timing in part.timings],
            "compute_ms": [timing.compute_ms for timing in part.timings],
            "transfer_ms": [timing.transfer_ms for timing in part.timings],
            "calls_per_second": part.calls_per_second,
            "unwritten": part.unwritten,
        }

    def _slice(self, workload: Workload, seconds: float, min_calls: int) -> Slice:
        if workload == "stream":
            return self._arrivals().measure(seconds=seconds, min_calls=min_calls)
        calls = self._call(workload)
        if len(calls) == 1:
            return measure_slice(calls[0], seconds=seconds, min_calls=min_calls)
        return measure_saturated(calls, seconds=seconds, min_calls=-(-min_calls // len(calls)))

    def _reference(self, folder: str) -> None:
        write_reference(self._opened(), self._every_frame(), Path(folder))

    def _agreement(self, folder: str | None) -> dict[str, Any]:
        reference = None if folder is None else Path(folder)
        return dataclasses.asdict(measure_agreement(self._opened(), self._every_frame(), reference))

    def _confusion(self, images: str, labels: str, num_labels: int) -> list[list[int]]:
        return confusion_on_files(self._opened(), Path(images), Path(labels), num_labels=num_labels)

    def _call(self, workload: Workload) -> list[Call]:
        if workload not in self._calls:
            self._calls[workload] = [
                timed_call(self._opened(), self._batches, workload=workload, first=index)
                for index in range(self._streams)
            ]
        return self._calls[workload]

    def _every_frame(self) -> list[Array]:
        return [frame for batch in self._batches for frame in batch]

    def _arrivals(self) -> FrameStream:
        if self._arriving is None:
            raise RuntimeError("a stream must be described by 'stream' first")
        return self._arriving

    def _opened(self) -> Network:
        if self._network is None:
            raise RuntimeError("the first request must be 'open'")
        return self._network


def main() -> None:
    """Serve on this process's own input and output."""
    # Ctrl-C reaches the whole group of processes; the parent decides when we end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # libraries print as they please: their output goes to stderr, the answers have the pipe alone
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
