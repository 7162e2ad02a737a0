"""Check optimization profiles, the shapes that a plan takes, before TensorRT sees them.

TensorRT accepts a profile whose smallest size exceeds its largest, or that names an input which the
graph lacks, and fails much later with another message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fcn_deploy.artifact.shape_range import ShapeRange
from fcn_deploy.errors import ProfileError
from fcn_deploy.names import TensorSpec

if TYPE_CHECKING:
    import onnx

__all__ = [
    "EngineProfile",
    "InputShapes",
    "check_profiles",
    "graph_inputs",
    "graph_outputs",
    "image_profile",
]

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class InputShapes:
    """Smallest, usual and largest shape of one input, in its own order of dimensions."""

    min: Shape
    opt: Shape
    max: Shape


EngineProfile = Mapping[str, InputShapes]
"""One profile: shapes by the name of the input."""


def graph_inputs(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """Give what a graph must be fed with."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return tuple(_spec(value) for value in model.graph.input if value.name not in weights)


def graph_outputs(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """Give what a graph gives out."""
    return tuple(_spec(value) for value in model.graph.output)


def image_profile(image: TensorSpec, shapes: ShapeRange) -> EngineProfile:
    """Write a range of batch, height and width as shapes of an image input.

    Args:
        image: of rank 4, with channels last or second; which, its fixed dimension tells.

    Raises:
        ProfileError: the input is no image.
    """
    dims = image.shape
    is_image = len(dims) == 4
    order: tuple[int | None, ...]
    if is_image and dims[3] in (1, 3, 4):
        order = (0, 1, 2, None)
    elif is_image and dims[1] is not None:
        order = (0, None, 1, 2)
    else:
        raise ProfileError(
            f"input '{image}' is no image; expected [N, H, W, C] or [N, C, H, W] with C fixed.",
            hint="Give the profile as InputShapes by the input's name.",
        )

    def shape(size: tuple[int, int, int]) -> Shape:
        return tuple(
            (fixed or 0) if place is None else size[place]
            for fixed, place in zip(dims, order, strict=True)
        )

    return {image.name: InputShapes(shape(shapes.min), shape(shapes.opt), shape(shapes.max))}


def check_profiles(inputs: Sequence[TensorSpec], profiles: Sequence[EngineProfile]) -> None:
    """Hold profiles against the inputs of a graph.

    Raises:
        ProfileError: names the profile, the input and the axis.
    """
    specs = {spec.name: spec for spec in inputs}
    dynamic = [spec.name for spec in inputs if None in spec.shape]
    if dynamic and not profiles:
        raise ProfileError(
            f"input '{dynamic[0]}' is dynamic and no profile was given.",
            hint="Give the range of shapes that the plan must take.",
        )
    for index, profile in enumerate(profiles):
        for name, shapes in profile.items():
            if name not in specs:
                raise ProfileError(f"profile names '{name}', the model has inputs {list(specs)}.")
            _check_shapes(specs[name], shapes)
        missing = [name for name in dynamic if name not in profile]
        if missing:
            raise ProfileError(f"profile {index} says nothing of input '{missing[0]}'.")


def _check_shapes(spec: TensorSpec, shapes: InputShapes) -> None:
    where = f"profile for input '{spec.name}'"
    for word, shape in (("min", shapes.min), ("opt", shapes.opt), ("max", shapes.max)):
        if len(shape) != len(spec.shape):
            raise ProfileError(
                f"{where}: {word} {shape} has {len(shape)} axes; the model's input is {spec}."
            )
        for axis, (asked, fixed) in enumerate(zip(shape, spec.shape, strict=True)):
            if fixed is not None and asked != fixed:
                raise ProfileError(
                    f"{where}: axis {axis} is fixed at {fixed} in the model but {word} of the "
                    f"profile asks {asked}."
                )
            if asked < 1:
                raise ProfileError(f"{where}: {word} {shape} is {asked} at axis {axis}.")
    for low, high in (("min", "opt"), ("opt", "max")):
        smaller, larger = getattr(shapes, low), getattr(shapes, high)
        for axis, (first, second) in enumerate(zip(smaller, larger, strict=True)):
            if first > second:
                raise ProfileError(f"{where}: {low} {smaller} > {high} {larger} at axis {axis}.")


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    import onnx

    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    dims = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    return TensorSpec(value.name, dtype.name, dims)
