"""What the head takes and gives, who may call it, and where its machine code may live."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fcn_deploy.errors import NonFiniteOutputError, ShapeError
from fcn_deploy.head import load_kernels, upsample_argmax, upsample_confidence
from fcn_deploy.head.argmax_kernel import argmax_kernel
from fcn_deploy.names import Array
from tests.deploy.interpolation import interpolate

ROOT = Path(__file__).resolve().parents[3]

USE_IT = """
import numpy as np
from fcn_deploy.head import upsample_argmax
scores = np.random.default_rng(5).standard_normal((4, 8, 8)).astype(np.float32)
"""
SAY_IT = "print(upsample_argmax(scores, (40, 40)).tobytes().hex())"


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def labels_of_use_it() -> str:
    scores = np.random.default_rng(5).standard_normal((4, 8, 8)).astype(np.float32)
    return upsample_argmax(scores, (40, 40)).tobytes().hex()


@pytest.fixture
def scores(rng: np.random.Generator) -> Array:
    return rng.standard_normal((5, 6, 7)).astype(np.float32)


def test_size_of_the_scores_gives_their_argmax(scores: Array) -> None:
    assert np.array_equal(upsample_argmax(scores, (6, 7)), scores.argmax(0))


def test_downscaling_takes_the_sample_under_each_pixel(rng: np.random.Generator) -> None:
    scores = rng.standard_normal((5, 30, 42)).astype(np.float32)

    labels = upsample_argmax(scores, (10, 14))  # centres of 3x3 samples

    assert np.array_equal(labels, scores[:, 1::3, 1::3].argmax(0))


def test_batch_gives_what_its_images_give(rng: np.random.Generator) -> None:
    batch = rng.standard_normal((3, 5, 6, 7)).astype(np.float32)

    labels = upsample_argmax(batch, (40, 41))
    _, confidence = upsample_confidence(batch, (40, 41))

    assert labels.shape == confidence.shape == (3, 40, 41)
    for image in range(3):
        assert np.array_equal(labels[image], upsample_argmax(batch[image], (40, 41)))
        alone = upsample_confidence(batch[image], (40, 41))[1]
        assert np.array_equal(confidence[image], alone)


@pytest.mark.parametrize(("classes", "dtype"), [(256, np.uint8), (257, np.uint16)])
def test_labels_above_256_classes_have_16_bits(classes: int, dtype: type[np.generic]) -> None:
    scores = np.zeros((classes, 2, 2), np.float32)
    scores[-1] = 1

    labels = upsample_argmax(scores, (5, 5))

    assert labels.dtype == dtype
    assert (labels == classes - 1).all()


@pytest.mark.parametrize("threshold", [-0.3, 0.0, 0.5])
def test_one_class_is_compared_with_the_threshold(
    rng: np.random.Generator, threshold: float
) -> None:
    scores = rng.standard_normal((1, 9, 8)).astype(np.float32)

    labels = upsample_argmax(scores, (50, 70), threshold=threshold)

    resized = interpolate(scores, (50, 70))
    clear = np.abs(resized.scores[0] - threshold) > resized.tolerance + 2.0**-22
    assert np.array_equal(labels[clear], (resized.scores[0] > threshold)[clear])
    assert clear.mean() > 0.99


def test_one_class_at_its_threshold_is_label_0() -> None:
    scores = np.full((1, 3, 3), 0.7, np.float32)

    assert not upsample_argmax(scores, (10, 11), threshold=0.7).any()


def test_out_is_filled_and_given_back(scores: Array) -> None:
    out = np.full((20, 30), 99, np.uint8)

    labels = upsample_argmax(scores, (20, 30), out=out)

    assert labels is out
    assert np.array_equal(out, upsample_argmax(scores, (20, 30)))


def test_out_may_be_a_window_and_what_is_around_it_stays(scores: Array) -> None:
    canvas = np.full((40, 60), 99, np.uint8)

    upsample_argmax(scores, (20, 30), out=canvas[10:30, 20:50])

    assert np.array_equal(canvas[10:30, 20:50], upsample_argmax(scores, (20, 30)))
    canvas[10:30, 20:50] = 99
    assert (canvas == 99).all()


@pytest.mark.parametrize(
    "view",
    [
        lambda s: s[:, ::2, ::-1],
        lambda s: s[:, 1:5, 2:6],
        lambda s: np.moveaxis(np.ascontiguousarray(np.moveaxis(s, 0, 2)), 2, 0),
        lambda s: np.broadcast_to(s[:, :1, :1], s.shape),
        lambda s: (
            np.frombuffer(b"\0" + s.tobytes(), np.uint8)[1:].view(np.float32).reshape(s.shape)
        ),
    ],
    ids=["strided", "cropped", "channels last", "broadcast", "unaligned and read-only"],
)
def test_scores_may_be_any_view(scores: Array, view: Any) -> None:
    seen = view(scores)

    labels = upsample_argmax(seen, (33, 34))

    assert np.array_equal(labels, upsample_argmax(seen.copy(), (33, 34)))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64, np.int8])
def test_scores_of_other_dtypes_are_computed_in_float32(scores: Array, dtype: Any) -> None:
    narrow = (scores * 10).astype(dtype)

    labels = upsample_argmax(narrow, (33, 34))

    assert np.array_equal(labels, upsample_argmax(narrow.astype(np.float32), (33, 34)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [(6, 7), (48, 56), (2, 3), (1, 1), (7, 5)])
def test_one_score_that_is_not_finite_is_noticed_wherever_it_is(
    scores: Array, value: float, size: tuple[int, int]
) -> None:
    unnoticed = []
    for place in np.ndindex(scores.shape):
        spoilt = scores.copy()
        spoilt[place] = value
        try:
            upsample_argmax(spoilt, size)
        except NonFiniteOutputError:
            continue
        unnoticed.append(place)

    assert unnoticed == []


def test_scores_that_are_not_finite_raise_with_advice(scores: Array) -> None:
    scores[1, 2, 3] = np.nan

    with pytest.raises(NonFiniteOutputError, match=r"NaN or infinity\. Run it in fp32"):
        upsample_confidence(scores, (20, 20))


def test_scores_too_large_for_float32_count_as_infinite() -> None:
    with pytest.raises(NonFiniteOutputError, match="NaN or infinity"):
        upsample_argmax(np.full((2, 3, 3), 1e300), (6, 6))


@pytest.mark.parametrize("shape", [(5, 6), (1, 1, 5, 6, 7), (0, 3, 3), (2, 0, 3), (2, 3, 0)])
def test_scores_of_another_rank_or_empty_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=re.escape(f"scores have shape {list(shape)}; expected [")):
        upsample_argmax(np.zeros(shape, np.float32), (4, 4))


@pytest.mark.parametrize("size", [(0, 4), (4, -1), (4,)])
def test_sizes_without_pixels_are_refused(scores: Array, size: Any) -> None:
    with pytest.raises(ShapeError, match="expected a height and a width of 1 px or more"):
        upsample_argmax(scores, size)


def test_more_classes_than_labels_can_name_are_refused() -> None:
    with pytest.raises(ShapeError, match="65537 classes; 65536 fit"):
        upsample_argmax(np.zeros((65537, 1, 1), np.float32), (1, 1))


@pytest.mark.parametrize(
    "out", [np.zeros((4, 5), np.uint8), np.zeros((4, 4), np.int64), np.zeros((1, 4, 4), np.uint8)]
)
def test_out_of_another_shape_or_dtype_is_refused(scores: Array, out: Array) -> None:
    with pytest.raises(ShapeError, match=r"expected uint8 \[4, 4\]"):
        upsample_argmax(scores, (4, 4), out=out)


@pytest.mark.parametrize("num_threads", [2, 3, 8])
def test_any_number_of_threads_gives_the_same(rng: np.random.Generator, num_threads: int) -> None:
    scores = rng.standard_normal((2, 3, 31, 37)).astype(np.float32)
    size = (3000, 3000)  # large enough for eight threads
    alone = upsample_argmax(scores, size, num_threads=1)

    labels = upsample_argmax(scores, size, num_threads=num_threads)

    assert np.array_equal(labels, alone)


def test_many_threads_may_call_at_once(rng: np.random.Generator) -> None:
    scores = [rng.standard_normal((4, 31, 37)).astype(np.float32) for _ in range(16)]
    size = (2200, 2000)  # large enough for two
    expected = [upsample_argmax(one, size, num_threads=1) for one in scores]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda one: upsample_argmax(one, size, num_threads=2), scores))

    assert all(map(np.array_equal, found, expected))


def test_head_works_in_a_fork_of_a_process_that_used_it() -> None:
    code = f"""{USE_IT}
