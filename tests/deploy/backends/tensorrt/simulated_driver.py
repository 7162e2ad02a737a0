"""A CUDA driver without a GPU that takes every liberty a real one has.

Streams run only when somebody waits for them, or at random moments; memory that nobody may read
yet is poisoned. Two accesses of one piece of device memory that nothing orders are an error, and
so are addresses out of bounds, memory freed while queued work uses it, calls without a current
context, and calls that a capture forbids.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fcn_deploy.backends.tensorrt.device import DeviceInfo, out_of_memory
from fcn_deploy.names import Array

POISON_DEVICE = 0xCD
POISON_HOST = 0xA5
POISON_FREED = 0xEE

Clock = dict[int, int]  # stream -> number of its last operation that is known to be over before


class SimulationError(AssertionError):
    """The code under test did what a real driver would punish, at once or some day."""


@dataclass(eq=False)
class Access:
    """Memory that an operation touches, device addresses or a host array's."""

    start: int
    end: int
    writes: bool


@dataclass(eq=False)
class Operation:
    """Something queued: `run` does it, once nothing holds it back."""

    run: Callable[[], None]
    accesses: Sequence[Access] = ()
    blocked_by: Mark | None = None


@dataclass(eq=False)
class Mark:
    """One record of an event: a place in a stream."""

    stream: SimStream
    clock: Clock
    reached: bool = False


@dataclass(eq=False)
class SimEvent:
    timing: bool
    mark: Mark | None = None
    at_ms: float = 0.0


@dataclass(eq=False)
class SimStream:
    handle: int
    queue: deque[Operation] = field(default_factory=deque)
    clock: Clock = field(default_factory=dict)
    captured: list[Operation] | None = None
    running: bool = False


