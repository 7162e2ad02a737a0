"""Read the weights of a .pt, .pth or .safetensors file without running anything of it."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from fcn_deploy.errors import (
    FcnDeployError,
    UnsupportedModelError,
    UntrustedArtifactError,
)
from fcn_export.load.file_kind import ModelFile, ModelFormat, model_format, open_model_file
from fcn_export.load.pickles import PickleScan, harmless_globals, refused_name, scan_pickle
from fcn_export.load.stored_arrays import StoredArray
from fcn_models.checkpoint_info import METADATA_KEY
from fcn_models.foreign_errors import READ_ERRORS, first_line

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Checkpoint", "parts_of", "prefix_forms", "read_checkpoint"]

# the first that is there wins; averaged weights come last, since scripts keep both and evaluate
# the plain ones
_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "network",
    "net",
    "weights",
    "params",
    "ema_state_dict",
    "state_dict_ema",
    "model_ema",
    "ema_model",
    "ema",
)
_MAX_WRAPPING = 4

# DataParallel and DDP, torch.compile, Lightning and the like
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")

# what a pickle names of these is no part of any network
_ACTING_ROOTS = frozenset(("builtins", "os", "posix", "nt", "subprocess", "sys", "importlib"))

# of a pickle, to find what it names
_MAX_SCANNED_BYTES = 16 << 20

_WEIGHTS_ALONE = "Save the weights alone: torch.save(model.state_dict(), 'weights.pt')."

# the attribute in which torch keeps the versions of the layers beside the weights
_METADATA = "_metadata"


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """What a model file holds.

    Attributes:
        path: as the user gave it.
        format: told by the content.
        sha256: of the whole file, hexadecimal.
        state: the weights by name as stored, wrappers removed and prefixes kept. They are
            memory-mapped where the format allows: copy them before the file is written again.
            None where the file carries its network.
        module: the network that the file carries, or None.
        metadata: facts that `fcn_models.save_checkpoint` wrote beside the weights, as JSON.
    """

    path: Path
    format: ModelFormat
    sha256: str
    state: Mapping[str, Tensor] | None = field(default=None, repr=False)
    module: nn.Module | None = field(default=None, repr=False)
    metadata: str | None = field(default=None, repr=False)


def read_checkpoint(path: str | os.PathLike[str], *, trust_code: bool = False) -> Checkpoint:
    """Read a model file.

    Args:
        path: of a file written by torch.save, safetensors, torch.jit.save or torch.export.save.
        trust_code: load TorchScript and exported programs, which carry code. A pickle that
            names foreign classes is refused either way.

    Raises:
        ArtifactMissingError: there is no such file.
        UntrustedArtifactError: the file could run code, or is a zip made to harm its reader.
        UnsupportedModelError: the file is damaged, no model, or a pickled module.
    """
    with open_model_file(path) as file:
        kind = model_format(file)
        sha256 = file.sha256()
        if kind in ("torchscript", "exported_program"):
            if not trust_code:
                raise _carries_code(file, kind)
            return Checkpoint(file.path, kind, sha256, module=_load_code(file, kind))
        metadata: Any = None
        if kind == "safetensors":
            loaded, metadata = _load_safetensors(file)
        else:
            scan = _scan(file, kind)
            loaded = _load_torch(file, kind, scan)
            if isinstance(loaded, Mapping):
                metadata = loaded.get(METADATA_KEY)
            if scan.holds_module and _weights_in(loaded, depth=_MAX_WRAPPING) is None:
                raise _holds_module(file, scan, None)
        state = _find_state(loaded, path=file.path)
        text = metadata if isinstance(metadata, str) else None
        return Checkpoint(file.path, kind, sha256, state=state, metadata=text)


def prefix_forms(state: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], ...]:
    """Give the state as it is, then with each prefix removed that all its names share.

    The last form is the one with no wrapper's prefix left. Tensors, of any shape and dtype, are
    shared, not copied.
    """
    forms = [state]
    while True:
        # AveragedModel counts its updates beside the wrapped network
        named = {key: value for key, value in forms[-1].items() if key != "n_averaged"}
        prefix = next((x for x in _PREFIXES if all(key.startswith(x) for key in named)), None)
        if prefix is None or not named:
            return tuple(forms)
        stripped = OrderedDict((key.removeprefix(prefix), named[key]) for key in named)
        versions = getattr(forms[-1], _METADATA, {})
        kept = {x.removeprefix(prefix): v for x, v in versions.items() if x.startswith(prefix)}
        kept |= {"": versions[prefix[:-1]]} if prefix[:-1] in versions else {}
        setattr(stripped, _METADATA, kept)
        forms.append(stripped)


def parts_of(state: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], ...]:
    """Give what lies under each of the usual prefixes, where other names lie beside it.

    Args:
        state: weights by name, of any shapes and dtypes; not copied.
    """
    parts = []
    for prefix in _PREFIXES:
        named = OrderedDict((key, state[key]) for key in state if key.startswith(prefix))
        if 0 < len(named) < len(state):
            setattr(named, _METADATA, getattr(state, _METADATA, {}))
            parts.append(named)
    return tuple(parts)


def _carries_code(file: ModelFile, kind: ModelFormat) -> UntrustedArtifactError:
    what = "a TorchScript file" if kind == "torchscript" else "an exported program (.pt2)"
    return UntrustedArtifactError(
        f"'{file.path}' is {what}: it carries code that would run.",
        hint="Pass --trust-code (trust_code=True) if you trust its origin, or give a state dict.",
    )


def _load_code(file: ModelFile, kind: ModelFormat) -> nn.Module:
    """Load a network with its code; the caller vouched for it."""
    import torch

    try:
        with warnings.catch_warnings():
            # both formats work; that they are going out of fashion is not the user's concern here
            warnings.simplefilter("ignore")
            if kind == "torchscript":
                module: nn.Module = torch.jit.load(file.library_path, map_location="cpu")
            else:
                file.stream.seek(0)
                module = torch.export.load(file.stream).module()
    except READ_ERRORS as exc:
        raise UnsupportedModelError(
            f"'{file.path}' could not be loaded by torch {torch.__version__}: {first_line(exc)}",
            hint="Save it again with this version of torch, or give a state dict with --arch.",
        ) from exc
    return module


def _load_safetensors(file: ModelFile) -> tuple[dict[str, Tensor], str | None]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as exc:
        raise UnsupportedModelError(
            f"'{file.path}' is a safetensors file and the package 'safetensors' is missing.",
            hint="pip install 'fcn-deploy[export]'",
        ) from exc
    try:
        with safe_open(file.library_path, framework="pt", device="cpu") as tensors:
            weights = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 # no mapping
            return weights, (tensors.metadata() or {}).get(METADATA_KEY)
    except (SafetensorError, *READ_ERRORS) as exc:
        raise _unreadable(file, exc) from exc


def _load_torch(file: ModelFile, kind: ModelFormat, scan: PickleScan) -> Any:
    """Load what torch.save wrote: tensors and plain containers, the rest inert."""
    import torch

    try:
        with harmless_globals(scan), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on unusual protocols; a failure is explained below
            return torch.load(
                file.library_path,
                map_location="cpu",
                weights_only=True,
                mmap=kind == "torch",  # what is not needed, such as the optimizer, stays on disk
            )
    except UnpicklingError as exc:
        raise _refused(file, scan, exc) from exc
    except READ_ERRORS as exc:
        raise _unreadable(file, exc) from exc


def _unreadable(file: ModelFile, exc: BaseException) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"'{file.path}' could not be read; it is damaged or cut short "
        f"({type(exc).__name__}: {first_line(exc)}).",
        hint="Download or copy it again and compare its size with the origin's.",
    )


def _holds_module(file: ModelFile, scan: PickleScan, name: str | None) -> UnsupportedModelError:
    """Refuse a whole network, and say how to save its weights.

    Args:
        name: of its class; None takes the first that the file names.
    """
    if name is None:
        modules = [x for x in scan.names if not x.startswith(("torch._", "torch.serial", "coll"))]
        name = modules[0]
    return UnsupportedModelError(
        f"'{file.path}' holds a pickled module, '{name}', not a state dict; "
        "unpickling it would run code, so it is refused.",
        hint="Where the class can be imported, load it once and "
        "torch.save(model.state_dict(), 'weights.pt'); then export that, with "
        "--arch package.module:factory if the network is not torchvision's.",
    )


def _refused(file: ModelFile, scan: PickleScan, exc: UnpicklingError) -> FcnDeployError:
    """Say why a pickle was refused, from what it names."""
    name = refused_name(str(exc), scan)
    # beside a module, a call is what has to be said
    acts = name is not None and name.partition(".")[0] in _ACTING_ROOTS
    if scan.holds_module and not acts:
        return _holds_module(file, scan, name)
    if name is not None:
        return UntrustedArtifactError(
            f"'{file.path}' names '{name}', which is neither a tensor nor on the list of harmless "
            "classes; unpickling it could run code, so nothing was loaded.",
            hint=_WEIGHTS_ALONE,
        )
    if scan.protocol > 2:
        return UnsupportedModelError(
            f"'{file.path}' was saved with pickle protocol {scan.protocol}; weights are read "
            "without running code from protocol 2, torch.save's default, alone.",
            hint="Save it again without pickle_protocol=, or as .safetensors.",
        )
    return UntrustedArtifactError(
        f"'{file.path}' holds a pickle that does more than state weights: {_last_line(exc)}",
        hint=_WEIGHTS_ALONE,
    )


def _scan(file: ModelFile, kind: ModelFormat) -> PickleScan:
    """List what the checkpoint's pickle names, running nothing."""
    file.stream.seek(0)
    if kind == "torch_legacy":
        start = BytesIO(file.stream.read(_MAX_SCANNED_BYTES))
        return [scan_pickle(start) for _ in range(4)][-1]  # magic, version, system, the object
    with zipfile.ZipFile(file.stream) as archive:
        names = archive.namelist()
        record = next((x for x in names if x.rpartition("/")[2] == "data.pkl"), None)
        if record is None:
            return PickleScan((), 0)
        with archive.open(record) as stream:
            return scan_pickle(BytesIO(stream.read(_MAX_SCANNED_BYTES)))


