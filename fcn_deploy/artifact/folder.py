"""Open an artifact, checking every byte before a parser sees it, and write one atomically.

A folder is built beside its final place and renamed, so that at any moment the name holds the old
artifact, the new one, or nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from fcn_deploy.artifact.manifest import FileEntry, Manifest, Variant, check_file_name
from fcn_deploy.artifact.manifest_json import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    manifest_from_json,
    manifest_to_json,
)
from fcn_deploy.artifact.plain_files import read_plain_file, sha256_of
from fcn_deploy.errors import (
    ArtifactBusyError,
    ArtifactError,
    ArtifactMissingError,
    DigestMismatchError,
    DiskFullError,
    ManifestError,
    OutputExistsError,
)
from fcn_deploy.names import Precision

__all__ = ["Artifact", "ArtifactWriter", "is_artifact"]

_RENAME_EXCHANGE = 2  # linux/fs.h


class Artifact:
    """An opened artifact: its manifest, and its files on request."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._entries: Mapping[str, FileEntry] = {entry.name: entry for entry in manifest.files}

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Artifact:
        """Read and check the manifest. Other files are checked when they are read.

        Raises:
            ArtifactMissingError: there is no such folder, or it has no manifest.
            ManifestError: the manifest is malformed or of another format version.
            UntrustedArtifactError: the manifest is a link or no plain file.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise ArtifactMissingError(
                f"there is no artifact folder at '{folder}'.", hint="fcn-export MODEL makes one."
            )
        content = read_plain_file(folder / MANIFEST_NAME, max_bytes=MAX_MANIFEST_BYTES)
        return cls(folder, manifest_from_json(content))

    def __repr__(self) -> str:
        return f"Artifact('{self.path}', variants={[v.file for v in self.manifest.variants]})"

    def variant(self, precision: Precision) -> Variant:
        """Find the graph that a backend runs for a precision; bf16 is computed from fp32's.

        Raises:
            ArtifactMissingError: the artifact was exported without it.
        """
        wanted = Precision.FP32 if precision is Precision.BF16 else precision
        for variant in self.manifest.variants:
            if variant.backend is None and variant.precision is wanted:
                return variant
        held = ", ".join(v.precision for v in self.manifest.variants if v.backend is None)
        raise ArtifactMissingError(
            f"'{self.path}' has no {wanted} graph; it has {held or 'none'}.",
            hint=f"Export the model again with --precision {wanted}.",
        )

    def read(self, name: str) -> bytes:
        """Read a listed file, checked against the manifest's size and SHA-256.

        The bytes returned are the bytes that were checked.

        Raises:
            ArtifactMissingError: the file is not listed, or not there.
            DigestMismatchError: its size or digest differs.
            UntrustedArtifactError: it is a link or no plain file.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise ArtifactMissingError(f"the manifest of '{self.path}' does not list '{name}'.")
        path = self.path / name
        content = read_plain_file(path, expected_bytes=entry.size)
        found = hashlib.sha256(content).hexdigest()
        if found != entry.sha256:
            raise DigestMismatchError(
                f"'{path}' has SHA-256 {found[:12]}…; the manifest says {entry.sha256[:12]}….",
                hint="The file was changed or damaged: export or copy the artifact again.",
            )
        return content

    def check(self, name: str) -> Path:
        """Check a listed file as `read` does, for a library that must open the path itself."""
        self.read(name)
        return self.path / name


def is_artifact(path: Path) -> bool:
    """Say whether a path is a folder with a manifest."""
    return path.is_dir() and (path / MANIFEST_NAME).exists()


