"""The scene generator, and the cache of networks that are trained on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from research.scenes import train
from research.scenes.cli import main
from research.scenes.generate import NUM_CLASSES, make_scene, make_scenes


def test_the_same_seed_gives_the_same_scene() -> None:
    first, second, other = (make_scene(60, 90, seed) for seed in (4, 4, 5))

    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_a_scene_is_a_frame_and_its_labels() -> None:
    frame, labels = make_scene(60, 90, 1)

    assert frame.shape == (60, 90, 3)
    assert labels.shape == (60, 90)
    assert frame.dtype == labels.dtype == np.uint8
    assert labels.max() < NUM_CLASSES


def test_every_class_appears_within_a_few_scenes() -> None:
    _, labels = make_scenes(4, 352, 352, 0)

    assert len(np.unique(labels)) == NUM_CLASSES


def test_spectrum_falls_as_that_of_natural_images() -> None:
    frames, _ = make_scenes(4, 256, 256, 7)

    gray = frames.mean(axis=3) - frames.mean(axis=(1, 2, 3))[:, None, None]
    power = np.abs(np.fft.fft2(gray)).mean(axis=0)
    frequency = np.hypot(np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256)[None])
    band = (frequency > 0.01) & (frequency < 0.3)
    slope = np.polyfit(np.log(frequency[band]), np.log(power[band]), 1)[0]

    # amplitude falls as 1/f in natural images, give or take; white noise would give 0
    assert -1.7 < slope < -0.7


def test_trained_network_is_taken_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = train.Recipe(
        "lraspp_mobilenet_v3_large", steps=1, batch=2, crop_px=64, learning_rate=1e-3
    )
    monkeypatch.setitem(train.RECIPES, recipe.arch, recipe)
    monkeypatch.setattr(train, "usable_cores", lambda: 1)  # threads wait for each other long
    said: list[str] = []

    first = train.trained(recipe.arch, say=said.append, folder=tmp_path, settling_steps=1)
    told = len(said)
    second = train.trained(recipe.arch, say=said.append, folder=tmp_path, settling_steps=1)

    assert told > 0
    assert len(said) == told
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    assert [path.suffix for path in tmp_path.iterdir()] == [".pt"]


def test_another_recipe_has_another_digest() -> None:
    recipes = train.RECIPES.values()

    assert len({recipe.digest() for recipe in recipes}) == len(recipes)


def test_unknown_network_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["train", "unet"])

    assert status == 2
    assert "'unet' is not trained here; expected one of lraspp" in capsys.readouterr().out


def test_scene_is_drawn_to_a_file(tmp_path: Path) -> None:
    status = main(["draw", str(tmp_path / "scene.png"), "--size", "48x64"])

    assert status == 0
    assert (tmp_path / "scene.png").stat().st_size > 1000
