from __future__ import annotations

import os
import struct
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from fcn_deploy.errors import FrameTooLargeError, SourceError, SourceOpenError
from fcn_deploy.names import Array
from fcn_deploy.video.files import ImageSource, VideoFileSource, list_images, read_image
from fcn_deploy.video.frames import FrameSource, VideoFrame
from fcn_deploy.video.image_header import image_size
from tests.deploy.clips import frame_number, numbered_frame, write_clip, write_image


def read_all(source: FrameSource) -> list[VideoFrame]:
    source.open()
    frames = []
    while (frame := source.read()) is not None:
        frames.append(frame)
    source.close()
    source.close()
    return frames


def test_a_video_gives_every_frame_in_order_with_its_time(tmp_path: Path) -> None:
    source = VideoFileSource(write_clip(tmp_path / "clip.avi", frames=30))

    frames = read_all(source)

    assert [frame.index for frame in frames] == list(range(30))
    assert [frame_number(frame.frame) for frame in frames] == list(range(30))
    assert [frame.pts_seconds for frame in frames] == pytest.approx([n / 25 for n in range(30)])
    assert (source.fps, source.frame_count, source.notices) == (25.0, 30, ())


def test_times_are_the_files_own_where_the_rate_varies(tmp_path: Path) -> None:
    import av

    millisecond = Fraction(1, 1000)
    times_ms = [0, 100, 150, 400, 1000, 1033, 2000, 3000]
    with av.open(str(tmp_path / "vfr.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = stream.time_base = millisecond
        for index, time_ms in enumerate(times_ms):
            picture = av.VideoFrame.from_ndarray(numbered_frame(index), format="bgr24")
            picture.pts, picture.time_base = time_ms, millisecond
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))

    frames = read_all(VideoFileSource(tmp_path / "vfr.mp4"))

    assert [frame.pts_seconds for frame in frames] == pytest.approx([t / 1000 for t in times_ms])


