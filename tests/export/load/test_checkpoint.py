"""Reading weights: real checkpoints load, whatever else they carry; code never runs."""

from __future__ import annotations

import argparse
import builtins
import collections
import datetime
import enum
import functools
import importlib
import io
import os
import pathlib
import pickle
import subprocess
import sys
import threading
import types
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fcn_deploy.errors import FcnDeployError, UnsupportedModelError, UntrustedArtifactError
from fcn_export.load.checkpoint import Checkpoint, prefix_forms, read_checkpoint
from fcn_export.load.pickles import (
    HARMLESS_GLOBALS,
    PickleScan,
    harmless_globals,
    scan_pickle,
    stand_in_for,
)
from fcn_export.load.stored_arrays import StoredArray, StoredType


class TinyNetwork(nn.Module):
    """Three layers, with the buffers of a batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.classifier = nn.Conv2d(4, 7, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.classifier(self.features(x))
        return scores


@pytest.fixture
def network() -> TinyNetwork:
    torch.manual_seed(0)
    return TinyNetwork()


def _saved(tmp_path: Path, content: Any, name: str = "model.pth") -> Path:
    torch.save(content, tmp_path / name)
    return tmp_path / name


def _assert_same(checkpoint: Checkpoint, network: nn.Module) -> None:
    expected = network.state_dict()
    assert checkpoint.state is not None
    assert list(checkpoint.state) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(checkpoint.state[name], tensor), name


def _reference_arguments() -> argparse.Namespace:
    """Parse what torchvision's references/segmentation/train.py parses, with its defaults."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-path", default="/datasets01/COCO/022719/", type=str)
    parser.add_argument("--dataset", default="coco", type=str)
    parser.add_argument("--model", default="fcn_resnet101", type=str)
    parser.add_argument("--aux-loss", action="store_true")
    parser.add_argument("--device", default="cuda", type=str)
    parser.add_argument("-b", "--batch-size", default=8, type=int)
    parser.add_argument("--lr", default=0.01, type=float)
    parser.add_argument("--resume", default="", type=str)
    parser.add_argument("--weights", default=None, type=str)
    arguments = parser.parse_args(["--aux-loss"])
    arguments.distributed = False
    return arguments


def test_a_checkpoint_of_torchvisions_reference_training_script_loads(
    tmp_path: Path, network: TinyNetwork
) -> None:
    # the structure of references/segmentation/train.py: warm-up and polynomial decay, AMP
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        schedulers=[
            torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=2),
            torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=10, power=0.9),
        ],
        milestones=[2],
    )
    scaler = torch.amp.GradScaler("cpu")
    for _ in range(3):
        loss = network(torch.randn(2, 3, 8, 8)).square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
    path = _saved(
        tmp_path,
        {
            "model": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "lr_scheduler": scheduler.state_dict(),
            "epoch": 29,
            "args": _reference_arguments(),
            "scaler": scaler.state_dict(),
        },
        "checkpoint.pth",
    )

    checkpoint = read_checkpoint(path)

    _assert_same(checkpoint, network)
    assert checkpoint.format == "torch"
    with pytest.raises(pickle.UnpicklingError, match=r"argparse\.Namespace"):
        torch.load(path, weights_only=True)  # nothing stays allowed behind us


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param({"miou": np.float64(0.7), "n": np.int64(3)}, id="numpy scalars"),
        pytest.param({"confusion": np.ones((3, 3)), "names": np.array(["a"])}, id="numpy arrays"),
        pytest.param({"path": pathlib.Path("/runs/1"), "p": pathlib.PurePosixPath("x")}, id="path"),
        pytest.param({"win": pathlib.PureWindowsPath("C:/runs")}, id="path of Windows"),
        pytest.param({"history": collections.defaultdict(list, loss=[1.0])}, id="defaultdict"),
        pytest.param(
            {"when": datetime.datetime(2025, 1, 2), "d": datetime.timedelta(1)}, id="time"
        ),
        pytest.param({"config": types.SimpleNamespace(lr=1e-3)}, id="simple namespace"),
        pytest.param({"nested": argparse.Namespace(a=argparse.Namespace(b=1))}, id="namespaces"),
        pytest.param({"version": torch.__version__}, id="torch version"),
        pytest.param({"kinds": frozenset({1}), "s": {2}, "r": range(3)}, id="sets"),
        pytest.param({"rng": np.random.RandomState(0).get_state(), "c": 1j}, id="random state"),
        pytest.param({"counts": collections.Counter("aab")}, id="counter"),
    ],
)
def test_harmless_company_does_not_matter(
    tmp_path: Path, network: TinyNetwork, extra: dict[str, Any]
) -> None:
    path = _saved(tmp_path, {"state_dict": network.state_dict(), "epoch": 3, **extra})

    _assert_same(read_checkpoint(path), network)


