"""Ask the CUDA driver for the compute capability of the GPU that a plan is built on."""

from __future__ import annotations

import ctypes

from fcn_deploy.errors import BackendUnavailableError

__all__ = ["DRIVER_LIBRARY", "gpu_compute_capability"]

DRIVER_LIBRARY = "libcuda.so.1"

# CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h
_MAJOR, _MINOR = 75, 76


def gpu_compute_capability(device: int = 0, *, library: str = DRIVER_LIBRARY) -> str:
    """Give a GPU's compute capability, such as ``"8.6"``. Makes no CUDA context.

    Raises:
        BackendUnavailableError: there is no driver, or no such GPU.
    """
    hint = "Install NVIDIA's driver, or build with --engine tensorrt-rtx, which needs no GPU."
    try:
        driver = ctypes.CDLL(library)
    except OSError as error:
        raise BackendUnavailableError(
            "TensorRT builds a plan on the GPU that it is for, and there is no NVIDIA driver here: "
            f"{error}.",
            hint=hint,
        ) from error
    handle, value = ctypes.c_int(), ctypes.c_int()
    calls = [
        ("cuInit", (0,)),
        ("cuDeviceGet", (ctypes.byref(handle), device)),
    ]
    for name, arguments in calls:
        _call(driver, name, *arguments)
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        _call(driver, "cuDeviceGetAttribute", ctypes.byref(value), attribute, handle)
        numbers.append(value.value)
    return ".".join(map(str, numbers))


def _call(driver: ctypes.CDLL, name: str, *arguments: object) -> None:
    status = getattr(driver, name)(*arguments)
    if status:
        raise BackendUnavailableError(
            f"the NVIDIA driver's {name} failed with error {status}: no usable GPU.",
            hint="nvidia-smi says what the driver sees.",
        )