class ArtifactWriter:
    """Builds an artifact in a temporary folder beside its place, then renames it.

    Use as a context manager: leaving it without `commit` removes everything that was written.

        with ArtifactWriter("model.fcn", force=False) as writer:
            writer.add("model.onnx", data)
            writer.commit(manifest)

    Raises:
        OutputExistsError: something stands under the name already, and `force` is not given or
            what stands there is no artifact.
        ArtifactBusyError: another process is writing to this name.
        ArtifactError: the folder above cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        self.path = Path(os.path.abspath(path))
        self._force = force
        self._lock: BinaryIO | None = None
        self._folder: Path | None = None

    @property
    def folder(self) -> Path:
        """The temporary folder; valid between entering and leaving the context.

        Raises:
            RuntimeError: the writer was not entered, or was left.
        """
        if self._folder is None:
            raise RuntimeError("ArtifactWriter is used outside its `with` block")
        return self._folder

    def __enter__(self) -> Self:
        self._refuse_existing()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = self._take_lock()
            self._remove_leftovers()
            self._folder = Path(
                tempfile.mkdtemp(prefix=self._temporary_prefix, dir=self.path.parent)
            )
        except OSError as error:
            self._release()
            raise ArtifactError(
                f"cannot write into '{self.path.parent}': {error.strerror}.",
                hint="Choose another place with --output.",
            ) from error
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._release()

    def add(self, name: str, content: bytes) -> Path:
        """Write one file and flush it to the disk; gives its path in the temporary folder.

        Raises:
            ManifestError: the name is not a plain file name.
            DiskFullError: there is no room.
            ArtifactError: it cannot be written, for another reason.
        """
        check_file_name(name)
        path = self.folder / name
        try:
            with open(path, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                free = shutil.disk_usage(self.folder).free
                raise DiskFullError(
                    f"no room for '{name}' ({len(content)} bytes) in '{self.path.parent}', "
                    f"{free} bytes free.",
                    hint="Free some space or choose another place with --output.",
                ) from error
            raise ArtifactError(f"cannot write '{path}': {error.strerror}.") from error
        return path

    def commit(self, manifest: Manifest) -> Artifact:
        """Digest all files of the temporary folder, write the manifest, and rename the folder.

        Args:
            manifest: complete but for `files`, which is replaced.

        Raises:
            ManifestError: a variant names a file that was not added.
            OutputExistsError: other files appeared under the name meanwhile.
        """
        entries = []
        for path in sorted(self.folder.iterdir()):
            with open(path, "rb") as file:
                entries.append(FileEntry(path.name, path.stat().st_size, sha256_of(file)))
        if any(entry.name == MANIFEST_NAME for entry in entries):
            raise ManifestError(f"'{MANIFEST_NAME}' is written by commit, not by add.")
        complete = replace(manifest, files=tuple(entries))
        self.add(MANIFEST_NAME, manifest_to_json(complete))
        self.folder.chmod(0o755)
        _sync_folder(self.folder)
        self._move_into_place()
        _sync_folder(self.path.parent)
        return Artifact(self.path, complete)

    def _refuse_existing(self) -> None:
        if self.path.is_symlink():
            raise OutputExistsError(
                f"'{self.path}' is a link to '{self.path.readlink()}'.",
                hint="Name the place itself with --output.",
            )
        if not self.path.exists():
            return
        if not self._force:
            raise OutputExistsError(
                f"'{self.path}' exists.",
                hint="Replace it with --force, or choose another --output.",
            )
        if not is_artifact(self.path):
            raise OutputExistsError(
                f"'{self.path}' exists and is not an artifact: it will not be replaced.",
                hint="Remove it yourself, or choose another --output.",
            )

    @property
    def _temporary_prefix(self) -> str:
        return f".{self.path.name}.tmp-"

    def _remove_leftovers(self) -> None:
        """Remove what a killed writer left: under the lock, no other writer uses such a folder."""
        for leftover in self.path.parent.glob(f"{glob.escape(self._temporary_prefix)}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _take_lock(self) -> BinaryIO:
        path = self.path.parent / f".{self.path.name}.lock"
        while True:
            file = open(path, "a+b")  # noqa: SIM115 - held open while the lock is held
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                owner = file.read(64).decode(errors="replace").strip() or "unknown"
                file.close()
                raise ArtifactBusyError(
                    f"process {owner} is writing '{self.path}'.",
                    hint="Wait for it, or choose another --output.",
                ) from error
            if _same_file(file, path):
                file.truncate(0)
                file.write(str(os.getpid()).encode())
                file.flush()
                return file
            file.close()  # its owner removed it between our open and our lock: try the new one

    def _move_into_place(self) -> None:
        self._refuse_existing()
        if not self.path.exists():
            os.rename(self.folder, self.path)
            self._folder = None
            return
        if _exchange(self.folder, self.path):
            return  # the temporary name now holds the old artifact, which _release removes
        old = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.old-", dir=self.path.parent))
        os.rename(self.path, old)  # an empty folder may be replaced
        os.rename(self.folder, self.path)
        self._folder = old

    def _release(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        if self._lock is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._lock.name)
            self._lock.close()
            self._lock = None


def _same_file(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step where the system can (renameat2, Linux); else do nothing."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    at_cwd = -100
    result: int = renameat2(
        at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), _RENAME_EXCHANGE
    )
    return result == 0


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
