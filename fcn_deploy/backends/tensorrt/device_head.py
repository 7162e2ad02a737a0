"""The head on the GPU: class ids of low-resolution scores that lie there, by a kernel of ours.

An alternative to Resize and ArgMax in the plan: the upsampled scores, classes times as large as
the labels, are never written.
"""

from __future__ import annotations

import ctypes
from importlib.resources import files
from typing import Any

import numpy as np

from fcn_deploy.backends.base import ContextManaged
from fcn_deploy.backends.tensorrt.buffers import BufferPool
from fcn_deploy.backends.tensorrt.device import DeviceBackend
from fcn_deploy.backends.tensorrt.device_arrays import view_of
from fcn_deploy.errors import BackendUnavailableError, NonFiniteOutputError, ShapeError
from fcn_deploy.head.geometry import make_axis
from fcn_deploy.tensors import Array

__all__ = ["BLOCK", "DeviceHead", "HeadArguments", "compile_head", "head_source"]

BLOCK = (32, 8, 1)
"""Threads of a block: a row of 32 reads neighbouring scores and writes neighbouring labels."""

_POINTERS = (
    *("scores", "row_cells", "row_near", "row_far", "column_cells", "column_near", "column_far"),
    *("labels", "tainted"),
)
_SIZES = ("images", "classes", "height", "width", "out_height", "out_width")


class HeadArguments(ctypes.Structure):
    """The struct of the same name in head.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int) for name in _SIZES),
        ("threshold", ctypes.c_float),
        ("wide", ctypes.c_int),
    )


class DeviceHead(ContextManaged):
    """Labels scores on the GPU, one call at a time, in a stream of its own."""

    def __init__(self, device: DeviceBackend, *, image: bytes | None = None) -> None:
        """Load the kernel.

        Args:
            image: machine code for this GPU; None compiles it, which takes about a second.

        Raises:
            BackendUnavailableError: NVIDIA's compiler for that is not installed.
        """
        super().__init__()
        self._device = device
        major, minor = device.info.compute_capability
        code = compile_head(f"sm_{major}{minor}") if image is None else image
        with device.current():
            self._kernel = device.load_kernel(code, "head_labels")
            self._pool = BufferPool(device)
            self._stream = device.stream()
            self._done = device.event()

    def labels(
        self,
        scores: Any,
        size: tuple[int, int],
        *,
        stream: int = 0,
        align_corners: bool = False,
        threshold: float = 0.0,
    ) -> Array:
        """Give the labels that `upsample_argmax` gives, but for scores that differ by rounding.

        Args:
            scores: float32 [N, C, h, w] with ``__cuda_array_interface__``, C-contiguous.
            size: (height, width) of the labels in px.
            stream: that fills the scores.
            align_corners, threshold: as for `upsample_argmax`.

        Returns:
            uint8 (uint16 above 256 classes) [N, height, width] in host memory, owned by the caller.

        Raises:
            NonFiniteOutputError: a score that was needed is NaN or infinite.
            ShapeError: the scores are of another kind.
        """
        self._require_usable("the head on the GPU")
        view = view_of(scores, name="scores", ordinal=self._device.info.ordinal)
        if len(view.shape) != 4 or view.dtype != np.float32 or 0 in view.shape:
            raise ShapeError(
                f"scores are {view.dtype} {list(view.shape)}; expected float32 [N, C, h, w]."
            )
        images, classes, height, width = view.shape
        dtype = np.dtype(np.uint8 if classes <= 256 else np.uint16)
        with self._device.current():
            arguments = HeadArguments(scores=view.address, threshold=threshold)
            for name, value in zip(_SIZES, (*view.shape, *size), strict=True):
                setattr(arguments, name, value)
            arguments.wide = dtype.itemsize - 1
            for axis, samples, outputs in (("row", height, size[0]), ("column", width, size[1])):
                placed = make_axis(samples, outputs, align_corners=align_corners)
                self._upload(arguments, f"{axis}_cells", placed.cells.astype(np.int32))
                self._upload(arguments, f"{axis}_near", placed.near[:outputs])
                self._upload(arguments, f"{axis}_far", placed.far[:outputs])
            self._upload(arguments, "tainted", np.zeros(1, np.int32))
            num_bytes = images * size[0] * size[1] * dtype.itemsize
            arguments.labels = self._pool.on_device("labels", num_bytes)
            grid = (-(-size[1] // BLOCK[0]), -(-size[0] // BLOCK[1]), images)
            self._device.order(stream, self._stream)
            self._device.launch_kernel(self._kernel, grid, BLOCK, bytes(arguments), self._stream)
            found = self._pool.pinned("labels", num_bytes)
            tainted = self._pool.pinned("tainted back", 4)
            self._device.download(found, arguments.labels, self._stream)
            self._device.download(tainted, arguments.tainted, self._stream)
            self._device.record(self._done, self._stream)
            self._device.synchronize(self._done)
            if tainted.view(np.int32)[0]:
                raise NonFiniteOutputError(
                    "the network's scores hold NaN or infinity.",
                    hint="Run it in fp32; if they stay, the weights or the input are at fault.",
                )
            # copied: the next call overwrites it
            return found.view(dtype).reshape(images, *size).copy()

    def close(self) -> None:
        """Free everything. May be called twice."""
        if not self._closed:
            super().close()
            with self._device.current():
                self._pool.close()
                self._device.release(self._done, self._stream)
                self._kernel = self._done = None

    def _upload(self, arguments: HeadArguments, name: str, content: Array) -> None:
        pinned = self._pool.pinned(name, content.nbytes)
        pinned[:] = content.view(np.uint8)
        address = self._pool.on_device(name, content.nbytes)
        self._device.upload(address, pinned, self._stream)
        setattr(arguments, name, address)


def head_source() -> str:
    """Give the kernel's source, CUDA C++."""
    return files(__package__).joinpath("head.cu").read_text(encoding="utf-8")


def compile_head(architecture: str) -> bytes:
    """Compile the kernel with NVRTC, which needs no GPU.

    Args:
        architecture: such as ``"sm_86"``.

    Returns:
        Machine code (a cubin) for GPUs of that kind.

    Raises:
        BackendUnavailableError: NVRTC is not installed, or does not know this kind.
    """
    hint = "pip install cuda-bindings nvidia-cuda-nvrtc"
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise BackendUnavailableError(f"NVRTC cannot be used: {error}.", hint=hint) from error
    source = head_source().encode()
    try:
        status, program = nvrtc.nvrtcCreateProgram(source, b"head.cu", 0, [], [])
    except RuntimeError as error:  # the library itself is missing
        raise BackendUnavailableError(f"NVRTC cannot be used: {error}.", hint=hint) from error
    options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17"]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if int(status) != 0:
        _, size = nvrtc.nvrtcGetProgramLogSize(program)
        log = bytearray(size)
        nvrtc.nvrtcGetProgramLog(program, log)
        said = bytes(log).decode(errors="replace").strip("\0 \n") or status.name
        raise BackendUnavailableError(
            f"NVRTC cannot compile the head for {architecture}: {said[:300]}"
        )
    _, size = nvrtc.nvrtcGetCUBINSize(program)
    code = bytearray(size)
    nvrtc.nvrtcGetCUBIN(program, code)
    nvrtc.nvrtcDestroyProgram(program)
    return bytes(code)
