"""Fine-tuning: recipes, ignored pixels, going on where it was interrupted, and data sets."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from fcn_deploy.errors import ExecutionError, ShapeError, SourceOpenError, UnsupportedModelError
from fcn_deploy.manifest import Preprocess
from fcn_export.models.data import FolderDataset, VocDataset
from fcn_export.models.pixel_loss import pixel_loss
from fcn_export.models.training import Recipe, fine_tune
from tests.export.tiny_networks import seeded

HALF = Preprocess((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "rgb")


class Stopped(Exception):
    """Ends a training from within."""


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """Images and their labels, from memory."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.tensors = images, labels

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.tensors[0][index], self.tensors[1][index]


def network() -> nn.Module:
    made: nn.Module = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Dropout(0.2), nn.Conv2d(6, 3, 1))
    )
    return made


def data(*, ignored: bool = False) -> Pairs:
    """Make images whose brightest channel is the class."""
    images = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = images.argmax(1)
    return Pairs(images, torch.full_like(labels, 255) if ignored else labels)


def train(model: nn.Module, **options: object) -> list[float]:
    settings = {"steps": 6, "batch": 4, "progress": False, **options}
    return fine_tune(model, data(), **settings)  # type: ignore[arg-type] # checked by the callee


def test_the_loss_falls_and_the_network_is_left_in_evaluation_mode() -> None:
    model = network()

    losses = train(model, steps=60, recipe=Recipe(learning_rate=0.02))

    assert len(losses) == 60
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert not model.training


def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole, parted = network(), network()
    expected = train(whole)

    def stop(step: int, _: float) -> None:
        if step == 4:
            raise Stopped

    state = {"state_file": tmp_path / "state.pt", "state_every": 3}
    with pytest.raises(Stopped, match=r"^$"):
        train(parted, on_step=stop, **state)
    taken_up = network()
    losses = train(taken_up, **state)

    assert losses == expected[3:]
    for one, other in zip(whole.parameters(), taken_up.parameters(), strict=True):
        assert torch.equal(one, other)


def test_another_trainings_state_is_refused(tmp_path: Path) -> None:
    train(network(), state_file=tmp_path / "state.pt")

    with pytest.raises(UnsupportedModelError, match="another training: batch differ"):
        train(network(), batch=2, state_file=tmp_path / "state.pt")


def test_the_callers_random_numbers_are_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    train(network())

    assert torch.equal(torch.rand(3), expected)


def test_the_papers_recipe_moves_biases_at_the_double_rate_without_decay() -> None:
    model = nn.Conv2d(3, 3, 1)
    nn.init.zeros_(model.weight)
    assert model.bias is not None
    nn.init.constant_(model.bias, 0.5)
    before = {name: value.clone() for name, value in model.named_parameters()}
    images, labels = data().tensors
    nn.functional.cross_entropy(model(images), labels).backward()
    slopes = {name: value.grad for name, value in model.named_parameters()}

    fine_tune(
        model, data(), steps=1, batch=12, recipe=Recipe.paper(learning_rate=0.1), progress=False
    )

    after = dict(model.named_parameters())
    for name, rate in (("weight", 0.1), ("bias", 0.2)):  # weights at zero do not decay
        slope = slopes[name]
        assert slope is not None
        torch.testing.assert_close(after[name].detach(), before[name] - rate * slope)


def test_an_auxiliary_head_adds_half_its_loss() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main = seeded(nn.Conv2d, 3, 3, 1)
            self.side = nn.Conv2d(3, 3, 1)

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"out": self.main(images), "aux": self.side(images)}

    model = TwoHeads()
    images, labels = data().tensors
    main, side = (
        nn.functional.cross_entropy(head(images), labels).item()
        for head in (model.main, model.side)
    )

    losses = fine_tune(model, data(), steps=1, batch=12, progress=False)

    assert losses[0] == pytest.approx(main + 0.5 * side, rel=1e-5)  # float32


def test_pixels_of_255_count_for_nothing() -> None:
    images, labels = data().tensors
    half = labels.clone()
    half[:, 4:] = 255
    cropped = Pairs(images[:, :, :4], labels[:, :4])

    losses = [
        fine_tune(seeded(nn.Conv2d, 3, 3, 1), one, steps=3, batch=12, progress=False)
        for one in (Pairs(images, half), cropped)
    ]

    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # sums of fewer terms round alike


