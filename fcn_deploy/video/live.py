"""Read frames from cameras and network addresses, on a thread that can be abandoned."""

from __future__ import annotations

import os
import time
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

from fcn_deploy.artifact.name_text import is_utf8
from fcn_deploy.errors import (
    FrameTooLargeError,
    SourceLostError,
    SourceOpenError,
    SourceTimeoutError,
)
from fcn_deploy.video.address import redact
from fcn_deploy.video.capture import check_size, fps_hint, frame_count_hint, pts_seconds
from fcn_deploy.video.channel import Channel, Producing
from fcn_deploy.video.frames import MAX_PIXELS, VideoFrame

if TYPE_CHECKING:
    import cv2

__all__ = ["LiveSource"]

_GRACE_S = 1.0  # FFmpeg's own timeouts get this much longer before its thread is given up
_FFMPEG_LOG_LEVEL = "OPENCV_FFMPEG_LOGLEVEL"
_FFMPEG_QUIET = "-8"


class LiveSource:
    """A webcam or a network address. Its frames are taken as they come; a loss is an error.

    One thread of its own opens, reads and releases OpenCV's capture: OpenCV crashes the process
    when another thread releases it during a read. `open` and `read` wait for that thread in
    bounded time, and leave it behind where even FFmpeg's own timeout does not fire (name
    look-ups, some drivers).

    FFmpeg prints whole addresses, passwords included, when a playlist's segment fails; so it is
    silenced, for the process, unless ``OPENCV_FFMPEG_LOGLEVEL`` is set. This has no effect where
    the process used OpenCV's FFmpeg before.

    Args:
        address: a webcam's number or a network address.
        open_timeout_s: longest wait for a connection.
        read_timeout_s: longest wait for each further frame.
        max_pixels: a stream with larger frames is refused.
    """

    def __init__(
        self,
        address: str | int,
        *,
        open_timeout_s: float = 5.0,
        read_timeout_s: float = 5.0,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if open_timeout_s <= 0 or read_timeout_s <= 0:
            raise ValueError(f"timeouts are {open_timeout_s} and {read_timeout_s}; both must be >0")
        self.name = f"webcam {address}" if isinstance(address, int) else redact(address)
        self.live = True
        self.fps: float | None = None
        self.frame_count: int | None = None
        self.notices: tuple[str, ...] = ()
        self._address = address
        self._open_timeout_s = open_timeout_s
        self._read_timeout_s = read_timeout_s
        self._max_pixels = max_pixels
        self._frames: Channel[VideoFrame] = Channel(1)
        self._opened: Channel[bool] = Channel(1)
        self._stop = Event()
        self._thread: Thread | None = None
        self._received = 0

    def __repr__(self) -> str:
        return f"LiveSource({self.name!r})"

    def open(self) -> None:
        """Connect; see `FrameSource.open`. Safe to call from any thread.

        Raises:
            SourceOpenError: it cannot be opened, or was closed meanwhile.
            SourceTimeoutError: it did not answer in time.
        """
        if self._thread is not None:
            return
        if isinstance(self._address, str):
            if not is_utf8(self._address):  # OpenCV would end the process
                raise SourceOpenError(
                    f"{self.name} is not UTF-8.", hint="Write other bytes as %XX in an address."
                )
            os.environ.setdefault(_FFMPEG_LOG_LEVEL, _FFMPEG_QUIET)
        self._thread = Thread(target=self._capture_frames, name="fcn-live", daemon=True)
        self._thread.start()
        started = time.monotonic()
        try:
            opened = self._opened.get(timeout_s=self._open_timeout_s + _GRACE_S)
        except TimeoutError as exc:
            raise self._timeout_error(time.monotonic() - started) from exc
        if not opened:
            raise SourceOpenError(f"{self.name} was closed while it was being opened.")

    def read(self) -> VideoFrame | None:
        """Wait for the next frame; see `FrameSource.read`."""
        try:
            frame = self._frames.get(timeout_s=self._read_timeout_s + _GRACE_S)
        except TimeoutError as exc:
            raise self._stall_error() from exc
        if frame is not None:
            self._received += 1
        return frame

    def interrupt(self) -> None:
        """Make a waiting `open` or `read` return; no more frames will come."""
        self._stop.set()
        self._opened.close()
        self._frames.close()

    def close(self) -> None:
        """Release the source, or leave its thread behind when that takes too long."""
        self.interrupt()
        if self._thread is not None:
            self._thread.join(max(self._open_timeout_s, self._read_timeout_s) + _GRACE_S)

    def _capture_frames(self) -> None:
        with Producing(self._frames):
            try:
                capture = self._connect()
            except BaseException as exc:  # whatever it is, `open` waits for it
                self._opened.finish(exc)
                raise
            try:
                self._opened.put(True)
                self._read_all(capture)
            finally:
                capture.release()

    def _connect(self) -> cv2.VideoCapture:
        import cv2

        started = time.monotonic()
        if isinstance(self._address, int):
            capture = cv2.VideoCapture(self._address, cv2.CAP_V4L2)
        else:
            timeouts = [
                cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
                round(self._open_timeout_s * 1000),
                cv2.CAP_PROP_READ_TIMEOUT_MSEC,
                round(self._read_timeout_s * 1000),
            ]
            capture = cv2.VideoCapture(self._address, cv2.CAP_FFMPEG, timeouts)
        if not capture.isOpened():
            elapsed_s = time.monotonic() - started
            if elapsed_s >= self._open_timeout_s:
                raise self._timeout_error(elapsed_s)
            raise self._open_error()
        try:
            self._describe(capture)
        except FrameTooLargeError:
            capture.release()
            raise
        return capture

    def _describe(self, capture: cv2.VideoCapture) -> None:
        import cv2

        self.fps, self.frame_count = fps_hint(capture), frame_count_hint(capture)
        # a finite file behind http:// ends; a camera does not
        self.live = self.frame_count is None
        height = int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        width = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        check_size(self.name, height, width, max_pixels=self._max_pixels)

    def _read_all(self, capture: cv2.VideoCapture) -> None:
        index = 0
        while not self._stop.is_set():
            started = time.monotonic()
            ok, frame = capture.read()
            if ok:
                self._frames.put(VideoFrame(frame, index, pts_seconds(capture)))
                index += 1
                continue
            if time.monotonic() - started >= self._read_timeout_s:
                raise self._stall_error()
            if self.live:
                raise SourceLostError(
                    f"{self.name} stopped after {index} frames.",
                    hint="Check the camera and the network, then start again.",
                )
            return

    def _timeout_error(self, elapsed_s: float) -> SourceTimeoutError:
        return SourceTimeoutError(
            f"{self.name} did not answer within {elapsed_s:.1f} s.",
            hint="Check the host, the port, and that the camera is on.",
        )

    def _stall_error(self) -> SourceTimeoutError:
        return SourceTimeoutError(
            f"{self.name} sent no frame for {self._read_timeout_s:g} s, after {self._received}"
            " frames.",
            hint="Check the camera and the network, then start again.",
        )

    def _open_error(self) -> SourceOpenError:
        if isinstance(self._address, int):
            devices = sorted(str(path) for path in Path("/dev").glob("video*"))
            return SourceOpenError(
                f"{self.name} cannot be opened: /dev/video{self._address} is absent, busy or not"
                f" permitted; found {', '.join(devices) or 'no video device'}.",
                hint="Name one of the devices found, and close programs that use it.",
            )
        return SourceOpenError(
            f"{self.name} cannot be opened: no connection, or no video there.",
            hint="Check the address, the user and the password.",
        )
