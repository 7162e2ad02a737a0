"""Compiled networks are kept, found again, checked, and make room for newer ones."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from fcn_deploy.backends import get_backend
from fcn_deploy.backends.base import ExecutionContext, ModelSource
from fcn_deploy.backends.compiled_cache import CompiledCache, user_cache_folder
from fcn_deploy.names import Array
from fcn_deploy.segmenter import Segmenter
from tests.deploy.graphs import segmentation_graph

GRAPH = segmentation_graph()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's networks are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fcn-deploy" / "compiled"


def image() -> Array:
    return np.random.default_rng(0).integers(0, 256, (2, 13, 17, 3), np.uint8)


def open_graph(**changes: str) -> ExecutionContext:
    source = ModelSource(Path("model.onnx"), GRAPH, digest=changes.get("digest", "0" * 64))
    return get_backend("openvino").open(source)


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.compiled")) if folder.exists() else []


def test_content_is_found_by_all_of_its_key(tmp_path: Path) -> None:
    cache = CompiledCache(tmp_path / "new")

    cache.store(("library", "1.0", "model"), b"machine code")

    assert cache.load(("library", "1.0", "model")) == b"machine code"
    assert cache.load(("library", "1.1", "model")) is None
    assert cache.load(("library", "1.0model")) is None
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_damaged_content_is_not_given(tmp_path: Path, damage: str) -> None:
    cache = CompiledCache(tmp_path)
    cache.store(("key",), b"machine code")
    (entry,) = tmp_path.iterdir()
    content = bytearray(entry.read_bytes())
    content[-1] ^= 1
    damaged = {"cut": content[:-1], "changed": content, "empty": bytearray()}[damage]
    entry.write_bytes(damaged)

    assert cache.load(("key",)) is None


def test_folder_that_others_may_write_to_is_not_trusted(tmp_path: Path) -> None:
    cache = CompiledCache(tmp_path)
    cache.store(("key",), b"machine code")

    tmp_path.chmod(0o777)

    assert cache.load(("key",)) is None


def test_least_recently_used_makes_room(tmp_path: Path) -> None:
    cache = CompiledCache(tmp_path, max_bytes=250)
    for age, name in enumerate(("old", "older")):
        cache.store((name,), bytes(60))
        (path,) = (p for p in tmp_path.iterdir() if p.stat().st_mtime > 1e6)
        os.utime(path, (1000 - age, 1000 - age))

    cache.store(("new",), bytes(100))

    assert [cache.load((name,)) is not None for name in ("new", "old", "older")] == [
        True,
        True,
        False,
    ]


def test_too_large_and_unwritable_keep_nothing_and_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    CompiledCache(tmp_path / "file" / "below").store(("key",), b"x")
    CompiledCache(tmp_path / "small", max_bytes=40).store(("key",), bytes(100))

    assert sorted(tmp_path.iterdir()) == [tmp_path / "file"]


def test_users_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", "/home/somebody")

    assert user_cache_folder() == Path("/home/somebody/.cache/fcn-deploy")


def test_second_start_takes_what_the_first_compiled(folder: Path) -> None:
    first = open_graph()
    (entry,) = kept(folder)
    os.utime(entry, (1000, 1000))

    second = open_graph()

    assert entry.stat().st_mtime > 1000, "the entry was not used"
    assert kept(folder) == [entry]
    assert (second.inputs, second.outputs) == (first.inputs, first.outputs)
    np.testing.assert_array_equal(
        second.execute({"image": image()})["labels"], first.execute({"image": image()})["labels"]
    )


def test_another_model_is_another_entry(folder: Path) -> None:
    open_graph()
    open_graph(digest="1" * 64)

    assert len(kept(folder)) == 2


def test_what_the_library_refuses_is_compiled_afresh(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = open_graph().execute({"image": image()})["labels"]
    (entry,) = kept(folder)
    genuine = entry.read_bytes()
    key_name = entry.name
    CompiledCache(folder).store(("other",), b"no network at all")
    (other,) = (path for path in kept(folder) if path.name != key_name)
    other.replace(entry)

    with caplog.at_level(logging.WARNING, "fcn_deploy.backends.openvino"):
        labels = open_graph().execute({"image": image()})["labels"]

    np.testing.assert_array_equal(labels, expected)
    assert "refused what it compiled before" in caplog.text
    assert len(entry.read_bytes()) == len(genuine)


def test_nothing_is_kept_unless_it_is_wanted(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(GRAPH)
    get_backend("openvino").open(ModelSource(Path("model.onnx"), GRAPH)).close()
    Segmenter.open(tmp_path / "model.onnx", backend="openvino", cache=False).close()
    assert kept(folder) == []

    Segmenter.open(tmp_path / "model.onnx", backend="openvino").close()

    assert len(kept(folder)) == 1
