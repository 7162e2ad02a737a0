"""Run all tests in two processes at once, as there are two cores at least, and show both outputs.

Arguments go to both pytests. Exits with 0 where both passed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BESIDE = ("tests/deploy", "tests/bench", "tests/models")
"""About half of the time; every other folder and file of tests is the other half."""


def main(arguments: list[str]) -> int:
    """Run the tests; give the exit status."""
    others = sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").iterdir()
        if str(path.relative_to(ROOT)) not in BESIDE
        and (path.name.startswith("test_") or (path.is_dir() and any(path.glob("test_*.py"))))
    )
    pytest = [sys.executable, "-m", "pytest", *arguments]
    with tempfile.TemporaryFile("w+") as log:
        beside = subprocess.Popen(
            [*pytest, *BESIDE], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            status = subprocess.run([*pytest, *others], cwd=ROOT, check=False).returncode
            print(f"\n{' '.join(BESIDE)}, run beside:", flush=True)
            status = beside.wait() or status
        except BaseException:
            beside.terminate()
            beside.wait()
            raise
        finally:
            log.seek(0)
            print(log.read(), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
