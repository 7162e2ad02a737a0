"""Find ONNX Runtime's execution providers by name, and check that they run what was asked.

ONNX Runtime leaves a provider out that it cannot load, and runs on the CPU: it says so in its log
at best. Here a session that does not use what was asked for is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from fcn_deploy.errors import BackendUnavailableError

__all__ = [
    "CPU",
    "RECORD_PLACEMENT",
    "ProviderList",
    "ProviderRequest",
    "available_providers",
    "check_available",
    "check_session",
    "configure_plugins",
    "provider_needs",
    "provider_requests",
]

ProviderList = Sequence[str | tuple[str, Mapping[str, object]]]
"""Names, or (name, options), as ONNX Runtime takes them; the preferred first."""

RECORD_PLACEMENT = "session.record_ep_graph_assignment_info"
"""Entry of a session's configuration that makes it remember which provider runs what."""

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
TENSORRT_RTX = "NvTensorRTRTXExecutionProvider"

_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
_INSTALL_GPU = "pip uninstall onnxruntime; pip install 'fcn-deploy[ort-gpu]'"
_INSTALL = {
    CUDA: _INSTALL_GPU,
    TENSORRT: _INSTALL_GPU,
    TENSORRT_RTX: "pip install 'fcn-deploy[onnxruntime]' onnxruntime-ep-nv-tensorrt-rtx",
}
_NEEDS = {
    CUDA: "It needs an NVIDIA GPU with its driver, CUDA 13 and cuDNN 9: pip install "
    "'onnxruntime-gpu[cuda,cudnn]', and call onnxruntime.preload_dlls() first.",
    TENSORRT: "It needs what CUDAExecutionProvider needs, and TensorRT 10 (libnvinfer.so.10): "
    "pip install 'tensorrt-cu13<11'.",
    TENSORRT_RTX: "It needs an NVIDIA RTX GPU with its driver.",
}

# ONNX Runtime computes sizes on the CPU of its own accord, as a GPU gains nothing there
_SIZE_OPERATORS = frozenset(
    (
        *("Shape", "Size", "Gather", "Concat", "Slice", "Squeeze", "Unsqueeze", "Range", "Cast"),
        *("Constant", "ConstantOfShape", "Add", "Sub", "Mul", "Div", "Mod", "Neg", "Abs"),
        *("Floor", "Ceil", "Min", "Max", "Equal", "Less", "Greater", "Not", "And", "Or", "Where"),
        *("ReduceProd", "Identity", "Expand", "Reshape"),
    )
)


@dataclass(frozen=True, slots=True)
class ProviderRequest:
    """An execution provider that is asked for, and its options as ONNX Runtime names them."""

    name: str
    options: Mapping[str, str] = field(default_factory=dict)


def provider_requests(providers: ProviderList) -> tuple[ProviderRequest, ...]:
    """Read a list of providers.

    The CUDA provider computes fp32 in fp32 unless its option `use_tf32` says otherwise: ONNX
    Runtime's default is TF32, with 10 bits of mantissa. TensorRT's providers have no such option;
    they compute as TensorRT does by itself.

    Raises:
        ValueError: there is none, one twice, or one that is no name with options.
    """
    requests = []
    for provider in providers:
        name, options = (provider, {}) if isinstance(provider, str) else provider
        own = {"use_tf32": "0"} if name == CUDA else {}
        given = {str(key): str(value) for key, value in options.items()}
        requests.append(ProviderRequest(name, own | given))
    names = [request.name for request in requests]
    if isinstance(providers, str) or not names or len(set(names)) < len(names):
        raise ValueError(f"providers is {providers!r}; expected a list of different names")
    return tuple(requests)


def available_providers(library: Any) -> tuple[str, ...]:
    """Give the names of the providers that this installation of ONNX Runtime has."""
    names = dict.fromkeys(library.get_available_providers())
    names |= dict.fromkeys(device.ep_name for device in library.get_ep_devices())
    if find_spec(_PLUGIN) is not None:
        names[TENSORRT_RTX] = None
    return tuple(names)


def check_available(library: Any, requests: Sequence[ProviderRequest]) -> None:
    """Refuse providers that this installation does not have.

    Raises:
        BackendUnavailableError: the message lists those that it has.
    """
    available = available_providers(library)
    for request in requests:
        if request.name not in available:
            raise BackendUnavailableError(
                f"onnxruntime {library.__version__} has no '{request.name}' here; it has "
                f"{', '.join(available)}.",
                hint=_INSTALL.get(request.name, "Check the provider's name."),
            )


def configure_plugins(library: Any, options: Any, requests: Sequence[ProviderRequest]) -> bool:
    """Enter the providers into session options, where one of them is a plugin.

    Returns:
        False where all are built in: then the session takes them by name.

    Raises:
        BackendUnavailableError: a provider sees no device.
    """
    built_in = library.get_available_providers()
    if all(request.name in built_in for request in requests):
        return False
    for request in requests:
        if request.name == TENSORRT_RTX and request.name not in built_in:
            _register_plugin(library)
        devices = [each for each in library.get_ep_devices() if each.ep_name == request.name]
        if not devices:
            raise BackendUnavailableError(
                f"'{request.name}' sees no device here.", hint=provider_needs([request])
            )
        options.add_provider_for_devices(devices, dict(request.options))
    return True


def check_session(session: Any, requests: Sequence[ProviderRequest], *, name: str) -> None:
    """Refuse a session that does not use what was asked for, or uses the CPU unasked.

    Operators that compute sizes may be on the CPU.

    Args:
        session: made with `RECORD_PLACEMENT`.
        name: of the network, for messages.

    Raises:
        BackendUnavailableError: a provider is not used, or leaves a part to the CPU.
    """
    used = session.get_providers()
    for request in requests:
        if request.name not in used:
            raise BackendUnavailableError(
                f"onnxruntime could not load '{request.name}', and would run '{name}' on "
                f"{', '.join(used)} instead.",
                hint=provider_needs([request]),
            )
    if any(request.name == CPU for request in requests):
        return
    strays = Counter(
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == CPU
        for node in part.get_nodes()
        if node.op_type not in _SIZE_OPERATORS
    )
    if strays:
        listed = ", ".join(f"{count} {kind}" for kind, count in strays.most_common(8))
        raise BackendUnavailableError(
            f"{' and '.join(request.name for request in requests)} cannot run all of '{name}': "
            f"onnxruntime would run {listed} on the CPU.",
            hint=f"Add '{CPU}' to the providers to allow that, or use another one.",
        )


def provider_needs(requests: Sequence[ProviderRequest]) -> str | None:
    """Say what the providers need to load; None where nothing is known of them."""
    return " ".join(_NEEDS[each.name] for each in requests if each.name in _NEEDS) or None


def _register_plugin(library: Any) -> None:
    """Load NVIDIA's plugin, once in a process."""
    if any(device.ep_name == TENSORRT_RTX for device in library.get_ep_devices()):
        return
    plugin = import_module(_PLUGIN)
    library.register_execution_provider_library(TENSORRT_RTX, plugin.get_library_path())
