"""Recognise a known classifier, by its weights alone or by all that it computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from fcn_deploy.errors import UnsupportedModelError
from fcn_models.backbones import (
    FIRST_WIDTH,
    RESNET_BLOCKS,
    WINDOWS,
    Backbone,
    convolution_places,
)
from fcn_models.tracing import trace_graph

__all__ = ["identify_classifier", "recognise_backbone"]


def identify_classifier(classifier: nn.Module) -> Backbone | None:
    """Tell which classifier a module is; None where it is not in every layer one that is known.

    Dropout and the momentum of batch normalisation may differ: inference knows neither.

    Args:
        classifier: not modified.

    Raises:
        UnsupportedModelError: it has the weights of one that is known, and cannot be traced.
    """
    backbone = recognise_backbone(classifier.state_dict())
    linear = [layer for layer in classifier.modules() if isinstance(layer, nn.Linear)]
    if backbone is None or not linear:
        return None
    if backbone.name == "googlenet" and getattr(classifier, "transform_input", False):
        backbone = replace(backbone, transform_input=True)
    with torch.device("meta"):
        known = backbone.classifier(linear[-1].out_features)
    return backbone if _computation(classifier) == _computation(known) else None


def recognise_backbone(state: Mapping[str, Tensor]) -> Backbone | None:
    """Tell which classifier weights belong to, from names and shapes, of any dtype.

    Args:
        state: of the classifier itself, or made fully convolutional, with or without its last
            layer.

    Returns:
        None where none is known.
    """
    first = state.get("features.0.weight")
    if first is None:
        first = state.get("conv1.weight", state.get("conv1.conv.weight"))
    if first is None:
        return None
    name = _name_of(state)
    if name is None:
        return None
    width = first.shape[0] / FIRST_WIDTH
    if name not in WINDOWS:
        return _backbone(name, width)
    fc6 = state.get("classifier.1.weight" if name == "alexnet" else "classifier.0.weight")
    last = state[f"features.{convolution_places(name)[-1]}.weight"].shape[0]
    if fc6 is None:
        return None
    cells = fc6.shape[2] ** 2 if fc6.dim() == 4 else fc6.shape[1] / last
    return _backbone(name, width, round(cells**0.5), fc6.shape[0])


def _backbone(
    name: str, width: float, window: int | None = None, fc_width: int | None = None
) -> Backbone | None:
    try:
        return Backbone(name, width, window, fc_width)
    except UnsupportedModelError:  # such as one and a quarter of ResNet's channels
        return None


def _name_of(state: Mapping[str, Tensor]) -> str | None:
    if "inception5b.branch1.conv.weight" in state:
        return "googlenet"
    convolutions = tuple(
        int(key.split(".")[1])
        for key, tensor in state.items()
        if key.startswith("features.") and key.endswith(".weight") and tensor.dim() == 4
    )
    for name in WINDOWS:
        if convolutions == convolution_places(name):
            return name
    blocks = tuple(
        len({key.split(".")[1] for key in state if key.startswith(f"layer{layer}.")})
        for layer in (1, 2, 3, 4)
    )
    depth = 3 if "layer1.0.conv3.weight" in state else 2
    return next((x for x, form in RESNET_BLOCKS.items() if form == (blocks, depth)), None)


def _computation(classifier: nn.Module) -> list[str]:
    """Give all that a classifier computes, but for its weights: a line for each step."""
    modes = [(layer, layer.training) for layer in classifier.modules()]
    classifier.eval()
    try:
        graph = trace_graph(classifier)
    finally:
        for layer, mode in modes:
            layer.training = mode
    return [f"{node.format_node()} {_layer(classifier, node)}" for node in graph.nodes]


def _layer(classifier: nn.Module, node: fx.Node) -> str:
    if node.op != "call_module":
        return ""
    layer = classifier.get_submodule(str(node.target))
    if isinstance(layer, nn.Dropout):
        return "Dropout"
    if isinstance(layer, nn.BatchNorm2d):
        return f"BatchNorm2d {layer.num_features} {layer.eps}"
    return repr(layer)
