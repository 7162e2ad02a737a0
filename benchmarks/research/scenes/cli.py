"""Train the benchmark's networks, or draw a scene.

python -m benchmarks.research.scenes train
python -m benchmarks.research.scenes draw scene.png --size 720x1280 --seed 1
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from research.scenes.generate import make_scene
from research.scenes.train import ARCHES, measure, trained


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; give its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.research.scenes", description=__doc__
    )
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train what the cache does not hold, and measure it")
    train.add_argument("arch", nargs="*", metavar="ARCH", help=f"of {', '.join(ARCHES)}")
    draw = commands.add_parser("draw", help="write a scene as a PNG")
    draw.add_argument("file", type=Path)
    draw.add_argument("--size", default="720x1280", metavar="HxW")
    draw.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.command == "draw":
        return _draw(options.file, options.size, options.seed)
    return _train(options.arch or ARCHES)


def _train(arches: Sequence[str]) -> int:
    unknown = [arch for arch in arches if arch not in ARCHES]
    if unknown:
        _say(f"'{unknown[0]}' is not trained here; expected one of {', '.join(ARCHES)}.")
        return 2
    # threads that sleep while they wait cost little, and much less where the machine is shared
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    for arch in arches:
        accuracy = measure(trained(arch, say=_say))
        _say(
            f"{arch}: {accuracy.pixels:.2%} of the pixels of held-out scenes are right "
            f"({accuracy.ground:.2%} are ground)"
        )
    return 0


def _draw(file: Path, size: str, seed: int) -> int:
    import cv2

    height, width = (int(side) for side in size.split("x"))
    if not cv2.imwrite(str(file), make_scene(height, width, seed)[0]):
        _say(f"'{file}' was not written.")
        return 2
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
