"""Keep compiled networks on disk, so that the next start is quick.

A cache: losing it costs time and nothing else. An entry is found by a digest of all that it depends
on, is checked before a library sees it, and the least recently used ones go when there is no room.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from fcn_deploy.artifact.partial_files import partial_of

__all__ = ["CompiledCache", "user_cache_folder"]

_log = logging.getLogger(__name__)

_SUFFIX = ".compiled"
_DIGEST_BYTES = 32

MAX_BYTES = 2 << 30
"""Bytes that all entries may take together: a dozen networks of the size of FCN-ResNet50."""


def user_cache_folder() -> Path:
    """Give this project's folder in the user's cache, by the XDG rules; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if base.startswith("/") else Path.home() / ".cache"
    return root / "fcn-deploy"


class CompiledCache:
    """A folder of compiled networks. Several processes may share one.

    Args:
        folder: made when something is stored, readable by its owner alone; None means the user's
            cache.
    """

    def __init__(self, folder: Path | None = None, *, max_bytes: int = MAX_BYTES) -> None:
        self._folder = folder or user_cache_folder() / "compiled"
        self._max_bytes = max_bytes

    def load(self, key: Iterable[str]) -> bytes | None:
        """Give what was stored under a key; None where nothing was, or it is damaged.

        Args:
            key: everything that the content depends on, the model's digest included.
        """
        path = self._path(key)
        try:
            status = self._folder.stat()
            if status.st_uid != os.getuid() or status.st_mode & 0o022:
                _log.debug("'%s' may be written by others: not used", self._folder)
                return None
            stored = path.read_bytes()
            os.utime(path)  # used now: the last to go
        except OSError:
            return None
        content = memoryview(stored)[_DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != stored[:_DIGEST_BYTES]:
            _log.debug("'%s' is damaged", path)
            return None
        return bytes(content)

    def store(self, key: Iterable[str], content: bytes) -> None:
        """Keep content under a key, whole or not at all; without room or rights nothing is kept."""
        if len(content) + _DIGEST_BYTES > self._max_bytes:
            return
        path = self._path(key)
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with partial_of(path) as partial, partial.open("wb") as file:
                file.write(hashlib.sha256(content).digest())
                file.write(content)
            self._make_room()
        except OSError as error:
            _log.debug("'%s' was not kept: %s", path, error)

    def _make_room(self) -> None:
        entries = sorted(
            ((entry.stat().st_mtime, entry.stat().st_size, entry) for entry in self._entries()),
            reverse=True,
        )
        total = 0
        for _, size, entry in entries:
            total += size
            if total > self._max_bytes:
                entry.unlink(missing_ok=True)

    def _entries(self) -> list[Path]:
        return [path for path in self._folder.iterdir() if path.suffix == _SUFFIX]

    def _path(self, key: Iterable[str]) -> Path:
        digest = hashlib.sha256("\0".join(key).encode()).hexdigest()
        return self._folder / f"{digest}{_SUFFIX}"
