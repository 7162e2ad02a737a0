"""The manifest takes no file name that could leave the artifact's folder."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_deploy.artifact.manifest import check_file_name
from fcn_deploy.errors import ManifestError


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "/etc/passwd", "a\\b", "C:x", ".hidden", "a\0b", "x" * 129, "nul", "a."],
)
def test_a_name_that_is_not_plain_is_refused(name: str) -> None:
    with pytest.raises(ManifestError, match="not a plain file name"):
        check_file_name(name)


@given(st.text(max_size=40))
@settings(max_examples=500, deadline=None)
def test_an_accepted_name_stays_in_its_folder(name: str) -> None:
    try:
        check_file_name(name)
    except ManifestError:
        return

    assert name == name.strip("/\\. ")
    assert "/" not in name
    assert "\\" not in name
