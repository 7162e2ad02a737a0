"""Use somebody's module in evaluation mode, on the CPU, in float32, and give it back as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from fcn_deploy.errors import UnsupportedModelError

__all__ = ["borrowed"]


@contextmanager
def borrowed(module: nn.Module) -> Iterator[nn.Module]:
    """Lend `module` in evaluation mode, on the CPU, in float32, without gradients.

    No parameter is copied unless it is elsewhere or of another floating type. On leaving, also by
    an exception, the module has its own tensors again, each submodule its training mode, and
    torch's and Python's random generators and the gradient mode are as they were. Hooks stay in
    place throughout: they are part of what the module computes.

    Raises:
        UnsupportedModelError: a parameter has no data (device 'meta').
    """
    with ExitStack() as restore:
        restore.callback(random.setstate, random.getstate())
        restore.enter_context(torch.random.fork_rng(devices=[]))
        for part in module.modules():
            restore.callback(setattr, part, "training", part.training)
        module.eval()
        _lend_tensors(module, restore)
        with torch.no_grad():
            yield module


def _lend_tensors(module: nn.Module, restore: ExitStack) -> None:
    for name, parameter in module.named_parameters():
        _refuse_meta(name, parameter)
        own = parameter.data
        lent = _on_cpu_in_float32(own)
        if lent is not own:
            restore.callback(setattr, parameter, "data", own)
            parameter.data = lent
    for part in module.modules():
        if isinstance(part, torch.jit.ScriptModule):
            continue  # its buffers live in C++; it came from a file, so nobody misses them
        for name, buffer in part._buffers.items():
            if buffer is None:
                continue
            _refuse_meta(name, buffer)
            restore.callback(part._buffers.__setitem__, name, buffer)
            # copied, small as they are: some modules write into buffers in evaluation mode too
            part._buffers[name] = _on_cpu_in_float32(buffer).clone()


def _refuse_meta(name: str, tensor: torch.Tensor) -> None:
    if tensor.is_meta:
        raise UnsupportedModelError(
            f"'{name}' is on the device 'meta' and holds no numbers.",
            hint="Load the weights before the export.",
        )


def _on_cpu_in_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Give the tensor itself where it already is on the CPU and of a type that may stay."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    if tensor.device.type == "cpu" and tensor.dtype == dtype:
        return tensor
    return tensor.to(device="cpu", dtype=dtype)
