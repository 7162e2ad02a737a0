"""Quantise a graph with OpenVINO's NNCF; `int8_vs_nncf` runs it in an environment that has it."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Read a graph and frames, write an OpenVINO model: GRAPH FRAMES.npz OUTPUT.xml."""
    import nncf
    import numpy as np
    import openvino

    graph, frames, output = map(Path, sys.argv[1:4])
    with np.load(frames) as archive:
        images = [archive[name][None] for name in archive.files]  # uint8 [1, H, W, 3] each
    model = openvino.Core().read_model(graph)
    quantized = nncf.quantize(model, nncf.Dataset(images), subset_size=len(images))
    openvino.save_model(quantized, output, compress_to_fp16=False)


if __name__ == "__main__":
    main()
