"""Collect what each step of make gpu-check found or how it failed, as JSON and as a table."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["GpuReport"]


@dataclass
class GpuReport:
    """Runs steps and notes their results; a step that fails does not stop the next.

    Attributes:
        folder: of `report.json` and `report.md`, which are written after each step.
        say: is told of each step's begin and end.
        steps: one entry for each, with `status` ok, failed or skipped.
    """

    folder: Path
    say: Callable[[str], None] = lambda line: None
    steps: list[dict[str, Any]] = field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        """Names of the steps that failed."""
        return [step["name"] for step in self.steps if step["status"] == "failed"]

    def step(self, name: str, work: Callable[[], dict[str, Any]]) -> bool:
        """Do one thing and note what it found, or how it failed; says whether it went well.

        Args:
            work: gives what it found, as JSON takes it; with the key `skipped`, why it did nothing.
        """
        self.say(name)
        start = time.perf_counter()
        entry: dict[str, Any] = {"name": name, "status": "ok"}
        try:
            entry["found"] = work()
            if "skipped" in entry["found"]:
                entry["status"] = "skipped"
        except Exception as error:  # noqa: BLE001 - whatever it is, the report has it
            entry["status"] = "failed"
            entry["error"] = f"{type(error).__name__}: {error}"
            entry["traceback"] = traceback.format_exc()
        entry["seconds"] = round(time.perf_counter() - start, 3)
        self.steps.append(entry)
        self.say(f"  {entry['status']}: {entry.get('error') or json.dumps(entry['found'])[:300]}")
        self._write()
        return bool(entry["status"] == "ok")

    def _write(self) -> None:
        document = {"schema_version": 1, "steps": self.steps}
        (self.folder / "report.json").write_text(json.dumps(document, indent=2, sort_keys=True))
        lines = ["# GPU check", "", "| step | status | seconds | found |", "|---|---|---|---|"]
        for step in self.steps:
            found = step.get("error") or json.dumps(step["found"])
            text = " ".join(str(found).replace("|", "\\|").split())[:400]
            lines.append(f"| {step['name']} | {step['status']} | {step['seconds']} | {text} |")
        (self.folder / "report.md").write_text("\n".join(lines) + "\n")
