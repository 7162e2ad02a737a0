"""Run a segmentation network exported by fcn-export: frames in, labels out."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fcn_deploy.errors import FcnDeployError
    from fcn_deploy.names import Precision
    from fcn_deploy.segmenter import Segmentation, Segmenter
    from fcn_deploy.video.pipeline import VideoPipeline

__version__ = "0.1.0"

__all__ = [
    "FcnDeployError",
    "Precision",
    "Segmentation",
    "Segmenter",
    "VideoPipeline",
    "__version__",
]

_HOMES = {
    "FcnDeployError": "fcn_deploy.errors",
    "Precision": "fcn_deploy.names",
    "Segmentation": "fcn_deploy.segmenter",
    "Segmenter": "fcn_deploy.segmenter",
    "VideoPipeline": "fcn_deploy.video.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fcn_deploy' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
