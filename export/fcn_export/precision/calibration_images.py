"""Choose the images to calibrate on from a folder, a list or a video, and read them one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.errors import SourceOpenError
from fcn_deploy.names import Array, ColorOrder
from fcn_deploy.preprocess import pad_frame
from fcn_deploy.video.address import AddressKind, address_kind
from fcn_deploy.video.files import ImageSource, VideoFileSource, check_file, list_images
from fcn_deploy.video.sources import open_source

__all__ = ["MAX_IMAGES", "MAX_PIXELS", "CalibrationImages", "check_source", "fit_frame"]

MAX_IMAGES = 128
"""Ranges hardly move with more."""

MAX_PIXELS = 16_000_000
"""In all images at the usual size together: 61 of 512x512, for a few minutes of a large network."""

_MIN_IMAGES = 16
_HELD_OUT = 12
_MIN_HELD_OUT = 4  # as many as `auto` asks for
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class CalibrationImages:
    """Images of a source that were chosen, evenly spread over all.

    Attributes:
        path: folder, list or video, as it was given.
        files: images that were chosen; empty for a video.
        indices: frames of the video that were chosen; empty for images.
        total: images or frames that the source has.
        sha256: of what was chosen: the files' content, or the video's with the indices.
        held_out: places, among all, of some that were not chosen; empty where all were.
    """

    path: Path
    files: tuple[Path, ...]
    indices: tuple[int, ...]
    total: int
    sha256: str
    held_out: tuple[int, ...] = ()

    @classmethod
    def find(
        cls,
        path: Path,
        *,
        size: tuple[int, int],
        limit: int = MAX_IMAGES,
        hold_out: bool = False,
    ) -> CalibrationImages:
        """Choose the images of a source.

        Args:
            path: a folder of images, a text file that lists one image a line (relative to the
                file's own folder), an image, or a video.
            size: usual (height, width) in px: the larger it is, the fewer images are chosen.
            hold_out: leave up to 12 out, which `others` gives; of fewer than 20 images, none.

        Raises:
            SourceOpenError: there is nothing to read, or a listed image is missing.
        """
        count = max(min(_MIN_IMAGES, limit), min(limit, MAX_PIXELS // (size[0] * size[1])))
        if path.is_file() and address_kind(path) is not AddressKind.IMAGE and _is_text(path):
            return cls._of_files(path, _read_list(path), count, hold_out)
        source = open_source(path)
        if isinstance(source, ImageSource):
            files = list_images(path) if path.is_dir() else [path]
            return cls._of_files(path, files, count, hold_out)
        if isinstance(source, VideoFileSource):
            return cls._of_video(path, count, hold_out)
        raise SourceOpenError(
            f"'{path}' is no folder of images, list of images or video file.",
            hint="Save some frames to a folder and calibrate on that.",
        )

    @classmethod
    def _of_files(
        cls, path: Path, files: list[Path], count: int, hold_out: bool
    ) -> CalibrationImages:
        indices, held_out = _choose(len(files), count, hold_out=hold_out)
        chosen = tuple(files[index] for index in indices)
        digest = hashlib.sha256()
        for file in chosen:
            digest.update(_file_digest(file))
        return cls(
            path,
            files=chosen,
            indices=(),
            total=len(files),
            sha256=digest.hexdigest(),
            held_out=held_out,
        )

    @classmethod
    def _of_video(cls, path: Path, count: int, hold_out: bool) -> CalibrationImages:
        total = _count_frames(path)
        indices, held_out = _choose(total, count, hold_out=hold_out)
        digest = hashlib.sha256(_file_digest(path))
        digest.update(repr(indices).encode())
        return cls(
            path,
            files=(),
            indices=indices,
            total=total,
            sha256=digest.hexdigest(),
            held_out=held_out,
        )

    def others(self) -> CalibrationImages | None:
        """Give images that no range is taken from; None where there are none."""
        if not self.held_out:
            return None
        if not self.files:
            return replace(self, indices=self.held_out, held_out=())
        every = _listed(self.path)
        return replace(self, files=tuple(every[index] for index in self.held_out), held_out=())

    def __len__(self) -> int:
        return len(self.files) or len(self.indices)

    def names(self) -> list[str]:
        """Name the images in the order of `frames`: files, or frames of the video."""
        return [file.name for file in self.files] or [f"frame {index}" for index in self.indices]

    def frames(self, *, color: ColorOrder) -> Iterator[Array]:
        """Read the images in order: uint8 [H, W, 3] each, channels in the order asked for.

        Raises:
            SourceError: one cannot be read any more.
        """
        source = ImageSource(self.files) if self.files else VideoFileSource(self.path)
        wanted = set(self.indices)
        source.open()
        try:
            while (item := source.read()) is not None:
                if self.files or item.index in wanted:
                    yield (
                        item.frame
                        if color == "bgr"
                        else np.ascontiguousarray(item.frame[..., ::-1])
                    )
        finally:
            source.close()


def check_source(path: Path) -> None:
    """Refuse, before anything else is done, what holds no images; nothing is decoded.

    Raises:
        SourceOpenError: it does not exist, is empty, or is a folder or a list without images.
    """
    if path.is_dir():
        list_images(path)
        return
    check_file(path, "a folder of images, a list of images or a video")
    if address_kind(path) is not AddressKind.IMAGE and _is_text(path):
        _read_list(path)


def fit_frame(frame: Array, shapes: ShapeRange) -> Array:
    """Make an image what the network is served: padded to its multiple, as the runtime does it.

    One that is larger than the largest shape is cut to its middle: the runtime serves it in tiles.

    Returns:
        uint8 [1, H, W, 3], C-contiguous.
    """
    low, high = shapes.min[1:], shapes.max[1:]
    crops = []
    for side, largest in zip(frame.shape[:2], high, strict=True):
        start = max(0, side - largest) // 2
        crops.append(slice(start, start + min(side, largest)))
    part = frame[crops[0], crops[1]]
    height, width = shapes.padded_size(max(part.shape[0], low[0]), max(part.shape[1], low[1]))
    return np.ascontiguousarray(pad_frame(np.ascontiguousarray(part), (height, width))[None])


def _listed(path: Path) -> list[Path]:
    """List the image files of a folder or a list."""
    return list_images(path) if path.is_dir() else _read_list(path)


def _choose(total: int, count: int, *, hold_out: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Choose places for ranges, and some of the others to hold out."""
    if hold_out and total >= _MIN_IMAGES + _MIN_HELD_OUT:
        count = min(count, max(_MIN_IMAGES, total - _HELD_OUT))
    chosen = _spread(total, count)
    others = sorted(set(range(total)).difference(chosen))
    if not hold_out or len(others) < _MIN_HELD_OUT:
        return chosen, ()
    return chosen, tuple(others[index] for index in _spread(len(others), _HELD_OUT))


def _spread(total: int, count: int) -> tuple[int, ...]:
    """Choose `count` of `total` indices, evenly."""
    if total <= count:
        return tuple(range(total))
    return tuple(int((index + 0.5) * total / count) for index in range(count))


def _count_frames(path: Path) -> int:
    """Count by decoding: what a container announces is often wrong."""
    source = VideoFileSource(path)
    source.open()
    try:
        total = 0
        while source.read() is not None:
            total += 1
    finally:
        source.close()
    if not total:
        raise SourceOpenError(f"no frame of '{path}' can be decoded.")
    return total


def _read_list(path: Path) -> list[Path]:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    files = [path.parent / line for line in lines if line and not line.startswith("#")]
    if not files:
        raise SourceOpenError(f"the list '{path}' names no image.", hint="One path a line.")
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise SourceOpenError(
            f"{len(missing)} of {len(files)} images in the list '{path}' are missing, the first is "
            f"'{missing[0]}'.",
            hint="Paths are relative to the list's own folder.",
        )
    return files


def _is_text(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(4096)
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return bool(text.strip()) and all(char.isprintable() or char.isspace() for char in text)


def _file_digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise SourceOpenError(f"'{path}' cannot be read: {error.strerror}.") from error
    return digest.digest()
