"""Let `python -m benchmarks.research.scenes` run from a checkout."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

    from research.scenes.cli import main

    sys.exit(main())
