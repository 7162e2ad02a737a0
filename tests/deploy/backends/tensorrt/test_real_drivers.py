"""PyCUDA and cuda.bindings themselves, over a `libcuda.so.1` that gcc makes here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.build_pycuda import build_folder, cuda_root, obstacle
from tests.deploy.backends.tensorrt.fake_driver import build_fake_libcuda

ROOT = Path(__file__).resolve().parents[4]
TESTS = Path(__file__).with_name("over_real_drivers.py")
CUDA_ROOT = cuda_root()
# now, as tests run with a cache of their own
PYCUDA = None if CUDA_ROOT is None else build_folder(CUDA_ROOT)


def run_over_fake(libcuda: Path, device: str, *more_path: Path) -> str:
    path = [str(ROOT / part) for part in ("", "export", "benchmarks")]
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "60", TESTS],
        env={
            **os.environ,
            "FCN_TEST_DEVICE": device,
            "LD_LIBRARY_PATH": str(libcuda),
            "PYTHONPATH": os.pathsep.join([*path, *map(str, more_path)]),
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout[-6000:] + process.stderr[-2000:]
    return process.stdout


def test_cuda_bindings_run_the_runtime(tmp_path: Path) -> None:
    output = run_over_fake(build_fake_libcuda(tmp_path), "cuda-python")

    assert " passed" in output


def test_pycuda_runs_the_runtime(tmp_path: Path) -> None:
    problem = obstacle()
    if problem is not None or PYCUDA is None:
        pytest.skip(f"PyCUDA needs CUDA's headers: {problem}")
    if not PYCUDA.is_dir():
        pytest.skip("PyCUDA was not built: run scripts/build_pycuda.py")
    (extension,) = (PYCUDA / "pycuda").glob("_driver*.so")
    libcuda = build_fake_libcuda(tmp_path, extension=extension)

    output = run_over_fake(libcuda, "pycuda", PYCUDA)

    assert " passed" in output
