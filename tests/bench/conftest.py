"""A tiny FCN as a user has it: a checkpoint, the code that builds it, and its artifact."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from fcn_deploy import Segmenter
from fcn_export.check.sample_frames import natural_frame

NETWORK_CODE = '''
"""A user's own network: three convolutions, scores at half the size."""
import torch
from torch import nn


def build(width=8):
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 4, 1),
    )
'''


@dataclass(frozen=True)
class TinyModel:
    """Where everything is; `folder` must be the working directory for the factory to be found."""

    folder: Path
    checkpoint: Path
    artifact: Path
    images: Path
    labels: Path

    arch = "tiny_fcn:build"


@pytest.fixture(scope="session", autouse=True)
def patient_threads() -> Iterator[None]:
    """Let PyTorch's threads sleep while they wait: spinning starves whoever shares the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_WAIT_POLICY", "passive")
        yield


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    import torch

    from fcn_export.export import ExportRequest, export_model

    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny_fcn.py").write_text(NETWORK_CODE)
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module("tiny_fcn").build()
        torch.save(module.state_dict(), folder / "tiny.pt")
        request = ExportRequest(
            arch=TinyModel.arch, size=(64, 96), max_size=(96, 96), engine="none"
        )
        export_model(folder / "tiny.pt", folder / "tiny.fcn", request=request)
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("tiny_fcn", None)
    _write_labelled(folder)
    return TinyModel(
        folder, folder / "tiny.pt", folder / "tiny.fcn", folder / "images", folder / "labels"
    )


@pytest.fixture
def tiny(exported: TinyModel, monkeypatch: pytest.MonkeyPatch) -> TinyModel:
    monkeypatch.chdir(exported.folder)
    return exported


def _write_labelled(folder: Path) -> None:
    """Take the network's own labels for truth, with one corner that it gets wrong."""
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    with Segmenter.open(folder / "tiny.fcn", precision="fp32") as segmenter:
        for index in range(2):
            frame = natural_frame(48, 80, seed=index)
            labels = segmenter(frame).labels.copy()
            labels[:12, :20] = (labels[:12, :20] + 1) % 4
            cv2.imwrite(str(folder / "images" / f"{index}.png"), frame)
            cv2.imwrite(str(folder / "labels" / f"{index}.png"), labels.astype(np.uint8))
