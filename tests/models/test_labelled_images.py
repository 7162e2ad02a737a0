"""Labelled folders: pairs by stem, palettes read as indices, mistakes named."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from fcn_deploy.errors import DTypeError, ShapeError, SourceOpenError
from fcn_deploy.names import Array
from fcn_export.check.sample_frames import natural_frame
from fcn_models.labelled_images import EvalSet


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two images of 12x16 px with labels."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    for index, name in enumerate(("b", "a")):
        cv2.imwrite(str(images / f"{name}.png"), natural_frame(12, 16, index))
        cv2.imwrite(str(labels / f"{name}.png"), np.full((12, 16), index, np.uint8))
    return images, labels


def read_all(folders: tuple[Path, Path], *, num_labels: int = 3) -> list[tuple[str, Array, Array]]:
    items = EvalSet.find(*folders).items(color="bgr", num_labels=num_labels)
    return [(item.name, item.frame, item.labels) for item in items]


def test_pairs_come_in_the_order_of_their_names(folders: tuple[Path, Path]) -> None:
    (first, frame, labels), (second, _, _) = read_all(folders)

    assert (first, second) == ("a", "b")
    assert np.array_equal(frame, natural_frame(12, 16, 1))
    assert labels.tolist() == np.full((12, 16), 1).tolist()
    assert len(EvalSet.find(*folders)) == 2


def test_frames_come_in_the_order_of_channels_asked_for(folders: tuple[Path, Path]) -> None:
    found = EvalSet.find(*folders)

    bgr = next(found.items(color="bgr", num_labels=3)).frame
    rgb = next(found.items(color="rgb", num_labels=3)).frame

    assert np.array_equal(bgr[..., ::-1], rgb)


def test_a_palette_is_read_as_indices_as_pascal_voc_stores_labels(
    folders: tuple[Path, Path],
) -> None:
    picture = Image.fromarray(np.full((12, 16), 2, np.uint8))
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    picture.save(folders[1] / "a.png")

    assert read_all(folders)[0][2].max() == 2


def test_missing_labels_are_named(folders: tuple[Path, Path]) -> None:
    (folders[1] / "b.png").unlink()

    with pytest.raises(SourceOpenError, match=r"1 of 2 images .* the first is 'b.png'"):
        EvalSet.find(*folders)


def test_missing_and_empty_folders_are_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(SourceOpenError, match="there is no folder"):
        EvalSet.find(folders[0], tmp_path / "nowhere")
    with pytest.raises(SourceOpenError, match="holds no images"):
        EvalSet.find(tmp_path / "empty", folders[1])


def test_one_folder_for_images_and_labels_is_refused(folders: tuple[Path, Path]) -> None:
    images, _ = folders
    cv2.imwrite(str(images / "a.jpg"), natural_frame(12, 16, 0))
    (images.parent / "link").symlink_to(images)

    for labels in (images, images.parent / "link"):
        with pytest.raises(SourceOpenError, match="folder of images and that of labels"):
            EvalSet.find(images, labels)


def test_two_files_of_one_stem_are_refused(folders: tuple[Path, Path]) -> None:
    for folder, name in zip(folders, ("a.jpg", "b.PNG"), strict=True):
        picture = Image.fromarray(np.zeros((12, 16), np.uint8))
        picture.save(folder / name)
        both = " and ".join(f"'{x}'" for x in sorted((name, f"{name[0]}.png")))

        with pytest.raises(SourceOpenError, match=f"holds both {both}"):
            EvalSet.find(*folders)

        (folder / name).unlink()


def test_colours_in_place_of_class_ids_are_refused(folders: tuple[Path, Path]) -> None:
    cv2.imwrite(str(folders[1] / "a.png"), natural_frame(12, 16, 0))

    with pytest.raises(DTypeError, match=r"mode 'RGB'; expected one channel"):
        read_all(folders)


def test_another_size_is_refused(folders: tuple[Path, Path]) -> None:
    cv2.imwrite(str(folders[1] / "a.png"), np.zeros((6, 8), np.uint8))

    with pytest.raises(ShapeError, match=r"12x16 px but its labels .* 6x8"):
        read_all(folders)


def test_an_unknown_class_is_refused_and_255_is_not(folders: tuple[Path, Path]) -> None:
    labels = np.full((12, 16), 255, np.uint8)
    cv2.imwrite(str(folders[1] / "a.png"), labels)
    assert read_all(folders)[0][2].min() == 255
    labels[0, 0] = 3
    cv2.imwrite(str(folders[1] / "a.png"), labels)

    with pytest.raises(ShapeError, match=r"names class \[3\]; the network gives 0..2"):
        read_all(folders)


def test_names_that_are_not_utf8_are_read(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        folder.joinpath("a.png").rename(folder / os.fsdecode(b"a\xff.png"))

    assert [os.fsencode(name) for name, _, _ in read_all(folders)] == [b"a\xff", b"b"]


def test_a_file_that_is_no_image_is_named(folders: tuple[Path, Path]) -> None:
    (folders[0] / "a.png").write_bytes(b"no image")
    with pytest.raises(SourceOpenError, match=r"a.png' cannot be read"):
        read_all(folders)
    cv2.imwrite(str(folders[0] / "a.png"), natural_frame(12, 16, 0))
    (folders[1] / "a.png").write_bytes(b"no image")
    with pytest.raises(SourceOpenError, match=r"a.png' cannot be read"):
        read_all(folders)
