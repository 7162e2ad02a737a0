"""Read untrusted files: only plain ones, and only the bytes that were checked."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO

from fcn_deploy.errors import (
    ArtifactError,
    ArtifactMissingError,
    DigestMismatchError,
    UntrustedArtifactError,
)

__all__ = ["read_plain_file", "sha256_of"]

_CHUNK_BYTES = 1 << 20


def sha256_of(file: BinaryIO) -> str:
    """Give the SHA-256 of an open file's content, in bounded memory, in hexadecimal."""
    digest = hashlib.sha256()
    while block := file.read(_CHUNK_BYTES):
        digest.update(block)
    return digest.hexdigest()


def read_plain_file(
    path: Path, *, max_bytes: int | None = None, expected_bytes: int | None = None
) -> bytes:
    """Read a file that must be a plain one, refusing links, pipes and devices.

    Raises:
        ArtifactMissingError: it is not there.
        UntrustedArtifactError: it is a symbolic or hard link, a folder, a pipe or a device.
        DigestMismatchError: its size is not `expected_bytes`.
        ArtifactError: it is above `max_bytes`, or cannot be read.
    """
    try:
        # O_NONBLOCK: opening a pipe must not wait for a writer
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _translate_open_error(path, error) from error
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise UntrustedArtifactError(f"'{path}' is not a plain file.")
    with open(handle, "rb") as file:
        if status.st_nlink > 1:
            raise UntrustedArtifactError(
                f"'{path}' is a hard link ({status.st_nlink} names).", hint="Copy the file itself."
            )
        if max_bytes is not None and status.st_size > max_bytes:
            raise ArtifactError(f"'{path}' has {status.st_size} bytes; at most {max_bytes}.")
        if expected_bytes is not None and status.st_size != expected_bytes:
            raise DigestMismatchError(
                f"'{path}' has {status.st_size} bytes; the manifest says {expected_bytes}.",
                hint="The file was cut or replaced: export or copy the artifact again.",
            )
        return file.read()


def _translate_open_error(path: Path, error: OSError) -> ArtifactError:
    if error.errno == errno.ENOENT:
        here = sorted(p.name for p in path.parent.iterdir())[:10] if path.parent.is_dir() else []
        return ArtifactMissingError(
            f"'{path.name}' is missing in '{path.parent}', which has {here or 'nothing'}."
        )
    if error.errno == errno.ELOOP:
        return UntrustedArtifactError(f"'{path}' is a symbolic link.", hint="Copy the file itself.")
    return ArtifactError(f"'{path}' cannot be read: {error.strerror}.")
