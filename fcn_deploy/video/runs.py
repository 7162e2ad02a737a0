"""Run segmentation jobs: sources in, files out, a report each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from fcn_deploy.artifact.name_text import printable
from fcn_deploy.errors import BackendUnavailableError
from fcn_deploy.names import Array
from fcn_deploy.video.frame_counts import PipelineStats
from fcn_deploy.video.frames import FrameSegmenter, SegmentedFrame
from fcn_deploy.video.jobs import SegmentJob
from fcn_deploy.video.pipeline import Policy, VideoPipeline
from fcn_deploy.video.sinks import ImageSink, VideoSink, View, render
from fcn_deploy.video.writers import WriterName

__all__ = ["JobReport", "run_job"]

_DEFAULT_FPS = 25.0


@dataclass(slots=True)
class JobReport:
    """The report of one job, filled while the job runs, so that a failed one has a report too.

    Attributes:
        source: its address, without secrets.
        outputs: the video file, or the images' folder; none where nothing was finished.
        encoder: library and codec of the video, such as ``opencv/mp4v``; ``png`` for images.
        files: files written.
        stats: what became of the frames.
        notices: remarks for the user.
    """

    source: str
    outputs: tuple[str, ...] = ()
    encoder: str = "png"
    files: int = 0
    stats: PipelineStats = field(default_factory=PipelineStats)
    notices: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Give the report as JSON values."""
        return self.stats.to_json() | {
            "source": self.source,
            "outputs": list(self.outputs),
            "encoder": self.encoder,
            "files": self.files,
            "notices": list(self.notices),
        }


def run_job(
    job: SegmentJob,
    segmenter: FrameSegmenter,
    report: JobReport,
    *,
    view: View = "overlay",
    alpha: float = 0.5,
    policy: Policy | None = None,
    writer: WriterName = "opencv",
    max_frames: int | None = None,
    show: bool = False,
    on_frame: Callable[[SegmentedFrame], None] | None = None,
) -> None:
    """Segment one source to its end and write the results.

    However it ends, an error or Ctrl-C included, what was done so far is finished.

    Args:
        report: filled in.
        show: also show each frame in a window, until q is pressed there.
        on_frame: called after each frame was written.

    Raises:
        FcnDeployError: the source, the network or the sink failed.
        BackendUnavailableError: `show` without a window system in OpenCV.
    """
    pipeline = VideoPipeline(segmenter, job.source, policy=policy, max_frames=max_frames)
    with contextlib.ExitStack() as stack:
        stack.callback(_complete, report, pipeline)
        display = stack.enter_context(_window(printable(job.source.name))) if show else None
        stack.enter_context(pipeline)
        write = stack.enter_context(_sink(job, report, view=view, alpha=alpha, writer=writer))
        for item in pipeline:
            write(item)
            if on_frame is not None:
                on_frame(item)
            shown: View = "color" if view == "labels" else view
            if display is not None and not display(render(item, shown, alpha=alpha)):
                return


def _complete(report: JobReport, pipeline: VideoPipeline) -> None:
    report.stats = pipeline.stats
    report.notices += report.stats.notices


@contextlib.contextmanager
def _sink(
    job: SegmentJob, report: JobReport, *, view: View, alpha: float, writer: WriterName
) -> Iterator[Callable[[SegmentedFrame], None]]:
    if not job.is_video:
        images = ImageSink(job.output, view, alpha=alpha)

        def write_image(item: SegmentedFrame) -> None:
            images.write(item)
            report.files, report.outputs = images.frames, (str(job.output),)

        yield write_image
        return
    fps = job.source.fps
    if fps is None:
        fps = _DEFAULT_FPS
        report.notices += (f"the source names no frame rate; the video gets {fps:g}",)
    video = VideoSink(job.output, fps=fps, writer=writer)
    try:
        with video:
            yield lambda item: video.write(render(item, view, alpha=alpha))
    finally:
        report.encoder = video.encoder
        if video.complete:
            report.files, report.outputs = 1, (str(job.output),)


@contextlib.contextmanager
def _window(title: str) -> Iterator[Callable[[Array], bool]]:
    import cv2

    try:
        cv2.namedWindow(title, cv2.WINDOW_NORMAL)
    except cv2.error as exc:
        raise BackendUnavailableError(
            "this OpenCV has no windows (it is opencv-python-headless), or there is no display.",
            hint="Leave out --show, or replace the package: pip uninstall opencv-python-headless"
            " && pip install opencv-python",
        ) from exc

    def display(frame_bgr: Array) -> bool:
        cv2.imshow(title, frame_bgr)
        return (cv2.waitKey(1) & 0xFF) != ord("q")

    try:
        yield display
    finally:
        cv2.destroyWindow(title)