def test_a_truncated_video_gives_what_can_be_decoded_and_says_so(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.avi", frames=60)
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size * 6 // 10])
    source = VideoFileSource(clip)

    frames = read_all(source)

    assert 10 < len(frames) < 50
    assert [frame_number(frame.frame) for frame in frames] == list(range(len(frames)))
    assert source.notices == (f"ended early: {len(frames)} of about 60 frames could be decoded",)


def test_a_rotation_in_the_file_is_applied_once(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", codec="mp4v", frames=3)
    data = bytearray(clip.read_bytes())
    # the track header's matrix, 16.16 fixed point: identity becomes a quarter turn
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    quarter = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    track = data.index(b"tkhd")
    at = data.index(identity, track)
    data[at : at + len(identity)] = quarter
    clip.write_bytes(data)

    frames = read_all(VideoFileSource(clip))

    assert [frame.frame.shape for frame in frames] == [(64, 48, 3)] * 3
    # the right half was white: turned clockwise, it is the lower one
    assert frames[0].frame[40:].mean() > 240
    assert frames[0].frame[:24].mean() < 30


def test_each_way_in_which_a_file_is_no_video_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "notes.mp4").write_text("#EXTM3U\nhttp://elsewhere/segment.ts\n")
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    os.mkfifo(tmp_path / "pipe.mp4")
    reasons = {
        "missing.mp4": "missing.mp4 does not exist; expected a video",
        ".": "is a folder; expected a video",
        "empty.mp4": "is empty; expected a video",
        "notes.mp4": "is a text file; expected a video",
        "noise.mp4": "is not a video that FFmpeg can open",
        "pipe.mp4": "is not a regular file; expected a video",
    }

    for name, reason in reasons.items():
        with pytest.raises(SourceOpenError, match=reason):
            VideoFileSource(tmp_path / name).open()


def test_a_file_that_may_not_be_read_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_clip(tmp_path / "clip.avi", frames=1)
    # chmod does not stop root, and tests run as root in containers
    monkeypatch.setattr(os, "access", lambda path, mode: False)

    with pytest.raises(SourceOpenError, match=r"clip\.avi may not be read: permission denied"):
        VideoFileSource(clip).open()


def test_a_video_with_larger_frames_than_allowed_is_refused(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.avi", frames=1)

    with pytest.raises(FrameTooLargeError, match="has 48x64 = 3,072 pixels; at most 3,000"):
        VideoFileSource(clip, max_pixels=3000).open()


def test_reading_before_opening_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"is not open\. Call open\(\) first"):
        VideoFileSource(tmp_path / "clip.avi").read()


def test_a_folder_gives_its_images_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        write_image(tmp_path / f"f{number}.png", numbered_frame(number))
    write_image(tmp_path / "F3.JPG", numbered_frame(3))
    (tmp_path / "notes.txt").write_text("not an image")

    frames = read_all(ImageSource(list_images(tmp_path)))

    origins = [frame.origin.name for frame in frames if frame.origin is not None]
    assert origins == ["f1.png", "f2.png", "F3.JPG", "f10.png"]
    assert [frame_number(frame.frame) for frame in frames] == [1, 2, 3, 10]
    assert frames[0].pts_seconds is None


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"])
def test_the_header_of_each_format_tells_the_size(tmp_path: Path, suffix: str) -> None:
    path = write_image(tmp_path / f"a{suffix}", numbered_frame(5, height=33, width=57))

    assert image_size(path.read_bytes()) == (33, 57)
    assert read_image(path).shape == (33, 57, 3)


def test_lossless_webp_and_big_endian_tiff_headers_are_read() -> None:
    ok, webp = cv2.imencode(
        ".webp", numbered_frame(1, height=33, width=57), [cv2.IMWRITE_WEBP_QUALITY, 101]
    )
    assert ok
    entries = struct.pack(">HHIHH", 256, 3, 1, 57, 0) + struct.pack(">HHII", 257, 4, 1, 33)
    tiff = b"MM\x00*" + struct.pack(">IH", 8, 2) + entries

    assert image_size(webp.tobytes()) == (33, 57)
    assert image_size(tiff) == (33, 57)


def test_a_header_that_is_cut_short_has_no_size(tmp_path: Path) -> None:
    for suffix in (".png", ".jpg", ".bmp", ".webp", ".tif"):
        data = write_image(tmp_path / f"a{suffix}", numbered_frame(5)).read_bytes()
        for length in range(26):
            assert image_size(data[:length]) in (None, (48, 64))


@pytest.mark.parametrize(
    "pixels",
    [
        np.full((20, 30), 9, np.uint8),
        np.full((20, 30, 4), 9, np.uint8),
        np.full((20, 30, 3), 9 * 257, np.uint16),
    ],
    ids=["grey", "alpha", "16-bit"],
)
def test_other_kinds_of_pixels_become_bgr(tmp_path: Path, pixels: Array) -> None:
    frame = read_image(write_image(tmp_path / "a.png", pixels))

    assert frame.shape == (20, 30, 3)
    assert frame.dtype == np.uint8
    assert np.all(frame == 9)


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    png = bytearray(write_image(tmp_path / "a.png", numbered_frame(0)).read_bytes())
    png[16:24] = struct.pack(">II", 60_000, 50_000)
    (tmp_path / "bomb.png").write_bytes(png)

    with pytest.raises(
        FrameTooLargeError, match=r"bomb\.png has 50000x60000 = 3,000,000,000 pixels"
    ):
        read_image(tmp_path / "bomb.png")


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    data = write_image(tmp_path / "good.png", numbered_frame(0)).read_bytes()
    (tmp_path / "cut.png").write_bytes(data[:40])
    (tmp_path / "fake.png").write_bytes(b"GIF89a, really")

    with pytest.raises(SourceError, match=r"cut\.png is damaged: its header announces 48x64"):
        read_image(tmp_path / "cut.png")
    with pytest.raises(SourceError, match=r"fake\.png is not a readable image.*GIF89a"):
        read_image(tmp_path / "fake.png")


def test_a_folder_without_images_says_what_it_looked_for(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()

    with pytest.raises(SourceOpenError, match=r"holds 1 entries, but no image \(bmp, jpeg, jpg"):
        list_images(tmp_path)


def test_opening_and_closing_many_sources_leaks_no_file(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.avi", frames=2)
    read_all(VideoFileSource(clip))
    before = len(os.listdir("/proc/self/fd"))

    for _ in range(50):
        source = VideoFileSource(clip)
        source.open()
        source.read()
        source.close()

    assert len(os.listdir("/proc/self/fd")) == before
