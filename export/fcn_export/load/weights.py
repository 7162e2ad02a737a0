"""Put stored weights into a network, and check that they are numbers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from fcn_deploy.errors import NonFiniteWeightsError, UnsupportedModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["check_finite_weights", "fill_weights"]

_LISTED = 4
_METADATA = "_metadata"  # where torch keeps the versions of the layers
_COUNTER = "num_batches_tracked"
# the usual names of the network in a training's module, and those of its averaged copies
_USUAL_PREFIXES = ("model.", "net.", "network.", "module.", "student.", "segmentor.")
_TRAINING_WORDS = frozenset(
    ("criterion", "loss", "losses", "metric", "metrics", "iou", "miou", "dice", "accuracy")
)
_AVERAGED = ("ema", "teacher", "averaged", "momentum", "shadow", "swa")


def fill_weights(
    module: nn.Module, forms: Sequence[Mapping[str, Tensor]], *, arch: str, source: str
) -> tuple[str, ...]:
    """Copy the weights into the module, all of them and nothing else.

    Where a training's state holds the network under a prefix, such as ``model.``, what lies beside
    it, such as the weights of a loss, is left alone.

    Args:
        module: written to, also when this fails; it keeps its own dtypes.
        forms: the state with more and more prefixes removed; the one that fits best is taken.
        arch, source: for messages.

    Returns:
        The names that lie beside the network.

    Raises:
        UnsupportedModelError: weights are missing, left over or of another shape.
    """
    expected = module.state_dict()
    whole = max(forms, key=lambda form: len(expected.keys() & form.keys()))
    if expected.keys() - whole.keys():
        state, beside = _under_prefix(expected, whole, arch=arch, source=source)
    else:
        beside = _of_training(expected, whole)
        state = _without(whole, beside)
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
    return beside


def _under_prefix(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], *, arch: str, source: str
) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """Give the part of a state that holds all of a network's names under a prefix, and the rest.

    Where there is none, gives the state as it is. Averaged copies count where nothing else does.
    """
    # layers before torch 0.4.1 count no batches
    wanted = [name for name in expected if not name.endswith(_COUNTER)]
    if not wanted:
        return state, ()
    probe = max(wanted, key=len)
    prefixes = [
        prefix
        for prefix in dict.fromkeys(
            name.removesuffix(probe) for name in state if name.endswith(f".{probe}")
        )
        if all(prefix + name in state for name in wanted)
    ]
    plain = [x for x in prefixes if not any(word in x.lower() for word in _AVERAGED)] or prefixes
    if not plain:
        return state, ()
    known = [prefix for prefix in _USUAL_PREFIXES if prefix in plain]
    if len(plain) > 1 and not known:
        raise _misfit(arch, source, f"it holds such a network {len(plain)} times: {_some(plain)}")
    prefix = (known or plain)[0]
    inside = [name for name in state if name.startswith(prefix)]
    under = OrderedDict((name.removeprefix(prefix), state[name]) for name in inside)
    versions = getattr(state, _METADATA, {})
    kept = {k.removeprefix(prefix): v for k, v in versions.items() if k.startswith(prefix)}
    setattr(under, _METADATA, kept)
    return under, tuple(name for name in state if not name.startswith(prefix))


def _of_training(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Give the names of losses' and metrics' tensors, which are no part of the network."""
    parts = {name.partition(".")[0] for name in expected}
    return tuple(
        name
        for name in state
        if (part := name.partition(".")[0]) not in parts
        and "." in name
        and not _TRAINING_WORDS.isdisjoint(part.lower().split("_"))
    )


def _without(state: Mapping[str, Tensor], names: tuple[str, ...]) -> Mapping[str, Tensor]:
    if not names:
        return state
    kept = OrderedDict((name, value) for name, value in state.items() if name not in names)
    setattr(kept, _METADATA, getattr(state, _METADATA, {}))
    return kept


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
