"""Put what `make demo` measured into README.md, between its two marks, and the picture beside it.

python scripts/write_readme.py            # `make readme`, after `make demo`
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cv2

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "build" / "demo"
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "brain_overlay.png"
BEGIN = "<!-- written by `make readme` from what `make demo` measured: begin -->\n"
END = "<!-- end -->\n"
SCALE = 2  # slices are small


def main() -> int:
    """Run the command; give its exit status."""
    report = DEMO / "bench.json"
    if not report.exists():
        sys.stderr.write(f"'{report}' is not there; run `make demo` first.\n")
        return 2
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        sys.stderr.write(f"'{README}' has no place for the table: {BEGIN.strip()} … {END}")
        return 2
    table = "\n".join(table_of(json.loads(report.read_text(encoding="utf-8"))))
    README.write_text(f"{before}{BEGIN}{table}\n{END}{after}", encoding="utf-8")
    write_picture()
    print(f"wrote {README} and {PICTURE}")
    return 0


def table_of(report: dict[str, Any]) -> list[str]:
    """Give the frame rows as Markdown, and what they were measured with."""
    environment = report["environment"]
    libraries = ", ".join(
        f"{name} {environment['libraries'][name]}" for name in ("torch", "openvino", "onnxruntime")
    )
    rows = [row for row in report["rows"] if row["scope"] == "frame"]
    return [
        "",
        "| scenario | backend | precision | mode | p50 ms | fps | speed-up vs eager [95 %] "
        "| labels as PyTorch | mIoU | verdict |",
        "|---|---|---|---|--:|--:|--:|--:|--:|---|",
        *map(line_of, rows),
        "",
        f"{environment['cpu']}, {environment['cores']} cores "
        f"({', '.join(environment['cpu_features'])}); {libraries}; "
        f"{rows[0]['height']}x{rows[0]['width']} px.",
        "",
    ]


def line_of(row: dict[str, Any]) -> str:
    speedup = row["speedup"]
    if speedup is None:
        faster = ""
    else:
        low, high = speedup["ci95"]
        faster = f"{speedup['value']:.2f}x [{low:.2f}, {high:.2f}]"
    fidelity = row["fidelity"]
    cells = (
        *(row["scenario"], row["backend"], row["precision"], row["mode"]),
        f"{row['latency_ms']['p50']:.1f}",
        f"{row['throughput_fps']:.1f}",
        faster,
        f"{fidelity['label_agreement']:.3%}",
        f"{fidelity['miou']:.4f}",
        row["verdict"],
    )
    return "| " + " | ".join(cells) + " |"


def write_picture() -> None:
    """Set the demo's slice beside its overlay, twice as large."""
    (overlay,) = (DEMO / "overlay").glob("*.png")
    slices = [cv2.imread(str(path)) for path in (DEMO / "brain" / "images" / overlay.name, overlay)]
    side_by_side = cv2.hconcat([picture for picture in slices if picture is not None])
    larger = cv2.resize(side_by_side, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_NEAREST)
    PICTURE.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(PICTURE), larger)


if __name__ == "__main__":
    sys.exit(main())
