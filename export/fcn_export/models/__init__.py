"""From an image classifier to a network that labels every pixel (Long, Shelhamer, Darrell 2015)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fcn_export.models.backbones import Backbone
    from fcn_export.models.checkpoints import load_fcn, save_checkpoint
    from fcn_export.models.conversion import convolutionalize
    from fcn_export.models.data import FolderDataset, VocDataset
    from fcn_export.models.fcn import FCN
    from fcn_export.models.training import Recipe, fine_tune

__all__ = [
    "FCN",
    "Backbone",
    "FolderDataset",
    "Recipe",
    "VocDataset",
    "convolutionalize",
    "fine_tune",
    "load_fcn",
    "save_checkpoint",
]

_HOMES = {
    "Backbone": "backbones",
    "FCN": "fcn",
    "FolderDataset": "data",
    "Recipe": "training",
    "VocDataset": "data",
    "convolutionalize": "conversion",
    "fine_tune": "training",
    "load_fcn": "checkpoints",
    "save_checkpoint": "checkpoints",
}


def __getattr__(name: str) -> object:
    """Load a public name, and torch with it, when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
