"""Import ONNX Runtime and OpenVINO so that they report nothing about their user.

All modules import the two through this one. Both decide at import: ONNX Runtime 1.29 and later
keeps events for a collector in the user's cache folder, OpenVINO sends one to Google Analytics.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

__all__ = ["import_onnxruntime", "import_openvino", "silent_environment", "telemetry_settings"]

_ORT_SWITCH = "ORT_DISABLE_TELEMETRY"
_OPENVINO_REPORTER = "openvino_telemetry"

_lock = threading.Lock()


def import_onnxruntime() -> Any:
    """Import ONNX Runtime with its telemetry off.

    ``ORT_DISABLE_TELEMETRY=1`` is set for this process and those that it starts, unless the
    variable has a value already, which is then left as it is.

    Raises:
        ImportError: it is not installed, or does not load.
    """
    os.environ.setdefault(_ORT_SWITCH, "1")
    import onnxruntime

    return onnxruntime


def import_openvino() -> Any:
    """Import OpenVINO with its telemetry off, for as long as this process lives.

    OpenVINO has no switch but a file in the user's home folder. It takes a stub of its own where
    the package that reports is missing: it is, while OpenVINO is imported.

    Raises:
        ImportError: it is not installed, or does not load.
    """
    with _lock:
        if "openvino" not in sys.modules:
            _import_without(_OPENVINO_REPORTER)
    import openvino

    return openvino


def silent_environment() -> dict[str, str]:
    """Give the environment for a process that imports either library itself, without us.

    It looks like that of a CI job, in which OpenVINO reports nothing.
    """
    return {_ORT_SWITCH: "1", **os.environ, "CI": "true"}


def telemetry_settings() -> dict[str, str]:
    """Say of each library whether it reports: ``"off"``, or what the user has set."""
    value = os.environ.get(_ORT_SWITCH, "1")
    onnxruntime = "off" if value == "1" else f"as set: {_ORT_SWITCH}={value}"
    return {"onnxruntime": onnxruntime, "openvino": "off"}


def _import_without(reporter: str) -> None:
    before = sys.modules.get(reporter)
    sys.modules[reporter] = None  # type: ignore[assignment]  # Python's own mark of no such module
    try:
        import openvino  # noqa: F401  # for its side effect
    finally:
        if before is None:
            del sys.modules[reporter]
        else:
            sys.modules[reporter] = before
