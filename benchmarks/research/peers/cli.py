"""Measure this project against its peers and write the tables into benchmarks/RESULTS.md.

python -m benchmarks.research.peers                    everything, half an hour
python -m benchmarks.research.peers --section lraspp head  only these; the others stay as they are
python -m benchmarks.research.peers --prepare              train and export only
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fcn_deploy.errors import FcnDeployError
from fcn_deploy.machine import usable_cores
from research.peers.results import write_section
from research.peers.sections import SECTIONS, Setting, prepare

__all__ = ["main"]

_RESULTS = Path(__file__).resolve().parents[2] / "RESULTS.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; give its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.research.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--section", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--prepare", action="store_true", help="train and export, measure nothing")
    parser.add_argument("--rounds", type=int, default=10, help="of frames below a second")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of every row")
    parser.add_argument("--output", type=Path, default=_RESULTS, metavar="FILE")
    options = parser.parse_args(arguments)
    setting = Setting(threads=options.threads, rounds=options.rounds, say=_say)
    try:
        if options.prepare:
            prepare(setting)
            return 0
        for name in options.section:
            _say(f"section {name}")
            text = SECTIONS[name](setting)
            write_section(options.output, name, text)
            sys.stdout.write(f"\n{text}\n\n")
            sys.stdout.flush()
    except FcnDeployError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    _say(f"written to {options.output}")
    return 0


def _say(line: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stderr.flush()
