"""The one door through which the exporter and the benchmark get a PyTorch network."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, MethodType
from typing import TYPE_CHECKING, Any, Literal

from fcn_deploy.errors import UnsupportedModelError
from fcn_export.load.architectures import (
    Recognised,
    architecture_names,
    build_architecture,
    is_family_name,
    recognise,
)
from fcn_export.load.checkpoint import Checkpoint, parts_of, prefix_forms, read_checkpoint
from fcn_export.load.factory import build_from_factory, is_factory, parse_arch_args
from fcn_export.load.module_outputs import DEFAULT_OUTPUT_KEY, probe, select_output
from fcn_export.load.weights import check_finite_weights, fill_weights
from fcn_models.checkpoint_info import CheckpointInfo, parse_info

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "LoadedModel",
    "ModelKind",
    "check_finite_weights",
    "load_model",
    "parse_arch_args",
    "probe",
    "select_output",
]

ModelKind = Literal["state_dict", "torchscript", "exported_program", "module"]
"""Where the network came from: built here and filled, carried by its file, or handed over."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A network ready to be traced, run or timed.

    Attributes:
        module: in eval mode, fp32, on the CPU; as the caller left it where `kind` is ``module``.
        arch: name of a known network, ``package.module:factory``, the format of a file that
            carries its network, or the class of a module that was handed over.
        kind: where the network came from.
        num_classes: scores a pixel; None where only `probe` can tell.
        output_key: which of several outputs holds the scores; None as `select_output` takes it.
        arch_args: keyword arguments that the factory was given.
        path: of the file, as given; None for a module that was handed over.
        sha256: of the file, hexadecimal, or None.
        info: what the file says beside its weights: colours, mean, std, classes; mostly None.
        notes: what a user should know of the weights, one sentence each.
    """

    module: nn.Module = field(repr=False)
    arch: str
    kind: ModelKind
    num_classes: int | None = None
    output_key: str | None = None
    arch_args: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None
    sha256: str | None = None
    info: CheckpointInfo | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def from_module(
        cls, module: nn.Module, *, arch: str | None = None, output_key: str | None = None
    ) -> LoadedModel:
        """Wrap a caller's module; it is not touched, neither here nor by any method.

        Args:
            arch: what to call it; None names its class.
        """
        name = arch or f"{type(module).__module__}.{type(module).__qualname__}"
        return cls(module, arch=name, kind="module", output_key=output_key)

    def scores(self, image: Tensor) -> Tensor:
        """Run the network, and pick its class scores.

        Args:
            image: float32 [N, channels, H, W], normalised as the network expects.

        Returns:
            Scores, [N, C, h, w], before any upsampling that the network does not do itself.
        """
        return select_output(self.module(image), self.output_key)


def load_model(
    path: str | os.PathLike[str],
    *,
    arch: str | None = None,
    arch_args: Mapping[str, Any] | None = None,
    output_key: str | None = None,
    trust_code: bool = False,
) -> LoadedModel:
    """Load a network from a state dict, or from a file that carries its code.

    Args:
        path: .pt, .pth, .safetensors, TorchScript or .pt2; told apart by content.
        arch: a name of `architecture_names`, or ``package.module:factory``, which runs the
            user's code. None recognises the network from its weights.
        arch_args: keyword arguments of the factory.
        output_key: which of several outputs holds the scores.
        trust_code: allow files that carry code.

    Raises:
        ArtifactMissingError: there is no such file.
        UntrustedArtifactError: the file could run code.
        UnsupportedModelError: the file is no model, or the network is unknown or does not fit.
    """
    arguments = dict(arch_args or {})
    _check_arch(arch, arguments)
    checkpoint = read_checkpoint(path, trust_code=trust_code)
    if checkpoint.state is None:
        return _carried(checkpoint, arch=arch, output_key=output_key)
    forms = prefix_forms(checkpoint.state)
    beside: tuple[str, ...] = ()
    if arch is None or not is_factory(arch):
        forms, beside = _recognisable(forms)
    info = None
    if checkpoint.metadata is not None:
        info = parse_info(checkpoint.metadata, where=f"'{checkpoint.path}'")
    num_classes: int | None = None
    family = None if arch is not None and is_factory(arch) else _of_family(forms[-1], info)
    if family is not None:
        from fcn_models.checkpoints import family_name

        name, num_classes = family_name(family), int(family["num_classes"])
        _check_family(arch, arguments, name, num_classes)
        module = _build_family(family)
    elif arch is not None and is_factory(arch):
        name, module = arch, build_from_factory(arch, arguments)
    else:
        known = _recognised_as(arch, arguments, forms[-1])
        name, num_classes, module = known.name, known.num_classes, build_architecture(known)
        output_key = output_key or DEFAULT_OUTPUT_KEY
    beside += fill_weights(module, forms, arch=name, source=os.fspath(path))
    return LoadedModel(
        _frozen_for_inference(module),
        arch=name,
        kind="state_dict",
        num_classes=num_classes,
        output_key=output_key,
        arch_args=MappingProxyType(arguments),
        path=checkpoint.path,
        sha256=checkpoint.sha256,
        info=info,
        notes=_beside_note(beside),
    )


def _beside_note(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        return ()
    listed = ", ".join(sorted(names)[:4]) + (", ..." if len(names) > 4 else "")
    return (f"Beside the network's weights the file holds {listed}: no part of it, left out.",)


def _recognisable(
    forms: tuple[Mapping[str, Tensor], ...],
) -> tuple[tuple[Mapping[str, Tensor], ...], tuple[str, ...]]:
    """Give the forms of the only part whose network is known, and the names beside that part."""
    whole = forms[-1]
    if not _is_known(whole):
        parts = [part for part in parts_of(whole) if _is_known(prefix_forms(part)[-1])]
        if len(parts) == 1:
            return prefix_forms(parts[0]), tuple(name for name in whole if name not in parts[0])
    return forms, ()


def _is_known(state: Mapping[str, Tensor]) -> bool:
    from fcn_models.checkpoints import recognise_fcn

    try:
        if recognise_fcn(state) is None:
            recognise(state)
    except UnsupportedModelError:
        return False
    return True


def _of_family(
    state: Mapping[str, Tensor], info: CheckpointInfo | None
) -> Mapping[str, Any] | None:
    """Give the description of a network of fcn_models; None where it is none."""
    if info is not None:
        return info.architecture
    from fcn_models.checkpoints import recognise_fcn

    return recognise_fcn(state)


def _check_family(
    arch: str | None, arguments: Mapping[str, Any], name: str, num_classes: int
) -> None:
    said = {"arch": arch, **arguments}
    found = {"arch": name, "num_classes": num_classes, "aux_loss": False}
    for key, value in said.items():
        if value not in (None, found[key]):
            raise UnsupportedModelError(
                f"{key} {value!r} was given, but the weights are those of {name} with "
                f"{num_classes} classes.",
                hint="Leave it out: the file says it.",
            )


def _build_family(description: Mapping[str, Any]) -> nn.Module:
    import torch

    from fcn_export.load.architectures import materialised
    from fcn_models.checkpoints import build_fcn

    with torch.device("meta"):  # as for torchvision's networks
        module = build_fcn(description)
    return materialised(module)


def _check_arch(arch: str | None, arguments: Mapping[str, Any]) -> None:
    """Refuse an unknown name before a large file is read."""
    if arch is None or arch in architecture_names() or is_family_name(arch):
        unknown = arguments.keys() - {"num_classes", "aux_loss"}
        if unknown:
            raise UnsupportedModelError(
                f"--arch-arg '{min(unknown)}' needs a factory to take it; "
                f"{arch or 'a recognised network'} is built from its weights.",
                hint="Pass --arch package.module:factory, or leave it out.",
            )
    elif not is_factory(arch):
        raise UnsupportedModelError(
            f"--arch '{arch}' is neither one of {', '.join(architecture_names())} "
            "or of fcn_models, such as fcn8s_vgg16, nor of the form package.module:factory.",
            hint="Name a function by its module's dotted name, such as mypackage.model:build.",
        )


def _recognised_as(
    arch: str | None, arguments: Mapping[str, Any], state: Mapping[str, Tensor]
) -> Recognised:
    """Recognise the weights, and compare with what the user said of them."""
    known = recognise(state)
    found = {
        "arch": known.name,
        "num_classes": known.num_classes,
        "aux_loss": known.aux_classes is not None,
    }
    said = {**({} if arch is None else {"arch": arch}), **arguments}
    for key, value in said.items():
        if value != found[key]:
            raise UnsupportedModelError(
                f"{key} {value!r} was given, but the weights are those of {known.name} with "
                f"{known.num_classes} classes and {'an' if found['aux_loss'] else 'no'} "
                "auxiliary head.",
                hint="Leave it out: the weights say it.",
            )
    return known


def _carried(checkpoint: Checkpoint, *, arch: str | None, output_key: str | None) -> LoadedModel:
    """Wrap the network that its file carries."""
    if arch is not None or checkpoint.module is None:
        raise UnsupportedModelError(
            f"'{checkpoint.path}' carries its own network, so --arch '{arch}' has no use.",
            hint="Leave --arch out.",
        )
    module = checkpoint.module
    kind: ModelKind = "torchscript"
    if checkpoint.format == "exported_program":
        kind = "exported_program"
        _allow_eval(module)
    return LoadedModel(
        _frozen_for_inference(module),
        arch=kind,
        kind=kind,
        output_key=output_key,
        path=checkpoint.path,
        sha256=checkpoint.sha256,
    )


def _frozen_for_inference(module: nn.Module) -> nn.Module:
    """Bring a module that is ours to eval mode, fp32 and the CPU; no gradients are kept."""
    # not chained: a user's own train() often forgets to return the module
    module.eval()
    module.cpu()
    module.float()
    for parameter in module.parameters():  # TorchScript has no requires_grad_ of its own
        parameter.requires_grad_(False)
    return module


def _allow_eval(module: nn.Module) -> None:
    """Let eval() pass: an exported program has one mode, and torch lets both calls raise."""

    def set_mode(self: nn.Module, mode: bool = False) -> nn.Module:
        self.training = mode
        return self

    def evaluate(self: nn.Module) -> nn.Module:
        return set_mode(self)

    methods: dict[str, Callable[..., nn.Module]] = {"train": set_mode, "eval": evaluate}
    for name, method in methods.items():
        setattr(module, name, MethodType(method, module))
