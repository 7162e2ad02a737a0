"""Turn a trained PyTorch segmentation network into an artifact that fcn_deploy runs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fcn_export.engine import BuildConfig, build_engine
    from fcn_export.export import ExportReport, export_model
    from fcn_export.load.fcn_checkpoint import load_fcn
    from fcn_export.load.torch_model import LoadedModel, load_model
    from fcn_export.request import ExportRequest

__all__ = [
    "BuildConfig",
    "ExportReport",
    "ExportRequest",
    "LoadedModel",
    "build_engine",
    "export_model",
    "load_fcn",
    "load_model",
]

_HOMES = {
    "BuildConfig": "fcn_export.engine",
    "build_engine": "fcn_export.engine",
    "ExportReport": "fcn_export.export",
    "ExportRequest": "fcn_export.request",
    "LoadedModel": "fcn_export.load.torch_model",
    "export_model": "fcn_export.export",
    "load_fcn": "fcn_export.load.fcn_checkpoint",
    "load_model": "fcn_export.load.torch_model",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fcn_export' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
