"""Pair sources with outputs, and refuse pairs that cannot work before anything is done."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fcn_deploy.errors import SinkError, SinkFormatError
from fcn_deploy.video.address import AddressKind, address_kind
from fcn_deploy.video.disk_space import translate_os_error
from fcn_deploy.video.files import ImageSource, VideoFileSource, check_file, list_images
from fcn_deploy.video.frames import FrameSource
from fcn_deploy.video.pipeline import Policy
from fcn_deploy.video.sinks import View, image_name
from fcn_deploy.video.sources import open_source
from fcn_deploy.video.writers import VIDEO_SUFFIXES

__all__ = ["SegmentJob", "connected", "segment_jobs", "want_throughput"]

_NUMBERED = re.compile(r"\d{6,}\.png")


@dataclass(frozen=True, slots=True)
class SegmentJob:
    """One source and where its results go.

    Attributes:
        source: not yet opened.
        output: a video file where `is_video`, else a folder of images.
        is_video: one file for all frames.
    """

    source: FrameSource
    output: Path
    is_video: bool


def segment_jobs(
    addresses: Sequence[str],
    output: str | Path,
    *,
    view: View = "overlay",
    report: Path | None = None,
) -> list[SegmentJob]:
    """Plan the work: one job for all images, then one for each other source.

    Images and folders of images go into the folder `output`. A video goes to `output` where that
    is named like a video, else to ``<output>/<stem>.mp4``; with the view ``labels`` it becomes the
    folder ``<output>/<stem>`` of PNG files, because video codecs do not keep class ids.

    Args:
        addresses: what `open_source` takes.
        output: a folder, or a video file's name for a single video.
        report: a file that is written too; it must not be a source either.

    Raises:
        SourceOpenError: a file is missing or unreadable, a folder holds no images.
        SinkFormatError: `output` is named like a file that these sources cannot be written to.
        SinkError: two sources would be written to one file, or a source would be overwritten.
    """
    output = Path(output)
    as_video = _is_video_output(addresses, output, view)
    images: list[Path] = []
    jobs: list[SegmentJob] = []
    for address in addresses:
        kind = address_kind(address)
        if kind is AddressKind.FOLDER:
            images += list_images(Path(address))
        elif kind is AddressKind.IMAGE:
            check_file(Path(address), "an image")
            images.append(Path(address))
        elif as_video:
            jobs.append(SegmentJob(open_source(address), output, is_video=True))
        else:
            jobs.append(_job_in_folder(address, kind, output, view))
    if images:
        name = f"{len(images)} images" if len(images) > 1 else str(images[0])
        jobs.insert(0, SegmentJob(ImageSource(images, name=name), output, is_video=False))
    _check_targets(jobs, report)
    return jobs


def want_throughput(jobs: Sequence[SegmentJob], policy: Policy | None) -> bool:
    """Say whether many frames are to be done soon, rather than each of them.

    Args:
        policy: of the pipelines; None means each source's own.
    """
    if any(job.source.live for job in jobs) or policy == "latest":
        return False
    return any(job.source.frame_count != 1 for job in jobs)


@contextlib.contextmanager
def connected(jobs: Sequence[SegmentJob]) -> Iterator[None]:
    """Connect to the live sources at once, before a network is loaded; close them at the end.

    Raises:
        SourceOpenError, SourceTimeoutError: one does not answer.
    """
    live = [job.source for job in jobs if job.source.live]
    with contextlib.ExitStack() as stack:
        for source in live:
            stack.callback(source.close)
            source.open()
        yield


def _is_video_output(addresses: Sequence[str], output: Path, view: View) -> bool:
    if os.path.isdir(output):
        return False
    if output.suffix.lower() not in VIDEO_SUFFIXES:
        if os.path.exists(output):
            raise SinkFormatError(
                f"{output} is a file; expected a folder or a video file's name"
                f" ({', '.join(sorted(VIDEO_SUFFIXES))})."
            )
        return False
    if view == "labels":
        raise SinkFormatError(
            f"class ids cannot be kept in the video {output}: codecs change them.",
            hint="Name a folder; each frame's labels become a PNG file there.",
        )
    kinds = [address_kind(address) for address in addresses]
    if len(kinds) != 1 or kinds[0] in (AddressKind.IMAGE, AddressKind.FOLDER):
        found = "images" if len(kinds) == 1 else f"{len(kinds)} sources"
        raise SinkFormatError(
            f"the video {output} is to hold {found}; expected one video, webcam or stream.",
            hint="Name a folder.",
        )
    return True


def _job_in_folder(address: str, kind: AddressKind, folder: Path, view: View) -> SegmentJob:
    source = open_source(address)
    stem = {
        AddressKind.WEBCAM: f"webcam-{address}",
        AddressKind.NETWORK: "stream",  # an address may hold secrets anywhere
    }.get(kind, Path(address).stem)
    if view == "labels":
        return SegmentJob(source, folder / stem, is_video=False)
    return SegmentJob(source, folder / f"{stem}.mp4", is_video=True)


def _check_targets(jobs: Sequence[SegmentJob], report: Path | None) -> None:
    inputs = {_identity(path): path for job in jobs for path in _inputs(job.source)}
    origins: dict[Path, str] = {}
    for job in jobs:
        for target, origin in _targets(job):
            if target in origins:
                raise SinkError(
                    f"{origins[target]} and {origin} would both be written to {target}.",
                    hint="Segment them one at a time, into different folders.",
                )
            origins[target] = origin
            _refuse_source(target, inputs)
        if not (job.is_video or isinstance(job.source, ImageSource)):  # frames by their numbers
            for path in inputs.values():
                if _NUMBERED.fullmatch(path.name):
                    _refuse_source(job.output / path.name, inputs)
    if report is not None:
        _refuse_source(report, inputs)


def _refuse_source(target: Path, inputs: Mapping[tuple[int, int], Path]) -> None:
    try:
        # the real path: a folder in front of ".." may not be there yet
        found = _identity(Path(os.path.realpath(target)))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as exc:  # such as a name that is too long
        raise translate_os_error(exc, target) from exc
    if found in inputs:
        raise SinkError(
            f"{target} is the source {inputs[found]} itself.",
            hint="Write to another folder or name.",
        )


def _identity(path: Path) -> tuple[int, int]:
    """Tell files apart, whatever links lead to them."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _inputs(source: FrameSource) -> tuple[Path, ...]:
    """Give the files that a source is read from.

    Raises:
        SourceOpenError: a video is missing, or no plain file.
    """
    if isinstance(source, ImageSource):
        return source.paths
    if not isinstance(source, VideoFileSource):
        return ()
    check_file(source.path, "a video")
    return (source.path,)


def _targets(job: SegmentJob) -> Iterator[tuple[Path, str]]:
    if isinstance(job.source, ImageSource):
        for path in job.source.paths:
            yield job.output.absolute() / image_name(path, 0), str(path)
    else:
        yield job.output.absolute(), job.source.name