class SimDriver:
    """Memory, streams and events. `seed` None: as lazy as can be; else at random moments."""

    def __init__(
        self,
        *,
        seed: int | None = None,
        total_bytes: int = 1 << 30,
        compute_capability: tuple[int, int] = (8, 6),
    ) -> None:
        self.total_bytes = total_bytes
        self.compute_capability = compute_capability
        self.lock = threading.RLock()
        self.memory: dict[int, Array] = {}
        self.pinned: dict[int, Array] = {}
        self.streams: dict[int, SimStream] = {0: SimStream(0)}
        self.events: set[SimEvent] = set()
        self.graphs: set[SimGraph] = set()
        self.calls: list[str] = []
        self.fail_at: dict[str, BaseException] = {}  # name of an operation -> what it raises
        self.on_run: Callable[[], None] = lambda: None
        self._random = None if seed is None else np.random.default_rng(seed)
        self._next_address = 0x7F00_0000_0000
        self._next_handle = 0x1000
        self._host: Clock = {}
        self._history: list[tuple[int, int, Access]] = []  # stream, number, what
        self._contexts = threading.local()
        self._clock_ms = 0.0

    # ------------------------------------------------------------------ contexts

    @contextmanager
    def current(self) -> Generator[None]:
        stack = self._stack()
        stack.append(1)
        try:
            yield
        finally:
            stack.pop()

    def _stack(self) -> list[int]:
        if not hasattr(self._contexts, "stack"):
            self._contexts.stack = []
        found: list[int] = self._contexts.stack
        return found

    def check_current(self, what: str, *, in_capture: bool = False) -> None:
        self.calls.append(what)
        if not self._stack():
            raise SimulationError(f"{what} without a current context")
        if not in_capture and any(s.captured is not None for s in self.streams.values()):
            raise SimulationError(f"{what} while a stream is captured")
        self._run_some()

    # ------------------------------------------------------------------ memory

    def alloc(self, num_bytes: int) -> int:
        with self.lock:
            self.check_current("alloc")
            if num_bytes <= 0:
                raise SimulationError(f"alloc of {num_bytes} bytes")
            if num_bytes > self.free_bytes:
                raise out_of_memory(num_bytes, self.free_bytes, self.total_bytes, what="a buffer")
            address = self._next_address
            self._next_address += (-(-num_bytes // 256) + 2) * 256  # a gap behind each
            self.memory[address] = np.full(num_bytes, POISON_DEVICE, np.uint8)
            return address

    @property
    def free_bytes(self) -> int:
        return self.total_bytes - sum(memory.nbytes for memory in self.memory.values())

    def free(self, address: int) -> None:
        with self.lock:
            self.check_current("free")
            if address not in self.memory:
                raise SimulationError(f"free of {address:#x}, which is not allocated")
            self._check_idle(address, self.memory[address].nbytes, "free")
            del self.memory[address]

    def view(self, address: int, num_bytes: int) -> Array:
        for base, memory in self.memory.items():
            if base <= address and address + num_bytes <= base + memory.nbytes:
                return memory[address - base : address - base + num_bytes]
        raise SimulationError(f"illegal access of {num_bytes} bytes at {address:#x}")

    def pinned_alloc(self, num_bytes: int) -> Array:
        with self.lock:
            self.check_current("pinned")
            array = np.full(num_bytes, POISON_HOST, np.uint8)
            self.pinned[array.ctypes.data] = array
            return array

    def pinned_free(self, array: Array) -> None:
        with self.lock:
            self.check_current("free_pinned")
            if self.pinned.pop(array.ctypes.data, None) is None:
                raise SimulationError("free_pinned of memory that is not page-locked")
            self._check_idle(array.ctypes.data, array.nbytes, "free_pinned")
            array[:] = POISON_FREED  # whoever still looks at it finds nothing of use

    def check_pinned(self, array: Array, what: str) -> None:
        start = array.ctypes.data
        if not any(
            b <= start and start + array.nbytes <= b + p.nbytes for b, p in self.pinned.items()
        ):
            raise SimulationError(f"{what} of memory that is not page-locked")

    def _check_idle(self, start: int, num_bytes: int, what: str) -> None:
        for stream in self.streams.values():
            for operation in stream.queue:
                if any(a.start < start + num_bytes and start < a.end for a in operation.accesses):
                    raise SimulationError(f"{what} while stream {stream.handle:#x} uses it")

    # ------------------------------------------------------------------ streams and events

    def new_stream(self) -> int:
        with self.lock:
            self.check_current("stream")
            self._next_handle += 1
            self.streams[self._next_handle] = SimStream(self._next_handle)
            return self._next_handle

    def destroy_stream(self, handle: int) -> None:
        with self.lock:
            self.check_current("destroy_stream")
            if self.streams[handle].queue:
                raise SimulationError("a stream is destroyed while it has work")
            del self.streams[handle]

    def enqueue(self, handle: int, name: str, run: Callable[[], None], *accesses: Access) -> None:
        """Queue work that touches memory; refuse what nothing orders."""
        with self.lock:
            self.check_current(name, in_capture=True)

            def guarded() -> None:
                if name in self.fail_at:
                    raise self.fail_at[name]
                run()

            operation = Operation(guarded, accesses)
            stream = self._stream(handle)
            if stream.captured is not None:
                stream.captured.append(operation)
            else:
                self._queue(stream, operation)

    def _queue(self, stream: SimStream, operation: Operation) -> None:
        _merge(stream.clock, self._host)
        number = stream.clock.get(stream.handle, 0) + 1
        stream.clock[stream.handle] = number
        for access in operation.accesses:
            for other_stream, other_number, other in self._history:
                apart = other.end <= access.start or access.end <= other.start
                if apart or not (access.writes or other.writes):
                    continue
                if stream.clock.get(other_stream, 0) < other_number:
                    raise SimulationError(
                        f"streams {other_stream:#x} and {stream.handle:#x} both use "
                        f"{access.start:#x}, and nothing orders them"
                    )
            self._history.append((stream.handle, number, access))
        known = self._host
        self._history = [entry for entry in self._history if known.get(entry[0], 0) < entry[1]]
        stream.queue.append(operation)

    def record(self, event: SimEvent, handle: int) -> None:
        with self.lock:
            self.check_current("record", in_capture=True)
            stream = self._stream(handle)
            _merge(stream.clock, self._host)
            mark = Mark(stream, dict(stream.clock))
            event.mark = mark

            def reach() -> None:
                mark.reached = True
                event.at_ms = self._clock_ms

            stream.queue.append(Operation(reach))

    def wait(self, handle: int, event: SimEvent) -> None:
        with self.lock:
            self.check_current("wait", in_capture=True)
            if event.mark is None:
                return  # as CUDA has it: an event that was never recorded holds nobody back
            stream = self._stream(handle)
            _merge(stream.clock, event.mark.clock)
            stream.queue.append(Operation(lambda: None, blocked_by=event.mark))

    def synchronize(self, event: SimEvent) -> None:
        with self.lock:
            self.check_current("synchronize")
            if event.mark is not None:
                self._reach(event.mark)
                _merge(self._host, event.mark.clock)

    def recover(self) -> None:
        """Go on after a failure, as a new context would; real ones are lost."""
        with self.lock:
            self.fail_at.clear()
            self._history.clear()
            for stream in self.streams.values():
                stream.queue.clear()

    def synchronize_stream(self, handle: int) -> None:
        """Run a stream to its end, as a foreign library would."""
        with self.lock:
            stream = self._stream(handle)
            while stream.queue:
                self._step(stream)
            _merge(self._host, stream.clock)

    def is_done(self, event: SimEvent) -> bool:
        with self.lock:
            self.check_current("is_done")
            if event.mark is None:
                return True
            if event.mark.reached:
                _merge(self._host, event.mark.clock)
            return event.mark.reached

    def elapsed_ms(self, start: SimEvent, end: SimEvent) -> float:
        with self.lock:
            self.check_current("elapsed_ms")
            if not (start.timing and end.timing):
                raise SimulationError("elapsed_ms of events without timing")
            if not all(e.mark is not None and e.mark.reached for e in (start, end)):
                raise SimulationError("elapsed_ms of events that were not reached")
            return end.at_ms - start.at_ms

    def is_capturing(self, handle: int) -> bool:
        return self._stream(handle).captured is not None

    def _stream(self, handle: int) -> SimStream:
        if handle not in self.streams:
            raise SimulationError(f"there is no stream {handle:#x}")
        return self.streams[handle]

    def _reach(self, mark: Mark) -> None:
        while not mark.reached:
            if not mark.stream.queue or mark.stream.running:
                raise SimulationError("streams wait for each other")
            self._step(mark.stream)

    def _step(self, stream: SimStream) -> None:
        stream.running = True
        try:
            operation = stream.queue[0]
            if operation.blocked_by is not None:
                self._reach(operation.blocked_by)
            self._clock_ms += 1.0
            operation.run()
        finally:
            stream.queue.popleft()
            stream.running = False

    def _run_some(self) -> None:
        """Let streams that nothing holds back get ahead by chance."""
        if self._random is None:
            return
        for stream in list(self.streams.values()):
            for _ in range(int(self._random.integers(0, 4))):
                if not stream.queue or stream.running:
                    break
                blocked = stream.queue[0].blocked_by
                if blocked is not None and not blocked.reached:
                    break
                self._step(stream)

    # ------------------------------------------------------------------ graphs

    def begin_capture(self, handle: int) -> None:
        with self.lock:
            self.check_current("begin_capture")
            if handle == 0:
                raise SimulationError("the default stream cannot be captured")
            self._stream(handle).captured = []

    def end_capture(self, handle: int) -> SimGraph:
        with self.lock:
            self.check_current("end_capture", in_capture=True)
            operations = self._stream(handle).captured
            self._stream(handle).captured = None
            if operations is None:
                raise SimulationError("end_capture of a stream that is not captured")
            graph = SimGraph(tuple(operations))
            self.graphs.add(graph)
            return graph

    def launch(self, graph: SimGraph, handle: int) -> None:
        with self.lock:
            self.check_current("launch")
            if graph not in self.graphs:
                raise SimulationError("launch of a graph that was destroyed")
            for operation in graph.operations:
                self._queue(self._stream(handle), operation)

    def leftovers(self) -> list[str]:
        """Say what was not freed."""
        return [
            *(f"{m.nbytes} bytes of device memory" for m in self.memory.values()),
            *(f"{m.nbytes} bytes of page-locked memory" for m in self.pinned.values()),
            *(f"stream {handle:#x}" for handle in self.streams if handle),
            *("an event" for _ in self.events),
            *("a graph" for _ in self.graphs),
            *("a context on the stack" for _ in self._stack()),
        ]


@dataclass(eq=False)
class SimGraph:
    operations: tuple[Operation, ...]


class SimDevice:
    """The simulated driver as the runtime sees it."""

    name = "simulation"
    has_graphs = True

    def __init__(self, driver: SimDriver, *, ordinal: int = 0) -> None:
        self.driver = driver
        self.closed = False
        self.kernels: dict[str, Any] = {}
        self.info = DeviceInfo(
            ordinal, "Simulated GPU", driver.compute_capability, driver.total_bytes
        )
        self.current = driver.current
        self.alloc = driver.alloc
        self.free = driver.free
        self.pinned = driver.pinned_alloc
        self.free_pinned = driver.pinned_free
        self.stream = driver.new_stream
        self.record = driver.record
        self.wait = driver.wait
        self.synchronize = driver.synchronize
        self.is_done = driver.is_done
        self.elapsed_ms = driver.elapsed_ms
        self.begin_capture = driver.begin_capture
        self.end_capture = driver.end_capture
        self.launch = driver.launch

    def memory_info(self) -> tuple[int, int]:
        return self.driver.free_bytes, self.driver.total_bytes

    def event(self, *, timing: bool = False) -> Any:
        self.driver.check_current("event")
        event = SimEvent(timing)
        self.driver.events.add(event)
        return event

    def order(self, before: int, after: int) -> None:
        event = SimEvent(timing=False)
        self.driver.record(event, before)
        self.driver.wait(after, event)

    def upload(self, address: int, source: Array, stream: int) -> None:
        driver = self.driver
        driver.check_pinned(source, "upload")

        def copy() -> None:
            driver.view(address, source.nbytes)[:] = source.reshape(-1).view(np.uint8)

        driver.enqueue(
            stream, "upload", copy, device_range(address, source.nbytes, writes=True),
            host_range(source, writes=False),
        )  # fmt: skip

    def download(self, target: Array, address: int, stream: int) -> None:
        driver = self.driver
        driver.check_pinned(target, "download")
        flat = target.reshape(-1).view(np.uint8)
        flat[:] = POISON_HOST  # nothing is there until the stream gets to it

        def copy() -> None:
            flat[:] = driver.view(address, target.nbytes)

        driver.enqueue(
            stream, "download", copy, device_range(address, target.nbytes, writes=False),
            host_range(target, writes=True),
        )  # fmt: skip

    def load_kernel(self, image: bytes, name: str) -> Any:
        """Take a function of the argument's bytes, made by a test, for the machine code."""
        self.driver.check_current("load_kernel")
        return self.kernels[name]

    def launch_kernel(
        self,
        kernel: Any,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        argument: bytes,
        stream: int,
    ) -> None:
        run, accesses = kernel(argument, grid, block)
        self.driver.enqueue(stream, "kernel", run, *accesses)

    def release(self, *resources: Any) -> None:
        for resource in resources:
            if isinstance(resource, int):
                self.driver.destroy_stream(resource)
            elif isinstance(resource, SimEvent):
                self.driver.check_current("destroy_event")
                self.driver.events.remove(resource)
            else:
                self.driver.check_current("destroy_graph")
                self.driver.graphs.remove(resource)

    def close(self) -> None:
        self.closed = True


def device_range(address: int, num_bytes: int, *, writes: bool) -> Access:
    return Access(address, address + num_bytes, writes)


def host_range(array: Array, *, writes: bool) -> Access:
    return Access(array.ctypes.data, array.ctypes.data + array.nbytes, writes)


def _merge(clock: Clock, other: Clock) -> None:
    for stream, number in other.items():
        clock[stream] = max(clock.get(stream, 0), number)
