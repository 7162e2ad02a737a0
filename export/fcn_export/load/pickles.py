"""Which classes a checkpoint may name beside tensors, and how a refused pickle is explained.

Real checkpoints carry more than tensors: command-line arguments, NumPy scalars, paths. None of it
is needed, so none of it is made: each name below is answered with an inert stand-in, and what the
file says about the object is dropped, but for NumPy's arrays, which may be weights and are kept as
bytes. Allowing the real classes would be less safe than it looks: `numpy.dtype.__setstate__`
believes forged flags, so that a scalar of a structured dtype can be made to treat its bytes as
object pointers, and `argparse.Namespace` takes any `__setstate__` into its own `__dict__`. A
stand-in has no attributes, ignores its arguments, and calls nothing.
"""

from __future__ import annotations

import pickletools
import re
import sys
import threading
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pickle import UnpicklingError
from typing import Any

from fcn_export.load.stored_arrays import StoredArray, StoredType, make_array

__all__ = [
    "HARMLESS_GLOBALS",
    "PickleScan",
    "harmless_globals",
    "refused_name",
    "scan_pickle",
    "stand_in_for",
]


class _Inert:
    """What is left of an object that the weights do not need: nothing."""

    __slots__ = ()

    def __new__(cls, *_args: object) -> _Inert:
        return object.__new__(cls)

    def __setstate__(self, _state: object) -> None:
        """Drop the state: the file decides nothing about this object."""


class _PlainMapping:
    """A plain ordered dict in place of a dict subclass: weights may lie in it, behaviour not.

    Not a `dict`, since PyTorch's unpickler sets items and state of an `OrderedDict` alone.
    """

    def __new__(cls, *_args: object) -> OrderedDict[Any, Any]:  # type: ignore[misc] # on purpose
        return OrderedDict()


class _HistoryBuffer(_Inert):
    """Stands for mmengine's log of a training, whose state names its own methods."""

    __slots__ = ()


class _Method:
    """Stands for `getattr`, which mmengine's logs need: for a method of the log, and no other."""

    def __new__(  # type: ignore[misc] # on purpose
        cls, owner: object = None, name: object = None, *rest: object
    ) -> _Inert:
        public = isinstance(name, str) and name.isidentifier() and not name.startswith("_")
        if owner is not _HistoryBuffer or not public or rest:
            raise UnpicklingError("WeightsUnpickler error: getattr of something else than a log")
        return _Inert()


_NUMPY_SCALARS = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8")

# Every name is data by its nature: a value, a path, a time, a setting. A name that loads, calls or
# looks up something (eval, import, open) is kept out, although its stand-in would be inert too: a
# file that asks for it is not a checkpoint. `stand_in_for` has the rules for whole packages.
_INERT_NAMES = (
    # torchvision's reference scripts and most training scripts: the parsed command line
    "argparse.Namespace",
    "types.SimpleNamespace",
    # values of the standard library that land in settings and logs
    *(f"builtins.{name}" for name in ("int", "float", "bool", "str", "list", "dict", "tuple")),
    *(f"builtins.{name}" for name in ("bytes", "frozenset", "range", "slice", "object")),
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    *(
        f"pathlib.{module}{name}"
        for module in ("", "_local.")  # the second is where Python 3.13 keeps them
        for name in ("Path", "PosixPath", "PurePath", "PurePosixPath")
    ),
    *(
        f"pathlib.{module}{name}"  # a checkpoint made on Windows
        for module in ("", "_local.")
        for name in ("WindowsPath", "PureWindowsPath")
    ),
    "collections.deque",
    "decimal.Decimal",
    "fractions.Fraction",
    "typing.Any",
    "uuid.UUID",
    # metrics: NumPy 2 and 1 name the same functions differently
    *(f"numpy.{core}.multiarray.scalar" for core in ("_core", "core")),
    *(f"numpy.{name}" for name in _NUMPY_SCALARS),
    # states of random generators
    *(f"numpy.random._pickle.__{name}_ctor" for name in ("randomstate", "generator")),
    "numpy.random._pickle.__bit_generator_ctor",
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
    "numpy.random.bit_generator.SeedSequence",
    "numpy.random._mt19937.MT19937",
    "numpy.random._pcg64.PCG64",
    # {"torch": torch.__version__}
    "torch.torch_version.TorchVersion",
    # the settings that Lightning and Hydra put into their checkpoints
    *(f"omegaconf.{name}" for name in ("dictconfig.DictConfig", "listconfig.ListConfig")),
    *(f"omegaconf.base.{name}" for name in ("ContainerMetadata", "Metadata")),
    *(f"omegaconf.nodes.{name}Node" for name in ("Any", "Boolean", "Float", "Integer", "String")),
)

