"""What is told of a model file before anything parses it."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fcn_deploy.errors import (
    ArtifactMissingError,
    UnsupportedModelError,
    UntrustedArtifactError,
)
from fcn_export.load import file_kind as model_file
from fcn_export.load.file_kind import model_format, open_model_file


def _format_of(path: Path) -> str:
    with open_model_file(path) as file:
        return model_format(file)


def _zip(path: Path, entries: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def test_a_missing_file_is_missing_also_for_those_who_catch_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pt' does not exist"):
        _format_of(tmp_path / "none.pt")
    with pytest.raises(ArtifactMissingError, match="Check the path"):
        _format_of(tmp_path / "none.pt")


def test_a_folder_an_empty_file_and_a_name_with_nul_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()

    with pytest.raises(UnsupportedModelError, match="is a directory"):
        _format_of(tmp_path)
    with pytest.raises(UnsupportedModelError, match="is empty"):
        _format_of(tmp_path / "empty.pt")
    with pytest.raises(UnsupportedModelError, match="cannot be read"):
        _format_of(Path("a\0b.pt"))


@pytest.mark.timeout(20)
def test_a_pipe_without_a_writer_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")

    with pytest.raises(UnsupportedModelError, match="is a pipe"):
        _format_of(tmp_path / "pipe.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 135012801\n",
            "Git LFS pointer of .* Run `git lfs pull`",
        ),
        (b"\n<!DOCTYPE html><html><title>Sign in</title></html>", "a web page, not a model"),
        (b"<html>404</html>", "a web page, not a model"),
        (b"\x1f\x8b\x08rest", "is compressed"),
        (b"\x89HDF\r\n\x1a\nrest of a Keras file", "is no model that can be read"),
        (b"\x80\x04\x95\x00", "a bare pickle"),
        (b"\xff" * 8 + b"{", "is no model that can be read"),
    ],
)
def test_what_is_no_model_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)

    with pytest.raises((UnsupportedModelError, UntrustedArtifactError), match=message):
        _format_of(path)


def test_a_tar_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("storages")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"abc"))

    with pytest.raises(UnsupportedModelError, match="tar archive: PyTorch's format of before 2017"):
        _format_of(path)


def test_a_zip_of_something_else_says_what_it_holds(tmp_path: Path) -> None:
    path = _zip(tmp_path / "model.pt", {"weights.npy": b"x", "readme.txt": b"y"})

    with pytest.raises(UnsupportedModelError, match=r"'weights\.npy', 'readme\.txt'.*Unzip"):
        _format_of(path)


@pytest.mark.parametrize("name", ["/etc/x", "a/../../x", "a\\..\\x", "C:/x"])
def test_a_zip_with_names_that_lead_outside_is_refused(tmp_path: Path, name: str) -> None:
    path = _zip(tmp_path / "model.pt", {"a/data.pkl": b"x", name: b"y"})

    with pytest.raises(UntrustedArtifactError, match=r"an absolute or foreign path|leads outside"):
        _format_of(path)


def test_a_zip_with_one_name_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"x")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a/data.pkl", b"y")

    with pytest.raises(UntrustedArtifactError, match=r"the entry 'a/data\.pkl' twice"):
        _format_of(path)


def test_a_zip_bomb_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    path = _zip(
        tmp_path / "model.pt",
        {"a/data.pkl": b"\0" * 10_000_000},
        compression=zipfile.ZIP_DEFLATED,
    )

    with pytest.raises(UntrustedArtifactError, match=r"the compressed entry 'a/data\.pkl'"):
        _format_of(path)


def test_a_zip_whose_entries_share_bytes_is_refused(tmp_path: Path) -> None:
    # every entry of the directory points at the first one's 2000 bytes
    path = _zip(tmp_path / "model.pt", {f"a/{i:02d}": b"\0" * 2000 for i in range(8)})
    with zipfile.ZipFile(path) as archive:
        first = archive.infolist()[0]
        body = path.read_bytes()[: archive.infolist()[1].header_offset]
    overlapping = tmp_path / "overlapping.pt"
    buffer = io.BytesIO(body)
    buffer.seek(0, os.SEEK_END)
    with zipfile.ZipFile(buffer, "a") as archive:
        for name in ("data.pkl", "b", "c", "d"):
            entry = zipfile.ZipInfo(f"a/{name}")
            entry.file_size = entry.compress_size = 2000
            entry.CRC, entry.header_offset = first.CRC, 0
            archive.filelist.append(entry)
        archive._didModify = True  # type: ignore[attr-defined] # the way to a directory of one's own
    overlapping.write_bytes(buffer.getvalue())

    with pytest.raises(UntrustedArtifactError, match="they overlap"):
        _format_of(overlapping)


def test_an_encrypted_entry_is_refused(tmp_path: Path) -> None:
    path = _zip(tmp_path / "model.pt", {"a/data.pkl": b"x"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # general purpose flags of the directory's entry
    path.write_bytes(data)

    with pytest.raises(UntrustedArtifactError, match="the encrypted entry"):
        _format_of(path)


def test_too_many_entries_and_too_many_bytes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _zip(tmp_path / "model.pt", {"a/data.pkl": b"x" * 50, "a/b": b"y" * 51})

    monkeypatch.setattr(model_file, "MAX_ZIP_BYTES", 100)
    with pytest.raises(UntrustedArtifactError, match="unpacks to 101 bytes; at most 100"):
        _format_of(path)
    monkeypatch.setattr(model_file, "MAX_ZIP_ENTRIES", 1)
    with pytest.raises(UntrustedArtifactError, match="2 entries; at most 1"):
        _format_of(path)


@pytest.mark.parametrize("keep", [0.2, 0.9, 0.999])
def test_a_cut_download_is_called_cut_short(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.arange(4096.0)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])

    with pytest.raises(UnsupportedModelError, match=r"damaged or cut short at .* Download"):
        _format_of(path)


def test_a_flipped_bit_among_the_weights_is_found(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(4096)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(b"\0" * 4096) + 2000] ^= 0x40
    path.write_bytes(data)

    with pytest.raises(UnsupportedModelError, match="'model/data/0' fails its CRC-32"):
        _format_of(path)


def _save_zip(state: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(state, path)


def _save_legacy(state: dict[str, torch.Tensor], path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def _save_safetensors(state: dict[str, torch.Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(state, path)


@pytest.mark.parametrize(
    ("save", "expected"),
    [(_save_zip, "torch"), (_save_legacy, "torch_legacy"), (_save_safetensors, "safetensors")],
)
def test_the_format_is_told_by_content_not_by_name(
    tmp_path: Path, save: Callable[[dict[str, torch.Tensor], Path], None], expected: str
) -> None:
    path = tmp_path / "weights.bin"
    save({"weight": torch.ones(3)}, path)

    assert _format_of(path) == expected


def test_the_open_file_is_read_even_if_its_name_is_given_to_another(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"weight": torch.ones(3)}, path)

    with open_model_file(path) as file:
        os.replace(path, tmp_path / "moved.pt")
        path.write_bytes(b"something else")
        loaded = torch.load(file.library_path, weights_only=True, mmap=True)

    assert loaded["weight"].tolist() == [1, 1, 1]
