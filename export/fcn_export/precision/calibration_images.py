"""Images to calibrate on: a folder, a list or a video, a bounded choice of them, one at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
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
    """

    path: Path
    files: tuple[Path, ...]
    indices: tuple[int, ...]
    total: int
    sha256: str

    @classmethod
    def find(
        cls, path: Path, *, size: tuple[int, int], limit: int = MAX_IMAGES
    ) -> CalibrationImages:
        """Choose the images of a source.

        Args:
            path: a folder of images, a text file that lists one image a line (relative to the
                file's own folder), an image, or a video.
            size: usual (height, width) in px: the larger it is, the fewer images are chosen.

        Raises:
            SourceOpenError: there is nothing to read, or a listed image is missing.
        """
        count = max(min(_MIN_IMAGES, limit), min(limit, MAX_PIXELS // (size[0] * size[1])))
        if path.is_file() and address_kind(path) is not AddressKind.IMAGE and _is_text(path):
            return cls._of_files(path, _read_list(path), count)
        source = open_source(path)
        if isinstance(source, ImageSource):
            files = list_images(path) if path.is_dir() else [path]
            return cls._of_files(path, files, count)
        if isinstance(source, VideoFileSource):
            return cls._of_video(path, count)
        raise SourceOpenError(
            f"'{path}' is no folder of images, list of images or video file.",
            hint="Save some frames to a folder and calibrate on that.",
        )

    @classmethod
    def _of_files(cls, path: Path, files: list[Path], count: int) -> CalibrationImages:
        chosen = tuple(files[index] for index in _spread(len(files), count))
        digest = hashlib.sha256()
        for file in chosen:
            digest.update(_file_digest(file))
        return cls(path, files=chosen, indices=(), total=len(files), sha256=digest.hexdigest())

    @classmethod
    def _of_video(cls, path: Path, count: int) -> CalibrationImages:
        total = _count_frames(path)
        indices = _spread(total, count)
        digest = hashlib.sha256(_file_digest(path))
        digest.update(repr(indices).encode())
        return cls(path, files=(), indices=indices, total=total, sha256=digest.hexdigest())

    def __len__(self) -> int:
        return len(self.files) or len(self.indices)

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
