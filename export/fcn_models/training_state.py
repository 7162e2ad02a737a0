"""Save the state of a training, so that an interrupted one ends with the same weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from fcn_deploy.artifact.partial_files import partial_of
from fcn_deploy.errors import UnsupportedModelError
from fcn_models.foreign_errors import READ_ERRORS, first_line

__all__ = ["TrainingState", "random_numbers", "set_random_numbers"]

log = logging.getLogger(__name__)

_KEYS = frozenset({"plan", "step", "trained", "model", "optimizer", "schedule", "random"})
_HINT = "Remove the file to begin anew, or give the values that it was begun with."


@dataclass(frozen=True, slots=True)
class TrainingState:
    """All that changes from step to step.

    Attributes:
        settings: plain values that must be the same for the training to be the same.
    """

    settings: dict[str, Any]
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler

    def write(self, path: Path, step: int) -> None:
        """Write the state after `step` steps; the file is written whole or not at all.

        Random numbers are those of the CPU and of the network's own GPU.
        """
        rates = self.schedule.state_dict()
        state = {
            "plan": self.settings,
            "step": step,
            "trained": self._trained(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": {k: v for k, v in rates.items() if isinstance(v, int | float | list)},
            "random": random_numbers(self._device()),
        }
        with partial_of(path) as partial:
            torch.save(state, partial)

    def read(self, path: Path, *, at_most: int) -> int:
        """Take up what `write` wrote, and give the number of steps done.

        Args:
            at_most: as many steps as may have been done.

        Raises:
            UnsupportedModelError: the file holds no such state, or that of another training, or of
                more steps; the network is as it was.
        """
        state = _load(path)
        self._check(path, state)
        if state["step"] > at_most:
            raise UnsupportedModelError(
                f"'{path}' is the state after {state['step']} steps; {at_most} are asked for.",
                hint=_HINT,
            )
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            set_random_numbers(state["random"], self._device())
            self.model.load_state_dict(state["model"])
        except (LookupError, ValueError, TypeError, RuntimeError) as exc:
            raise _foreign(path, f"{type(exc).__name__}: {first_line(exc)}") from exc
        log.info("training goes on from step %d of '%s'", state["step"], path)
        return int(state["step"])

    def _check(self, path: Path, state: dict[str, Any]) -> None:
        stored = state["plan"]
        other = [
            f"{key} was {stored.get(key)} and is {self.settings.get(key)}"
            for key in self.settings | stored
            if stored.get(key) != self.settings.get(key)
        ]
        if other:
            raise UnsupportedModelError(
                f"'{path}' is the state of another training: {', '.join(other)}.", hint=_HINT
            )
        _compare(path, "tensors differ", _layout(state["model"]), _layout(self.model.state_dict()))
        _compare(
            path,
            "parameters are trained in only one of them",
            dict.fromkeys(state["trained"]),
            dict.fromkeys(self._trained()),
        )

    def _trained(self) -> list[str]:
        return [name for name, value in self.model.named_parameters() if value.requires_grad]

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def random_numbers(device: torch.device) -> dict[str, Tensor]:
    """Give the state of the CPU's random numbers, and of the device's own if it is a GPU.

    Returns:
        uint8 [bytes] by the name of the generator.
    """
    numbers = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        numbers["cuda"] = torch.cuda.get_rng_state(device)
    return numbers


def set_random_numbers(numbers: dict[str, Tensor], device: torch.device) -> None:
    """Set what `random_numbers` gave, uint8 [bytes] each; a GPU's only if they are among it."""
    torch.set_rng_state(numbers["cpu"])
    if device.type == "cuda" and "cuda" in numbers:
        torch.cuda.set_rng_state(numbers["cuda"], device)


def _load(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as exc:  # its text advises to run the file's code
        raise _foreign(path, "it holds more than tensors and plain values") from exc
    except READ_ERRORS as exc:
        raise _foreign(path, f"{type(exc).__name__}: {first_line(exc)}") from exc
    found = state.keys() if isinstance(state, dict) else ()
    if missing := sorted(_KEYS - set(found)):
        raise _foreign(path, f"there is no {', '.join(missing)} in it")
    return dict(state)


def _foreign(path: Path, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"'{path}' is damaged, or not the state of a training: {reason}.",
        hint="Remove it to begin anew, or name another file.",
    )


def _layout(state: Mapping[str, Any]) -> dict[str, Any]:
    return {k: (v.shape, v.dtype) for k, v in state.items() if isinstance(v, Tensor)}


def _compare(path: Path, what: str, kept: dict[str, Any], ours: dict[str, Any]) -> None:
    missing = object()
    names = sorted(key for key in kept | ours if kept.get(key, missing) != ours.get(key, missing))
    if names:
        raise UnsupportedModelError(
            f"'{path}' is the state of another network: {len(names)} {what}, the first is "
            f"'{names[0]}'.",
            hint=_HINT,
        )
