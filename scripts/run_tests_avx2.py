"""Run the tests marked cpu_abilities as on an x86 CPU that has AVX2 and nothing newer.

Arguments go to pytest. Says so and exits with 0 where the CPU has no more than AVX2 anyway.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from fcn_deploy.machine import describe_machine

ROOT = Path(__file__).resolve().parent.parent
# oneDNN reads the first, in OpenVINO and in PyTorch, and OpenVINO's own kernels the second; they
# must say the same (benchmarks/NOTES.md)
LIMITS = {"ONEDNN_MAX_CPU_ISA": "AVX2", "OV_CPU_MAX_ISA": "AVX2"}


def main(arguments: list[str]) -> int:
    """Run the tests; give the exit status."""
    present = [feature.name for feature in describe_machine().features if feature.present]
    if "AVX2" not in present:
        print("Not run: this CPU has no AVX2, or the system does not say.")
        return 0
    newer = [name for name in present if name != "AVX2"]
    if not newer:
        print("Not run: this CPU has nothing beyond AVX2, so `make test` has run them so already.")
        return 0
    print(f"As without {', '.join(newer)}: {' '.join(f'{k}={v}' for k, v in LIMITS.items())}")
    pytest = [sys.executable, "-m", "pytest", "-m", "cpu_abilities", *arguments]
    return subprocess.run(pytest, cwd=ROOT, env={**os.environ, **LIMITS}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
