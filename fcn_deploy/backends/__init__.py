"""Inference libraries by name. Asking for one imports our module; only opening imports theirs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from fcn_deploy.backends.base import Backend

__all__ = ["backend_names", "get_backend"]

# in the order of preference where the user leaves the choice to us
_FACTORIES = {
    "openvino": ("fcn_deploy.backends.openvino", "OpenVinoBackend"),
    "onnxruntime": ("fcn_deploy.backends.onnxruntime", "OnnxRuntimeBackend"),
}


def backend_names() -> tuple[str, ...]:
    """Give the names of all backends, installed or not, the preferred first."""
    return tuple(_FACTORIES)


def get_backend(name: str) -> Backend:
    """Find a backend by name.

    Raises:
        ValueError: there is none of this name.
    """
    try:
        module, factory = _FACTORIES[name]
    except KeyError:
        raise ValueError(f"backend is {name!r}; expected one of {', '.join(_FACTORIES)}") from None
    return cast("Backend", getattr(import_module(module), factory)())
