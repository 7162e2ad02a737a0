"""Define tensor specifications, array types and precisions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

__all__ = ["IGNORE_LABEL", "Array", "ColorOrder", "NetworkColor", "Precision", "TensorSpec"]

Array = npt.NDArray[Any]

IGNORE_LABEL = 255
"""Id of pixels in a reference that count for nothing, as in PASCAL VOC."""

ColorOrder = Literal["bgr", "rgb"]
"""Order of the three channels of a frame."""

NetworkColor = Literal["rgb", "bgr", "gray"]
"""Channels that a network expects: three in either order, or one of luminance."""

NETWORK_COLORS: tuple[NetworkColor, ...] = get_args(NetworkColor)


class Precision(StrEnum):
    """Arithmetic in which a network computes."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, dtype and shape of a graph's input or output.

    Attributes:
        name: as in the graph.
        dtype: NumPy's name of the element type, such as ``"uint8"`` or ``"float32"``.
        shape: one entry a dimension; None where any size is taken.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def __post_init__(self) -> None:
        np.dtype(self.dtype)  # raises TypeError on a name that NumPy does not know

    def __str__(self) -> str:
        dims = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name}: {self.dtype} [{dims}]"
