"""Profiles are held against the graph before TensorRT, whose own errors come late or not at all."""

from __future__ import annotations

import re

import pytest

from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.errors import ProfileError
from fcn_deploy.names import TensorSpec
from fcn_export.engine.profiles import (
    InputShapes,
    check_profiles,
    graph_inputs,
    graph_outputs,
    image_profile,
)
from tests.export.engine_graphs import IMAGE, network

SHAPES = ShapeRange((1, 64, 96), (2, 512, 768), (8, 1024, 1536))


def test_image_with_channels_last_gets_them_last() -> None:
    profile = image_profile(IMAGE, SHAPES)

    assert profile == {"image": InputShapes((1, 64, 96, 3), (2, 512, 768, 3), (8, 1024, 1536, 3))}


def test_image_with_channels_first_gets_them_second() -> None:
    profile = image_profile(TensorSpec("x", "float32", (None, 3, None, None)), SHAPES)

    assert profile["x"].opt == (2, 3, 512, 768)


@pytest.mark.parametrize("shape", [(None, None, None), (None, None, None, None)])
def test_what_is_no_image_gets_no_profile_by_itself(shape: tuple[int | None, ...]) -> None:
    with pytest.raises(ProfileError, match=r"'x: float32 .*' is no image; expected \[N, H, W, C\]"):
        image_profile(TensorSpec("x", "float32", shape), SHAPES)


def test_inputs_and_outputs_are_read_from_the_graph() -> None:
    model = network()

    assert graph_inputs(model) == (IMAGE,)
    assert graph_outputs(model) == (TensorSpec("labels", "uint8", (None, None, None)),)


GOOD = InputShapes((1, 64, 64, 3), (1, 512, 512, 3), (8, 1024, 1024, 3))


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (
            {"imagez": GOOD},
            "profile names 'imagez', the model has inputs ['image'].",
        ),
        (
            {"image": InputShapes((1, 64, 64, 3), (1, 32, 512, 3), (8, 1024, 1024, 3))},
            "profile for input 'image': min (1, 64, 64, 3) > opt (1, 32, 512, 3) at axis 1.",
        ),
        (
            {"image": InputShapes((1, 64, 64, 3), (1, 64, 512, 3), (8, 1024, 256, 3))},
            "profile for input 'image': opt (1, 64, 512, 3) > max (8, 1024, 256, 3) at axis 2.",
        ),
        (
            {"image": InputShapes((1, 64, 64, 4), (1, 64, 64, 4), (1, 64, 64, 4))},
            "profile for input 'image': axis 3 is fixed at 3 in the model but min of the profile "
            "asks 4.",
        ),
        (
            {"image": InputShapes((1, 64, 64), (1, 64, 64), (1, 64, 64))},
            "profile for input 'image': min (1, 64, 64) has 3 axes",
        ),
        (
            {"image": InputShapes((0, 64, 64, 3), (1, 64, 64, 3), (1, 64, 64, 3))},
            "profile for input 'image': min (0, 64, 64, 3) is 0 at axis 0.",
        ),
        ({}, "profile 0 says nothing of input 'image'."),
    ],
)
def test_profile_is_refused(profile: dict[str, InputShapes], message: str) -> None:
    with pytest.raises(ProfileError, match=re.escape(message)):
        check_profiles((IMAGE,), [profile])


def test_dynamic_input_needs_a_profile() -> None:
    with pytest.raises(ProfileError, match="'image' is dynamic and no profile was given"):
        check_profiles((IMAGE,), [])


def test_fixed_input_needs_none() -> None:
    check_profiles((TensorSpec("image", "uint8", (1, 64, 64, 3)),), [])
