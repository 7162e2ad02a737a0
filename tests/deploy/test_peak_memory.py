"""The peak memory of this process, whatever unit the system counts it in."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from fcn_deploy.peak_memory import peak_rss_bytes


@pytest.mark.parametrize(("platform", "expected"), [("linux", 5_000 * 1024), ("darwin", 5_000)])
def test_peak_memory_is_in_bytes_whatever_the_system_counts_in(
    monkeypatch: pytest.MonkeyPatch, platform: str, expected: int
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr("resource.getrusage", lambda who: SimpleNamespace(ru_maxrss=5_000))

    assert peak_rss_bytes() == expected


def test_peak_memory_is_unknown_where_the_system_has_no_account_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)

    assert peak_rss_bytes() is None


def test_peak_memory_holds_an_array_that_is_filled() -> None:
    filled = np.ones(300_000_000, np.uint8)

    assert (peak_rss_bytes() or 0) > filled.nbytes