def test_names_that_numpy_1_wrote_are_taken(tmp_path: Path, network: TinyNetwork) -> None:
    path = _saved(tmp_path, {"model": network.state_dict(), "best": np.float64(0.5)})
    assert b"numpy._core.multiarray" in path.read_bytes()
    rewritten = tmp_path / "rewritten.pth"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(rewritten, "w") as new:
        for entry in old.infolist():
            content = old.read(entry).replace(b"numpy._core.", b"numpy.core.")
            new.writestr(entry.filename, content)

    _assert_same(read_checkpoint(rewritten), network)


@pytest.mark.parametrize(
    ("module_name", "class_name"),
    [("yacs.config", "CfgNode"), ("lightning.fabric.utilities.data", "AttributeDict")],
)
def test_settings_in_a_dict_of_a_library_that_is_not_installed_are_passed_over(
    tmp_path: Path,
    network: TinyNetwork,
    monkeypatch: pytest.MonkeyPatch,
    module_name: str,
    class_name: str,
) -> None:
    library = types.ModuleType(module_name)
    settings_class = type(class_name, (dict,), {"__module__": module_name})
    setattr(library, class_name, settings_class)
    settings = settings_class(lr=0.1, nested=settings_class(steps=[1, 2]))
    settings.__dict__["frozen"] = True  # both items and attributes are pickled
    with monkeypatch.context() as patch:
        parts = module_name.split(".")
        for length in range(1, len(parts)):
            parent = ".".join(parts[:length])
            patch.setitem(sys.modules, parent, types.ModuleType(parent))
        patch.setitem(sys.modules, module_name, library)
        path = _saved(tmp_path, {"state_dict": network.state_dict(), "hyper_parameters": settings})

    _assert_same(read_checkpoint(path), network)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s},
        lambda s: {"model_state": s, "loss": torch.tensor(1.0)},
        lambda s: {"model_state_dict": s, "optimizer": {"state": {0: {"m": torch.ones(1)}}}},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {"ema": s, "step": 3},
        lambda s: {"generator": s, "epoch": 1},
        lambda s: {"model": "tiny", "params": s},
    ],
)
def test_weights_are_found_in_their_wrapping(
    tmp_path: Path, network: TinyNetwork, wrap: Callable[[Any], Any]
) -> None:
    path = _saved(tmp_path, wrap(network.state_dict()))

    _assert_same(read_checkpoint(path), network)


def test_plain_weights_win_over_averaged_ones(tmp_path: Path, network: TinyNetwork) -> None:
    averaged = {name: torch.zeros_like(x) for name, x in network.state_dict().items()}
    path = _saved(tmp_path, {"model_ema": averaged, "model": network.state_dict()})

    _assert_same(read_checkpoint(path), network)


def test_two_candidates_without_a_known_name_are_not_guessed(tmp_path: Path) -> None:
    path = _saved(tmp_path, {"generator": {"w": torch.ones(1)}, "critic": {"w": torch.ones(1)}})

    with pytest.raises(UnsupportedModelError, match=r"no weights .* 'generator', 'critic'"):
        read_checkpoint(path)


@pytest.mark.parametrize(("content", "found"), [([1, 2], "a list"), ({}, "it is empty")])
def test_a_file_without_weights_says_what_it_holds(
    tmp_path: Path, content: Any, found: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=found):
        read_checkpoint(_saved(tmp_path, content))