def test_batches_that_are_all_255_have_no_loss_and_do_not_end_the_training(
    tmp_path: Path,
) -> None:
    some = data()
    some.tensors[1][::3] = 255
    options: dict[str, object] = {"data": some, "steps": 8, "batch": 1, "progress": False}
    whole, parted = network(), network()
    expected = fine_tune(whole, **options)  # type: ignore[arg-type] # as below
    empty = [step for step, loss in enumerate(expected, 1) if loss == 0]

    def stop(step: int, _: float) -> None:
        if step == empty[0]:
            raise Stopped

    options |= {"state_file": tmp_path / "state.pt", "state_every": 1}
    with pytest.raises(Stopped, match=r"^$"):
        fine_tune(parted, on_step=stop, **options)  # type: ignore[arg-type]
    losses = fine_tune(parted, **options)  # type: ignore[arg-type]

    assert 0 < len(empty) < 8
    assert losses == expected[empty[0] - 1 :]
    for one, other in zip(whole.parameters(), parted.parameters(), strict=True):
        assert one.isfinite().all()
        assert torch.equal(one, other)


def test_a_training_on_nothing_but_255_changes_nothing() -> None:
    model = network()

    losses = fine_tune(
        model, data(ignored=True), steps=2, recipe=Recipe(weight_decay=0), progress=False
    )

    assert losses == [0, 0]
    for one, other in zip(model.parameters(), network().parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("ignored", [False, True])
def test_scores_that_are_not_numbers_end_the_training(ignored: bool) -> None:
    model = seeded(nn.Conv2d, 3, 3, 1)
    nn.init.constant_(model.bias, float("nan"))

    with pytest.raises(ExecutionError, match=r"loss is nan at step 1.*Lower the learning rate"):
        fine_tune(model, data(ignored=ignored), steps=2, batch=4, progress=False)


def binary() -> Pairs:
    """Make images that are of class 1 where the first channel is bright."""
    images, _ = data().tensors
    labels = (images[:, 0] > 0.5).long()
    labels[:, :2] = 255
    return Pairs(images, labels)


def test_one_score_a_pixel_is_trained_as_a_binary_network() -> None:
    model = seeded(nn.Conv2d, 3, 1, 1)
    images, labels = binary().tensors
    scores = model(images)[:, 0, 2:]
    sides = torch.where(labels[:, 2:] == 1, scores, -scores)
    expected = torch.log1p(torch.exp(-sides)).mean().item()

    losses = fine_tune(
        model, binary(), steps=80, batch=12, recipe=Recipe(learning_rate=0.5), progress=False
    )

    assert losses[0] == pytest.approx(expected, rel=1e-5)  # float32
    found = (model(images)[:, 0, 2:].sigmoid() > 0.5).long()
    assert (found == labels[:, 2:]).float().mean() > 0.95


def test_the_loss_of_half_precision_scores_is_that_of_their_values() -> None:
    scores = torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(1)).bfloat16()
    labels = data().tensors[1][:1].repeat(1, 5, 5)

    loss = pixel_loss(scores, labels)

    assert loss.dtype == torch.float32
    assert loss == nn.functional.cross_entropy(scores.float(), labels)


@pytest.mark.parametrize(("classes", "unknown"), [(3, 3), (3, -1), (1, 2), (2, 1000)])
def test_labels_of_unknown_classes_are_named(classes: int, unknown: int) -> None:
    images, labels = binary().tensors
    labels[:, 5, 5] = unknown

    with pytest.raises(
        ShapeError, match=rf"class \[{unknown}\]; the network gives 0..{max(classes, 2) - 1}"
    ):
        fine_tune(
            nn.Conv2d(3, classes, 1), Pairs(images, labels), steps=1, batch=12, progress=False
        )


@pytest.mark.parametrize("classes", [1, 3])
def test_scores_of_another_size_than_the_labels_are_refused(classes: int) -> None:
    with pytest.raises(ShapeError, match=rf"are \[8, {classes}, 4, 4\] but labels \[8, 8, 8\]"):
        fine_tune(nn.Conv2d(3, classes, 1, stride=2), binary(), steps=1, progress=False)


