"""How much a model may ask for before it is refused."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ScanLimits"]


@dataclass(frozen=True, slots=True)
class ScanLimits:
    """Bounds of a scan; an FCN-ResNet50 from torch has 133 nodes and 7,800 fields.

    Attributes:
        max_bytes: of the model file; protobuf ends just below 2 GiB.
        max_nodes: operators.
        max_foreign_nodes: the same of a file in no artifact; ONNX Runtime 1.31.1 takes half a
            minute on a busy machine for a chain of 4,000 Relus, and two for 7,900.
        max_fields: protobuf fields; bounds the time, to about a second.
        max_depth: nesting of messages that are only checked for form.
        max_constant_elements: of a tensor that operators make from constants alone, which a
            library computes when it loads the model.
        max_value_elements: up to how many elements a constant's value is kept.
        max_kernel_elements: the same of [channels, 1, k, k], as one kernel a channel has: the
            bilinear one of an FCN-32s with 256 classes.
    """

    max_bytes: int = (1 << 31) - 1
    max_nodes: int = 20_000
    max_foreign_nodes: int = 4_000
    max_fields: int = 500_000
    max_depth: int = 16
    max_constant_elements: int = 16 << 20
    max_value_elements: int = 4096
    max_kernel_elements: int = 1 << 20
