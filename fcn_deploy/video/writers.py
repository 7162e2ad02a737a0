"""Encode frames to a video file: with OpenCV, which hides a full disk, or PyAV, which does not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, cast, get_args

from fcn_deploy.errors import BackendUnavailableError, SinkError, SinkFormatError
from fcn_deploy.names import Array
from fcn_deploy.video.disk_space import DiskWatch, translate_os_error
from fcn_deploy.video.opencv_name import opencv_name

if TYPE_CHECKING:
    import av
    import cv2
    from av.video.stream import VideoStream

__all__ = ["VIDEO_SUFFIXES", "WRITERS", "FrameWriter", "WriterName", "open_writer"]

WriterName = Literal["opencv", "pyav"]

WRITERS: tuple[WriterName, ...] = get_args(WriterName)

_OPENCV_CODECS: Mapping[str, str] = {
    ".mp4": "mp4v",
    ".m4v": "mp4v",
    ".mov": "mp4v",
    ".mkv": "mp4v",
    ".avi": "MJPG",
}
_PYAV_CODECS: Mapping[str, tuple[str, ...]] = {
    ".mp4": ("libx264", "mpeg4"),
    ".m4v": ("libx264", "mpeg4"),
    ".mov": ("libx264", "mpeg4"),
    ".mkv": ("libx264", "mpeg4"),
    ".avi": ("mpeg4",),
}
# a fragment a second: after a kill, the file plays up to the last one
_FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}

VIDEO_SUFFIXES = frozenset(_OPENCV_CODECS)
"""Endings of the file names that every writer can write."""

# no look-ahead: frames that the encoder holds back are lost with the process
_CODEC_OPTIONS: Mapping[str, dict[str, str]] = {
    "libx264": {"preset": "veryfast", "tune": "zerolatency"}
}


class FrameWriter(Protocol):
    """An open video file. All frames are BGR uint8 of one even size."""

    @property
    def codec(self) -> str: ...

    def write(self, frame_bgr: Array) -> None:
        """Encode one frame, uint8 [H, W, 3].

        Raises:
            DiskFullError: the file could not grow.
            SinkError: the encoder failed.
        """
        ...

    def close(self) -> None:
        """Finish the file.

        Raises:
            DiskFullError: the end of the file could not be written.
        """
        ...


def open_writer(
    name: WriterName, path: Path, *, suffix: str, fps: float, size_wh: tuple[int, int]
) -> FrameWriter:
    """Create a video file.

    Args:
        name: ``opencv``, or ``pyav`` from the extra ``video``.
        path: the file; it must not be there yet.
        suffix: ending that decides container and codec, one of `VIDEO_SUFFIXES`.
        fps: frames a second.
        size_wh: width and height of each frame, both even.

    Raises:
        SinkFormatError: no codec for this ending opens here.
        BackendUnavailableError: PyAV is asked for and not installed.
        DiskFullError, SinkError: the file cannot be created.
    """
    if name == "pyav":
        return _PyAvWriter(path, codecs=_PYAV_CODECS[suffix], fps=fps, size_wh=size_wh)
    return _OpenCvWriter(path, codec=_OPENCV_CODECS[suffix], fps=fps, size_wh=size_wh)


class _OpenCvWriter:
    """OpenCV's writer says nothing when a write fails, so the disk is watched."""

    def __init__(self, path: Path, *, codec: str, fps: float, size_wh: tuple[int, int]) -> None:
        import cv2

        self.codec = codec
        self._path = path
        self._frames = 0
        self._disk = DiskWatch(path)
        try:
            path.touch(exist_ok=False)  # OpenCV would not say why a file cannot be created
            with opencv_name(path) as name:
                self._writer: cv2.VideoWriter = cv2.VideoWriter(
                    name, cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), fps, size_wh
                )
        except OSError as exc:
            raise translate_os_error(exc, path) from exc
        if not self._writer.isOpened():
            self._writer.release()
            path.unlink(missing_ok=True)
            raise SinkFormatError(
                f"OpenCV's FFmpeg cannot write codec {codec} to {path.suffix} at {fps:g} frames/s"
                f" and {size_wh[1]}x{size_wh[0]}.",
                hint="Choose .avi, or install 'fcn-deploy[video]' and use the writer pyav.",
            )

    def write(self, frame_bgr: Array) -> None:
        self._writer.write(frame_bgr)
        self._frames += 1
        self._disk.after_frame(self._frames)

    def close(self) -> None:
        self._writer.release()
        self._check_count()
        try:
            with self._path.open("rb") as file:
                os.fsync(file.fileno())
        except OSError as exc:
            raise translate_os_error(exc, self._path) from exc

    def _check_count(self) -> None:
        """Read the file's own count of frames, and its last frame."""
        import cv2

        with opencv_name(self._path) as name:
            capture = cv2.VideoCapture(name, cv2.CAP_FFMPEG)
        try:
            count = round(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
            capture.set(cv2.CAP_PROP_POS_FRAMES, max(0, count - 1))
            last_is_there = count > 0 and capture.grab()
        finally:
            capture.release()
        # Ctrl-C may come between the writing of a frame and its counting; and Matroska has no
        # count: it is reckoned from the duration
        fewest = self._frames - (self._path.suffix.lower() == ".mkv")
        if not fewest <= count <= self._frames + 1 or not last_is_there:
            self._disk.check_room(self._frames)
            raise SinkError(
                f"{self._path} holds {count} frames; {self._frames} were written.",
                hint="Check the disk's room, quota and file-size limit.",
            )


class _PyAvWriter:
    """PyAV raises when a write fails; a fragmented MP4 plays even if the process is killed."""

    def __init__(
        self, path: Path, *, codecs: tuple[str, ...], fps: float, size_wh: tuple[int, int]
    ) -> None:
        try:
            import av
        except ImportError as exc:
            raise BackendUnavailableError(
                "The writer pyav is not installed.", hint="pip install 'fcn-deploy[video]'"
            ) from exc

        self._path = path
        self.codec = next((codec for codec in codecs if codec in av.codecs_available), "")
        if not self.codec:
            raise SinkFormatError(f"PyAV has none of the codecs {', '.join(codecs)}.")
        options = _FRAGMENTED if path.suffix in (".mp4", ".m4v", ".mov") else {}
        rate = Fraction(fps).limit_denominator(1001)
        try:
            path.touch(exist_ok=False)
            self._container: av.container.OutputContainer = av.open(
                str(path.absolute()), "w", options=options
            )
            # the codec's name decides the type: all of ours are video
            stream = cast(
                "VideoStream",
                self._container.add_stream(
                    self.codec, rate=rate, options=dict(_CODEC_OPTIONS.get(self.codec, {}))
                ),
            )
        except (OSError, av.FFmpegError) as exc:
            if not isinstance(exc, FileExistsError):
                path.unlink(missing_ok=True)
            raise translate_os_error(exc, path) from exc
        self._stream = stream
        stream.width, stream.height = size_wh
        stream.pix_fmt = "yuv420p"
        stream.gop_size = max(1, round(fps))

    def write(self, frame_bgr: Array) -> None:
        import av

        self._encode(av.VideoFrame.from_ndarray(frame_bgr, format="bgr24"))

    def close(self) -> None:
        import av

        try:
            self._encode(None)
        finally:
            try:
                self._container.close()
            except (OSError, av.FFmpegError) as exc:
                raise translate_os_error(exc, self._path) from exc
        with self._path.open("rb") as file:
            os.fsync(file.fileno())

    def _encode(self, frame: av.VideoFrame | None) -> None:
        import av

        try:
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
        except (OSError, av.FFmpegError) as exc:
            raise translate_os_error(exc, self._path) from exc
