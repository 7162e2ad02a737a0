"""Time a plan, PyTorch on CUDA and trtexec for make gpu-check; all times are in ms."""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fcn_deploy.backends.tensorrt.device_head import DeviceHead
from fcn_deploy.backends.tensorrt.engine import TrtEngine
from fcn_deploy.backends.tensorrt.session import open_session
from fcn_deploy.errors import BenchmarkError
from fcn_deploy.head import upsample_argmax
from fcn_deploy.names import Array
from fcn_models.foreign_errors import first_line

__all__ = [
    "agreement_with",
    "head_agreement",
    "run_trtexec",
    "time_plan",
    "time_torch",
    "torch_interop_agreement",
]

_TRTEXEC = re.compile(r"(GPU Compute Time|Latency): min = ([\d.]+) ms.*?median = ([\d.]+) ms")


def agreement_with(wanted: Array, found: Array) -> float:
    """Give the share of pixels with the same label, of class ids of any shape and dtype.

    Raises:
        BenchmarkError: the shapes differ.
    """
    if wanted.shape != found.shape:
        raise BenchmarkError(
            f"the plan gave labels {list(found.shape)}; expected {list(wanted.shape)}."
        )
    return float((wanted == found).mean())


def time_plan(
    engine: TrtEngine, feeds: Mapping[str, Array], *, runs: int, cuda_graphs: bool
) -> dict[str, float]:
    """Time a plan: alone, with copies, and with `depth` runs under way at once.

    Args:
        feeds: of the dtypes of the plan's inputs, in shapes that a profile takes.

    Returns:
        Medians of `compute_ms` and `transfer_ms` by CUDA events, `host_ms` from a call to its
        result, and `pipelined_ms` for each frame where copies and runs overlap.

    Raises:
        RuntimeError: a run that should be timed was not.
    """
    with open_session(engine, timing=True, cuda_graphs=cuda_graphs) as session:
        for _ in range(5):
            session.infer(feeds)
        compute, transfer, host = [], [], []
        for _ in range(runs):
            start = time.perf_counter()
            pending = session.submit(feeds)
            pending.result()
            host.append(1000 * (time.perf_counter() - start))
            times = pending.times()
            if times is None:
                raise RuntimeError("a session with timing has times")
            compute.append(times.compute_ms)
            transfer.append(times.transfer_ms)
    with open_session(engine, cuda_graphs=cuda_graphs) as session:
        for _ in range(5):
            session.infer(feeds)
        start = time.perf_counter()
        waiting = [session.submit(feeds) for _ in range(runs)]
        for pending in waiting:
            pending.result()
        pipelined = 1000 * (time.perf_counter() - start) / runs
    return {
        "compute_ms": statistics.median(compute),
        "transfer_ms": statistics.median(transfer),
        "host_ms": statistics.median(host),
        "pipelined_ms": pipelined,
    }


def torch_interop_agreement(engine: TrtEngine, frames: Array, wanted: Array) -> float:
    """Run a plan on PyTorch's tensors, in PyTorch's stream, and compare the labels.

    Args:
        frames: uint8 [N, H, W, 3].
        wanted: class ids [N, H, W].

    Returns:
        Share of the pixels with the same label.
    """
    import torch

    with open_session(engine) as session, torch.cuda.stream(torch.cuda.Stream()):
        image = torch.from_numpy(frames).cuda(non_blocking=True)
        name = engine.inputs[0].name
        labels = torch.empty(wanted.shape, dtype=torch.uint8, device="cuda")
        session.infer_device({name: image}, out={engine.outputs[0].name: labels})
        return agreement_with(wanted, labels.cpu().numpy())


def head_agreement(engine: TrtEngine, *, classes: int, size: tuple[int, int]) -> float:
    """Label random scores by the kernel on the GPU and by the head on the CPU, and compare."""
    random = np.random.default_rng(0)
    shape = (1, classes, -(-size[0] // 8), -(-size[1] // 8))
    scores = random.standard_normal(shape).astype(np.float32)
    device = engine.device
    with DeviceHead(device) as head, device.current():
        stream, done = device.stream(), device.event()
        address, pinned = device.alloc(scores.nbytes), device.pinned(scores.nbytes)
        pinned[:] = scores.reshape(-1).view(np.uint8)
        device.upload(address, pinned, stream)
        labels = head.labels(_OnDevice(address, shape), size, stream=stream)
        device.record(done, stream)
        device.synchronize(done)
        device.free(address)
        device.free_pinned(pinned)
        device.release(done, stream)
    return agreement_with(upsample_argmax(scores, size), labels)


def time_torch(
    module: Any, shape: Sequence[int], *, runs: int
) -> dict[str, dict[str, float | str]]:
    """Time a PyTorch module on CUDA as users run it: eager, channels_last, autocast, compile.

    Args:
        module: in evaluation mode, on the CPU; a copy of it runs.
        shape: of the float32 input, [N, C, H, W].

    Returns:
        By mode, the median `compute_ms` by CUDA events; or `error` where the mode failed.
    """
    import copy

    import torch

    image = torch.rand(*shape, device="cuda")
    found: dict[str, dict[str, float | str]] = {}
    for mode in ("eager", "channels_last", "fp16-autocast", "compile"):
        network = copy.deepcopy(module).cuda()
        given = image
        if mode == "channels_last":
            network = network.to(memory_format=torch.channels_last)
            given = image.contiguous(memory_format=torch.channels_last)
        run = torch.compile(network) if mode == "compile" else network
        half = mode == "fp16-autocast"
        try:
            with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=half):
                found[mode] = {"compute_ms": _median_on_cuda(torch, lambda: run(given), runs)}  # noqa: B023 - called in this turn
        except RuntimeError as error:  # torch's own errors are of this kind; the others still run
            found[mode] = {"error": first_line(error)}
    return found


def run_trtexec(plan: Path, feeds: Mapping[str, Array]) -> dict[str, float | str]:
    """Time a plan by NVIDIA's own tool, where it is on PATH.

    Args:
        feeds: their shapes, of whichever dtype the plan takes, are what is timed.

    Returns:
        `compute_ms` and `latency_ms` (with copies), medians; or `skipped` or `error`.
    """
    tool = shutil.which("trtexec")
    if tool is None:
        return {"skipped": "trtexec is not on PATH"}
    shapes = ",".join(f"{n}:{'x'.join(map(str, array.shape))}" for n, array in feeds.items())
    command = [tool, f"--loadEngine={plan}", f"--shapes={shapes}", "--useSpinWait"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    medians = {what: float(median) for what, _, median in _TRTEXEC.findall(done.stdout)}
    if done.returncode != 0 or not {"GPU Compute Time", "Latency"} <= set(medians):
        said = (done.stderr or done.stdout).strip().splitlines()
        return {"error": f"status {done.returncode}: {said[-1][:300] if said else 'no output'}"}
    return {"compute_ms": medians["GPU Compute Time"], "latency_ms": medians["Latency"]}


class _OnDevice:
    """Scores on the GPU as `DeviceHead` takes them."""

    def __init__(self, address: int, shape: tuple[int, ...]) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": "<f4",
            "data": (address, True),
            "version": 3,
        }


def _median_on_cuda(torch: Any, run: Callable[[], object], runs: int) -> float:
    for _ in range(10):
        run()
    times = []
    for _ in range(runs):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return float(statistics.median(times))
