"""Segment one large synthetic image in a process of its own, and say what memory it took.

    python -m benchmarks.research.large_image MODEL.fcn --size 10000x10000 --max-gb 2

Exits with 1 where the peak is above `--max-gb`. The peak is the process's largest resident set, so
it holds the interpreter, the libraries, the frame and its labels.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import numpy as np

from fcn_deploy import Segmenter
from fcn_deploy.names import Array


def main() -> int:
    """Run the command; give its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL", help="an artifact or an .onnx file")
    parser.add_argument("--size", default="10000x10000", metavar="HxW")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--tile-pixels", type=int, default=None)
    parser.add_argument("--max-gb", type=float, default=None, help="10^9 bytes")
    options = parser.parse_args()
    height, width = (int(side) for side in options.size.split("x"))
    frame = synthetic_frame(height, width)
    with Segmenter.open(
        options.model,
        backend=options.backend,
        precision=options.precision,
        tile_pixels=options.tile_pixels,
    ) as segmenter:
        start = time.perf_counter()
        result = segmenter(frame)
        seconds = time.perf_counter() - start
        down, across = segmenter.tiling.count((height, width))
        pixels = height * width
        tiled = f"{down}x{across} tiles" if segmenter.tiling.is_needed((height, width)) else "whole"
        _say(f"{segmenter!r}")
        _say(f"{segmenter.tiling!r}")
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    _say(
        f"{height}x{width} = {pixels / 1e6:.1f} megapixels, {tiled}: {seconds:.1f} s "
        f"({pixels / 1e6 / seconds:.2f} megapixels/s), peak {peak_gb:.2f} GB, of which frame and "
        f"labels {(frame.nbytes + result.labels.nbytes) / 1e9:.2f} GB"
    )
    return int(options.max_gb is not None and peak_gb > options.max_gb)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


def synthetic_frame(height: int, width: int) -> Array:
    """Make a frame of repeated noise, without holding a second one: uint8 [H, W, 3]."""
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    frame = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, 512):
        for left in range(0, width, 512):
            place = frame[top : top + 512, left : left + 512]
            place[:] = noise[: place.shape[0], : place.shape[1]]
    return frame


if __name__ == "__main__":
    sys.exit(main())