def test_safetensors_are_read_under_any_name(tmp_path: Path, network: TinyNetwork) -> None:
    from safetensors.torch import save_file

    save_file(network.state_dict(), tmp_path / "weights.pt")

    checkpoint = read_checkpoint(tmp_path / "weights.pt")

    assert checkpoint.format == "safetensors"
    assert checkpoint.state is not None
    assert checkpoint.state.keys() == network.state_dict().keys()
    assert torch.equal(checkpoint.state["classifier.bias"], network.state_dict()["classifier.bias"])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ">f4"])
def test_weights_that_are_numpy_arrays_are_read(tmp_path: Path, dtype: Any) -> None:
    values = np.arange(12).reshape(3, 4)
    arrays = {
        "a": values.astype(dtype),
        "columns": np.asfortranarray(values.astype(dtype)),
        "count": np.array(7),
    }
    path = _saved(tmp_path, {"model": arrays, "__author__": "somebody"})

    state = read_checkpoint(path).state

    assert state is not None
    assert {name: tensor.tolist() for name, tensor in state.items()} == {
        "a": values.tolist(),
        "columns": values.tolist(),
        "count": 7,
    }
    assert state["a"].dtype == (torch.float16 if dtype is np.float16 else torch.float32)


def test_a_forged_array_is_no_weight() -> None:
    kind = StoredType("f4", False, True)
    kind.__setstate__((3, "<", None, None, None, -1, -1, 0))
    objects = StoredType("O8", False, True)
    forged = {
        "too few bytes": (1, (4,), kind, False, b"1234"),
        "negative": (1, (-1, -4), kind, False, b"1234" * 4),
        "objects": (1, (1,), objects, False, b"A" * 8),
        "a list": (1, (1,), kind, False, [1]),
        "no state": None,
    }

    for name, state in forged.items():
        array = StoredArray()
        array.__setstate__(state)
        assert array.to_numpy() is None, name


def test_cut_safetensors_are_damaged(tmp_path: Path, network: TinyNetwork) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "weights.safetensors"
    save_file(network.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-8])

    with pytest.raises(UnsupportedModelError, match="damaged or cut short"):
        read_checkpoint(path)


def test_the_format_before_torch_1_6_is_read(tmp_path: Path, network: TinyNetwork) -> None:
    path = tmp_path / "old.pth"
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=False)

    checkpoint = read_checkpoint(path)

    _assert_same(checkpoint, network)
    assert checkpoint.format == "torch_legacy"


def test_sparse_weights_are_refused_by_name(tmp_path: Path) -> None:
    path = _saved(tmp_path, {"a.weight": torch.eye(3).to_sparse()})

    with pytest.raises(UnsupportedModelError, match=r"weight 'a\.weight' .* is sparse"):
        read_checkpoint(path)


# ---- prefixes


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "model.net.module."]
)
def test_prefixes_that_all_names_share_are_removed(network: TinyNetwork, prefix: str) -> None:
    state = OrderedDict((prefix + name, x) for name, x in network.state_dict().items())

    forms = prefix_forms(state)

    assert forms[0] is state
    assert list(forms[-1]) == list(network.state_dict())


def test_a_prefix_that_some_names_lack_is_kept() -> None:
    state = {"model.a": torch.ones(1), "head.b": torch.ones(1)}

    assert prefix_forms(state) == (state,)


def test_the_wrapping_of_averaged_weights_is_removed(network: TinyNetwork) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(network)

    stripped = prefix_forms(averaged.state_dict())[-1]

    assert list(stripped) == list(network.state_dict())


def test_the_versions_of_layers_survive_a_prefix(tmp_path: Path, network: TinyNetwork) -> None:
    path = _saved(tmp_path, nn.DataParallel(network).state_dict())
    state = read_checkpoint(path).state
    assert state is not None

    versions = prefix_forms(state)[-1]._metadata  # type: ignore[attr-defined] # torch keeps it there

    assert versions == network.state_dict()._metadata  # type: ignore[attr-defined]


# ---- what must not get in


class _Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def _payloads(marker: Path) -> dict[str, Any]:
    code = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": _Calls(os.system, f"touch {marker}"),
        "builtins.eval": _Calls(eval, code),
        "builtins.exec": _Calls(exec, code),
        "builtins.getattr": _Calls(getattr, "x", "upper"),
        "builtins.open": _Calls(open, str(marker), "w"),
        "builtins.__import__": _Calls(builtins.__import__, "antigravity"),
        "subprocess.check_call": _Calls(subprocess.check_call, ["touch", str(marker)]),
        "Path.touch": _Calls(pathlib.Path.touch, marker),
        "torch.load": _Calls(torch.load, str(marker)),
    }


