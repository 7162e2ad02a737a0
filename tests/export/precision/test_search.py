"""The search for what to keep in higher precision: fewest blocks, points, going on, giving up."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.errors import BudgetError
from fcn_deploy.names import Array, Precision
from fcn_export.check.sample_frames import natural_frame
from fcn_export.precision.damage import Damage, DamageMeter
from fcn_export.precision.search import Block, Search, SearchNotes, SearchResult
from fcn_models.labelled_images import EvalItem
from tests.export.qdq_graphs import SPEC, FrameGraph


class _Losses:
    """A network in which each lowered layer costs points of its own, and they add up.

    A graph is stood for by its layers' names, as the search never looks into it.
    """

    def __init__(self, losses: dict[str, float]) -> None:
        self.losses = losses
        self.measured = 0

    def build(self, kept: Collection[str]) -> onnx.ModelProto:
        lowered = [name for name in self.losses if name not in kept]
        return onnx.ModelProto(producer_name=" ".join(lowered))

    def measure(self, model: onnx.ModelProto) -> Damage:
        self.measured += 1
        drop = sum(self.losses[name] for name in model.producer_name.split())
        return Damage(drop, drop / 100)

    def search(
        self, max_drop: float, *, path: Path | None = None, key: str = "k", max_seconds: float = 60
    ) -> SearchResult:
        return Search(
            precision="int8",
            blocks=[Block(name, (name,), 1.0 + index) for index, name in enumerate(self.losses)],
            build=self.build,
            measure_few=self.measure,
            measure_all=self.measure,
            low_cost=0.25,
            notes=SearchNotes(path, key),
            max_seconds=max_seconds,
        ).run(max_drop)


def test_plain_variant_within_the_budget_is_taken_without_a_search() -> None:
    network = _Losses({"a": 0.1, "b": 0.2})

    result = network.search(0.5)

    assert result.chosen.kept == ()
    assert result.chosen.cost == 0.25
    assert result.ranking == ()
    assert network.measured == 1


@pytest.mark.parametrize(
    ("max_drop", "expected"),
    [(3.5, {"e"}), (1.5, {"e", "c"}), (0.6, {"e", "c", "g"}), (0.05, set("abcdefg") - {"a"})],
)
def test_fewest_layers_that_hold_the_budget_are_kept(max_drop: float, expected: set[str]) -> None:
    network = _Losses({"a": 0.02, "b": 0.1, "c": 2.0, "d": 0.1, "e": 8.0, "f": 0.1, "g": 0.9})

    result = network.search(max_drop)

    assert set(result.chosen.kept) == expected
    drop = result.chosen.damage.miou_drop
    assert drop is not None
    assert drop <= max_drop
    assert [name for name, _ in result.ranking[:3]] == ["e", "c", "g"]


def test_layer_that_need_not_be_kept_is_lowered_again() -> None:
    # together, b and c harm nothing while a is kept: alone, b looks the worse of both
    class Odd(_Losses):
        def measure(self, model: onnx.ModelProto) -> Damage:
            lowered = set(model.producer_name.split())
            if len(lowered) == 1:
                return super().measure(model)
            return Damage(0.0 if not lowered & {"a", "c"} or lowered == {"b", "d"} else 9.0, 0.0)

    result = Odd({"a": 5.0, "b": 4.0, "c": 3.0, "d": 0.0}).search(1.0)

    assert set(result.chosen.kept) == {"a", "c"}


def test_pareto_points_get_better_as_they_get_dearer() -> None:
    network = _Losses({"a": 0.02, "b": 0.1, "c": 2.0, "d": 0.1, "e": 8.0, "f": 0.1, "g": 0.9})

    points = network.search(0.6).pareto()

    costs = [point.cost for point in points]
    drops = [point.damage.miou_drop or 0.0 for point in points]
    assert len(points) >= 3
    assert costs == sorted(costs)
    assert drops == sorted(drops, reverse=True)
    assert points[0].kept == ()


def test_budget_that_nothing_holds_is_an_error_that_names_the_worst_layers() -> None:
    network = _Losses({"a": 1.0, "b": 3.0, "c": 2.0})

    with pytest.raises(BudgetError, match=r"int8 loses 1\.00 points .* 2 layers .* 'b', 'c', 'a'"):
        network.search(0.5)


def test_stopped_search_goes_on_where_it_was(tmp_path: Path) -> None:
    losses = {"a": 0.1, "b": 5.0, "c": 0.1}
    path = tmp_path / "search.json"

    class Stopped(_Losses):
        def measure(self, model: onnx.ModelProto) -> Damage:
            if self.measured == 3:
                raise KeyboardInterrupt
            return super().measure(model)

    with pytest.raises(KeyboardInterrupt):
        Stopped(losses).search(1.0, path=path)
    again, other = _Losses(losses), _Losses(losses)
    other.search(1.0, path=tmp_path / "none.json")

    result = again.search(1.0, path=path)

    assert result.chosen.kept == ("b",)
    assert again.measured == other.measured - 3


def test_notes_of_another_key_or_damaged_ones_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "search.json"
    _Losses({"a": 0.1, "b": 5.0}).search(1.0, path=path, key="old")
    damaged = tmp_path / "damaged.json"
    damaged.write_text(path.read_text(encoding="utf-8")[:20], encoding="utf-8")

    new, torn = _Losses({"a": 0.1, "b": 5.0}), _Losses({"a": 0.1, "b": 5.0})
    new.search(1.0, path=path, key="new")
    torn.search(1.0, path=damaged, key="old")

    assert new.measured == torn.measured == 4


def test_search_out_of_time_keeps_the_cheapest_unknown_layers_first() -> None:
    network = _Losses({"a": 1.0, "b": 1.0, "c": 1.0})

    result = network.search(1.0, max_seconds=-1.0)

    assert result.ranking == ()
    assert result.unranked == ("a", "b", "c")
    assert result.chosen.kept == ("a", "b")
    assert json.loads(json.dumps(result.to_json()))["unranked"] == ["a", "b", "c"]


def test_the_meter_counts_labels_and_iou_as_by_hand(rng: np.random.Generator) -> None:
    model = FrameGraph(rng).residual()
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name == "classifier.bias":
            tensor.raw_data = np.array([9.0, 0, 0, 0], np.float32).tobytes()  # class 0 everywhere
    frames = [natural_frame(30, 40, seed) for seed in range(3)]
    labels = [_labels(model, frame) for frame in frames]
    shapes = ShapeRange((1, 16, 16), (1, 32, 32), (1, 64, 64), multiple_of=8)

    items = [EvalItem("x", f, t) for f, t in zip(frames, labels, strict=True)]
    meter = DamageMeter(
        model,
        lambda: iter(items),
        SPEC,
        shapes,
        has_labels=True,
        backends=["onnxruntime", "openvino"],
    )
    same = meter.measure(model, Precision.FP32)
    other = meter.measure(changed, Precision.FP32)

    truth = np.concatenate([array.ravel() for array in labels])
    present = len(np.unique(truth))
    assert meter.images == 3
    # two backends round float32 differently: a near tie may fall otherwise
    assert same.disagreement < 1e-3
    assert other.disagreement == pytest.approx(np.mean(truth != 0))
    assert other.miou_drop == pytest.approx(100 * (1 - np.mean(truth == 0) / present), abs=0.1)


def _labels(model: onnx.ModelProto, frame: Array) -> Array:
    import onnxruntime

    padded = cv2.copyMakeBorder(frame, 0, -len(frame) % 8, 0, 0, cv2.BORDER_REPLICATE)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found: Array = session.run(["labels"], {"image": padded[None]})[0][0, : len(frame)]
    return found
