"""Write down the API of TensorRT's real Python bindings, for tests on machines without a GPU.

The bindings' wheels are small and need about ten C symbols of TensorRT's own library, which pip
could only get from NVIDIA's index. Ten empty functions stand in for it: enough to import the module
and read every class, enum and signature, but not to build or run anything. TensorRT-RTX is read as
it is installed here. Needs gcc and a package index:

    .venv/bin/python scripts/dump_tensorrt_api.py

Each snapshot is one JSON object: class -> member -> signatures, ``"property"``,
``"read-only property"`` or, of an enum, its number.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SNAPSHOTS = ROOT / "tests" / "data" / "tensorrt_api"

# snapshot -> release of the bindings, and the number in its library's name
ENTERPRISE = {"10.13.3": ("10.13.3.9", "10"), "11.4.0": ("11.4.0.106", "11")}
RTX = "rtx-1.7.1"

STAND_IN = """\
void* createInferBuilder_INTERNAL(void* l, int v) { return 0; }
void* createInferRefitter_INTERNAL(void* e, void* l, int v) { return 0; }
void* createInferRuntime_INTERNAL(void* l, int v) { return 0; }
void* createNvOnnxParser_INTERNAL(void* n, void* l, int v) { return 0; }
void* createNvOnnxParserRefitter_INTERNAL(void* r, void* l, int v) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
int getInferLibVersion(void) { return 0; }
void* getPluginRegistry(void) { return 0; }
void* getBuilderPluginRegistry(int c) { return 0; }
int initLibNvInferPlugins(void* l, const char* n) { return 0; }
"""

_NAMESPACES = re.compile(
    r"tensorrt(_rtx)?_bindings\.tensorrt(_rtx)?\.|nvinfer1::(v_1_0::)?|nvonnxparser::|typing\.|"
    r"collections\.abc\.|typing_extensions\."
)
# pybind11 names these differently from release to release
_SAME = {"SupportsInt": "int", "SupportsFloat": "float", "Buffer": "buffer", "Sequence": "List"}


def main() -> int:
    if len(sys.argv) == 3:  # in a process of its own: two of these libraries do not mix
        module, target = sys.argv[1:]
        text = json.dumps(describe(module), indent=0, sort_keys=True) + "\n"
        Path(target).write_text(text, encoding="utf-8")
        return 0
    SNAPSHOTS.mkdir(parents=True, exist_ok=True)
    for name, (release, major) in ENTERPRISE.items():
        with tempfile.TemporaryDirectory() as folder:
            install_bindings(Path(folder), release, major)
            dump("tensorrt_bindings", name, folder)
    dump("tensorrt_rtx", RTX, "")
    return 0


def install_bindings(folder: Path, release: str, major: str) -> None:
    """Unpack the bindings' wheel into a folder, with a stand-in for the libraries beside it."""
    wheel = f"tensorrt_cu13_bindings=={release}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--dest", str(folder), wheel], check=True)
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder)
    source = folder / "stand_in.c"
    source.write_text(STAND_IN, encoding="utf-8")
    for stem in ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser"):
        # the wheel looks for its libraries beside itself first
        library = f"{stem}.so.{major}"
        output = folder / "tensorrt_bindings" / library
        command = ["gcc", "-shared", "-fPIC", "-o", str(output), f"-Wl,-soname,{library}"]
        subprocess.run([*command, str(source)], check=True)


def dump(module: str, name: str, folder: str) -> None:
    """Describe a module in a process that finds it in the folder; write its snapshot."""
    target = SNAPSHOTS / f"{name}.json"
    environment = {**os.environ, "PYTHONPATH": folder}
    command = [sys.executable, __file__, module, str(target)]
    subprocess.run(command, check=True, env=environment)
    print(f"{target.relative_to(ROOT)}: {target.stat().st_size} bytes")


def describe(module_name: str) -> dict[str, dict[str, Any]]:
    """Describe every public class and enum of a module, those inside classes too."""
    module = importlib.import_module(module_name)
    found = {"module": {"__version__": module.__version__}}
    for name, value in inspect.getmembers(module, inspect.isclass):
        if not name.startswith("_"):
            found[name] = describe_class(value)
            for inner, nested in inspect.getmembers(value, inspect.isclass):
                if not inner.startswith("_") and hasattr(nested, "__members__"):
                    found[f"{name}.{inner}"] = describe_class(nested)
    return found


def describe_class(cls: type) -> dict[str, Any]:
    members: dict[str, Any] | None = getattr(cls, "__members__", None)
    if members is not None:
        return {name: int(value) for name, value in members.items()}
    names = [name for name in dir(cls) if not name.startswith("_") or name == "__init__"]
    return {name: describe_member(cls, name) for name in names}


def describe_member(cls: type, name: str) -> str | list[str]:
    value = inspect.getattr_static(cls, name)
    if isinstance(value, property):
        return "property" if value.fset else "read-only property"
    lines = re.findall(
        rf"^(?:\d+\. )?{re.escape(name)}(\(.*\)(?: -> .*)?)$",
        getattr(cls, name).__doc__ or "",
        re.MULTILINE,
    )
    return [plain(line) for line in lines if "*args" not in line]


def plain(signature: str) -> str:
    text = _NAMESPACES.sub("", signature)
    for found, same in _SAME.items():
        text = text.replace(found, same)
    return text


if __name__ == "__main__":
    raise SystemExit(main())
