"""Resolve everything that CI installs, newest versions first, and pin it in constraints.txt.

Nothing is installed: pip resolves with --dry-run and reports what it would install. Run it as
`make constraints`, then `make test`, and commit the file if the tests pass.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = """\
# Everything that CI installs, pinned so that a checkout gives the same environment tomorrow.
# Written by `make constraints` on {system} {machine} with Python {python}; do not edit by hand.
# The ranges that users get stand in pyproject.toml.
"""


def main() -> int:
    resolve = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"),
        *("--report", "-", "--editable", f"{ROOT}[all]", "--group", f"{ROOT}/pyproject.toml:dev"),
    ]
    report = json.loads(subprocess.run(resolve, check=True, stdout=subprocess.PIPE).stdout)
    packages = [item["metadata"] for item in report["install"]]
    pins = sorted(
        (
            f"{package['name']}=={package['version']}"
            for package in packages
            if package["name"] != "fcn-deploy"
        ),
        key=str.lower,
    )
    header = HEADER.format(
        system=platform.system(), machine=platform.machine(), python=platform.python_version()
    )
    (ROOT / "constraints.txt").write_text(header + "\n".join(pins) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
