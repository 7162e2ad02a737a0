"""Build PyCUDA without a driver, into a folder of its own that the tests add to their path.

PyCUDA is a source package that needs CUDA's headers, so it is in no environment by default. The
folder is kept and found again by PyCUDA's, Python's, NumPy's and CUDA's versions. Prints it.

    python scripts/build_pycuda.py            build it, or find it built
    python scripts/build_pycuda.py --check    say whether it could be built here, and why not
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

PYCUDA = "2026.1"
# what `import pycuda.driver` and `pycuda.compiler` import; NumPy is the environment's own
PURE = ("pytools>=2025.1", "platformdirs>=4.3", "siphash24>=1.7", "mako>=1.3", "markupsafe>=3.0")
ROOT = Path(__file__).resolve().parent.parent


def cuda_root() -> Path | None:
    """Find a CUDA toolkit with headers: $CUDA_HOME, beside nvcc, or in the usual place."""
    nvcc = shutil.which("nvcc")
    places = [
        os.environ.get("CUDA_HOME"),
        None if nvcc is None else Path(nvcc).resolve().parent.parent,
        "/usr/local/cuda",
    ]
    for place in places:
        if place is not None and (Path(place) / "include" / "cuda.h").is_file():
            return Path(place).resolve()
    return None


def build_folder(root: Path) -> Path:
    """Give the folder for these versions, whether it exists or not."""
    header = (root / "include" / "cuda.h").read_text(errors="replace")
    found = re.search(r"#define CUDA_VERSION (\d+)", header)
    cuda = found[1] if found else "unknown"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fcn-deploy"
    tag = sysconfig.get_config_var("SOABI")
    return cache / f"pycuda-{PYCUDA}-{tag}-numpy{version('numpy')}-cuda{cuda}"


def obstacle() -> str | None:
    """Say what is missing to build it, or None."""
    if cuda_root() is None:
        return "CUDA's headers are not here (looked for cuda.h by $CUDA_HOME, nvcc, /usr/local)"
    if shutil.which("g++") is None:
        return "g++ is not here"
    return None


def build(root: Path, target: Path) -> None:
    """Download the source, build it at -O0 (its speed is of no matter here), move it in place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        folder = Path(work)
        pip("download", "--no-deps", "--no-binary", "pycuda", "-d", work, f"pycuda=={PYCUDA}")
        with tarfile.open(next(folder.glob("pycuda-*.tar.gz"))) as archive:
            archive.extractall(folder, filter="data")
        source = next(path for path in folder.glob("pycuda-*") if path.is_dir())
        # the linker notes this name; the functions are looked up in what has it when it runs
        subprocess.run(
            [
                *("g++", "-shared", "-Wl,-soname,libcuda.so.1", "-o", folder / "libcuda.so"),
                *("-x", "c++", os.devnull),
            ],
            check=True,
        )
        settings = {
            "CUDA_ROOT": str(root),
            "CUDA_INC_DIR": [str(root / "include")],
            "CUDA_ENABLE_CURAND": False,
            "CUDADRV_LIB_DIR": [work],
            "CXXFLAGS": ["-O0", "-g0", "-w"],
        }
        lines = [f"{key} = {value!r}\n" for key, value in settings.items()]
        (source / "siteconf.py").write_text("".join(lines))
        built = folder / "built"
        # a library none of whose functions is used would not be noted
        os.environ["LDFLAGS"] = "-Wl,--no-as-needed"
        pip("install", "--no-deps", "--target", str(built), str(source), *PURE)
        if not target.exists():  # else another process was faster
            built.rename(target)


def pip(*arguments: str) -> None:
    pinned = ["--build-constraint", str(ROOT / "constraints.txt")]
    subprocess.run(
        [sys.executable, "-m", "pip", arguments[0], "-q", *pinned, *arguments[1:]], check=True
    )


def main() -> int:
    """Build it, or say why not; returns the exit status."""
    problem = obstacle()
    root = cuda_root()
    if problem is not None or root is None:
        print(f"PyCUDA is not built: {problem}")
        return 0
    if "--check" in sys.argv[1:]:
        print("PyCUDA can be built here.")
        return 0
    target = build_folder(root)
    if not target.is_dir():
        build(root, target)
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
