"""Propose how many profiles a plan should have, from the sizes of the images it is for.

TensorRT chooses kernels for a profile's usual size and reserves memory for its largest. Where
images are of very different sizes, one profile serves most of them badly: measured here as the
pixels that would be added if each image were padded to its profile's largest size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.errors import ProfileError

__all__ = ["MAX_PROFILES", "ProfileProposal", "propose_profiles", "sizes_in"]

MAX_PROFILES = 4
"""Each one costs build time, and memory in every context."""

_ENOUGH = 0.1  # share of padded pixels at which no further profile is worth its cost
_MAX_GROUPS = 48  # to begin with: merging takes the cube of their number

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ProfileProposal:
    """One profile, and what it is good for.

    Attributes:
        shapes: smallest, usual and largest batch, height and width.
        images: how many of the images it is for.
        waste: share of its pixels that would be padding, were all its images padded to its largest
            size; 0..1.
    """

    shapes: ShapeRange
    images: int
    waste: float

    def __str__(self) -> str:
        low, usual, high = (f"{height}x{width}" for _, height, width in self.shapes)
        return f"{low} to {high}, usually {usual}: {self.images} images, {self.waste:.0%} padding"


@dataclass(frozen=True, slots=True)
class _Group:
    sizes: Mapping[Size, int]

    @property
    def images(self) -> int:
        return sum(self.sizes.values())

    @property
    def largest(self) -> Size:
        return max(height for height, _ in self.sizes), max(width for _, width in self.sizes)

    @property
    def padded_px(self) -> int:
        return self.images * self.largest[0] * self.largest[1]

    @property
    def own_px(self) -> int:
        return sum(height * width * count for (height, width), count in self.sizes.items())

    def with_(self, other: _Group) -> _Group:
        return _Group({**self.sizes, **other.sizes})


def sizes_in(path: Path) -> dict[Size, int]:
    """Count the sizes, (height, width) in px, of an image, the images of a folder, or a video.

    Images are not decoded: their headers tell.

    Raises:
        SourceOpenError: there is nothing to read.
        ProfileError: the video has no frame.
    """
    from fcn_deploy.video.files import ImageSource, list_images
    from fcn_deploy.video.sources import open_source

    source = open_source(path)
    if isinstance(source, ImageSource):
        files = list_images(path) if path.is_dir() else [path]
        return dict(Counter(_image_size(file) for file in files))
    source.open()
    try:
        first = source.read()
    finally:
        source.close()
    if first is None:
        raise ProfileError(f"'{path}' holds no frame to take the size of.")
    return {(first.frame.shape[0], first.frame.shape[1]): 1}


def propose_profiles(sizes: Mapping[Size, int], within: ShapeRange) -> tuple[ProfileProposal, ...]:
    """Give as few profiles as keep padding below a tenth, and at most `MAX_PROFILES`.

    Args:
        sizes: how many images there are of each (height, width) in px.
        within: sizes that the graph was verified for, with the batch that every profile takes.

    Returns:
        The profile of the most images first.

    Raises:
        ProfileError: an image lies outside `within`.
    """
    if not sizes:
        raise ProfileError("there is no image to propose profiles for.")
    padded: Counter[Size] = Counter()
    for size, count in sizes.items():
        padded[_check_inside(size, within)] += count
    groups = _initial_groups(padded)
    while len(groups) > 1:
        first, second = min(_pairs(groups), key=_added_px)
        merged = [group for group in groups if group not in (first, second)]
        merged.append(first.with_(second))
        if _waste(merged) > _ENOUGH and len(groups) <= MAX_PROFILES:
            break
        groups = merged
    groups.sort(key=lambda group: group.images, reverse=True)
    return tuple(_proposal(group, within) for group in groups)


def _image_size(file: Path) -> Size:
    from fcn_deploy.video.files import read_image
    from fcn_deploy.video.image_header import image_size

    found = image_size(file.read_bytes())
    if found is None:  # a format whose header is not known
        image = read_image(file)
        return image.shape[0], image.shape[1]
    return found


def _check_inside(size: Size, within: ShapeRange) -> Size:
    height, width = within.padded_size(*size)
    (_, low_height, low_width), _, (_, high_height, high_width) = within
    if not (low_height <= height <= high_height and low_width <= width <= high_width):
        raise ProfileError(
            f"an image is {size[0]}x{size[1]}; plans take {low_height}x{low_width} to "
            f"{high_height}x{high_width}.",
            hint="Widen the range with --min-size and --max-size.",
        )
    return height, width


def _initial_groups(sizes: Mapping[Size, int]) -> list[_Group]:
    """Put equal sizes together, and similar ones until few enough groups are left."""
    step = 1
    while True:
        cells: dict[Size, dict[Size, int]] = {}
        for (height, width), count in sizes.items():
            cells.setdefault((-(-height // step), -(-width // step)), {})[height, width] = count
        if len(cells) <= _MAX_GROUPS:
            return [_Group(members) for members in cells.values()]
        step *= 2


def _pairs(groups: list[_Group]) -> Iterable[tuple[_Group, _Group]]:
    for index, first in enumerate(groups):
        for second in groups[index + 1 :]:
            yield first, second


def _added_px(pair: tuple[_Group, _Group]) -> int:
    first, second = pair
    return first.with_(second).padded_px - first.padded_px - second.padded_px


def _waste(groups: list[_Group]) -> float:
    padded = sum(group.padded_px for group in groups)
    return 1 - sum(group.own_px for group in groups) / padded


def _proposal(group: _Group, within: ShapeRange) -> ProfileProposal:
    smallest = min(height for height, _ in group.sizes), min(width for _, width in group.sizes)
    # of equally frequent sizes the largest, which gains most by fast kernels
    usual = max(group.sizes, key=lambda size: (group.sizes[size], size[0] * size[1]))
    batch_low, batch_usual, batch_high = (shape[0] for shape in within)
    shapes = ShapeRange(
        (batch_low, *smallest),
        (batch_usual, *usual),
        (batch_high, *group.largest),
        within.multiple_of,
    )
    return ProfileProposal(shapes, group.images, 1 - group.own_px / group.padded_px)
