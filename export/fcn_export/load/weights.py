"""Put stored weights into a network, and check that they are numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from fcn_deploy.errors import NonFiniteWeightsError, UnsupportedModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["check_finite_weights", "fill_weights"]

_LISTED = 4


def fill_weights(
    module: nn.Module, forms: Sequence[Mapping[str, Tensor]], *, arch: str, source: str
) -> None:
    """Copy the weights into the module, all of them and nothing else.

    Args:
        module: written to, also when this fails.
        forms: the state with more and more prefixes removed; the one that fits best is taken.
        arch, source: for messages.

    Raises:
        UnsupportedModelError: weights are missing, left over or of another shape.
    """
    expected = module.state_dict()
    state = max(forms, key=lambda form: len(expected.keys() & form.keys()))
    try:
        left = module.load_state_dict(state, strict=False)  # copies, into the module's dtype
    except (RuntimeError, KeyError, TypeError, AttributeError) as exc:
        other = [
            f"{name} is {list(state[name].shape)}, expected {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in state and tuple(state[name].shape) != tuple(tensor.shape)
        ]
        reason = f"{len(other)} of another shape: {_some(other)}" if other else str(exc)
        raise _misfit(arch, source, reason) from exc
    reasons = [
        f"{len(names)} {what}: {_some(names)}"
        for what, names in (("missing", left.missing_keys), ("left over", left.unexpected_keys))
        if names
    ]
    if reasons:
        raise _misfit(arch, source, "; ".join(reasons))


def _misfit(arch: str, source: str, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the weights of '{source}' do not fit {arch}: {reason}.",
        hint="Name the network they were trained with: --arch, --arch-arg key=value.",
    )


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f", and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return ", ".join(listed[:_LISTED]) + more


def check_finite_weights(module: nn.Module) -> None:
    """Refuse a network with NaN or infinity in a parameter or buffer.

    Takes memory for one tensor at a time.

    Raises:
        NonFiniteWeightsError: with the first such tensor's name, count and index.
    """
    import torch

    bad_tensors = 0
    first: str | None = None
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        bad = torch.isfinite(tensor.detach()).logical_not_()
        count = int(bad.sum())
        if count == 0:
            continue
        bad_tensors += 1
        if first is None:
            position = int(bad.flatten().to(torch.uint8).argmax())
            index = [int(x) for x in torch.unravel_index(torch.tensor(position), bad.shape)]
            value = tensor.detach().flatten()[position].item()
            first = (
                f"weight '{name}' {list(tensor.shape)} holds {count} values that are not finite, "
                f"the first at {index} ({value})"
            )
    if first is not None:
        others = f"; so do {bad_tensors - 1} more tensors" if bad_tensors > 1 else ""
        raise NonFiniteWeightsError(
            f"{first}{others}.",
            hint="Take an earlier checkpoint: the training diverged, or the file is damaged.",
        )
