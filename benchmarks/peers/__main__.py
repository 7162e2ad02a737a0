"""Let `python -m benchmarks.peers` run from a checkout: the folder around is no package."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

    from peers.cli import main

    sys.exit(main())
