from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from threading import Thread

import pytest

from fcn_deploy.errors import SourceError, SourceLostError, SourceOpenError, SourceTimeoutError
from fcn_deploy.video.live import LiveSource
from fcn_deploy.video.pipeline import VideoPipeline
from tests.deploy.clips import frame_number, threshold_segmenter, wait_until
from tests.deploy.streams import black_hole, closed_port, forbidden_playlist, mjpeg_camera


def live_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fcn-")]


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_an_address_that_never_answers_times_out_without_its_password(
    scheme: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with black_hole() as port:
        source = LiveSource(
            f"{scheme}://bob:s3cret@127.0.0.1:{port}/x?token=s3cret",
            open_timeout_s=0.3,
            read_timeout_s=0.3,
        )

        with pytest.raises(
            SourceTimeoutError,
            match=rf"{scheme}://\*\*\*@127\.0\.0\.1:{port}/x\?\*\*\* did not answer within",
        ) as caught:
            source.open()

        source.close()
    assert "s3cret" not in repr(source) + source.name + repr(caught.value.__cause__)
    assert "s3cret" not in "".join(capfd.readouterr())
    assert live_threads() == []


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_an_address_where_nobody_listens_fails_at_once(scheme: str) -> None:
    with closed_port() as port:
        source = LiveSource(f"{scheme}://bob:s3cret@127.0.0.1:{port}/x")

        with pytest.raises(SourceOpenError, match=r"cannot be opened: no connection") as caught:
            source.open()

        source.close()
    assert "s3cret" not in str(caught.value)


def test_ffmpegs_own_messages_do_not_print_the_password() -> None:
    code = """
import sys
from fcn_deploy.errors import SourceOpenError
from fcn_deploy.video.live import LiveSource
source = LiveSource(sys.argv[1], open_timeout_s=2)
try:
    source.open()
except SourceOpenError as error:
    print(error)
source.close()
"""
    with forbidden_playlist() as port:
        address = f"http://bob:s3cret@127.0.0.1:{port}/list.m3u8?token=s3cret"
        command = [sys.executable, "-c", code, address]
        quiet = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        chosen = {**os.environ, "OPENCV_FFMPEG_LOGLEVEL": "16"}
        loud = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=True, env=chosen
        )

    assert "http://***@127.0.0.1" in quiet.stdout
    assert "s3cret" not in quiet.stdout + quiet.stderr
    assert "s3cret" in loud.stdout + loud.stderr  # so the test above can fail


def test_a_camera_that_hangs_up_is_lost_after_its_good_frames() -> None:
    with mjpeg_camera(frames=20, then="close") as port:
        source = LiveSource(f"http://127.0.0.1:{port}/cam", open_timeout_s=5, read_timeout_s=2)
        numbers: list[int] = []

        with (
            VideoPipeline(threshold_segmenter, source, policy="every") as frames,
            pytest.raises(SourceLostError, match=r"stopped after \d+ frames"),
        ):
            numbers.extend(frame_number(item.frame) for item in frames)

    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= 19  # the parser needs the next boundary to end a frame
    assert source.live
    assert live_threads() == []


def test_a_camera_that_stalls_is_reported_after_the_timeout() -> None:
    with mjpeg_camera(frames=20, then="stall") as port:
        source = LiveSource(f"http://127.0.0.1:{port}/cam", open_timeout_s=5, read_timeout_s=0.4)
        source.open()

        with pytest.raises(SourceTimeoutError, match=r"sent no frame for 0\.4 s, after (19|20)"):
            list(iter(source.read, None))

        source.close()
    assert live_threads() == []


def test_closing_while_a_camera_stalls_neither_crashes_nor_hangs() -> None:
    for _ in range(5):
        with mjpeg_camera(frames=12, then="stall") as port:
            source = LiveSource(
                f"http://127.0.0.1:{port}/cam", open_timeout_s=5, read_timeout_s=0.5
            )
            pipeline = VideoPipeline(threshold_segmenter, source)
            outcome: list[str] = []

            def consume(pipeline: VideoPipeline = pipeline, outcome: list[str] = outcome) -> None:
                try:
                    outcome.extend("frame" for _ in pipeline)
                except SourceError as error:
                    outcome.append(str(error))

            consumer = Thread(target=consume)
            consumer.start()
            wait_until(lambda pipeline=pipeline: pipeline.stats.delivered >= 1)

            pipeline.close()

            consumer.join(10)
            assert not consumer.is_alive()
    assert live_threads() == []


def test_failed_connections_leak_no_file_and_no_thread() -> None:
    with closed_port() as port:

        def attempt() -> None:
            source = LiveSource(f"http://127.0.0.1:{port}/x", open_timeout_s=1)
            with pytest.raises(SourceOpenError, match="no connection"):
                source.open()
            source.close()

        attempt()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            attempt()

        assert len(os.listdir("/proc/self/fd")) == before
    assert live_threads() == []


def test_an_absent_webcam_says_which_devices_there_are() -> None:
    source = LiveSource(93)

    with pytest.raises(
        SourceOpenError, match=re.escape("webcam 93 cannot be opened: /dev/video93 is absent")
    ):
        source.open()

    source.close()
    assert not Path("/dev/video93").exists()


def test_interrupting_an_open_returns_soon() -> None:
    with black_hole() as port:
        source = LiveSource(f"rtsp://127.0.0.1:{port}/x", open_timeout_s=1.5, read_timeout_s=1.5)
        outcome: list[str] = []

        def connect() -> None:
            try:
                source.open()
            except SourceOpenError as error:
                outcome.append(str(error))

        opener = Thread(target=connect)
        opener.start()
        wait_until(lambda: "fcn-live" in live_threads())

        source.interrupt()

        opener.join(10)
        assert "was closed while it was being opened" in outcome[0]
        source.close()
    assert live_threads() == []


def test_timeouts_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="both must be >0"):
        LiveSource("rtsp://cam", read_timeout_s=0)
