from __future__ import annotations

from pathlib import Path

import numpy as np

from fcn_deploy.video import sources
from fcn_deploy.video.files import ImageSource, VideoFileSource
from fcn_deploy.video.live import LiveSource
from fcn_deploy.video.sources import open_source
from tests.deploy.clips import numbered_frame, write_image


def test_an_address_is_opened_by_the_source_for_its_kind(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", numbered_frame(0))

    assert isinstance(open_source(tmp_path / "a.png"), ImageSource)
    assert isinstance(open_source(tmp_path), ImageSource)
    assert isinstance(open_source(str(tmp_path / "a.mp4")), VideoFileSource)
    assert isinstance(open_source(7), LiveSource)
    assert repr(open_source("rtsp://u:pw@cam/x?k=v")) == ("LiveSource('rtsp://***@cam/x?***')")


def test_an_image_can_be_read_from_where_sources_are_opened(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", numbered_frame(0))

    assert sources.__all__ == ["open_source", "read_image"]
    assert np.array_equal(sources.read_image(path), numbered_frame(0))