_MAPPING_NAMES = (
    "collections.defaultdict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "yacs.config.CfgNode",
)

# Of these packages every class is passed over, as a setting, a log, an optimizer or a layer is.
_INERT_PACKAGES = (
    *("torch.nn.modules.", "torch.nn.parallel.", "torch.nn.functional.", "torch._C._nn."),
    *("torch.optim.", "torch.amp.grad_scaler.", "torch.cuda.amp.grad_scaler.", "torchmetrics."),
    *("mmengine.", "mmcv.", "mmseg.", "lightning.", "lightning_fabric.", "lightning_utilities."),
    *("pytorch_lightning.", "omegaconf.", "hydra.", "segmentation_models_pytorch.", "timm."),
    *("detectron2.", "fvcore.", "monai.", "albumentations.", "kornia.", "yacs.", "ml_collections."),
    *("transformers.", "torchvision.transforms.", "nnunetv2.", "addict.", "easydict.", "munch."),
)
# these hold functions: an activation is often one
_FUNCTION_PACKAGES = ("torch.nn.functional.", "torch._C._nn.")
_DICT_CLASSES = frozenset(("CfgNode", "Munch", "Box", "Dict"))
_HISTORY_BUFFER = "mmengine.logging.history_buffer.HistoryBuffer"
_GETATTR = "builtins.getattr"

HARMLESS_GLOBALS: tuple[tuple[Callable[..., object], str], ...] = (
    *((_Inert, name) for name in _INERT_NAMES),
    *((_PlainMapping, name) for name in _MAPPING_NAMES),
    *((make_array, f"numpy.{core}.multiarray._reconstruct") for core in ("_core", "core")),
    (StoredArray, "numpy.ndarray"),
    (StoredType, "numpy.dtype"),
)
"""The stand-in for each name that a checkpoint may hold beside what PyTorch itself allows."""

# torch keeps one process-wide list, so one thread must not shorten it while another one reads
_LIST_LOCK = threading.Lock()


def stand_in_for(name: str, scan: PickleScan) -> Callable[..., object] | None:
    """Give what stands for a name that is on no list, by its package and by how it is used.

    Args:
        scan: of the pickle that names it.

    Returns:
        None where the name must be refused.
    """
    module, _, last = name.rpartition(".")
    if name == _HISTORY_BUFFER:
        return _HistoryBuffer
    if name == _GETATTR and _HISTORY_BUFFER in scan.names:
        return _Method
    # what it would call is in the file under its own name, and must be harmless as well
    if name == "functools.partial":
        return _Inert
    is_class = last[:1].isupper() and last.isidentifier()
    if name.startswith(_INERT_PACKAGES) and (
        is_class or (module + "." in _FUNCTION_PACKAGES and last.isidentifier() and last[0] != "_")
    ):
        settings = last in _DICT_CLASSES or last.endswith("Dict")
        return _PlainMapping if settings and not name.startswith("torch.") else _Inert
    root = name.partition(".")[0]
    foreign = root not in sys.stdlib_module_names and root not in ("torch", "numpy")
    return _Inert if foreign and is_class and name in scan.values else None


