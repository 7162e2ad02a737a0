"""What an execution context is told, and what it is not allowed to keep to itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fcn_deploy.backends.tensorrt.execution import BoundContext
from fcn_deploy.errors import ExecutionError, ShapeError
from tests.deploy.backends.tensorrt.worlds import World, make_world


@pytest.fixture
def world() -> Iterator[World]:
    made = make_world()
    yield made
    made.close()


@pytest.fixture
def raw(world: World) -> Iterator[Any]:
    with world.device.current():
        yield world.engine.new_context(False)


@pytest.fixture
def stream(world: World) -> Iterator[int]:
    with world.device.current():
        made = world.device.stream()
        yield made
        world.driver.synchronize_stream(made)
        world.device.release(made)


@pytest.fixture
def bound(world: World, raw: Any) -> BoundContext:
    return BoundContext(raw, world.engine.library, outputs=("labels",), name="model.plan")


def test_a_change_of_profile_sets_the_same_shapes_again(
    bound: BoundContext, raw: Any, stream: int
) -> None:
    shapes = {"image": (1, 20, 20, 3)}  # both profiles take it

    for profile in (0, 1, 0):
        assert bound.set_shapes(profile, shapes, stream) == {"labels": (1, 20, 20)}
        assert raw.active_optimization_profile == profile
        assert raw.infer_shapes() == []


def test_a_shape_that_tensorrt_refuses_is_an_error_with_its_reason(
    bound: BoundContext, stream: int
) -> None:
    with pytest.raises(ShapeError, match=r"refuses \[1, 90, 90, 3\] .* in profile 0: Set dimens"):
        bound.set_shapes(0, {"image": (1, 90, 90, 3)}, stream)


def test_a_profile_that_tensorrt_refuses_is_an_error(bound: BoundContext, stream: int) -> None:
    with pytest.raises(ExecutionError, match="cannot change to profile 7: profile index 7 is out"):
        bound.set_shapes(7, {"image": (1, 20, 20, 3)}, stream)


def test_an_input_without_a_shape_is_an_error(
    bound: BoundContext, raw: Any, stream: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw, "infer_shapes", lambda: ["other"])

    with pytest.raises(ExecutionError, match=r"cannot tell its outputs' shapes without \['other'"):
        bound.set_shapes(0, {"image": (1, 20, 20, 3)}, stream)


def test_an_output_whose_shape_depends_on_values_is_an_error(
    bound: BoundContext, raw: Any, stream: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw, "get_tensor_shape", lambda name: (1, -1, 20))

    with pytest.raises(ExecutionError, match=r"depends on the input's values: \[1, -1, 20\]"):
        bound.set_shapes(0, {"image": (1, 20, 20, 3)}, stream)


def test_an_address_that_tensorrt_refuses_is_an_error(bound: BoundContext) -> None:
    with pytest.raises(ExecutionError, match="refuses the address of 'image'"):
        bound.set_addresses({"image": 257})
