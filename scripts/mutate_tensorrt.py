"""Remove each wait, copy, lock and check of the TensorRT runtime in turn; a test must fail.

    python scripts/mutate_tensorrt.py [--only TEXT]

Works on a copy of the package, so it can be stopped at any time. Exits 1 if a removal goes
unnoticed. Takes some minutes, so it is no part of CI.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNTIME = Path("fcn_deploy/backends/tensorrt")
TESTS = (
    *("test_execution.py", "test_session.py", "test_device_arrays.py", "test_engine.py"),
    *("test_backend.py", "test_device_labelling.py"),
)


@dataclass(frozen=True, slots=True)
class Mutation:
    """One removal: `old` becomes `new` at its `nth` place in a file."""

    what: str
    file: str
    old: str
    new: str
    nth: int = 0


def drop(what: str, file: str, line: str, *, nth: int = 0) -> Mutation:
    """Replace a statement by one that does nothing."""
    return Mutation(what, file, line, "pass", nth)


S, R, P, U, X, B, E, G, D, L = (
    "session.py",
    "ring.py",
    "slots.py",
    "arrays_in_use.py",
    "execution.py",
    "buffers.py",
    "engine.py",
    "graph_cache.py",
    "device_arrays.py",
    "device_labelling.py",
)

MUTATIONS = (
    drop(
        "execution does not wait for the copy in",
        R,
        "self._device.wait(self.execute, slot.uploaded)",
    ),
    drop(
        "copy out does not wait for execution",
        R,
        "self._device.wait(self._download, slot.executed)",
    ),
    drop("end of the copy in is not marked", R, "self._device.record(slot.uploaded, self._upload)"),
    drop("end of execution is not marked", R, "self._device.record(slot.executed, self.execute)"),
    drop(
        "end of the copy out is not marked",
        R,
        "self._device.record(slot.downloaded, self._download)",
    ),
    drop("a result does not wait for its run", P, "device.synchronize(slot.downloaded)"),
    drop("a slot is taken while its run is under way", R, "slot.settle()", nth=0),
    Mutation(
        "a slot is looked at twice",
        P,
        "if pending is not None:\n            pending.settle()",
        "if pending is not None:\n            self.pending.settle()",
    ),
    Mutation(
        "whether a run is done waits for who waits for it",
        P,
        "if not self._lock.acquire(blocking=False):",
        "if not self._lock.acquire():",
    ),
    Mutation(
        "a wait that is interrupted is given up",
        P,
        "            except (FcnDeployError, MemoryError) as error:\n"
        "                self._error = error  # this run's: the slot's next run may wait here\n"
        "            self._parts = {}",
        "            except (FcnDeployError, MemoryError) as error:\n"
        "                self._error = error\n"
        "            except BaseException:\n"
        "                self._finished, slot.pending = True, None\n"
        "                raise\n            self._parts = {}",
    ),
    Mutation(
        "the host's want of memory is the next run's error",
        P,
        "except (FcnDeployError, MemoryError) as error:",
        "except FcnDeployError as error:",
    ),
    drop("closing does not wait for runs", S, "self._ring.finish()"),
    drop(
        "closing does not wait for runs on others' arrays",
        S,
        "self._ring.drain_all()",
    ),
    drop("a failed run does not wait for its copies", S, "self._ring.drain(slot)", nth=0),
    drop("a failed measurement does not wait", S, "self._ring.drain(slot)", nth=3),
    drop("a failed run's new arrays are kept", S, "self._arrays.take_back(results, given)"),
    drop("a failed allocation's other arrays are kept", U, "self.take_back(results, out)"),
    drop("a failed run on others' arrays is not awaited", U, "self._wait()", nth=0),
    Mutation("draining does not wait", R, "self._device.synchronize(slot.downloaded)", "pass"),
    Mutation("a result is not copied out of its slot", P, "part.copy()", "part"),
    Mutation(
        "the caller's array is not copied",
        R,
        "pinned.view(feed.dtype).reshape(feed.shape)[...] = feed",
        "pinned[...] = 0",
    ),
    Mutation(
        "threads enqueue at once",
        S,
        "with self._lock, self._device.current():\n            context = self._usable_context()\n"
        "            slot",
        "with self._device.current():\n            context = self._usable_context()\n"
        "            slot",
    ),
    Mutation(
        "threads take one result at once",
        P,
        "with self._lock:\n            if self._finished:\n                return\n",
        "if True:\n            if self._finished:\n                return\n",
    ),
    Mutation(
        "a run is enqueued without a context",
        S,
        "with self._lock, self._device.current():\n            context = self._usable_context()\n"
        "            slot",
        "with self._lock:\n            context = self._usable_context()\n            slot",
    ),
    Mutation(
        "a result is awaited without a context",
        P,
        "with device.current():\n                    device.synchronize",
        "if True:\n                    device.synchronize",
    ),
    drop(
        "a run does not wait for the stream that fills its input",
        S,
        "self._device.order(foreign, self._stream)",
    ),
    drop(
        "the caller's stream does not wait for the run",
        S,
        "self._device.order(self._stream, foreign)",
    ),
    drop(
        "others' arrays are not kept until the run is over",
        S,
        "self._arrays.keep_until_executed((dict(inputs), dict(results)))",
    ),
    Mutation(
        "others' arrays are kept for ever",
        U,
        "while self._kept and self._device.is_done(self._kept[0][0]):",
        "while False:",
    ),
    drop("an array is freed while a run writes it", U, "self._device.synchronize(done)"),
    drop("arrays given out are not freed at the end", U, "array.close()"),
    Mutation(
        "a graph is launched whatever its addresses",
        S,
        "key = (shapes, *addresses.items())",
        "key = (shapes,)",
    ),
    Mutation(
        "a graph is launched whatever its shapes",
        S,
        "key = (shapes, *addresses.items())",
        "key = tuple(addresses.items())",
    ),
    Mutation(
        "a shape is recorded before it was run",
        S,
        "if self._graphs is None or not context.settled:",
        "if self._graphs is None or not (context.settled or key not in self._graphs):",
    ),
    Mutation(
        "a graph is launched before its shape was run again",
        S,
        "if self._graphs is None or not context.settled:",
        "if self._graphs is None or not (context.settled or key in self._graphs):",
    ),
    drop("graphs are not freed at the end", S, "self._graphs.close()"),
    drop(
        "a recording that failed is not freed",
        G,
        "self._device.release(self._device.end_capture(stream))",
    ),
    drop("graphs pile up", G, "self._device.release(oldest)"),
    Mutation(
        "addresses are not set again",
        S,
        "            context.set_addresses(addresses)\n            context.enqueue(self._stream)\n"
        "            return",
        "            context.enqueue(self._stream)\n            return",
    ),
    Mutation(
        "a run is recorded with the addresses of another",
        S,
        "            context.set_addresses(addresses)\n            self._graphs.record",
        "            self._graphs.record",
    ),
    drop("a change of profile keeps the addresses", X, "self._addresses = {}"),
    drop("buffers are not freed at the end", R, "self._pool.close()"),
    drop("events are not freed at the end", R, "self._device.release(*slot.events)"),
    drop(
        "streams are not freed at the end",
        R,
        "self._device.release(self._upload, self.execute, self._download)",
    ),
    Mutation("buffers of all slots are one", R, 'f"{index}/"', '"0/"'),
    drop("a grown buffer's old memory is not freed", B, "self._device.free(address)", nth=0),
    Mutation("buffers do not grow", B, "if num_bytes <= capacity:", "if capacity:"),
    Mutation("page-locked memory does not grow", B, "held.nbytes < num_bytes", "False"),
    Mutation("growth that does not fit is an error", B, "if wanted == exact:", "if True:"),
    drop("a change of profile keeps the shapes", X, "self._shapes = {}"),
    Mutation("the profile is not changed", X, "if profile != self._profile:", "if False:"),
    Mutation(
        "a refused shape goes unnoticed",
        X,
        "if not self._context.set_input_shape(name, shape):",
        "if self._context.set_input_shape(name, shape) and False:",
    ),
    Mutation(
        "a refused run goes unnoticed",
        X,
        "if not self._context.execute_async_v3(stream):",
        "if self._context.execute_async_v3(stream) and False:",
    ),
    Mutation(
        "a new shape counts as run",
        X,
        "self._shapes, self.settled = {}, False",
        "self._shapes, self.settled = {}, True",
    ),
    Mutation("shapes are set each time", X, "if self._shapes == shapes:", "if False:"),
    Mutation(
        "addresses are set each time", X, "if self._addresses.get(name) == address:", "if False:"
    ),
    Mutation(
        "sessions outlive their engine",
        E,
        "for session in list(self._sessions):",
        "for session in ():",
    ),
    drop("the device is not closed", E, "self.device.close()"),
    Mutation(
        "a session is made of an engine that is being closed",
        E,
        "with self._lock:  # no session",
        "if True:  # no session",
    ),
    Mutation("inputs of several streams are taken", D, "if len(named) > 1:", "if False:"),
    Mutation(
        "a plan for another place is read",
        E,
        "if record is not None:\n                check_plan",
        "if False:\n                check_plan",
    ),
    Mutation("strides are not looked at", D, "if strides is not None and", "if False and"),
    drop("scores are not labelled", S, "labels.enqueue(places, self._stream)"),
    Mutation(
        "scores are labelled in another stream",
        S,
        "labels.enqueue(places, self._stream)",
        "labels.enqueue(places, 0)",
    ),
    drop(
        "the labels' tables are not copied in",
        S,
        "feeds = {**feeds, labels.tables_name: labels.tables}",
    ),
    drop("scores that are no numbers go unnoticed", L, "check_tainted(arrays[self._mark])"),
    Mutation(
        "a session is used after its end",
        S,
        "def _usable_context(self) -> BoundContext:\n        if self._context is None:",
        "def _usable_context(self) -> BoundContext:\n        if False:",
    ),
)


def apply(mutation: Mutation, package: Path) -> None:
    """Change a copy of the runtime; the text must be there."""
    path = package / RUNTIME / mutation.file
    parts = path.read_text().split(mutation.old)
    if len(parts) < mutation.nth + 2:
        raise SystemExit(f"'{mutation.old}' is not in {mutation.file} {mutation.nth + 1} times")
    head = mutation.old.join(parts[: mutation.nth + 1])
    tail = mutation.old.join(parts[mutation.nth + 1 :])
    changed = head + mutation.new + tail
    compile(changed, path, "exec")  # a file that cannot be read would fail every test
    path.write_text(changed)


def first_failure(package: Path) -> str | None:
    """Run the tests on the copy until one fails; gives its name, or None where none does."""
    tests = [str(package / "tests/deploy/backends/tensorrt" / name) for name in TESTS]
    process = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-x", "-q", "--timeout", "200"),
            *("-p", "no:cacheprovider", *tests),
        ],
        cwd=package,
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode == 0:
        return None
    for line in process.stdout.splitlines():
        if line.startswith(("FAILED ", "ERROR ")):
            return line.split()[1].rpartition("::")[2]
    return "the tests hang" if "Timeout" in process.stdout + process.stderr else "a test crashes"


def main() -> int:
    """Try every removal; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="removals with this in them (a|b: either)"
    )
    wanted = parser.parse_args().only.split("|")
    chosen = [m for m in MUTATIONS if any(text in m.what for text in wanted)]
    missed = 0
    with tempfile.TemporaryDirectory(prefix="mutate-") as work:
        package = Path(work)
        for part in ("fcn_deploy", "tests", "export", "benchmarks", "scripts"):
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / part, package / part, ignore=ignore)
        shutil.copy(ROOT / "pyproject.toml", package)
        failure = first_failure(package)
        if failure is not None:
            print(f"the tests fail as they are: {failure}")
            return 1
        for mutation in chosen:
            path = package / RUNTIME / mutation.file
            before = path.read_text()
            apply(mutation, package)
            failure = first_failure(package)
            path.write_text(before)
            missed += failure is None
            print(
                f"{'MISSED' if failure is None else 'caught'}  {mutation.what}: {failure}",
                flush=True,
            )
    print(f"{len(chosen) - missed} of {len(chosen)} removals were noticed.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
