from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fcn_deploy.errors import ClosedError, SinkError, SinkFormatError
from fcn_deploy.names import Array
from fcn_deploy.segmentation import Segmentation
from fcn_deploy.testing import TWO_CLASSES
from fcn_deploy.video.frames import SegmentedFrame
from fcn_deploy.video.sinks import VIEWS, ImageSink, VideoSink, render
from fcn_deploy.video.writers import VIDEO_SUFFIXES, WRITERS, WriterName
from tests.deploy.clips import (
    decode_all,
    frame_number,
    numbered_frame,
    read_png,
    threshold_segmenter,
    write_image,
)

ROOT = str(Path(__file__).parents[3])


def segmented(frame: Array, *, index: int = 0, origin: Path | None = None) -> SegmentedFrame:
    return SegmentedFrame(frame, index, None, origin, threshold_segmenter(frame))


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("suffix", [*sorted(VIDEO_SUFFIXES), ".MP4"])
def test_a_video_has_every_frame_in_order(tmp_path: Path, suffix: str, writer: WriterName) -> None:
    path = tmp_path / "new" / f"out{suffix}"

    with VideoSink(path, fps=25, writer=writer) as sink:
        for index in range(30):
            sink.write(numbered_frame(index))
        assert sink.partial_path.exists()
        assert not path.exists()

    frames = decode_all(path)
    assert [frame_number(frame) for frame in frames] == list(range(30))
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert (sink.complete, sink.frames) == (True, 30)
    assert sink.encoder.startswith(f"{writer}/")
    assert "30 frames" in repr(sink)


@pytest.mark.parametrize("writer", WRITERS)
def test_an_odd_size_is_made_even_by_repeating_the_edge(tmp_path: Path, writer: WriterName) -> None:
    with VideoSink(tmp_path / "out.mp4", fps=25, writer=writer) as sink:
        sink.write(numbered_frame(10, height=47, width=63))

    (frame,) = decode_all(tmp_path / "out.mp4")
    assert frame.shape == (48, 64, 3)
    assert frame[47, 63].min() > 240


def test_a_frame_of_another_kind_or_size_is_refused_and_the_video_goes_on(tmp_path: Path) -> None:
    with VideoSink(tmp_path / "out.avi", fps=25) as sink:
        sink.write(numbered_frame(0))
        with pytest.raises(SinkFormatError, match=r"is uint16 \[48, 64, 3\]; expected BGR uint8"):
            sink.write(numbered_frame(0).astype(np.uint16))
        with pytest.raises(SinkFormatError, match=r"is uint8 \[48, 64\]; expected BGR"):
            sink.write(numbered_frame(0)[..., 0])
        with pytest.raises(SinkFormatError, match=r"frame 1 for out\.avi is 32x64; the first was"):
            sink.write(numbered_frame(0, height=32))
        sink.write(numbered_frame(1)[:, ::-1])  # not contiguous: copied

    assert len(decode_all(tmp_path / "out.avi")) == 2


def test_an_ending_or_a_rate_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(SinkFormatError, match=r"ends in '\.gif'; videos can be written to \.avi"):
        VideoSink(tmp_path / "out.gif", fps=25)
    for fps in (0.0, -1.0, float("nan"), 1e6):
        with pytest.raises(SinkFormatError, match="it must be above 0 and at most 1000"):
            VideoSink(tmp_path / "out.mp4", fps=fps)
    with pytest.raises(ValueError, match="writer is 'gst'; expected one of opencv, pyav"):
        VideoSink(tmp_path / "out.mp4", fps=25, writer="gst")  # type: ignore[arg-type]  # on purpose


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()

    with pytest.raises(SinkError, match=r"file/sub cannot be written: Not a directory"):
        VideoSink(tmp_path / "file" / "sub" / "out.mp4", fps=25)
    with pytest.raises(SinkError, match=r"folder\.mp4 is a folder"):
        VideoSink(tmp_path / "folder.mp4", fps=25)