@pytest.mark.parametrize("name", sorted(_payloads(Path("x"))))
@pytest.mark.parametrize("zipped", [True, False])
def test_a_payload_is_refused_and_leaves_no_trace(tmp_path: Path, name: str, zipped: bool) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / "model.pt"
    content = {"state_dict": {"weight": torch.ones(1)}, "args": _payloads(marker)[name]}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)

    with pytest.raises(UntrustedArtifactError, match=r"nothing was loaded|does more than state"):
        read_checkpoint(path, trust_code=True)

    assert not marker.exists()


def test_the_payload_would_have_run_otherwise(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save({"args": _payloads(marker)["os.system"]}, tmp_path / "model.pt")

    torch.load(tmp_path / "model.pt", weights_only=False)

    assert marker.exists()


def test_a_bare_pickle_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps(_payloads(marker)["os.system"]))

    with pytest.raises(UntrustedArtifactError, match="a bare pickle"):
        read_checkpoint(path)
    assert not marker.exists()


def test_a_namespace_cannot_carry_a_call(tmp_path: Path) -> None:
    # its own __setstate__ is planted first and called by the second state
    path = _saved(tmp_path, {"model": {"weight": torch.ones(1)}, "args": argparse.Namespace()})
    planted = (
        b"\x80\x02cargparse\nNamespace\n)\x81}X\x0c\x00\x00\x00__setstate__cos\nsystem\nsb"
        b"X\x04\x00\x00\x00truebh."
    )
    forged = tmp_path / "forged.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(forged, "w") as new:
        for entry in old.infolist():
            pickled = entry.filename.endswith("data.pkl")
            new.writestr(entry.filename, planted if pickled else old.read(entry))

    with pytest.raises(UntrustedArtifactError, match=r"posix\.system|os\.system"):
        read_checkpoint(forged)


def test_nothing_of_a_harmless_class_is_made(tmp_path: Path) -> None:
    path = _saved(tmp_path, {"args": argparse.Namespace(a=1), "x": np.float64(1), "p": Path("/x")})

    with harmless_globals():
        loaded = torch.load(path, weights_only=True)
    made = [type(value).__name__ for value in loaded.values()]

    assert made == ["_Inert", "_Inert", "_Inert"]
    assert not any(hasattr(value, "__dict__") for value in loaded.values())


def test_a_forged_numpy_scalar_stays_inert(tmp_path: Path, network: TinyNetwork) -> None:
    # NumPy takes these flags on trust: eight bytes become a pointer, and reading the field of
    # the scalar that numpy.dtype and numpy._core.multiarray.scalar make ends in SIGSEGV
    forged = np.dtype("V8")
    forged.__setstate__((3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0))  # type: ignore[attr-defined] # as pickle calls it
    make_scalar = np.float64(1).__reduce__()[0]
    scalar = _Calls(make_scalar, forged, b"A" * 8)
    path = _saved(tmp_path, {"model": network.state_dict(), "best": scalar})

    with harmless_globals():
        loaded = torch.load(path, weights_only=True)

    assert type(loaded["best"]).__name__ == "_Inert"
    _assert_same(read_checkpoint(path), network)


def test_the_list_of_harmless_names_holds_nothing_that_acts() -> None:
    names = {name for _stand_in, name in HARMLESS_GLOBALS}
    stand_ins = {stand_in for stand_in, _name in HARMLESS_GLOBALS}

    assert {stand_in.__name__ for stand_in in stand_ins} == {
        *("_Inert", "_PlainMapping", "_MakeArray", "StoredArray", "StoredType")
    }
    assert len(names) == len(HARMLESS_GLOBALS)
    acting = {"eval", "exec", "getattr", "setattr", "open", "compile", "partial", "system", "load"}
    assert not {name.rpartition(".")[2] for name in names} & acting
    assert not {name.partition(".")[0] for name in names} & {"os", "sys", "posix", "subprocess"}


