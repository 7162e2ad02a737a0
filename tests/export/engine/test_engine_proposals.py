"""Profiles are proposed from the sizes of real images: few, and with little padding."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.errors import ProfileError, SourceOpenError
from fcn_export.engine.proposals import MAX_PROFILES, propose_profiles, sizes_in

WITHIN = ShapeRange((1, 64, 64), (1, 512, 512), (8, 2048, 2048))


def test_images_of_one_size_need_one_profile_and_no_padding() -> None:
    (found,) = propose_profiles({(720, 1280): 90}, WITHIN)

    assert tuple(found.shapes) == ((1, 720, 1280), (1, 720, 1280), (8, 720, 1280))
    assert (found.images, found.waste) == (90, 0.0)
    assert str(found) == "720x1280 to 720x1280, usually 720x1280: 90 images, 0% padding"


def test_nearly_equal_sizes_share_a_profile() -> None:
    (found,) = propose_profiles({(512, 500): 3, (500, 512): 7}, WITHIN)

    assert tuple(found.shapes) == ((1, 500, 500), (1, 500, 512), (8, 512, 512))
    # 10 images of 256000 px in 512x512
    assert found.waste == pytest.approx(1 - 256_000 / 262_144)


def test_portrait_and_landscape_get_a_profile_each() -> None:
    found = propose_profiles({(720, 1280): 10, (1280, 720): 20}, WITHIN)

    assert [tuple(entry.shapes)[2] for entry in found] == [(8, 1280, 720), (8, 720, 1280)]
    assert [entry.waste for entry in found] == [0.0, 0.0]


def test_rare_large_image_does_not_make_the_small_ones_large() -> None:
    found = propose_profiles({(128, 128): 1000, (136, 128): 100, (2048, 2048): 1}, WITHIN)

    assert [entry.images for entry in found] == [1100, 1]
    assert found[0].shapes.max == (8, 136, 128)


def test_there_are_never_more_profiles_than_the_limit() -> None:
    sizes = {(64 * side, 64 * (33 - side)): 1 for side in range(1, 33)}

    found = propose_profiles(sizes, WITHIN)

    assert len(found) == MAX_PROFILES
    assert sum(entry.images for entry in found) == len(sizes)


def test_thousands_of_sizes_are_all_inside_some_profile(rng: np.random.Generator) -> None:
    sides = rng.integers(64, 2049, (3000, 2))
    sizes = {(int(height), int(width)): 1 for height, width in sides}

    found = propose_profiles(sizes, WITHIN)

    for size in sizes:
        assert any(
            all(
                low <= side <= high
                for low, side, high in zip(
                    entry.shapes.min[1:], size, entry.shapes.max[1:], strict=True
                )
            )
            for entry in found
        ), size


def test_sizes_are_padded_to_the_networks_multiple() -> None:
    within = ShapeRange((1, 64, 64), (1, 512, 512), (8, 2048, 2048), multiple_of=32)

    (found,) = propose_profiles({(100, 100): 1}, within)

    assert found.shapes.max == (8, 128, 128)
    assert found.shapes.multiple_of == 32


def test_image_outside_the_verified_range_is_refused() -> None:
    with pytest.raises(
        ProfileError, match=r"an image is 4000x3000; plans take 64x64 to 2048x2048\. Widen"
    ):
        propose_profiles({(4000, 3000): 1}, WITHIN)


def test_no_image_is_no_proposal() -> None:
    with pytest.raises(ProfileError, match="no image"):
        propose_profiles({}, WITHIN)


def test_sizes_of_a_folder_are_counted(tmp_path: Path) -> None:
    for index, (height, width) in enumerate([(40, 60), (40, 60), (70, 30)]):
        cv2.imwrite(str(tmp_path / f"{index}.png"), np.zeros((height, width, 3), np.uint8))

    assert sizes_in(tmp_path) == {(40, 60): 2, (70, 30): 1}


def test_size_of_a_video_is_its_frames(tmp_path: Path) -> None:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(3):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()

    assert sizes_in(path) == {(48, 64): 1}


def test_empty_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(SourceOpenError, match="image"):
        sizes_in(tmp_path)
