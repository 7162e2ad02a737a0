"""Inference libraries by name. Asking for one imports our module; only opening imports theirs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from fcn_deploy.backends.base import Backend
    from fcn_deploy.backends.execution_providers import ProviderList

__all__ = ["backend_names", "get_backend", "plan_backend_names"]

# in the order of preference where the user leaves the choice to us
_FACTORIES = {
    "openvino": ("fcn_deploy.backends.openvino", "OpenVinoBackend"),
    "onnxruntime": ("fcn_deploy.backends.onnxruntime", "OnnxRuntimeBackend"),
}

# these run plans, which must be built for such a GPU first
_PLAN_FACTORIES = {
    "tensorrt": ("fcn_deploy.backends.tensorrt.backend", "TensorRtBackend"),
    "tensorrt-rtx": ("fcn_deploy.backends.tensorrt.backend", "TensorRtRtxBackend"),
}


def backend_names() -> tuple[str, ...]:
    """Give the names of the backends that run graphs, installed or not, the preferred first."""
    return tuple(_FACTORIES)


def plan_backend_names() -> tuple[str, ...]:
    """Give the names of the backends that run engine plans, on NVIDIA GPUs."""
    return tuple(_PLAN_FACTORIES)


def get_backend(name: str, *, providers: ProviderList | None = None) -> Backend:
    """Find a backend by name.

    Args:
        providers: execution providers for ``"onnxruntime"``, names or (name, options), the
            preferred first; None means its CPU provider.

    Raises:
        ValueError: there is none of this name, or providers were given to one that has none.
    """
    if providers is not None:
        if name != "onnxruntime":
            raise ValueError(f"providers are for the backend 'onnxruntime'; this is {name!r}")
        from fcn_deploy.backends.execution_providers import provider_requests
        from fcn_deploy.backends.onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(provider_requests(providers))
    try:
        module, factory = (_FACTORIES | _PLAN_FACTORIES)[name]
    except KeyError:
        known = ", ".join(_FACTORIES | _PLAN_FACTORIES)
        raise ValueError(f"backend is {name!r}; expected one of {known}") from None
    return cast("Backend", getattr(import_module(module), factory)())
