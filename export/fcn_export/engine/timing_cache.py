"""Keep kernel timings between builds: load them, merge what others wrote, save the file whole."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fcn_deploy.artifact.partial_files import write_whole
from fcn_deploy.backends.tensorrt.surface import BuilderConfig
from fcn_deploy.errors import BuildError

__all__ = ["load_timing_cache", "save_timing_cache"]

_LOG = logging.getLogger(__name__)


def load_timing_cache(config: BuilderConfig, path: Path) -> None:
    """Give a build the timings in a file; it starts with none where there is no file.

    Raises:
        BuildError: the file is of another GPU or another release, or no timing cache.
    """
    content = _read(path)
    # an empty buffer makes an empty cache
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise BuildError(
            f"'{path}' holds no timings for this GPU and this release of TensorRT.",
            hint="Keep one file for each GPU and release; name another with --timing-cache.",
        )


def save_timing_cache(config: BuilderConfig, path: Path) -> None:
    """Write a build's timings, together with those that other builds wrote meanwhile.

    Raises:
        BuildError: the folder cannot be written.
    """
    cache = config.get_timing_cache()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            content = _read(path)
            if content:
                others = config.create_timing_cache(content)
                if others is None or not cache.combine(others, ignore_mismatch=False):
                    _LOG.warning("'%s' was replaced by timings of another kind meanwhile", path)
            write_whole(path, bytes(cache.serialize()), sync=True)
    except OSError as error:
        raise BuildError(
            f"the timing cache '{path}' cannot be written: {error.strerror}.",
            hint="Name a file in a writable folder with --timing-cache.",
        ) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise BuildError(f"the timing cache '{path}' cannot be read: {error.strerror}.") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock beside the file, which itself is replaced. The lock file stays, for the next."""
    with open(path.with_name(f".{path.name}.lock"), "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
