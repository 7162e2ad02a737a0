"""Run each contender in a process of its own, so that thread pools do not disturb each other.

While one is measured the others wait for a message (see `fcn_bench.timing`).
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from fcn_bench.network import segment, timed_call
from fcn_bench.rounds import Workload
from fcn_bench.timing import Slice, WarmUp, measure_slice, warm_up
from fcn_deploy.backends.base import ContextManaged
from fcn_deploy.errors import BenchmarkError
from fcn_deploy.names import Array
from fcn_models.foreign_errors import first_line
from research.peers.contenders import Contender

__all__ = ["Process"]

_END_SECONDS = 5.0


class Process(ContextManaged):
    """A contender at work in a process of its own. It ends with `close()`, or with this process.

    Args:
        batches: frames of one size, in groups that run together.
    """

    def __init__(self, contender: Contender, batches: Sequence[Sequence[Array]]) -> None:
        super().__init__()
        self.contender = contender
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._child = context.Process(target=_serve, args=(theirs, contender), daemon=True)
        self._child.start()
        theirs.close()
        self._pipe.send(batches)

    @property
    def pid(self) -> int:
        return self._child.pid or 0

    def wait_until_open(self) -> None:
        """Wait until the network is loaded.

        Raises:
            BenchmarkError: it cannot be; the message says why.
        """
        self._receive()

    def warm_up(self, workload: Workload, *, calls: int | None) -> WarmUp:
        """Run whole frames, whatever `workload` says: they time the network within them."""
        found: WarmUp = self._ask("warm_up", calls)
        return found

    def measure(self, workload: Workload, *, seconds: float, min_calls: int) -> Slice:
        """Time whole frames, and the network within them."""
        found: Slice = self._ask("measure", seconds, min_calls)
        return found

    def labels(self) -> list[Array]:
        """Give the labels of every frame."""
        found: list[Array] = self._ask("labels")
        return found

    def close(self) -> None:
        """End the process. May be called twice."""
        if not self._closed:
            super().close()
            self._pipe.close()
            self._child.join(_END_SECONDS)
            if self._child.is_alive():
                self._child.kill()
                self._child.join()

    def _ask(self, *request: Any) -> Any:
        try:
            self._pipe.send(request)
        except BrokenPipeError:
            raise self._ended() from None
        return self._receive()

    def _receive(self) -> Any:
        try:
            good, answer = self._pipe.recv()
        except EOFError:
            raise self._ended() from None
        if not good:
            raise BenchmarkError(f"{self.contender.name} failed: {answer}")
        return answer

    def _ended(self) -> BenchmarkError:
        self._child.join()
        return BenchmarkError(
            f"the process of {self.contender.name} ended with status {self._child.exitcode}.",
            hint="Its memory may not suffice: measure smaller frames.",
        )


def _serve(pipe: Connection, contender: Contender) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when we end
    try:
        batches = pipe.recv()
        network = contender.open()
        call = timed_call(network, batches, workload="frame")
        pipe.send((True, None))
        while True:
            what, *arguments = pipe.recv()
            if what == "warm_up":
                answer: Any = warm_up(call, calls=arguments[0])
            elif what == "measure":
                answer = measure_slice(call, seconds=arguments[0], min_calls=arguments[1])
            else:
                answer = [labels.copy() for batch in batches for labels in segment(network, batch)]
            pipe.send((True, answer))
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001  # told to the parent, which raises it
        pipe.send((False, f"{type(error).__name__}: {first_line(error)}"))
