"""A network of fcn_models from its checkpoint, ready to be trained further."""

from __future__ import annotations

import os

from fcn_deploy.errors import UnsupportedModelError
from fcn_export.load.torch_model import load_model
from fcn_models.fcn import FCN

__all__ = ["load_fcn"]


def load_fcn(path: str | os.PathLike[str]) -> FCN:
    """Load a network of this family from its checkpoint, in evaluation mode, on the CPU.

    All of its weights can be trained.

    Raises:
        ArtifactMissingError, UntrustedArtifactError, UnsupportedModelError: as `load_model` says;
            the last also where the file holds another network.
    """
    module = load_model(path).module
    if not isinstance(module, FCN):
        raise UnsupportedModelError(f"'{path}' holds a {type(module).__name__}, not an FCN.")
    return module.requires_grad_()
