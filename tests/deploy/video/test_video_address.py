from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_deploy.video.address import AddressKind, address_kind, redact


@pytest.mark.parametrize(
    ("address", "printed"),
    [
        ("rtsp://bob:s3cret@cam.local:554/live", "rtsp://***@cam.local:554/live"),
        ("RTSP://bob:s3/c?r#et@cam/live", "RTSP://***@cam/live"),
        ("http://cam/video?token=abc&channel=1", "http://cam/video?***"),
        ("http://cam/video?abc", "http://cam/video?***"),
        ("rtsp://cam/user=admin&password=x&channel=1.sdp", "rtsp://cam/user=***"),
        ("http://cam/a#token", "http://cam/a#***"),
        ("rtsp://cam/key=x/stream?k=v#f", "rtsp://cam/key=***/stream?***"),
        ("http://cam:8080/video", "http://cam:8080/video"),
        ("clips/a@b=c?.mp4", "clips/a@b=c?.mp4"),
    ],
)
def test_an_address_is_printed_without_what_could_be_a_secret(address: str, printed: str) -> None:
    assert redact(address) == printed


@given(
    user=st.text(st.characters(codec="utf-8"), max_size=8),
    password=st.text(st.characters(codec="utf-8"), max_size=8),
    key=st.text(st.characters(codec="utf-8"), max_size=8),
)
def test_no_password_or_key_survives_whatever_characters_it_has(
    user: str, password: str, key: str
) -> None:
    address = f"rtsp://<{user}:{password}>@cam/live?token=<{key}>"

    # the marks around each secret are gone, so the secret between them is
    assert redact(address).startswith("rtsp://***@")
    assert "<" not in redact(address)


def test_the_kind_of_a_source_follows_from_its_address(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()

    assert address_kind(folder) is AddressKind.FOLDER
    assert address_kind(tmp_path / "a.PNG") is AddressKind.IMAGE
    assert address_kind(tmp_path / "a.mp4") is AddressKind.VIDEO
    assert address_kind("0") is AddressKind.WEBCAM
    assert address_kind("rtsps://cam/x") is AddressKind.NETWORK


def test_a_folder_that_is_called_like_a_webcam_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0").mkdir()
    monkeypatch.chdir(tmp_path)

    assert address_kind("0") is AddressKind.FOLDER
