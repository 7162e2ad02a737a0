"""Fine-tuning: recipes, ignored pixels, going on where it was interrupted, and data sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from fcn_deploy.artifact.manifest import Preprocess
from fcn_deploy.errors import (
    ExecutionError,
    InputError,
    ShapeError,
    SinkError,
    SourceOpenError,
    UnsupportedModelError,
)
from fcn_models import training, training_state
from fcn_models.data import FolderDataset, VocDataset
from fcn_models.pixel_loss import pixel_loss
from fcn_models.training import Recipe, fine_tune
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
    settings = {"data": data(), "steps": 6, "batch": 4, "progress": False, **options}
    return fine_tune(model, **settings)  # type: ignore[arg-type] # checked by the callee


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


STEADY = Recipe(one_cycle=False)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"batch": 2}, "another training: batch was 4 and is 2"),
        (
            {"recipe": STEADY},
            "another training: one_cycle was True and is False, steps was 6 and is any",
        ),
        ({"steps": 7}, "another training: steps was 6 and is 7"),
        ({"data": Pairs(*(x[:5] for x in data().tensors))}, "items was 12 and is 5"),
    ],
)
def test_another_trainings_state_is_refused(
    tmp_path: Path, changed: dict[str, object], reason: str
) -> None:
    train(network(), state_file=tmp_path / "state.pt")

    with pytest.raises(UnsupportedModelError, match=reason):
        train(network(), **{"state_file": tmp_path / "state.pt", **changed})


def test_at_a_constant_rate_a_training_may_be_made_longer_but_not_shorter(tmp_path: Path) -> None:
    state = tmp_path / "state.pt"
    whole, longer = network(), network()
    expected = train(whole, steps=9, recipe=STEADY)

    train(longer, steps=6, recipe=STEADY, state_file=state)
    losses = train(longer, steps=9, recipe=STEADY, state_file=state)

    assert losses == expected[6:]
    for one, other in zip(whole.parameters(), longer.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(UnsupportedModelError, match="state after 9 steps; 8 are asked for"):
        train(network(), steps=8, recipe=STEADY, state_file=state)


def wider() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Dropout(0.2), nn.Conv2d(6, 4, 1))


def deeper() -> nn.Module:
    return nn.Sequential(*network().children(), nn.Conv2d(3, 3, 1))


def partly_frozen() -> nn.Module:
    model = network()
    next(model.parameters()).requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (wider, "2 tensors differ, the first is '2.bias'"),
        (deeper, "2 tensors differ, the first is '3.bias'"),
        (lambda: network().double(), "4 tensors differ, the first is '0.bias'"),
        (partly_frozen, "trained in only one of them, the first is '0.weight'"),
    ],
)
def test_another_networks_state_is_refused_and_changes_nothing(
    tmp_path: Path, make: Callable[[], nn.Module], reason: str
) -> None:
    train(network(), state_file=tmp_path / "state.pt")
    model = make()
    before = {key: value.clone() for key, value in model.state_dict().items()}

    with pytest.raises(UnsupportedModelError, match=f"state of another network: .*{reason}"):
        train(model, state_file=tmp_path / "state.pt")

    assert model.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def _cut_short(path: Path) -> None:
    train(network(), state_file=path)
    path.write_bytes(path.read_bytes()[:-200])


def _without_optimizer_values(path: Path) -> None:
    train(network(), state_file=path)
    state = torch.load(path, weights_only=True)
    torch.save({**state, "optimizer": {}}, path)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: torch.save(network().state_dict(), path), "no model, optimizer, plan"),
        (lambda path: torch.save(torch.zeros(3), path), "no model, optimizer, plan"),
        (lambda path: torch.save(network(), path), "more than tensors and plain values"),
        (lambda path: path.write_bytes(b""), "EOFError"),
        (lambda path: path.write_bytes(b"no state at all"), "more than tensors"),
        (lambda path: path.mkdir(), "IsADirectoryError"),
        (_cut_short, r"Error: "),
        (_without_optimizer_values, "KeyError: 'param_groups'"),
    ],
)
def test_files_that_hold_no_state_are_named_and_change_nothing(
    tmp_path: Path, write: Callable[[Path], None], reason: str
) -> None:
    write(tmp_path / "other.pt")
    model = network()

    with pytest.raises(UnsupportedModelError, match=rf"not the state of a training: .*{reason}"):
        train(model, state_file=tmp_path / "other.pt")

    for one, other in zip(model.parameters(), network().parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_callers_random_numbers_are_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    train(network())

    assert torch.equal(torch.rand(3), expected)


def test_the_papers_recipe_has_momentum_decay_and_the_double_rate_for_biases() -> None:
    model = seeded(nn.Conv2d, 3, 3, 1).double()
    images, labels = data().tensors
    by_hand = {name: value.detach().clone() for name, value in model.named_parameters()}
    speed = {name: torch.zeros_like(value) for name, value in by_hand.items()}
    for _ in range(3):
        leaves = {name: value.clone().requires_grad_() for name, value in by_hand.items()}
        scores = nn.functional.conv2d(images.double(), leaves["weight"], leaves["bias"])
        nn.functional.cross_entropy(scores, labels).backward()
        for name, rate, decay in (("weight", 0.1, 5e-4), ("bias", 0.2, 0)):
            slope = leaves[name].grad
            assert slope is not None
            speed[name] = 0.9 * speed[name] + slope + decay * by_hand[name]
            by_hand[name] = by_hand[name] - rate * speed[name]

    fine_tune(
        model, data(), steps=3, batch=12, recipe=Recipe.paper(learning_rate=0.1), progress=False
    )

    for name, value in model.named_parameters():  # sums in another order, of float64
        torch.testing.assert_close(value.detach(), by_hand[name], rtol=1e-12, atol=1e-12)


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


def test_a_network_is_trained_in_its_own_precision(tmp_path: Path) -> None:
    model = network().bfloat16()

    losses = train(model, steps=60, recipe=Recipe(learning_rate=0.02), state_file=tmp_path / "s")

    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}


def test_images_and_labels_go_where_the_network_is(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def stop(scores: Tensor, labels: Tensor) -> Tensor:
        seen.extend((scores, labels))
        raise Stopped

    monkeypatch.setattr(training, "pixel_loss", stop)  # no loss can be read off this device
    with pytest.raises(Stopped, match=r"^$"):
        train(nn.Conv2d(3, 3, 1, device="meta", dtype=torch.float16))

    assert [(x.device.type, x.dtype) for x in seen] == [
        ("meta", torch.float16),
        ("meta", torch.int64),
    ]


def test_a_gpus_random_numbers_are_kept_too(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = torch.arange(16, dtype=torch.uint8)
    restored: list[object] = []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: kept)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *given: restored.extend(given))
    gpu = torch.device("cuda", 1)

    numbers = training_state.random_numbers(gpu)
    training_state.set_random_numbers(numbers, gpu)

    assert torch.equal(numbers["cpu"], torch.get_rng_state())
    assert restored == [kept, gpu]


def test_a_network_with_nothing_to_train_is_refused() -> None:
    for model in (network().requires_grad_(False), nn.Identity()):
        with pytest.raises(UnsupportedModelError, match=r"nothing to train.*requires_grad_"):
            train(model)


def test_an_empty_data_set_is_refused() -> None:
    images, labels = data().tensors

    with pytest.raises(InputError, match="data set is empty"):
        fine_tune(network(), Pairs(images[:0], labels[:0]), steps=1, progress=False)


def test_a_state_that_could_not_be_written_is_refused_before_the_first_step(
    tmp_path: Path,
) -> None:
    steps: list[int] = []

    with pytest.raises(SinkError, match=r"there is no folder '.*gone'"):
        fine_tune(
            network(),
            data(),
            steps=1,
            state_file=tmp_path / "gone" / "state.pt",
            on_step=lambda step, loss: steps.append(step),
            progress=False,
        )

    assert steps == []


def test_images_of_several_sizes_need_a_crop() -> None:
    class Growing(Pairs):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            image, labels = super().__getitem__(index)
            return image[:, : 4 + index % 2], labels[: 4 + index % 2]

    with pytest.raises(ShapeError, match=r"sizes: \[3, 4, 8\], \[3, 5, 8\].*crop=.*batch=1"):
        fine_tune(network(), Growing(*data().tensors), steps=1, batch=12, progress=False)


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
