"""What must be known of a model file before a library parses it: kind, format, a sane zip.

Formats are told by content; a file's name decides nothing.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Literal

from fcn_deploy.errors import (
    ArtifactMissingError,
    FcnDeployError,
    UnsupportedModelError,
    UntrustedArtifactError,
)

__all__ = [
    "MAX_ZIP_BYTES",
    "MAX_ZIP_ENTRIES",
    "ModelFile",
    "ModelFormat",
    "model_format",
    "open_model_file",
]

ModelFormat = Literal["torch", "torch_legacy", "safetensors", "torchscript", "exported_program"]
"""How a model is stored: ``torch.save`` (since 1.6, and before), safetensors, or with its code."""

MAX_ZIP_ENTRIES = 10_000
MAX_ZIP_BYTES = 4 << 30

# torch.save stores without compression, so the entries cannot add up to more than the file;
# a sum above it means entries that overlap, or deflate
_MAX_EXPANSION = 1.1
_MAX_SAFETENSORS_HEADER = 100_000_000  # the limit of the safetensors library

# a pickle (protocol 2) of torch's magic number 0x1950a86a20f9469cfc6c
_TORCH_LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")

_WEIGHTS_ALONE = "Save the weights alone: torch.save(model.state_dict(), 'weights.pt')."
_DOWNLOAD_AGAIN = "Download or copy it again and compare its size with the origin's."


@dataclass(frozen=True, slots=True)
class ModelFile:
    """An open regular file, read by every check and every library through one descriptor.

    Attributes:
        path: as the user gave it; for messages.
        stream: the open file.
        size: in bytes, when it was opened.
    """

    path: Path
    stream: BufferedReader = field(repr=False)
    size: int

    @property
    def library_path(self) -> str:
        """A path by which a library opens this very file, even if its name was given away."""
        by_descriptor = f"/proc/self/fd/{self.stream.fileno()}"
        return by_descriptor if os.path.exists(by_descriptor) else os.fspath(self.path)

    def sha256(self) -> str:
        """Give the SHA-256 of the whole content, in hexadecimal."""
        self.stream.seek(0)
        return hashlib.file_digest(self.stream, "sha256").hexdigest()


@contextmanager
def open_model_file(path: str | os.PathLike[str]) -> Iterator[ModelFile]:
    """Open a regular file for reading; links are followed, nothing else waits or is opened.

    Raises:
        ArtifactMissingError: there is nothing under this name.
        UnsupportedModelError: it is a directory, pipe or device, is empty, or cannot be read.
    """
    named = Path(path)
    try:
        # O_NONBLOCK: opening a pipe must not wait for its writer
        descriptor = os.open(named, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise ArtifactMissingError(
            f"model file '{named}' does not exist.", hint="Check the path."
        ) from exc
    except (OSError, ValueError) as exc:
        raise UnsupportedModelError(f"model file '{named}' cannot be read: {exc}.") from exc
    try:
        status = os.fstat(descriptor)
        _check_regular(named, status)
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            yield ModelFile(named, stream, status.st_size)
    finally:
        os.close(descriptor)


def _check_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise UnsupportedModelError(
            f"'{path}' is {kind}; a model must be a regular file.",
            hint="Name the .pt, .pth or .safetensors file itself.",
        )
    if status.st_size == 0:
        raise UnsupportedModelError(f"model file '{path}' is empty.", hint=_DOWNLOAD_AGAIN)


def model_format(file: ModelFile) -> ModelFormat:
    """Tell the format from the content, and check a zip's directory.

    Raises:
        UnsupportedModelError: the content is no model, or is damaged.
        UntrustedArtifactError: a bare pickle, or a zip made to harm its reader.
    """
    file.stream.seek(0)
    head = file.stream.read(512)
    if head.startswith(b"PK"):
        return _zip_format(file)
    if head.startswith(_TORCH_LEGACY_MAGIC):
        return "torch_legacy"
    if _is_safetensors(head, file.size):
        return "safetensors"
    raise _not_a_model(file, head)


def _is_safetensors(head: bytes, size: int) -> bool:
    if len(head) < 9 or head[8:9] != b"{":
        return False
    (header_bytes,) = struct.unpack("<Q", head[:8])
    return bool(header_bytes <= min(_MAX_SAFETENSORS_HEADER, size - 8))


def _not_a_model(file: ModelFile, head: bytes) -> FcnDeployError:
    """Say what a file is that is no model."""
    text = head.lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return UnsupportedModelError(
            f"'{file.path}' is a Git LFS pointer of {file.size} bytes, not the model.",
            hint="Run `git lfs pull` in its repository.",
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return UnsupportedModelError(
            f"'{file.path}' is a web page, not a model: the download failed or wanted a login.",
            hint="Download the file itself, not the page that links to it.",
        )
    if head[257:262] == b"ustar":
        return UnsupportedModelError(
            f"'{file.path}' is a tar archive: PyTorch's format of before 2017, or a package.",
            hint="Unpack the checkpoint, or load it where it was made. " + _WEIGHTS_ALONE,
        )
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf")):
        return UnsupportedModelError(f"'{file.path}' is compressed.", hint="Decompress it first.")
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return UntrustedArtifactError(
            f"'{file.path}' is a bare pickle that torch.save did not write; "
            "reading it could run code, so it is refused.",
            hint=_WEIGHTS_ALONE,
        )
    return UnsupportedModelError(
        f"'{file.path}' is no model that can be read: it starts with {head[:16]!r}; expected "
        "a file of torch.save or safetensors, TorchScript or an exported program.",
        hint=_DOWNLOAD_AGAIN,
    )


def _zip_format(file: ModelFile) -> ModelFormat:
    file.stream.seek(0)
    try:
        with zipfile.ZipFile(file.stream) as archive:
            entries = archive.infolist()
            _check_entries(file, entries)
            kind = _kind_of_archive(file, [entry.filename for entry in entries])
            if kind == "torch":
                _check_stored(file, entries)
                damaged = archive.testzip()  # torch itself never compares the CRC-32
                if damaged is not None:
                    raise _damaged(file, f"entry '{damaged}' fails its CRC-32")
            return kind
    # zipfile meets a damaged directory with any of these
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, EOFError) as exc:
        if isinstance(exc, FcnDeployError):
            raise
        raise _damaged(file, str(exc)) from exc
    except (struct.error, RuntimeError) as exc:
        raise _damaged(file, str(exc)) from exc


def _damaged(file: ModelFile, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"'{file.path}' is damaged or cut short at {file.size} bytes: {reason.rstrip('.')}.",
        hint=_DOWNLOAD_AGAIN,
    )


def _check_entries(file: ModelFile, entries: list[zipfile.ZipInfo]) -> None:
    """Refuse a directory that no writer of models makes."""
    if len(entries) > MAX_ZIP_ENTRIES:
        raise _suspicious(file, f"{len(entries)} entries; at most {MAX_ZIP_ENTRIES} are taken")
    total = sum(entry.file_size for entry in entries)
    if total > MAX_ZIP_BYTES:
        raise UntrustedArtifactError(
            f"'{file.path}' unpacks to {total} bytes; at most {MAX_ZIP_BYTES} are taken.",
            hint=_WEIGHTS_ALONE,
        )
    seen: set[str] = set()
    for entry in entries:
        name = entry.orig_filename
        if name in seen:
            raise _suspicious(file, f"the entry {name!r} twice")
        seen.add(name)
        if entry.flag_bits & 0x1:
            raise _suspicious(file, f"the encrypted entry {name!r}")
        if name.startswith("/") or "\\" in name or "\0" in name or ":" in name[:2]:
            raise _suspicious(file, f"the entry {name!r}, an absolute or foreign path")
        if ".." in PurePosixPath(name).parts:
            raise _suspicious(file, f"the entry {name!r}, which leads outside")


def _check_stored(file: ModelFile, entries: list[zipfile.ZipInfo]) -> None:
    """Refuse compression and overlap: memory mapping reads the entries as they lie in the file."""
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise _suspicious(
                file, f"the compressed entry {entry.orig_filename!r}; torch.save stores them plain"
            )
    total = sum(entry.file_size for entry in entries)
    if total > _MAX_EXPANSION * file.size:
        raise _suspicious(file, f"entries of {total} bytes in a file of {file.size}: they overlap")


def _suspicious(file: ModelFile, found: str) -> UntrustedArtifactError:
    return UntrustedArtifactError(
        f"'{file.path}' is a zip with {found}; it was not written by torch.save.",
        hint=_WEIGHTS_ALONE,
    )


def _kind_of_archive(file: ModelFile, names: list[str]) -> ModelFormat:
    # every writer puts its records under one folder, whose name is arbitrary; old .pt2 had none
    records = {name.partition("/")[2] for name in names} | set(names)
    if "constants.pkl" in records or any(name.startswith("code/") for name in records):
        return "torchscript"
    if records & {"archive_format", "serialized_exported_program.json"} or any(
        name.startswith("models/") and name.endswith(".json") for name in records
    ):
        return "exported_program"
    if "data.pkl" in records:
        return "torch"
    listed = ", ".join(repr(name) for name in names[:4]) or "nothing"
    raise UnsupportedModelError(
        f"'{file.path}' is a zip archive, but no model: it holds {listed}.",
        hint="Unzip it first if the checkpoint is packed in it.",
    )