def test_without_a_frame_there_is_no_file(tmp_path: Path) -> None:
    with VideoSink(tmp_path / "out.mp4", fps=25) as sink:
        pass

    sink.close()
    assert list(tmp_path.iterdir()) == []
    assert not sink.complete
    with pytest.raises(ClosedError, match=r"out\.mp4 is closed"):
        sink.write(numbered_frame(0))


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_that_is_called_partial_is_nobodys_but_its_owners(
    tmp_path: Path, writer: WriterName
) -> None:
    (tmp_path / "out.partial.mp4").write_bytes(b"mine")

    with VideoSink(tmp_path / "out.mp4", fps=25, writer=writer) as sink:
        sink.write(numbered_frame(0))

    assert (tmp_path / "out.partial.mp4").read_bytes() == b"mine"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.mp4", "out.partial.mp4"]


def test_two_videos_of_one_name_at_once_do_not_mix(tmp_path: Path) -> None:
    with (
        VideoSink(tmp_path / "out.avi", fps=25) as later,
        VideoSink(tmp_path / "out.avi", fps=25) as first,
    ):
        for index in range(10):
            first.write(numbered_frame(index))
            later.write(numbered_frame(index + 10))

    assert [frame_number(frame) for frame in decode_all(tmp_path / "out.avi")] == [*range(10, 20)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.avi"]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_finished_video_has_the_rights_of_any_new_file(
    tmp_path: Path, writer: WriterName
) -> None:
    before = os.umask(0o027)
    try:
        with VideoSink(tmp_path / "out.mp4", fps=25, writer=writer) as sink:
            sink.write(numbered_frame(0))
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "out.mp4").stat().st_mode) == 0o640


def test_a_video_that_lost_frames_keeps_its_partial_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class LosingWriter:
        """Loses all frames but the first ten. OpenCV's own class crashes where it is inherited."""

        fourcc = cv2.VideoWriter.fourcc

        def __init__(self, *arguments: Any) -> None:
            self._writer, self._given = made(*arguments), 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self._writer, name)

        def write(self, image: Array) -> None:
            self._given += 1
            if self._given <= 10:
                self._writer.write(image)

    made = cv2.VideoWriter
    monkeypatch.setattr(cv2, "VideoWriter", LosingWriter)
    sink = VideoSink(tmp_path / "out.avi", fps=25)
    for index in range(15):
        sink.write(numbered_frame(index))

    with pytest.raises(
        SinkError, match=r"holds 10 frames; 15 were written\. The part written so far is .*partial"
    ):
        sink.close()

    assert sink.partial_path.exists()
    assert not (tmp_path / "out.avi").exists()


FULL_DISK = """
import resource, signal, sys
sys.path.insert(0, {root!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
import numpy as np
from fcn_deploy.errors import DiskFullError
from fcn_deploy.video.sinks import VideoSink
rng = np.random.default_rng(0)
sink = VideoSink({path!r}, fps=25, writer={writer!r})
try:
    with sink:
        for index in range(300):
            sink.write(rng.integers(0, 256, (240, 320, 3), dtype=np.uint8))
except DiskFullError as error:
    print(index, error)
"""


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_reported_while_writing(tmp_path: Path, writer: WriterName) -> None:
    code = FULL_DISK.format(root=ROOT, path=str(tmp_path / "out.mp4"), writer=writer)

    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )

    index, _, message = child.stdout.strip().partition(" ")
    assert int(index) < 60  # about nine frames fit; OpenCV's file is looked at every 25
    assert re.search(r"out\.\w{8}\.partial\.mp4", message)
    assert "Free some room" in message
    (partial,) = tmp_path.iterdir()
    assert re.fullmatch(r"out\.\w{8}\.partial\.mp4", partial.name)


