"""Open the source that an address names: a file, a folder, a webcam or a network stream."""

from __future__ import annotations

from pathlib import Path

from fcn_deploy.video.address import AddressKind, address_kind
from fcn_deploy.video.files import ImageSource, VideoFileSource, list_images, read_image
from fcn_deploy.video.frames import MAX_PIXELS, FrameSource
from fcn_deploy.video.live import LiveSource

__all__ = ["open_source", "read_image"]


def open_source(address: str | Path | int, *, max_pixels: int = MAX_PIXELS) -> FrameSource:
    """Make the source that an address names; nothing is opened yet.

    Args:
        address: an image, a folder of images, a video file, a webcam's number, or a network
            address such as ``rtsp://host/path``.
        max_pixels: largest frame to decode.

    Raises:
        SourceOpenError: a folder holds no images.
    """
    text = str(address)
    kind = address_kind(text)
    if kind is AddressKind.NETWORK:
        return LiveSource(text, max_pixels=max_pixels)
    if kind is AddressKind.WEBCAM:
        return LiveSource(int(text), max_pixels=max_pixels)
    path = Path(text)
    if kind is AddressKind.FOLDER:
        return ImageSource(list_images(path), name=str(path), max_pixels=max_pixels)
    if kind is AddressKind.IMAGE:
        return ImageSource([path], max_pixels=max_pixels)
    return VideoFileSource(path, max_pixels=max_pixels)
