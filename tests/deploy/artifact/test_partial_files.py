from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from fcn_deploy.artifact.partial_files import partial_name, partial_of, write_whole


def test_a_file_is_called_partial_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "take.mp4"
    path.write_bytes(b"old")

    with partial_of(path) as partial:
        partial.write_bytes(b"new")
        assert re.fullmatch(r"take\.[0-9a-f]{8}\.partial\.mp4", partial.name)
        assert path.read_bytes() == b"old"

    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == [b"new"]


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "take.mp4"
    path.write_bytes(b"old")

    def fail() -> None:
        with partial_of(path) as partial:
            partial.write_bytes(b"ne")
            raise KeyboardInterrupt("now")

    with pytest.raises(KeyboardInterrupt, match="now"):
        fail()

    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == [b"old"]


def test_a_file_of_the_temporary_name_is_never_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda count: "a1b2c3d4")
    (tmp_path / "take.a1b2c3d4.partial.mp4").write_bytes(b"mine")

    with pytest.raises(FileExistsError, match="File exists"):
        write_whole(tmp_path / "take.mp4", b"new")

    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == [b"mine"]


def test_two_writers_of_one_name_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "take.mp4"

    with partial_of(path) as first, partial_of(path) as second:
        first.write_bytes(b"first")
        second.write_bytes(b"second")

    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == [b"first"]  # it ended later


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_whole_file_has_the_rights_of_any_new_file(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_whole(tmp_path / "a.json", b"{}", sync=True)
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o666 & ~mask


def test_a_library_that_renames_a_private_file_does_not_make_the_whole_one_private(
    tmp_path: Path,
) -> None:
    (tmp_path / "plain").touch()

    with partial_of(tmp_path / "a.safetensors") as partial:
        (tmp_path / "private").touch(mode=0o600)
        (tmp_path / "private").replace(partial)  # as safetensors does

    modes = [(tmp_path / name).stat().st_mode for name in ("plain", "a.safetensors")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize(
    "name",
    ["a" * 251 + ".mp4", "é" * 125 + ".mp4", "a." + "b" * 253, "." + "c" * 254],
    ids=["ascii", "two bytes a letter", "a long ending", "no ending"],
)
def test_the_longest_names_have_a_temporary_name_too(tmp_path: Path, name: str) -> None:
    write_whole(tmp_path / name, b"x")

    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_temporary_name_is_utf8_whatever_the_final_one_is(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"take\xff.mp\xff4")

    assert re.fullmatch(r"take_\.[0-9a-f]{8}\.partial\.mp_4", partial_name(path).name)
    write_whole(path, b"x")

    assert os.listdir(os.fsencode(tmp_path)) == [b"take\xff.mp\xff4"]
