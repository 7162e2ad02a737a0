"""Check early that the libraries an export needs are here, and name their versions."""

from __future__ import annotations

import platform
from importlib import metadata
from importlib.util import find_spec

from fcn_deploy.errors import BackendUnavailableError

__all__ = ["library_versions", "require_libraries"]

_INSTALL = "pip install 'fcn-deploy[export]'"
_NEEDED = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime")
_RECORDED = (
    "fcn-deploy",
    "torch",
    "torchvision",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "numpy",
)


def require_libraries() -> None:
    """Check that everything an export needs can be imported, without importing it.

    Raises:
        BackendUnavailableError: with the command that installs what is missing.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise BackendUnavailableError(
            f"an export needs {', '.join(missing)}, not installed here.",
            hint=_INSTALL,
        )


def library_versions() -> dict[str, str]:
    """Give the version of each library that took part and is installed, by name."""
    from fcn_deploy import __version__

    versions = {"python": platform.python_version()}
    for name in _RECORDED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    versions["fcn-deploy"] = __version__  # also where the source tree is not installed
    return versions
