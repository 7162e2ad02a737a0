"""The exception tree is the documented one, and messages hold the hint."""

from __future__ import annotations

import pytest

from fcn_deploy import errors
from fcn_deploy.errors import FcnDeployError

FOREIGN_BASES = {
    "InputError": ValueError,
    "ArtifactMissingError": FileNotFoundError,
    "OutputExistsError": FileExistsError,
    "DeviceMemoryError": MemoryError,
    "BackendUnavailableError": ImportError,
    "SourceError": OSError,
    "SourceTimeoutError": TimeoutError,
    "SinkError": OSError,
}
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_carries_its_message_and_hint(kind: type[FcnDeployError]) -> None:
    error = kind("model.pt is empty.", hint="Copy it again.")

    assert isinstance(error, FcnDeployError)
    assert str(error) == "model.pt is empty. Copy it again."
    assert error.hint == "Copy it again."
    assert str(kind("model.pt is empty.")) == "model.pt is empty."


def test_each_error_is_drawn_in_the_tree() -> None:
    assert errors.__doc__ is not None
    for kind in KINDS:
        assert kind.__name__ in errors.__doc__


@pytest.mark.parametrize(("name", "base"), FOREIGN_BASES.items())
def test_errors_can_be_caught_as_the_standard_ones(name: str, base: type[Exception]) -> None:
    assert issubclass(getattr(errors, name), base)
