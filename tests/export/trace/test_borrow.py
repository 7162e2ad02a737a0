"""A module that is lent comes back as it was, whatever happens meanwhile."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from fcn_deploy.errors import UnsupportedModelError
from fcn_export.trace.borrow import borrowed
from tests.export.tiny_networks import HalfResolution, seeded


def states(module: nn.Module) -> list[tuple[str, int, torch.dtype, bool]]:
    """Name, address, type and gradient of every tensor."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return [(name, t.data_ptr(), t.dtype, t.requires_grad) for name, t in tensors]


def use_and_fail(module: HalfResolution) -> None:
    """Borrow, change what can be changed, and fail."""
    with borrowed(module) as lent:
        assert not any(part.training for part in lent.modules())
        assert {t.dtype for t in lent.parameters()} == {torch.float32}
        assert not torch.is_grad_enabled()
        torch.rand(3)
        random.random()
        torch.as_tensor(module.norm.running_mean).add_(1)
        raise RuntimeError("inside")


def test_modes_tensors_and_random_states_are_restored_after_an_error() -> None:
    module = seeded(HalfResolution).train()
    module.norm.eval()
    module.classifier.half()
    before, modes = states(module), [part.training for part in module.modules()]
    torch_state, python_state = torch.get_rng_state(), random.getstate()

    with pytest.raises(RuntimeError, match="inside"):
        use_and_fail(module)

    assert states(module) == before
    assert [part.training for part in module.modules()] == modes
    assert torch.as_tensor(module.norm.running_mean).abs().sum() == 0
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert torch.is_grad_enabled()


def test_float32_on_the_cpu_is_lent_without_a_copy() -> None:
    module = seeded(HalfResolution)

    with borrowed(module) as lent:
        addresses = [parameter.data_ptr() for parameter in lent.parameters()]

    assert addresses == [parameter.data_ptr() for parameter in module.parameters()]


def test_hooks_and_tied_weights_stay() -> None:
    module = seeded(HalfResolution)
    module.twin = module.stem
    calls: list[str] = []
    module.stem.register_forward_hook(lambda *_: calls.append("stem"))

    with borrowed(module) as lent:
        lent(torch.zeros(1, 3, 8, 8))

    assert calls == ["stem"]
    assert module.twin.weight is module.stem.weight
    assert len(module.stem._forward_hooks) == 1


def test_a_module_without_numbers_is_refused() -> None:
    module = HalfResolution().to("meta")

    with pytest.raises(UnsupportedModelError, match="is on the device 'meta'"), borrowed(module):
        pass
