from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from fcn_deploy.errors import (
    BackendUnavailableError,
    SinkError,
    SinkFormatError,
    SourceLostError,
    SourceOpenError,
)
from fcn_deploy.video.files import ImageSource
from fcn_deploy.video.jobs import SegmentJob, segment_jobs, want_throughput
from fcn_deploy.video.runs import JobReport, run_job
from tests.deploy.clips import (
    FakeSource,
    decode_all,
    frame_number,
    numbered_frame,
    read_png,
    threshold_segmenter,
    write_clip,
    write_image,
)


def test_all_images_become_one_job_and_each_video_another(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    scans = [write_image(tmp_path / "scans" / f"{n}.png", numbered_frame(n)) for n in (1, 2)]
    single = write_image(tmp_path / "single.jpg", numbered_frame(3))
    clip = write_clip(tmp_path / "clip.avi", frames=2)
    out = tmp_path / "out"

    images, video = segment_jobs([str(clip), str(tmp_path / "scans"), str(single)], out)

    assert isinstance(images.source, ImageSource)
    assert images.source.paths == (*scans, single)
    assert (images.output, images.is_video) == (out, False)
    assert (video.output, video.is_video) == (out / "clip.mp4", True)


def test_a_videos_labels_become_a_folder(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.avi", frames=2)

    (job,) = segment_jobs([str(clip)], tmp_path / "out", view="labels")

    assert (job.output, job.is_video) == (tmp_path / "out" / "clip", False)


def test_a_webcam_and_a_stream_get_names_without_secrets(tmp_path: Path) -> None:
    jobs = segment_jobs(["3", "rtsp://u:pw@cam/x"], tmp_path)

    assert [job.output.name for job in jobs] == ["webcam-3.mp4", "stream.mp4"]


def test_an_output_can_name_the_video(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.avi", frames=2)

    (job,) = segment_jobs([str(clip)], tmp_path / "night.mkv")

    assert (job.output, job.is_video) == (tmp_path / "night.mkv", True)


def test_two_sources_for_one_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    first = write_image(tmp_path / "x.png", numbered_frame(0))
    second = write_image(tmp_path / "b" / "x.jpg", numbered_frame(0))
    clips = [write_clip(tmp_path / name, frames=1) for name in ("c.avi", "c.mkv")]

    with pytest.raises(SinkError, match=r"x\.png and .*b/x\.jpg would both be written to .*x\.png"):
        segment_jobs([str(first), str(second)], tmp_path / "out")
    with pytest.raises(SinkError, match=r"c\.avi and .*c\.mkv would both be written to .*c\.mp4"):
        segment_jobs([str(clip) for clip in clips], tmp_path / "out")


def test_a_source_is_never_overwritten(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=1, codec="mp4v")
    image = write_image(tmp_path / "x.png", numbered_frame(0))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "clip.mp4").hardlink_to(clip)

    for addresses, output in (
        ([str(clip)], clip),
        ([str(clip)], tmp_path),
        ([str(clip)], tmp_path / "out"),
        ([str(clip)], tmp_path / "not there yet" / ".." / "clip.mp4"),
        ([str(image)], tmp_path),
    ):
        with pytest.raises(SinkError, match=r"is the source .* itself\. Write to another"):
            segment_jobs(addresses, output)


def test_a_videos_numbered_labels_do_not_replace_an_image_that_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    clip = write_clip(tmp_path / "clip.avi", frames=1)
    image = write_image(tmp_path / "clip" / "000000.png", numbered_frame(0))
    other = write_image(tmp_path / "clip" / "other.png", numbered_frame(0))

    with pytest.raises(SinkError, match=r"000000\.png is the source .*000000\.png itself\."):
        segment_jobs([str(clip), str(image)], tmp_path / "a" / "..", view="labels")
    assert len(segment_jobs([str(clip), str(other)], tmp_path, view="labels")) == 2


def test_an_output_of_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    clip = str(write_clip(tmp_path / "clip.avi", frames=1))
    image = str(write_image(tmp_path / "x.png", numbered_frame(0)))
    (tmp_path / "file.txt").touch()

    with pytest.raises(SinkFormatError, match=r"file\.txt is a file; expected a folder or a video"):
        segment_jobs([clip], tmp_path / "file.txt")
    with pytest.raises(SinkFormatError, match="class ids cannot be kept in the video"):
        segment_jobs([clip], tmp_path / "out.mp4", view="labels")
    with pytest.raises(SinkFormatError, match="is to hold images; expected one video"):
        segment_jobs([image], tmp_path / "out.mp4")
    with pytest.raises(SinkFormatError, match="is to hold 2 sources; expected one video"):
        segment_jobs([clip, image], tmp_path / "out.mp4")


def test_missing_sources_are_found_before_any_work(tmp_path: Path) -> None:
    clip = str(write_clip(tmp_path / "clip.avi", frames=1))

    for missing in ("gone.mp4", "gone.png"):
        with pytest.raises(SourceOpenError, match=r"gone\.\w+ does not exist"):
            segment_jobs([clip, str(tmp_path / missing)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_job_writes_the_video_and_its_report(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.avi", frames=20)
    (job,) = segment_jobs([str(clip)], tmp_path / "out")
    report = JobReport(job.source.name)

    run_job(job, threshold_segmenter, report, view="side-by-side")

    frames = decode_all(tmp_path / "out" / "clip.mp4")
    assert [frame.shape for frame in frames] == [(48, 128, 3)] * 20
    assert [frame_number(frame[:, :64]) for frame in frames] == list(range(20))
    document = report.to_json()
    assert document["outputs"] == [str(tmp_path / "out" / "clip.mp4")]
    assert (document["captured"], document["delivered"], document["dropped"]) == (20, 20, {})
    assert (document["encoder"], document["files"]) == ("opencv/mp4v", 1)


def test_images_of_different_sizes_are_written_at_their_own(tmp_path: Path) -> None:
    paths = [
        write_image(tmp_path / f"{height}.png", numbered_frame(0, height=height))
        for height in (31, 50)
    ]
    (job,) = segment_jobs([str(path) for path in paths], tmp_path / "out", view="labels")
    report = JobReport(job.source.name)

    run_job(job, threshold_segmenter, report, view="labels")

    assert read_png(tmp_path / "out" / "31.png").shape == (31, 64)
    assert read_png(tmp_path / "out" / "50.png").shape == (50, 64)
    assert (report.files, report.outputs) == (2, (str(tmp_path / "out"),))


def test_a_source_that_breaks_leaves_a_finished_video_of_what_came_before(tmp_path: Path) -> None:
    source = FakeSource(12, error=SourceLostError("unplugged"))
    report = JobReport("fake")
    job = SegmentJob(source, tmp_path / "out.mp4", is_video=True)

    with pytest.raises(SourceLostError, match="unplugged"):
        run_job(job, threshold_segmenter, report)

    assert len(decode_all(tmp_path / "out.mp4")) == 12
    assert report.outputs == (str(tmp_path / "out.mp4"),)
    assert report.stats.delivered == 12


def test_a_source_without_a_frame_rate_gets_one_and_says_so(tmp_path: Path) -> None:
    source = FakeSource(3)
    source.fps = None
    report = JobReport("fake")

    run_job(SegmentJob(source, tmp_path / "out.avi", is_video=True), threshold_segmenter, report)

    assert report.notices == ("the source names no frame rate; the video gets 25",)


def test_showing_without_a_window_system_is_an_error_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_window(*args: object) -> None:
        raise cv2.error("not implemented")

    # the headless OpenCV does so by itself; the other one may have a display
    monkeypatch.setattr(cv2, "namedWindow", no_window)
    job = SegmentJob(FakeSource(3), tmp_path / "out.avi", is_video=True)

    with pytest.raises(BackendUnavailableError, match="this OpenCV has no windows"):
        run_job(job, threshold_segmenter, JobReport("fake"), show=True)

    assert list(tmp_path.iterdir()) == []


def test_many_frames_of_files_are_run_at_once_and_single_or_live_ones_are_not(
    tmp_path: Path,
) -> None:
    images = [write_image(tmp_path / f"{n}.png", numbered_frame(n)) for n in (1, 2)]
    clip = write_clip(tmp_path / "clip.avi", frames=2)

    one, two, video = (
        segment_jobs([str(path) for path in paths], tmp_path / "out")
        for paths in (images[:1], images, [clip])
    )

    assert [want_throughput(jobs, None) for jobs in (one, two, video)] == [False, True, True]
    assert not want_throughput(video, "latest")
    assert not want_throughput([*video, *segment_jobs(["0"], tmp_path / "out")], None)