@pytest.mark.parametrize(
    "name",
    [
        *("builtins.eval", "builtins.exec", "builtins.getattr", "builtins.open", "os.system"),
        *("posix.system", "subprocess.Popen", "importlib.import_module", "torch.hub.load"),
        *("torch.load", "torch.jit.load", "torch.package.PackageImporter", "ctypes.CDLL"),
        *("torch.utils.cpp_extension.load", "torch.nn.modules.module.register_module_forward_hook"),
        *("mmengine.registry.build_from_cfg", "pickle.Unpickler", "numpy.load", "numpy.DataSource"),
        *("shutil.rmtree", "socket.Socket", "mine.Settings", "torch.nn.functional.__import__"),
        *("operator.attrgetter", "functools.reduce", "types.FunctionType", "types.CodeType"),
    ],
)
def test_names_outside_the_harmless_packages_have_no_stand_in(name: str) -> None:
    scan = PickleScan((name,), 2)

    assert stand_in_for(name, scan) is None


@pytest.mark.parametrize(
    "name",
    [
        *("torch.optim.adamw.AdamW", "torch.optim.lr_scheduler.StepLR", "functools.partial"),
        *("torch.nn.modules.loss.CrossEntropyLoss", "torch.nn.modules.activation.ReLU"),
        *("torch.nn.functional.relu", "mmengine.config.config.ConfigDict", "omegaconf.base.Node"),
        *("mmengine.logging.history_buffer.HistoryBuffer", "lightning.pytorch.callbacks.Timer"),
    ],
)
def test_names_of_harmless_packages_have_an_inert_stand_in(name: str) -> None:
    stand_in = stand_in_for(name, PickleScan((name,), 2))

    assert stand_in is not None
    made = stand_in(os.system, "true")
    assert type(made) is collections.OrderedDict or not hasattr(made, "__dict__")


def _named(module: str, name: str, base: type = object) -> type:
    """Make a class that pickles as one of a library that need not be installed."""
    made = type(name, (base,), {"__module__": module})
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        part = ".".join(parts[:count])
        sys.modules.setdefault(part, types.ModuleType(part))
    setattr(sys.modules[module], name, made)
    return made


@pytest.fixture
def modules() -> Iterator[None]:
    """Forget the libraries that a test has made up."""
    before = dict(sys.modules)
    yield
    for name in sys.modules.keys() - before.keys():
        del sys.modules[name]


def _company(kind: str) -> Any:
    """Give what lies beside weights in checkpoints of widely used libraries."""
    if kind == "mmengine's log":
        log = _named("mmengine.logging.history_buffer", "HistoryBuffer")
        log.mean = lambda self: None  # type: ignore[attr-defined]
        log.mean.__qualname__ = "HistoryBuffer.mean"  # type: ignore[attr-defined]
        log.mean.__module__ = log.__module__  # type: ignore[attr-defined]
        made = log()
        made.__dict__.update(_history=np.zeros(3), _methods={"mean": log.mean})  # type: ignore[attr-defined]
        return made
    if kind == "mmengine's settings":
        return _named("mmengine.config.config", "ConfigDict", dict)(a=1)
    if kind == "an enum":
        mode = enum.Enum("Mode", {"MANY": "many"}, module="some_library.losses")  # type: ignore[misc]
        _named("some_library.losses", "Mode")
        sys.modules["some_library.losses"].Mode = mode  # type: ignore[attr-defined]
        return mode.MANY
    weight = nn.Parameter(torch.ones(1))
    return {
        "a loss": nn.CrossEntropyLoss(torch.ones(3)),
        "an optimizer's class": torch.optim.AdamW,
        "a partial": functools.partial(torch.optim.AdamW, lr=0.1),
        "an activation": [nn.ReLU, nn.functional.relu, nn.GELU()],
        "a schedule": torch.optim.lr_scheduler.StepLR(torch.optim.SGD([weight], 0.1), 2),
        "a network": nn.Sequential(nn.Conv2d(3, 4, 1)),
        "a namespace": types.SimpleNamespace(lr=1),
        "a counter": collections.Counter(a=1),
        "NumPy's values": [np.bool_(True), np.str_("x"), np.float32(1), np.arange(3), Path("/x")],
        "random states": np.random.get_state(),
        "a generator": np.random.default_rng(0),
    }[kind]


