"""Turn a classifier into a network that labels every pixel (Long, Shelhamer, Darrell 2015)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fcn_models.backbones import Backbone
    from fcn_models.checkpoints import save_checkpoint
    from fcn_models.data import FolderDataset, VocDataset
    from fcn_models.fcn import FCN
    from fcn_models.linear_to_conv import convolutionalize
    from fcn_models.training import Recipe, fine_tune

__all__ = [
    "FCN",
    "Backbone",
    "FolderDataset",
    "Recipe",
    "VocDataset",
    "convolutionalize",
    "fine_tune",
    "save_checkpoint",
]

_HOMES = {
    "Backbone": "backbones",
    "FCN": "fcn",
    "FolderDataset": "data",
    "Recipe": "training",
    "VocDataset": "data",
    "convolutionalize": "linear_to_conv",
    "fine_tune": "training",
    "save_checkpoint": "checkpoints",
}


def __getattr__(name: str) -> object:
    """Load a public name, and torch with it, when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
