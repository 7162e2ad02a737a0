"""The head's kernel on the simulated GPU: the host's build of the same source."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from fcn_deploy.backends.tensorrt.head_kernel import BLOCK, HeadArguments
from tests.deploy.backends.tensorrt.simulated_driver import Access, SimDriver, device_range

Size = tuple[int, int, int]


def simulated_head(driver: SimDriver, host_kernel: Any) -> Callable[[bytes, Size, Size], Any]:
    """Make what `SimDevice.kernels` holds: of a launch, what it does and what it touches."""

    def prepare(argument: bytes, grid: Size, block: Size) -> Any:
        given = HeadArguments.from_buffer_copy(argument)
        pixels = given.images * given.out_height * given.out_width
        sizes = {
            "scores": 4 * given.images * given.classes * given.height * given.width,
            **{f"row_{part}": 4 * given.out_height for part in ("cells", "near", "far")},
            **{f"column_{part}": 4 * given.out_width for part in ("cells", "near", "far")},
            "labels": pixels * (1 + given.wide),
            "tainted": 4,
        }
        assert block == BLOCK
        assert grid[0] * block[0] >= given.out_width > (grid[0] - 1) * block[0]
        assert grid[1] * block[1] >= given.out_height > (grid[1] - 1) * block[1]
        assert grid[2] == given.images

        def run() -> None:
            real = HeadArguments.from_buffer_copy(argument)
            for name, size in sizes.items():
                setattr(real, name, driver.view(getattr(given, name), size).ctypes.data)
            host_kernel(ctypes.byref(real))

        accesses: list[Access] = [
            device_range(getattr(given, name), size, writes=name in ("labels", "tainted"))
            for name, size in sizes.items()
        ]
        return run, accesses

    return prepare
