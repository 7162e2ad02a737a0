"""Names that a file may have, and that a library would take for something else or die of."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fcn_deploy.errors import SourceOpenError
from fcn_deploy.video.files import VideoFileSource
from fcn_deploy.video.jobs import segment_jobs
from fcn_deploy.video.live import LiveSource
from fcn_deploy.video.opencv_name import opencv_name
from fcn_deploy.video.sinks import VideoSink
from fcn_deploy.video.writers import WRITERS, WriterName
from tests.deploy.clips import frame_number, write_clip

ROOT = str(Path(__file__).parents[3])
NAMES = ["a\nb", "-clip", "frame%04d", "a b  c", "\N{GRINNING FACE}", "http:x", "n" * 251]
IDS = ["newline", "dash", "percent", "spaces", "emoji", "protocol", "longest"]

# OpenCV ends the process at a name that is not UTF-8: not this one
NOT_UTF8 = """
import os, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from fcn_deploy.video.files import VideoFileSource
from fcn_deploy.video.sinks import VideoSink
from tests.deploy.clips import frame_number, numbered_frame
folder = Path({folder!r}) / os.fsdecode(b"fold\\xff")
for path in (folder / "clip.mp4", folder / os.fsdecode(b"clip\\xff.mp4")):
    with VideoSink(path, fps=25, writer={writer!r}) as sink:
        for index in range(30):
            sink.write(numbered_frame(index))
    source = VideoFileSource(path)
    source.open()
    print(source.frame_count, *(frame_number(source.read().frame) for _ in range(30)))
    source.close()
print(*sorted(os.listdir(os.fsencode(folder))), len(os.listdir("/dev/fd")))
"""


@pytest.mark.parametrize("writer", WRITERS)
def test_a_name_that_is_not_utf8_is_written_and_read(tmp_path: Path, writer: WriterName) -> None:
    code = NOT_UTF8.format(root=ROOT, folder=str(tmp_path), writer=writer)

    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )

    counted = " ".join(map(str, [30, *range(30)]))
    assert (child.returncode, child.stderr) == (0, "")
    first, second, names = child.stdout.splitlines()
    assert (first, second) == (counted, counted)
    assert names.startswith(r"b'clip.mp4' b'clip\xff.mp4' ")


@pytest.mark.parametrize("name", NAMES, ids=IDS)
def test_a_video_of_any_name_is_read_and_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "plain.avi", frames=3).rename(f"{name}.avi")
    source = VideoFileSource(Path(f"{name}.avi"))

    source.open()
    with VideoSink(Path(f"{name}.mp4"), fps=25) as sink:
        while (item := source.read()) is not None:
            sink.write(item.frame)
    source.close()

    written = VideoFileSource(f"./{name}.mp4")
    written.open()
    first = written.read()
    written.close()
    assert first is not None
    assert (sink.frames, frame_number(first.frame)) == (3, 0)
    assert sorted(os.listdir()) == sorted([f"{name}.avi", f"{name}.mp4"])


def test_a_descriptor_stands_for_a_name_only_where_it_must(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"f\xff")
    folder.mkdir()
    paths = [tmp_path / "é.mp4", folder / "a.mp4", tmp_path / os.fsdecode(b"a\xff.mp4")]
    for path in paths:
        path.write_bytes(path.name.encode("utf-8", "replace"))
    before = len(os.listdir("/dev/fd"))

    names = []
    for path in paths:
        with opencv_name(path) as name:
            names.append(name)
            assert Path(name).samefile(path)

    assert names[0] == str(paths[0])
    assert names[1].startswith("/dev/fd/")
    assert names[1].endswith("/a.mp4")
    assert names[2].startswith("/dev/fd/")
    assert len(os.listdir("/dev/fd")) == before


def test_an_address_that_is_not_utf8_is_refused() -> None:
    source = LiveSource(os.fsdecode(b"rtsp://camera/\xff"))

    with pytest.raises(SourceOpenError, match=r"is not UTF-8\. Write other bytes as %XX"):
        source.open()


def test_a_name_that_is_too_long_is_an_error_in_words(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / f"{'n' * 250}.avi", frames=1)
    clip.rename(tmp_path / f"{'n' * 252}.ts")

    with pytest.raises(SourceOpenError, match="cannot be opened: File name too long"):
        segment_jobs(["n" * 300 + ".mp4"], tmp_path / "out")
    with pytest.raises(OSError, match="cannot be written: File name too long"):
        segment_jobs([str(tmp_path / f"{'n' * 252}.ts")], tmp_path)