_COMPANY = (
    *("mmengine's log", "mmengine's settings", "an enum", "an optimizer's class", "a partial"),
    *("a schedule", "a namespace", "a counter", "NumPy's values", "random states", "a generator"),
)
_MODULES = ("a loss", "an activation", "a network")


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize(
    ("kind", "zipped"),
    [
        *((kind, zipped) for kind in _COMPANY for zipped in (True, False)),
        # before torch 1.6 a module was pickled with its source, which is refused
        *((kind, True) for kind in _MODULES),
    ],
)
def test_the_company_of_weights_in_common_libraries_is_passed_over(
    tmp_path: Path, network: TinyNetwork, kind: str, zipped: bool
) -> None:
    content = {"state_dict": network.state_dict(), "hyper_parameters": {"x": _company(kind)}}
    path = tmp_path / "model.ckpt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)

    _assert_same(read_checkpoint(path), network)


def _tricks(marker: Path) -> dict[str, Any]:
    """Calls behind names that are harmless by themselves."""
    log = _named("mmengine.logging.history_buffer", "HistoryBuffer")
    return {
        "partial": functools.partial(os.system, f"touch {marker}"),
        "partial of eval": functools.partial(eval, f"open({str(marker)!r}, 'w')"),
        "partial that is called": _Calls(functools.partial(os.system), f"touch {marker}"),
        "import": _Calls(importlib.import_module, "antigravity"),
        "hub": _Calls(torch.hub.load, "a/b", "c"),
        "getattr of a log": _Calls(getattr, log, "__subclasses__"),
        "getattr of a getattr": [log(), _Calls(getattr, _Calls(getattr, log, "mean"), "x")],
        "getattr of a tensor": [log(), _Calls(getattr, torch.Tensor, "numpy")],
    }


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize("name", sorted(_tricks(Path("x"))))
def test_a_call_behind_a_harmless_name_is_refused_and_leaves_no_trace(
    tmp_path: Path, name: str
) -> None:
    marker = tmp_path / "marker"
    content = {"state_dict": {"weight": torch.ones(1)}, "args": _tricks(marker)[name]}
    path = _saved(tmp_path, content)

    with pytest.raises(UntrustedArtifactError, match=r"nothing was loaded|does more than state"):
        read_checkpoint(path, trust_code=True)

    assert not marker.exists()


def test_what_the_process_allowed_before_stays_allowed(tmp_path: Path) -> None:
    path = _saved(tmp_path, {"w": torch.ones(1), "args": argparse.Namespace()})

    with torch.serialization.safe_globals([argparse.Namespace]):
        read_checkpoint(path)
        loaded = torch.load(path, weights_only=True)

    assert isinstance(loaded["args"], argparse.Namespace)


def test_checkpoints_are_read_in_threads_at_once(tmp_path: Path, network: TinyNetwork) -> None:
    path = _saved(tmp_path, {"model": network.state_dict(), "args": argparse.Namespace(a=1)})
    errors: list[BaseException] = []

    def read() -> None:
        try:
            for _ in range(10):
                read_checkpoint(path)
        except FcnDeployError as exc:
            errors.append(exc)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert not set(HARMLESS_GLOBALS) & set(torch.serialization.get_safe_globals())


# ---- pickled modules and other refusals


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_pickled_module_is_refused_with_its_class_and_the_way_out(
    tmp_path: Path, network: TinyNetwork, zipped: bool, wrapped: bool
) -> None:
    path = tmp_path / "model.pt"
    content = {"model": network, "epoch": 3} if wrapped else network
    torch.save(content, path, _use_new_zipfile_serialization=zipped)

    with pytest.raises(
        UnsupportedModelError,
        match=r"a pickled module, '[\w.]*test_checkpoint\.TinyNetwork'.*model\.state_dict\(\)"
        r".*--arch package\.module:factory",
    ):
        read_checkpoint(path)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_module_of_torchs_own_layers_is_refused_with_the_way_out(
    tmp_path: Path, wrapped: bool
) -> None:
    layers = nn.Sequential(nn.Conv2d(3, 4, 1))
    path = _saved(tmp_path, {"model": layers, "epoch": 3} if wrapped else layers)

    with pytest.raises(
        UnsupportedModelError, match=r"'torch\.nn\.modules\.container\.Sequential'.*state_dict\(\)"
    ):
        read_checkpoint(path)