import os
big = np.random.default_rng(5).standard_normal((4, 31, 37)).astype(np.float32)
before = upsample_argmax(big, (2200, 2000), num_threads=2)
child = os.fork()
if child == 0:
    same = np.array_equal(before, upsample_argmax(big, (2200, 2000), num_threads=2))
    os._exit(0 if same else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

    result = run_python(code)

    assert (result.returncode, result.stdout.strip()) == (0, "0"), result.stderr


def test_head_works_where_no_folder_can_hold_its_cache(tmp_path: Path) -> None:
    (tmp_path / "file").touch()  # a folder below a file cannot be made, not even by root

    result = run_python(
        USE_IT + SAY_IT,
        NUMBA_CACHE_DIR=str(tmp_path / "file" / "cache"),
        NUMBA_CACHE_LOCATOR_CLASSES="UserProvidedCacheLocator",  # nor beside the source
    )

    assert result.stdout.strip() == labels_of_use_it(), result.stderr


def test_full_disk_and_damaged_cache_cost_time_but_no_result(tmp_path: Path) -> None:
    load = """
from fcn_deploy.head.confidence_kernel import confidence_kernel
confidence_kernel()
print("loaded")
"""
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))"

    on_full_disk = run_python(full + load, NUMBA_CACHE_DIR=str(tmp_path))
    in_order = run_python(load, NUMBA_CACHE_DIR=str(tmp_path))
    (index,) = tmp_path.rglob("confidence_kernel*.nbi")
    index.write_bytes(b"")  # as a crash may leave it
    after_damage = run_python(load, NUMBA_CACHE_DIR=str(tmp_path))

    for result in (on_full_disk, in_order, after_damage):
        assert result.stdout.strip() == "loaded", result.stderr
    for result in (on_full_disk, after_damage):
        assert f"Numba's cache in {tmp_path}" in result.stderr
    assert in_order.stderr == ""


@pytest.mark.parametrize("num_classes", [2, 300])
def test_loading_ahead_leaves_nothing_to_load(num_classes: int) -> None:
    load_kernels(num_classes)
    loads = argmax_kernel.cache_info().misses

    upsample_argmax(np.zeros((num_classes, 3, 3), np.float32), (9, 9))

    assert argmax_kernel.cache_info().misses == loads
