"""The digits example: its split, its scenes, and the pictures that it draws."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from examples.digits import data, evaluate
from fcn_export import load_fcn


def test_training_and_test_digits_are_different_ones_of_every_kind() -> None:
    train, train_digits = data.load_digits("train")
    test, test_digits = data.load_digits("test")

    assert np.bincount(train_digits).tolist() == [400] * 10
    assert np.bincount(test_digits).tolist() == [100] * 10
    assert not {one.tobytes() for one in train} & {one.tobytes() for one in test}


def test_a_scene_is_seeded_and_labels_its_digits() -> None:
    scene, again = data.make_scene("test", 3), data.make_scene("test", 3)

    assert scene.image_rgb.shape == (*data.SCENE_SIZE, 3)
    assert np.array_equal(scene.image_rgb, again.image_rgb)
    assert set(np.unique(scene.labels)) <= {*range(11), 255}
    assert 0.05 < np.mean((scene.labels > 0) & (scene.labels < 255)) < 0.4


def test_training_items_are_what_fine_tuning_takes() -> None:
    image, labels = data.Scenes(5, seed=1)[4]
    crop, digit = data.DigitCrops("train", seed=1)[0]

    assert (image.shape, image.dtype) == ((3, *data.SCENE_SIZE), torch.float32)
    assert (labels.shape, labels.dtype) == (data.SCENE_SIZE, torch.int64)
    assert crop.shape == (3, 64, 64)
    assert int(digit) in range(10)


def test_columns_of_pictures_and_labels_stand_side_by_side_in_the_classes_colours() -> None:
    picture = np.full((4, 5, 3), 7, np.uint8)
    labels = np.full((4, 5), 2, np.uint8)
    labels[0, 0] = 255

    joined = evaluate.side_by_side([picture, labels])

    assert joined.shape == (4, 14, 3)
    assert tuple(joined[3, 0]) == (7, 7, 7)
    assert tuple(joined[3, -1]) == data.CLASSES[2].color
    assert tuple(joined[0, 9]) == (255, 255, 255)


def test_the_checkpoint_labels_scenes_that_it_never_saw_and_they_are_drawn(tmp_path: Path) -> None:
    network = load_fcn(evaluate.CHECKPOINT)

    pixels, _, mean_iou, _ = evaluate.score_network(network, count=6)
    evaluate.draw([network], tmp_path / "scenes.png", rows=2)

    assert pixels > 0.9  # 0.961 and 0.687 on all 60
    assert mean_iou > 0.5
    drawn = cv2.imread(str(tmp_path / "scenes.png"))
    assert drawn is not None
    assert drawn.shape == (2 * 128 + 4, 3 * 128 + 2 * 4, 3)