def test_a_foreign_class_is_named(tmp_path: Path) -> None:
    path = _saved(tmp_path, {"model": {"w": torch.ones(1)}, "config": _Settings()})

    with pytest.raises(
        UntrustedArtifactError, match=r"names '[\w.]*\._Settings'.*Save the weights"
    ):
        read_checkpoint(path)


class _Settings:
    """A user's own class."""


def test_a_newer_pickle_protocol_says_how_to_save_again(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"w": torch.ones(1)}, path, pickle_protocol=4)

    with pytest.raises(UnsupportedModelError, match=r"protocol 4; .* Save it again"):
        read_checkpoint(path)


def test_names_are_found_in_pickles_of_every_protocol() -> None:
    for protocol in (2, 3, 4, 5):
        pickled = pickle.dumps([argparse.Namespace(a=1), OrderedDict()], protocol=protocol)

        scan = scan_pickle(io.BytesIO(pickled))

        assert scan.names == ("argparse.Namespace", "collections.OrderedDict")
        assert scan.protocol == protocol


def test_damaged_files_raise_nothing_but_our_errors(tmp_path: Path, network: TinyNetwork) -> None:
    from safetensors.torch import save_file

    torch.save({"model": network.state_dict(), "args": argparse.Namespace(a=1)}, tmp_path / "a")
    torch.save(network.state_dict(), tmp_path / "b", _use_new_zipfile_serialization=False)
    save_file(network.state_dict(), tmp_path / "c")
    random = np.random.default_rng(0)
    refused = 0
    for name in ("a", "b", "c"):
        whole = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)
        for _ in range(120):
            data = whole.copy()
            for position in random.integers(0, min(len(data), 1500), size=random.integers(1, 6)):
                data[position] = random.integers(0, 256)
            (tmp_path / "damaged").write_bytes(data.tobytes())
            try:
                read_checkpoint(tmp_path / "damaged")
            except FcnDeployError:
                refused += 1

    assert refused > 100


# ---- files with code


def test_torchscript_needs_to_be_trusted_and_then_loads(
    tmp_path: Path, network: TinyNetwork
) -> None:
    path = tmp_path / "scripted.pt"
    image = torch.randn(1, 3, 8, 8)
    _save_torchscript(network.eval(), path)

    with pytest.raises(UntrustedArtifactError, match=r"TorchScript file.*--trust-code"):
        read_checkpoint(path)
    checkpoint = read_checkpoint(path, trust_code=True)

    assert checkpoint.format == "torchscript"
    assert checkpoint.module is not None
    assert torch.equal(checkpoint.module(image), network(image))


def _save_torchscript(network: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch is giving TorchScript up
        torch.jit.save(torch.jit.trace(network, torch.zeros(1, 3, 8, 8)), path)


def test_an_exported_program_needs_to_be_trusted_and_then_loads(
    tmp_path: Path, network: TinyNetwork
) -> None:
    path = tmp_path / "program.pt"
    image = torch.randn(2, 3, 8, 8)
    torch.export.save(torch.export.export(network.eval(), (image,)), path.with_suffix(".pt2"))
    path.with_suffix(".pt2").rename(path)

    with pytest.raises(UntrustedArtifactError, match=r"exported program.*--trust-code"):
        read_checkpoint(path)
    checkpoint = read_checkpoint(path, trust_code=True)

    assert checkpoint.format == "exported_program"
    assert checkpoint.module is not None
    # the same operators on the same numbers; the graph may fuse differently
    torch.testing.assert_close(checkpoint.module(image), network(image), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shadow", ["x", torch.Size([2])])
def test_a_dict_whose_attributes_shadow_its_methods_is_read_all_the_same(
    tmp_path: Path, shadow: object
) -> None:
    class Shadowed:
        def __reduce__(self) -> tuple[Any, ...]:
            attributes = dict.fromkeys(("items", "values", "get", "keys"), shadow)
            return OrderedDict, (), attributes, None, iter([("weight", torch.ones(2))])

    torch.save({"state_dict": Shadowed()}, tmp_path / "model.pt")

    found = read_checkpoint(tmp_path / "model.pt").state

    assert found is not None
    assert list(found) == ["weight"]