def _last_line(exc: BaseException) -> str:
    """Give torch's reason, which stands behind a page of advice and before a link."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    reasons = [line for line in lines if not line.startswith("Check the documentation")]
    return (reasons or ["no reason given"])[-1].rpartition("WeightsUnpickler error: ")[2][:300]


def _find_state(loaded: Any, *, path: Path) -> OrderedDict[str, Tensor]:
    """Find the weights in what was loaded, through common wrappers."""
    holder = _weights_in(loaded, depth=_MAX_WRAPPING)
    if holder is None:
        raise UnsupportedModelError(
            f"'{path}' holds no weights that can be found: {_describe(loaded)}. "
            f"Looked under {', '.join(_WRAPPERS)}.",
            hint=_WEIGHTS_ALONE,
        )
    return _checked(holder, _tensors_of(holder), path=path)


def _weights_in(found: Any, *, depth: int) -> dict[Any, Any] | None:
    """Give the mapping that holds the weights: under a common name, the only one, or itself."""
    if not isinstance(found, dict) or depth == 0:
        return None
    for name in _WRAPPERS:
        if name in found and (inner := _weights_in(found[name], depth=depth - 1)) is not None:
            return inner
    if _tensors_of(found):
        return found
    # the class's own methods: a file may give its dict attributes of the same names
    holding = [x for x in dict.values(found) if isinstance(x, dict) and _tensors_of(x)]
    return holding[0] if len(holding) == 1 else None


def _tensors_of(mapping: dict[Any, Any]) -> OrderedDict[str, Tensor]:
    return OrderedDict(
        (key, value.detach())
        for key, stored in dict.items(mapping)
        if isinstance(key, str) and (value := _as_tensor(stored)) is not None
    )


def _as_tensor(stored: Any) -> Tensor | None:
    """Give a stored tensor or array of numbers as a tensor; None where it is something else."""
    import torch

    if isinstance(stored, torch.Tensor):
        return stored
    array = stored.to_numpy() if isinstance(stored, StoredArray) else None
    return None if array is None else torch.from_numpy(array)


def _checked(
    mapping: Mapping[Any, Any], tensors: OrderedDict[str, Tensor], *, path: Path
) -> OrderedDict[str, Tensor]:
    """Refuse tensors that are no plain arrays, and keep the layers' versions."""
    import torch

    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            raise UnsupportedModelError(
                f"weight '{name}' of '{path}' is sparse, quantized or without data; "
                "expected plain tensors.",
                hint="Save the network before it is quantized; fcn-export makes INT8 itself.",
            )
    versions = getattr(mapping, _METADATA, None)
    if isinstance(versions, Mapping):
        plain = {k: v for k, v in versions.items() if isinstance(k, str) and isinstance(v, dict)}
        setattr(tensors, _METADATA, plain)
    return tensors


def _describe(loaded: Any) -> str:
    if not isinstance(loaded, Mapping):
        return f"it is a {type(loaded).__name__}"
    if not loaded:
        return "it is empty"
    return f"its keys are {_some(repr(key) for key in loaded)}"


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - 6} more" if len(listed) > 6 else ""
    return ", ".join(listed[:6]) + more
