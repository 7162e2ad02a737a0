"""The removals of scripts/mutate_tensorrt.py still find what they remove."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scripts.mutate_tensorrt import MUTATIONS, ROOT, RUNTIME, Mutation, apply


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_a_removal_finds_its_text_and_leaves_python(mutation: Mutation, tmp_path: Path) -> None:
    copy = tmp_path / RUNTIME / mutation.file
    copy.parent.mkdir(parents=True)
    shutil.copy(ROOT / RUNTIME / mutation.file, copy)

    apply(mutation, tmp_path)

    assert copy.read_text() != (ROOT / RUNTIME / mutation.file).read_text()
