"""Upsample scores to labels or to confidence: check, allocate, divide the work among threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

from fcn_deploy.errors import NonFiniteOutputError, ShapeError
from fcn_deploy.head.geometry import Axis, make_axis
from fcn_deploy.machine import usable_cores
from fcn_deploy.names import Array

__all__ = [
    "as_batch",
    "label_dtype",
    "label_into",
    "load_kernels",
    "thread_count",
    "upsample_argmax",
    "upsample_confidence",
]

_MAX_CLASSES = 1 << 16

_ITEMS_PER_THREAD = 1 << 21
"""Scores and labels that make another thread worth its start: about 0.5 ms of work. On a busy
machine, waiting until that thread gets a core costs more than it saves of less."""

_PARTS_PER_THREAD = 4
"""More than one, because mixed cells, which cost the time, are not spread evenly."""


def load_kernels(num_classes: int) -> None:
    """Load the compiled code that `upsample_argmax` needs, so that the first frame does not wait.

    Takes half a second, mostly Numba's import; and seconds the first time on a machine, when the
    code is compiled. May run in another thread while a network loads.
    """
    from fcn_deploy.head.argmax_kernel import argmax_kernel

    argmax_kernel(label_dtype(num_classes).name)


def upsample_argmax(
    scores: Array,
    size: tuple[int, int],
    *,
    align_corners: bool = False,
    threshold: float = 0.0,
    num_threads: int | None = None,
    out: Array | None = None,
) -> Array:
    """Resize class scores bilinearly and give the best class of each pixel, without the scores.

    The labels are those of PyTorch's `interpolate(..., mode="bilinear")` and `argmax`, and of
    ONNX's Resize and ArgMax, except where two interpolated scores differ by float32's rounding
    only. Ties go to the lowest class. Downscaling samples; it does not average.

    One class alone means binary: label 1 where its score is above the threshold.

    May be called from many threads at once and after a fork. The first call in a process loads
    compiled code, the first on a machine compiles it (seconds).

    Args:
        scores: [C, h, w] or a batch [N, C, h, w], any strides; computed in float32; not modified.
        size: (height, width) of the labels in px.
        align_corners: whether the outermost pixels lie on the outermost samples; otherwise pixels
            and samples are areas of the same image (half-pixel centres).
        threshold: of a single class's score; 0 for logits, 0.5 for probabilities.
        num_threads: the most threads to use; None means the cores this process may use. Small
            work takes fewer.
        out: uint8 (uint16 above 256 classes) [height, width] or [N, height, width] to write the
            labels into.

    Returns:
        `out`, or a new array of that kind, owned by the caller.

    Raises:
        NonFiniteOutputError: a score is NaN or infinite; `out` is then undefined.
        ShapeError: `scores`, `size` or `out` is of another shape or dtype.
    """
    batch = as_batch(scores, size)
    shape = (*scores.shape[:-3], *size)
    dtype = label_dtype(batch.shape[1])
    if out is None:
        out = np.empty(shape, dtype)
    elif out.shape != shape or out.dtype != dtype:
        raise ShapeError(f"out is {out.dtype} {list(out.shape)}; expected {dtype} {list(shape)}.")
    labels = out if out.flags.c_contiguous else np.empty(shape, dtype)
    rows, columns = _axes(batch, size, align_corners)
    threads = thread_count(batch, size, num_threads)
    label_into(
        batch,
        threshold=threshold,
        rows=rows,
        columns=columns,
        labels=labels.reshape(-1, *size),
        threads=threads,
    )
    if labels is not out:
        out[:] = labels
    return out


def upsample_confidence(
    scores: Array,
    size: tuple[int, int],
    *,
    align_corners: bool = False,
    threshold: float = 0.0,
    num_threads: int | None = None,
) -> tuple[Array, Array]:
    """Give the best class of each pixel, and its softmax probability, of bilinearly resized scores.

    One class alone is a logit: its probability is the sigmoid of its distance from the threshold.

    Args:
        scores: logits; the rest as for `upsample_argmax`.

    Returns:
        Labels as `upsample_argmax` gives them, and their probability, float32 of the same shape
        in 0..1, within 1e-6 of exact; both owned by the caller.

    Raises:
        NonFiniteOutputError, ShapeError: as for `upsample_argmax`.
    """
    from fcn_deploy.head.confidence_kernel import confidence_kernel

    labels = upsample_argmax(
        scores,
        size,
        align_corners=align_corners,
        threshold=threshold,
        num_threads=num_threads,
    )
    batch = as_batch(scores, size)
    rows, columns = _axes(batch, size, align_corners)
    threads = thread_count(batch, size, num_threads)
    confidence = np.empty(labels.shape, np.float32)
    planes = confidence.reshape(-1, *size)
    soften = confidence_kernel()

    def work(image: int, first: int, last: int) -> bool:
        soften(batch[image], threshold, rows, columns, first, last, planes[image])
        return True

    _share_out(work, len(batch), size[0], threads)
    return labels, confidence


def label_into(
    batch: Array, threshold: float, rows: Axis, columns: Axis, labels: Array, threads: int
) -> None:
    """Write the labels of scores, float32 [N, C, h, w], into `labels`, [N, height, width].

    Raises:
        NonFiniteOutputError: a score that was read is NaN or infinite.
    """
    from fcn_deploy.head.argmax_kernel import argmax_kernel

    label_bands = argmax_kernel(labels.dtype.name)

    def work(image: int, first: int, last: int) -> bool:
        return label_bands(batch[image], threshold, rows, columns, first, last, labels[image])

    if not _share_out(work, len(batch), len(rows.starts) - 1, threads):
        raise NonFiniteOutputError(
            "the network's scores hold NaN or infinity.",
            hint="Run it in fp32; if they stay, the weights or the input are at fault.",
        )


def _share_out(
    work: Callable[[int, int, int], bool], images: int, lines: int, threads: int
) -> bool:
    """Call work(image, first, last) until all lines of all images are done; say if all are true.

    The threads live as long as this call. A pool that stays would save 50 us of it, but leave
    something to close, and a fork without the pool's threads.
    """
    parts = min(lines, -(-threads * _PARTS_PER_THREAD // images) if threads > 1 else 1)
    bounds = [lines * part // parts for part in range(parts + 1)]
    tasks = iter([(image, *bounds[p : p + 2]) for image in range(images) for p in range(parts)])

    def drain() -> bool:
        return all(work(*task) for task in tasks)  # stops at the first that fails

    if threads == 1:
        return drain()
    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(drain) for _ in range(threads - 1)]
        return all([drain(), *(other.result() for other in others)])


def thread_count(batch: Array, size: tuple[int, int], num_threads: int | None) -> int:
    """Give how many threads the work is worth, at most `num_threads` or the usable cores.

    Args:
        batch: scores [N, C, h, w] of any dtype.
        size: (height, width) of the labels in px.
    """
    items = batch.size + len(batch) * size[0] * size[1]
    limit = _usable_cores() if num_threads is None else num_threads
    return max(1, min(limit, items // _ITEMS_PER_THREAD))


@cache
def _usable_cores() -> int:
    return usable_cores()  # reads the kernel's files, which takes longer than a small frame


def label_dtype(num_classes: int) -> np.dtype[np.unsignedinteger]:
    """Give the smallest dtype that holds the ids of `num_classes` classes."""
    return np.dtype(np.uint8 if num_classes <= 256 else np.uint16)


def _axes(batch: Array, size: tuple[int, int], align_corners: bool) -> tuple[Axis, Axis]:
    height, width = batch.shape[2:]
    return (
        make_axis(height, size[0], align_corners=align_corners),
        make_axis(width, size[1], align_corners=align_corners),
    )


def as_batch(scores: Array, size: tuple[int, int]) -> Array:
    """Give scores as float32 [N, C, h, w], a view where they are so already.

    Raises:
        ShapeError: the scores, or the (height, width) they are to be enlarged to, are unusable.
    """
    if scores.ndim not in (3, 4) or 0 in scores.shape:
        raise ShapeError(
            f"scores have shape {list(scores.shape)}; expected [classes, h, w] or "
            "[n, classes, h, w]."
        )
    if scores.shape[-3] > _MAX_CLASSES:
        raise ShapeError(f"scores have {scores.shape[-3]} classes; {_MAX_CLASSES} fit in a label.")
    if len(size) != 2 or min(size) < 1:
        raise ShapeError(f"size is {tuple(size)}; expected a height and a width of 1 px or more.")
    batch = scores if scores.ndim == 4 else scores[np.newaxis]
    with np.errstate(over="ignore"):  # too large for float32 is infinite, which is reported
        return np.require(batch, np.float32, ["ALIGNED"])