@contextmanager
def harmless_globals(scan: PickleScan | None = None) -> Iterator[None]:
    """Let ``torch.load(weights_only=True)`` pass over the harmless classes, here only.

    What the caller's own process allowed before stays allowed. One thread at a time.

    Args:
        scan: of the pickle to load; adds those of its names that `stand_in_for` knows.
    """
    from torch import serialization

    named: list[tuple[Callable[..., object], str]] = []
    listed = {name for _, name in HARMLESS_GLOBALS}
    for name in () if scan is None else scan.names:
        stand_in = None if name in listed or scan is None else stand_in_for(name, scan)
        if stand_in is not None:
            named.append((stand_in, name))
    with _LIST_LOCK:
        # torch removes on leaving what it added on entering, also what was there before
        allowed_before = set(serialization.get_safe_globals())
        wanted: list[Any] = [x for x in (*HARMLESS_GLOBALS, *named) if x not in allowed_before]
        with serialization.safe_globals(wanted):
            yield


@dataclass(frozen=True, slots=True)
class PickleScan:
    """What a pickle names, found without running it.

    Attributes:
        names: dotted names of classes and functions, in their order, as Python 3 calls them.
        protocol: of the pickle, 2 where torch.save was left to its default.
        values: those that are made of one number or text alone, as members of an enum are.
    """

    names: tuple[str, ...]
    protocol: int
    values: frozenset[str] = frozenset()

    @property
    def holds_module(self) -> bool:
        """Whether a whole `nn.Module` was pickled: its layers' classes are named."""
        return any(
            name.startswith(("torch.nn.modules.", "torch.nn.parallel.")) for name in self.names
        )


_MEMO_OPS = frozenset({"BINPUT", "LONG_BINPUT", "MEMOIZE"})
_PLAIN_OPS = frozenset({"BINUNICODE", "BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1"})
_STRING_OPS = frozenset({"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"})


def scan_pickle(stream: BytesIO) -> PickleScan:
    """List the globals of the pickle at the stream's position; stop where it is damaged.

    Takes bytes in memory, since a forged length would make a file's `read` ask for all memory.
    """
    names: dict[str, None] = {}
    memo: dict[int, str] = {}
    strings = ["", ""]  # the last two; STACK_GLOBAL takes module and name from them
    protocol = 0
    values: set[str] = set()
    made: list[str] = []  # a global, and what follows it
    try:
        operations: Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]
        operations = pickletools.genops(stream)
        for op, arg, _position in operations:
            if op.name == "GLOBAL":
                made = [_as_python3(*str(arg).split(" ", 1))]
            elif op.name not in _MEMO_OPS and 0 < len(made) < 4:
                made.append("plain" if op.name in _PLAIN_OPS else op.name)
                if made[1:] == ["plain", "TUPLE1", "REDUCE"]:
                    values.add(made[0])
            if op.name == "PROTO":
                protocol = arg
            elif op.name == "GLOBAL":
                names[_as_python3(*str(arg).split(" ", 1))] = None
            elif op.name == "STACK_GLOBAL":
                names[_as_python3(*strings)] = None
            elif op.name in _STRING_OPS:
                strings = [strings[1], str(arg)]
            elif op.name in ("BINGET", "LONG_BINGET") and arg in memo:
                strings = [strings[1], memo[arg]]
            elif op.name == "MEMOIZE":
                memo[len(memo)] = strings[1]
            elif op.name in ("BINPUT", "LONG_BINPUT"):
                memo[arg] = strings[1]
    # a cut or forged pickle: what was seen so far is what can be said
    except (ValueError, IndexError, OverflowError, EOFError):
        pass
    return PickleScan(tuple(names), protocol, frozenset(values))


def _as_python3(module: str, name: str = "") -> str:
    """Translate Python 2's names, which protocol 2 writes, as the unpickler does."""
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    else:
        module = IMPORT_MAPPING.get(module, module)
    return f"{module}.{name}"


def refused_name(message: str, scan: PickleScan) -> str | None:
    """Give the full name of the global that PyTorch's message says it refused, if it does."""
    found = re.search(r"GLOBAL (\S+) ", message)
    if found is None:
        return None
    name = found[1]
    # torch's message drops "builtins."
    return f"builtins.{name}" if f"builtins.{name}" in scan.names else name
