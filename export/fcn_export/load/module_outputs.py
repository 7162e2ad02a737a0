"""Find the class scores among what a network gives out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fcn_deploy.errors import UnsupportedModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["DEFAULT_OUTPUT_KEY", "probe", "select_output"]

DEFAULT_OUTPUT_KEY = "out"
"""What torchvision calls the scores of the main head."""


def select_output(output: Any, key: str | None = None) -> Tensor:
    """Pick the class scores, a tensor [N, C, h, w] of whichever dtype the network gives.

    A tensor [N, h, w], of a single class or of class ids, is given the axis of the classes; it is
    taken only where it is the network's one tensor, or named.

    Args:
        output: a tensor, or a mapping, tuple, list, named tuple or dataclass of several.
        key: name in a mapping, field name, or position as text (``"0"``). None takes ``out``,
            or else the only tensor of four dimensions.

    Raises:
        UnsupportedModelError: there is no such output, or no single candidate; lists all.
    """
    import torch

    if isinstance(output, torch.Tensor):
        if key is not None:
            raise UnsupportedModelError(
                f"the network gives one tensor {list(output.shape)}, none named '{key}'.",
                hint="Leave --output-key out.",
            )
        if output.dim() not in (3, 4):
            raise _no_scores({"output": output}, "it must be [N, classes, height, width]")
        return _with_classes(output)
    named = _named_outputs(output)
    if key is not None:
        if key not in named:
            raise _no_scores(named, f"none is named '{key}'")
        chosen = named[key]
        if not isinstance(chosen, torch.Tensor) or chosen.dim() not in (3, 4):
            raise _no_scores(named, f"'{key}' is not [N, classes, height, width]")
        return _with_classes(chosen)
    images = {k: v for k, v in named.items() if isinstance(v, torch.Tensor) and v.dim() == 4}
    if DEFAULT_OUTPUT_KEY in images:
        return images[DEFAULT_OUTPUT_KEY]
    if len(images) != 1:
        raise _no_scores(named, f"{len(images)} of them are [N, classes, height, width]")
    return next(iter(images.values()))


def _with_classes(output: Tensor) -> Tensor:
    return output.unsqueeze(1) if output.dim() == 3 else output  # [N, 1, h, w]


def _named_outputs(output: Any) -> dict[str, Any]:
    """Give a name to each of several outputs."""
    if isinstance(output, Mapping):
        return {str(key): value for key, value in output.items()}
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return dict(zip(output._fields, output, strict=True))
    if isinstance(output, tuple | list):
        return {str(position): value for position, value in enumerate(output)}
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {x.name: getattr(output, x.name) for x in dataclasses.fields(output)}
    raise UnsupportedModelError(
        f"the network gives a {type(output).__name__}; "
        "expected a tensor, or a mapping, tuple, list or dataclass of tensors.",
        hint="Wrap it in a module whose forward returns the scores, and name that with --arch.",
    )


def _no_scores(named: Mapping[str, Any], reason: str) -> UnsupportedModelError:
    listed = ", ".join(f"{key} {_shape_text(value)}" for key, value in named.items()) or "nothing"
    return UnsupportedModelError(
        f"the class scores were not found among the network's outputs ({listed}): {reason}.",
        hint="Choose one with --output-key (output_key=).",
    )


def _shape_text(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"({type(value).__name__})" if shape is None else str(list(shape))


def probe(
    module: nn.Module,
    *,
    channels: int = 3,
    size: tuple[int, int] = (64, 64),
    output_key: str | None = None,
) -> tuple[int, int, int, int]:
    """Run the network once on zeros and give its scores' shape [N, C, h, w].

    Args:
        module: on the CPU, in fp32; its mode is left as it is.
        size: height and width in pixels.

    Raises:
        UnsupportedModelError: the network fails on such an input (its error is chained), or
            gives no scores.
    """
    import torch

    height, width = size
    image = torch.zeros(1, channels, height, width)  # [1, channels, H, W]
    try:
        with torch.no_grad():
            output = module(image)
    except Exception as exc:  # a network is the user's code and may raise anything
        reason = (str(exc).strip().splitlines() or ["no reason given"])[-1]
        raise UnsupportedModelError(
            f"the network fails on a float32 image {list(image.shape)}: "
            f"{type(exc).__name__}: {reason}",
            hint="It must take [N, channels, height, width]; --color gray gives one channel, "
            "--min-size and --size change the sizes tried.",
        ) from exc
    n, classes, score_height, score_width = select_output(output, output_key).shape
    return n, classes, score_height, score_width