KILLED = """
import sys, time
sys.path.insert(0, {root!r})
from fcn_deploy.video.sinks import VideoSink
from tests.deploy.clips import numbered_frame
sink = VideoSink({path!r}, fps=25, writer={writer!r})
for index in range(3000):
    sink.write(numbered_frame(index % 60))
    if index == 499:
        print("ready", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("writer", WRITERS)
def test_after_a_kill_what_is_there_is_named_partial(tmp_path: Path, writer: WriterName) -> None:
    code = KILLED.format(root=ROOT, path=str(tmp_path / "out.mp4"), writer=writer)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()

        child.send_signal(signal.SIGKILL)

    (partial,) = tmp_path.iterdir()
    assert re.fullmatch(r"out\.\w{8}\.partial\.mp4", partial.name)
    if writer == "pyav":  # fragments of a second each: at most two seconds are lost
        assert len(decode_all(partial)) >= 500 - 2 * 25


def test_labels_are_written_as_class_ids_under_the_images_stem(tmp_path: Path) -> None:
    origin = write_image(tmp_path / "scan.jpg", numbered_frame(0))
    sink = ImageSink(tmp_path / "out", "labels")

    path = sink.write(segmented(numbered_frame(0), origin=origin))

    labels = read_png(path)
    assert path == tmp_path / "out" / "scan.png"
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, segmented(numbered_frame(0)).labels)
    assert [entry.name for entry in path.parent.iterdir()] == ["scan.png"]


def test_more_than_256_classes_are_written_with_16_bits(tmp_path: Path) -> None:
    labels = np.full((4, 6), 300, np.uint16)
    frame = np.zeros((4, 6, 3), np.uint8)
    item = SegmentedFrame(frame, 12, None, None, Segmentation(labels, TWO_CLASSES, frame_bgr=frame))

    path = ImageSink(tmp_path, "labels").write(item)

    assert path.name == "000012.png"
    assert np.array_equal(read_png(path), labels)


def test_each_view_shows_what_it_says() -> None:
    item = segmented(numbered_frame(10))

    views = {view: render(item, view, alpha=0.5) for view in VIEWS}

    assert views["labels"].shape == (48, 64)
    assert views["color"][0, 63].tolist() == [0, 255, 0]
    assert views["overlay"].shape == (48, 64, 3)
    assert views["overlay"][0, 0].tolist() == [40, 40, 40]
    assert views["overlay"][0, 63, 1] > views["overlay"][0, 63, 0]
    assert np.array_equal(views["side-by-side"][:, :64], item.frame)
    assert np.array_equal(views["side-by-side"][:, 64:], views["overlay"])


def test_an_image_is_never_written_over_the_one_it_came_from(tmp_path: Path) -> None:
    origin = write_image(tmp_path / "scan.png", numbered_frame(3))
    before = origin.read_bytes()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "scan.png").hardlink_to(origin)

    for folder in (tmp_path, tmp_path / "out"):
        with pytest.raises(SinkError, match=r"scan\.png is the image that is being segmented"):
            ImageSink(folder, "overlay").write(segmented(numbered_frame(3), origin=origin))

    assert origin.read_bytes() == before


FULL_DISK_IMAGES = """
import resource, signal, sys
sys.path.insert(0, {root!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
import numpy as np
from fcn_deploy.errors import DiskFullError
from fcn_deploy.video.sinks import ImageSink
from tests.deploy.video.test_video_sinks import segmented
try:
    ImageSink({path!r}, "overlay").write(
        segmented(np.random.default_rng(0).integers(0, 250, (99, 99, 3), dtype=np.uint8))
    )
except DiskFullError as error:
    print(error.errno, error)
"""


def test_a_full_disk_leaves_no_broken_image_and_keeps_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "000000.png").write_bytes(b"from the last run")
    code = FULL_DISK_IMAGES.format(root=ROOT, path=str(tmp_path))

    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )

    assert re.match(r"27 .*000000\.png cannot be written: File too large\. Free", child.stdout)
    assert [entry.name for entry in tmp_path.iterdir()] == ["000000.png"]
    assert (tmp_path / "000000.png").read_bytes() == b"from the last run"


def test_an_unknown_view_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="view is 'mask'; expected one of overlay, labels"):
        ImageSink(tmp_path, "mask")  # type: ignore[arg-type]  # on purpose
