"""Save and load an FCN: its weights, and the facts needed to build and to run it.

The facts are one JSON text: beside the state dict in a `.pt`, in the header of a `.safetensors`.
Both are read without running anything of the file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcn_deploy.artifact.manifest import ClassInfo, Preprocess
from fcn_deploy.artifact.partial_files import partial_of
from fcn_deploy.errors import UnsupportedModelError
from fcn_models.checkpoint_info import METADATA_KEY, CheckpointInfo

if TYPE_CHECKING:
    from torch import Tensor

    from fcn_models.fcn import FCN

__all__ = [
    "build_fcn",
    "describe_fcn",
    "family_name",
    "recognise_fcn",
    "save_checkpoint",
]


def save_checkpoint(
    model: FCN,
    path: str | os.PathLike[str],
    *,
    preprocess: Preprocess,
    classes: tuple[ClassInfo, ...] | None = None,
) -> None:
    """Write weights and facts, so that ``fcn-export FILE`` needs no option.

    The file is written whole or not at all.

    Args:
        model: built on a backbone that is known by name; its weights are stored as they are.
        path: ends in ``.pt``, ``.pth`` or ``.safetensors``.
        preprocess: what the network was trained with.
        classes: one for each class, in the order of the scores.

    Raises:
        UnsupportedModelError: the backbone is not known by name, the ending is none of those, or
            the classes do not fit.
    """
    target = Path(path)
    if classes is not None and len(classes) != max(2, model.num_classes):
        raise UnsupportedModelError(
            f"{len(classes)} classes are named, but the network scores {model.num_classes}.",
            hint="Name each class once, in the order of the scores.",
        )
    info = CheckpointInfo(architecture=describe_fcn(model), preprocess=preprocess, classes=classes)
    text = info.to_json()
    state = {key: tensor.detach().contiguous() for key, tensor in model.state_dict().items()}
    if target.suffix not in (".pt", ".pth", ".safetensors"):
        raise UnsupportedModelError(
            f"'{target}' ends in '{target.suffix}'; expected .pt, .pth or .safetensors."
        )
    with partial_of(target) as partial:
        if target.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(state, partial, metadata={METADATA_KEY: text, "format": "pt"})
        else:
            import torch

            torch.save({"state_dict": state, METADATA_KEY: text}, partial)


def describe_fcn(model: FCN) -> dict[str, Any]:
    """Give the plain values from which `build_fcn` builds the same network.

    Raises:
        UnsupportedModelError: the backbone is a module that is not known by name.
    """
    spec = model.backbone_spec
    if spec is None:
        raise UnsupportedModelError(
            "the network's backbone is a classifier that is not known by name, so that it cannot "
            "be built from a description.",
            hint="Save model.state_dict(), and export it with --arch package.module:factory.",
        )
    return {
        "family": "fcn",
        "variant": model.variant,
        "num_classes": model.num_classes,
        "upsampling": model.upsampling,
        "geometry": model.geometry,
        "backbone": asdict(spec),
    }


def family_name(architecture: Mapping[str, Any]) -> str:
    """Name a described network, such as ``fcn8s_vgg16``.

    Raises:
        UnsupportedModelError: the description is malformed.
    """
    try:
        return f"fcn{architecture['variant']}_{architecture['backbone']['name']}"
    except (KeyError, TypeError) as exc:
        raise UnsupportedModelError(
            f"the checkpoint's description of its network is malformed: {exc!r}."
        ) from exc


def build_fcn(architecture: Mapping[str, Any]) -> FCN:
    """Build a network as described, with random weights.

    Raises:
        UnsupportedModelError: the description is of another family, or a value is not possible.
    """
    from fcn_models.backbones import Backbone
    from fcn_models.fcn import FCN

    try:
        if architecture["family"] != "fcn":
            raise UnsupportedModelError(
                f"the family {architecture['family']!r} is not known; expected 'fcn'."
            )
        return FCN(
            Backbone(**architecture["backbone"]),
            architecture["variant"],
            int(architecture["num_classes"]),
            upsampling=architecture["upsampling"],
            geometry=architecture["geometry"],
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise UnsupportedModelError(
            f"the checkpoint's description of its network is malformed: {exc!r}."
        ) from exc


def recognise_fcn(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Tell from weights alone which network of this family they belong to; None for others.

    Args:
        state: weights by name, of any shapes and dtypes, prefixes of wrappers removed.
    """
    from fcn_models.recognition import recognise_backbone
    from fcn_models.trunk import PAPER_PADDING_PX

    score, padding = state.get("score.weight"), state.get("padding_px")
    if score is None or padding is None or score.dim() != 4:
        return None
    backbone = recognise_backbone(
        {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    )
    if backbone is None:
        return None
    strides = [stride for stride in (8, 16) if f"score_{stride}.weight" in state]
    finest = min(strides, default=32)
    enlarge = state.get(f"up_{finest}.weight")
    if "up.weight" not in state:
        upsampling = "interpolate"
    elif enlarge is None:  # one enlargement alone is never learned
        upsampling = "learned"
    else:
        upsampling = "learned" if enlarge.shape[1] == score.shape[0] else "fixed"
    paper = not padding.is_meta and int(padding) == PAPER_PADDING_PX
    return {
        "family": "fcn",
        "variant": f"{finest}s",
        "num_classes": score.shape[0],
        "upsampling": upsampling,
        "geometry": "paper" if paper else "aligned",
        "backbone": asdict(backbone) | {"transform_input": "transforms_input" in state},
    }