def _write_pair(folder: Path, stem: str, size: tuple[int, int]) -> None:
    (folder / "images").mkdir(exist_ok=True)
    (folder / "labels").mkdir(exist_ok=True)
    picture_bgr = np.zeros((*size, 3), np.uint8)
    picture_bgr[..., 2] = 255  # red
    cv2.imwrite(str(folder / "images" / f"{stem}.png"), picture_bgr)
    cv2.imwrite(str(folder / "labels" / f"{stem}.png"), np.full(size, 2, np.uint8))


def test_folders_give_normalised_images_and_their_labels(tmp_path: Path) -> None:
    _write_pair(tmp_path, "a", (6, 7))

    folder = FolderDataset(tmp_path / "images", tmp_path / "labels", num_classes=3, preprocess=HALF)
    pixels, labels = folder[0]

    assert len(folder) == 1
    assert (pixels.shape, pixels.dtype) == ((3, 6, 7), torch.float32)
    assert pixels[:, 0, 0].tolist() == [1.0, -1.0, -1.0]
    assert torch.equal(labels, torch.full((6, 7), 2))


def test_crops_of_small_images_are_filled_with_pixels_that_do_not_count(tmp_path: Path) -> None:
    _write_pair(tmp_path, "a", (6, 20))

    folder = FolderDataset(
        tmp_path / "images", tmp_path / "labels", num_classes=3, preprocess=HALF, crop=(8, 8)
    )
    pixels, labels = folder[0]

    assert pixels.shape == (3, 8, 8)
    assert labels[:6].eq(2).all()
    assert labels[6:].eq(255).all()


def test_folders_of_a_binary_network_have_two_labels(tmp_path: Path) -> None:
    _write_pair(tmp_path, "a", (6, 7))
    path = tmp_path / "labels" / "a.png"

    folder = FolderDataset(tmp_path / "images", tmp_path / "labels", num_classes=1, preprocess=HALF)

    with pytest.raises(ShapeError, match=r"names class \[2\]; the network gives 0..1"):
        folder[0]
    cv2.imwrite(str(path), np.eye(6, 7, dtype=np.uint8))
    assert torch.equal(folder[0][1], torch.eye(6, 7, dtype=torch.int64))


def _write_voc(root: Path) -> None:
    base = root / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / name).mkdir(parents=True)
    Image.new("RGB", (9, 5), (255, 255, 255)).save(base / "JPEGImages" / "x.jpg")
    labels = Image.fromarray(np.full((5, 9), 20, np.uint8), mode="L").convert("P")
    labels.putdata([20] * 44 + [255])
    labels.save(base / "SegmentationClass" / "x.png")
    (base / "ImageSets" / "Segmentation" / "train.txt").write_text("x\n")


def test_voc_is_read_where_it_is_and_nowhere_else(tmp_path: Path) -> None:
    _write_voc(tmp_path)

    pixels, labels = VocDataset(tmp_path, preprocess=HALF)[0]

    assert pixels.shape == (3, 5, 9)
    assert sorted(set(labels.flatten().tolist())) == [20, 255]
    with pytest.raises(SourceOpenError, match=r"does not hold VOCdevkit/VOC2012.*Unpack"):
        VocDataset(tmp_path / "nothing", preprocess=HALF)


def test_a_year_or_list_that_voc_does_not_have_is_named(tmp_path: Path) -> None:
    _write_voc(tmp_path)

    with pytest.raises(SourceOpenError, match=r"VOCdevkit/VOC2012 and its list 'val': .*Unpack"):
        VocDataset(tmp_path, preprocess=HALF, image_set="val")
    with pytest.raises(SourceOpenError, match=r"VOC has no 'test' of 2012: .* Valid values are"):
        VocDataset(tmp_path, preprocess=HALF, image_set="test")
    with pytest.raises(SourceOpenError, match=r"VOC has no 'train' of 2013: .* Valid values are"):
        VocDataset(tmp_path, preprocess=HALF, year="2013")
