"""Hold the options of a benchmark, checked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fcn_bench.rounds import Schedule
from fcn_bench.scenarios import DEFAULT_SCENARIOS
from fcn_deploy.artifact.manifest import Preprocess
from fcn_deploy.names import Precision

__all__ = ["BenchmarkOptions"]


@dataclass(frozen=True, slots=True)
class BenchmarkOptions:
    """What to run and for how long.

    Attributes:
        baseline: PyTorch model; None takes the one that the manifest names.
        arch, arch_args, output_key, trust_code: how to load it, as `fcn_export.load_model`.
        compile: add PyTorch's torch.compile to the rows.
        backend: only this one; None takes every one that can run here.
        precisions: only these; empty takes all.
        sizes: (height, width) each, in px; empty takes the manifest's optimum, or 512x512.
        batches: frames in a call.
        input: images folder, image or video; None makes synthetic frames.
        preprocess: of a bare graph's network; None takes ImageNet's, rgb.
        activation, threshold: what a bare graph's outputs, or the baseline's, are; as
            `Segmenter.open` takes them.
        labelled: folders of images and of labels, for the mean IoU.
        scenarios: ``"latency"``, ``"throughput"``, ``"stream"``.
        rate_fps: frames that arrive in a second of a stream; None takes the rate of a video that
            is the input, or 30.
    """

    baseline: str | os.PathLike[str] | None = None
    arch: str | None = None
    arch_args: Mapping[str, Any] | None = None
    output_key: str | None = None
    trust_code: bool = False
    compile: bool = False
    backend: str | None = None
    precisions: Sequence[Precision] = ()
    sizes: Sequence[tuple[int, int]] = ()
    batches: Sequence[int] = (1,)
    input: str | os.PathLike[str] | None = None
    preprocess: Preprocess | None = None
    activation: str = "auto"
    threshold: float | None = None
    labelled: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None
    scenarios: Sequence[str] = DEFAULT_SCENARIOS
    rate_fps: float | None = None
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        if not self.batches or any(batch < 1 for batch in self.batches):
            raise ValueError(f"batches are {list(self.batches)}; each must be 1 or more")
        if any(side < 1 for size in self.sizes for side in size):
            raise ValueError(f"sizes are {list(self.sizes)}; each side must be 1 or more")
        if self.rate_fps is not None and not 0 < self.rate_fps <= 1000:
            raise ValueError(f"rate is {self.rate_fps:g} frames/s; it must be above 0, up to 1000")
        if self.rate_fps is not None and "stream" not in self.scenarios:
            raise ValueError(
                f"a rate of {self.rate_fps:g} frames/s is of the scenario stream; scenarios are "
                f"{', '.join(self.scenarios)}"
            )
        if "stream" in self.scenarios and set(self.batches) != {1}:
            raise ValueError(
                f"batches are {list(self.batches)}; the frames of a stream arrive one at a time: "
                "the scenario stream needs batch 1"
            )
