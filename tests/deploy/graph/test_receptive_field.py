"""The rule of each operator against a probe: pixels are changed, and what changes is compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from fcn_deploy.graph.receptive_field import ReceptiveField
from tests.deploy.field_probe import Chain, field_of, predicted, probe, reach

Build = Callable[[Chain], str]

SIZE = (37, 42)
EVEN = (40, 48)
END = 2**63 - 1


def unary(op: str, **attributes: Any) -> Build:
    return lambda chain: chain.add(op, "image", **attributes)


def conv(kernel: tuple[int, int], **attributes: Any) -> Build:
    return lambda chain: chain.conv("image", kernel, **attributes)


def pool(op: str, kernel: tuple[int, int], **attributes: Any) -> Build:
    return lambda chain: chain.add(op, "image", kernel_shape=kernel, **attributes)


def transposed(kernel: tuple[int, int], **attributes: Any) -> Build:
    return lambda chain: chain.add(
        "ConvTranspose", "image", chain.floats(1, 1, *kernel), **attributes
    )


def resized(*scales: float, **attributes: Any) -> Build:
    def build(chain: Chain) -> str:
        factors = chain.constant(np.array([1, 1, *scales], np.float32))
        return chain.add("Resize", "image", "", factors, **attributes)

    return build


def resized_back(**attributes: Any) -> Build:
    """Half the size and back, by the image's own size."""

    def build(chain: Chain) -> str:
        half = chain.conv("image", (2, 2), strides=[2, 2])
        sizes = chain.add("Shape", "image")
        return chain.add("Resize", half, "", "", sizes, **attributes)

    return build


def padded(*pads: int, **attributes: Any) -> Build:
    return lambda chain: chain.add("Pad", "image", chain.ints(*pads), **attributes)


def sliced(starts: tuple[int, int], ends: tuple[int, int], steps: tuple[int, int]) -> Build:
    return lambda chain: chain.add(
        "Slice", "image", *(chain.ints(*one) for one in (starts, ends, (2, 3), steps))
    )


def binary(op: str, *, as_bool: bool = False) -> Build:
    """The operator on two features that see different windows."""

    def build(chain: Chain) -> str:
        one = chain.conv("image", (3, 1), pads=[1, 0, 1, 0])
        other = chain.conv("image", (1, 5), pads=[0, 2, 0, 2])
        if op in ("Pow", "Mod"):  # of positive numbers
            one, other = (
                chain.add("Add", chain.add("Abs", one), chain.constant(np.float32(0.5)))
                for one in (one, other)
            )
        if as_bool:
            nought = chain.constant(np.float32(0))
            one, other = (
                chain.add("Greater", chain.add("Cos", one), nought) for one in (one, other)
            )
        if op == "Equal":
            one, other = (chain.add("Sign", one) for one in (one, other))
        more = {"fmod": 1} if op == "Mod" else {}
        result = chain.add(op, one, other, **more)
        if as_bool or op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
            result = chain.add("Cast", result, to=TensorProto.FLOAT)
        return result

    return build


def chosen(chain: Chain) -> str:
    one = chain.conv("image", (3, 1), pads=[1, 0, 1, 0])
    other = chain.conv("image", (1, 5), pads=[0, 2, 0, 2])
    which = chain.add("Greater", "image", chain.constant(np.float32(1)))
    return chain.add("Where", which, one, other)


def clipped(chain: Chain) -> str:
    return chain.add("Clip", "image", chain.constant(np.float32(0)), chain.constant(np.float32(6)))


def negated(chain: Chain) -> str:
    high = chain.add("Greater", "image", chain.constant(np.float32(1)))
    return chain.add("Cast", chain.add("Not", high), to=TensorProto.FLOAT)


def normalised(chain: Chain) -> str:
    return chain.add("BatchNormalization", "image", *(chain.constant(np.full(1, v, np.float32))
                                                     for v in (2.0, 1.0, 0.5, 4.0)))  # fmt: skip


def quantised(chain: Chain) -> str:
    scale = (chain.constant(np.float32(0.1)), chain.constant(np.uint8(100)))
    return chain.add("DequantizeLinear", chain.add("QuantizeLinear", "image", *scale), *scale)


def leaky(chain: Chain) -> str:
    return chain.add("PRelu", "image", chain.floats(1, 1, 1))


def wide(chain: Chain) -> str:
    """Three channels: those of the image's, of a window and of another."""
    left = chain.conv("image", (3, 3), pads=[1, 1, 1, 1])
    right = chain.conv("image", (1, 5), pads=[0, 0, 0, 4])
    return chain.add("Concat", "image", left, right, axis=1)


def on_channels(op: str, **attributes: Any) -> Build:
    return lambda chain: chain.add(op, wide(chain), **attributes)


def reduced(op: str) -> Build:
    return lambda chain: chain.add(op, wide(chain), chain.ints(1), keepdims=1)


def second_of_split(chain: Chain) -> str:
    chain.add("Split", wide(chain), chain.ints(1, 2), outputs=2, axis=1)
    return str(chain.nodes[-1].output[1])


def gathered(chain: Chain) -> str:
    return chain.add("Gather", wide(chain), chain.ints(1, 2), axis=1)


def grouped(chain: Chain) -> str:
    source = chain.add("Concat", "image", chain.conv("image", (1, 1)), axis=1)
    return chain.add("Conv", source, chain.floats(4, 1, 3, 2), group=2, pads=[1, 1, 1, 0])


def squeezed(chain: Chain) -> str:
    flat = chain.add("Squeeze", "image", chain.ints(1))
    return chain.add("Unsqueeze", flat, chain.ints(1))


def reshaped(chain: Chain) -> str:
    more = chain.add("Unsqueeze", wide(chain), chain.ints(1))
    dims = chain.add("Shape", wide(chain))
    return chain.add("Reshape", more, dims)


def multiplied(chain: Chain) -> str:
    last = chain.add("Transpose", wide(chain), perm=[0, 2, 3, 1])
    product = chain.add("MatMul", last, chain.floats(3, 2))
    return chain.add("Transpose", product, perm=[0, 3, 1, 2])


def expanded(chain: Chain) -> str:
    return chain.add("Expand", "image", chain.ints(1, 3, 1, 1))


def layer_normalised(chain: Chain) -> str:
    last = chain.add("Transpose", wide(chain), perm=[0, 2, 3, 1])
    return chain.add(
        "Transpose",
        chain.add("LayerNormalization", last, chain.floats(3), axis=-1),
        perm=[0, 3, 1, 2],
    )


def rearranged(chain: Chain) -> str:
    deep = chain.add("SpaceToDepth", "image", blocksize=4)
    return chain.add("DepthToSpace", deep, blocksize=2)


def four_to_one(chain: Chain) -> str:
    deep = chain.add("Conv", "image", chain.floats(4, 1, 3, 2), pads=[1, 0, 1, 1])
    return chain.add("DepthToSpace", deep, blocksize=2)


def filled(chain: Chain) -> str:
    """Add a constant of the image's size, made at run time."""
    return chain.add("Add", "image", chain.add("ConstantOfShape", chain.add("Shape", "image")))


UNARY = (
    "Identity Relu LeakyRelu Sigmoid HardSigmoid HardSwish Tanh Elu Selu Celu Softplus Softsign "
    "Mish Erf Exp Log Sqrt ThresholdedRelu Reciprocal Abs Neg Sign Floor Ceil Round Sin Cos Dropout"
)
BINARY = "Add Sub Mul Div Pow Mod Min Max Sum Mean"
REDUCTIONS = "Mean Sum Max Min Prod L1 L2 SumSquare LogSum LogSumExp"

EXACT: dict[str, Build] = {
    **{op: unary(op) for op in UNARY.split()},
    "Gelu": unary("Gelu"),
    "Cast": unary("Cast", to=TensorProto.DOUBLE),
    "CastLike": lambda chain: chain.add("CastLike", "image", chain.constant(np.float64(0))),
    "Clip": clipped,
    "Not": negated,
    "BatchNormalization": normalised,
    "QuantizeLinear": quantised,
    "LRN": on_channels("LRN", size=3),
    "PRelu": leaky,
    **{op: binary(op) for op in BINARY.split()},
    **{op: binary(op) for op in ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"]},
    **{op: binary(op, as_bool=True) for op in ("And", "Or", "Xor")},
    "Where": chosen,
    **{f"Reduce{op}": reduced(f"Reduce{op}") for op in REDUCTIONS.split()},
    "ArgMax": on_channels("ArgMax", axis=1),
    "ArgMin": on_channels("ArgMin", axis=-3),
    "Softmax": on_channels("Softmax", axis=1),
    "LogSoftmax": on_channels("LogSoftmax", axis=1),
    "Hardmax": on_channels("Hardmax", axis=1),
    "LayerNormalization": layer_normalised,
    "Conv": conv((3, 5)),
    "Conv padded": conv((3, 5), pads=[1, 2, 1, 2]),
    "Conv padded on one side": conv((4, 3), pads=[3, 0, 0, 2]),
    "Conv strided": conv((3, 4), strides=[2, 3], pads=[1, 1, 1, 1]),
    "Conv dilated": conv((3, 2), dilations=[3, 4], pads=[3, 1, 3, 2]),
    "Conv strided and dilated": conv((3, 3), strides=[3, 2], dilations=[2, 3]),
    "Conv grouped": grouped,
    "Conv of even windows": conv((2, 4), strides=[2, 2], pads=[0, 1, 0, 1]),
    "Conv that skips pixels": conv((1, 1), strides=[2, 3]),
    "Conv SAME_UPPER": conv((3, 4), auto_pad="SAME_UPPER"),
    "Conv SAME_LOWER": conv((3, 4), auto_pad="SAME_LOWER"),
    "Conv VALID": conv((3, 4), auto_pad="VALID", strides=[2, 1]),
    "MaxPool": pool("MaxPool", (3, 2), strides=[2, 2], pads=[1, 0, 0, 1]),
    "MaxPool dilated": pool("MaxPool", (2, 3), dilations=[3, 2]),
    "MaxPool rounded up": pool("MaxPool", (3, 2), strides=[2, 2], ceil_mode=1),
    "MaxPool padded, rounded up": pool(
        "MaxPool", (2, 3), strides=[3, 4], pads=[1, 1, 1, 1], ceil_mode=1
    ),
    "AveragePool": pool("AveragePool", (4, 3), strides=[2, 3], pads=[1, 1, 2, 1]),
    "AveragePool rounded up": pool("AveragePool", (3, 5), strides=[2, 4], ceil_mode=1),
    "AveragePool padded, rounded up": pool(
        "AveragePool", (2, 4), strides=[2, 4], pads=[1, 1, 1, 1], ceil_mode=1
    ),
    "AveragePool dilated": pool("AveragePool", (2, 3), dilations=[3, 2]),
    "AveragePool SAME_UPPER": pool("AveragePool", (4, 3), auto_pad="SAME_UPPER"),
    "LpPool": pool("LpPool", (2, 3), strides=[1, 2], p=2),
    "ConvTranspose": transposed((4, 3), strides=[2, 3]),
    "ConvTranspose padded": transposed((4, 6), strides=[2, 3], pads=[1, 2, 1, 1]),
    "ConvTranspose with more behind": transposed(
        (3, 5), strides=[2, 4], pads=[1, 0, 1, 2], output_padding=[1, 2]
    ),
    "ConvTranspose dilated": transposed((3, 2), strides=[2, 3], dilations=[2, 3]),
    "ConvTranspose with holes": transposed((1, 2), strides=[2, 3]),
    "ConvTranspose of stride 1": transposed((3, 4), pads=[1, 1, 1, 2]),
    "Resize linear": resized(2, 4, mode="linear"),
    "Resize linear by a ratio": resized(1.5, 2.5, mode="linear"),
    "Resize linear smaller": resized(0.5, 0.25, mode="linear"),
    "Resize linear, pytorch_half_pixel": resized(
        4, 3, mode="linear", coordinate_transformation_mode="pytorch_half_pixel"
    ),
    "Resize linear, asymmetric": resized(
        2, 3, mode="linear", coordinate_transformation_mode="asymmetric"
    ),
    "Pad": padded(0, 0, 2, 1, 0, 0, 0, 3),
    "Pad that crops": padded(0, 0, -2, 1, 0, 0, -1, -3),
    "Slice": sliced((1, 2), (-3, END), (1, 1)),
    "Slice with steps": sliced((3, 0), (END, -1), (2, 3)),
    "Concat": wide,
    "Split": second_of_split,
    "Gather": gathered,
    "Squeeze and Unsqueeze": squeezed,
    "Reshape": reshaped,
    "MatMul": multiplied,
    "Expand": expanded,
    "ConstantOfShape": filled,
    "DepthToSpace": four_to_one,
}


def field_and_probe(
    build: Build, size: tuple[int, int], *, opset: int = 21, **options: Any
) -> list[tuple[Any, Any]]:
    """Give, for rows and columns, the span that is said and what the probe finds."""
    chain = Chain(opset=opset)
    model = chain.model(build(chain))
    field = field_of(model)
    assert isinstance(field, ReceptiveField), field
    depends = probe(model, size, **options)
    # the number of samples is the operator's, whatever rest the size leaves
    assert field.samples_at(size) == tuple(len(one) for one in depends)
    return list(zip((field.rows, field.columns), depends, strict=True))


@pytest.mark.parametrize("name", EXACT)
def test_the_span_is_what_the_probe_finds(name: str) -> None:
    for span, depends in field_and_probe(EXACT[name], SIZE):
        outside = depends & ~predicted(span, *depends.shape)

        assert not outside.any(), np.argwhere(outside)
        assert reach(span, depends) == (span.low, span.high)


# of operators that read fewer samples at some ratios, or give some a weight of 0: what is said
# must hold all that the probe finds, and at most so many pixels more on each side
CONTAINED: dict[str, tuple[Build, int]] = {
    **{
        f"Resize nearest {mode} {coordinates}": (
            resized(
                2, 3, nearest_mode=mode, coordinate_transformation_mode=coordinates, mode="nearest"
            ),
            1,
        )
        for mode in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
        for coordinates in ("half_pixel", "asymmetric")
    },
    "Resize nearest smaller": (resized(0.5, 0.25, mode="nearest"), 1),
    "Resize cubic": (resized(2, 3, mode="cubic"), 1),
    "Resize cubic smaller": (resized(0.5, 0.25, mode="cubic"), 1),
    "Resize linear smaller, antialias": (resized(0.5, 0.25, mode="linear", antialias=1), 4),
    "Resize cubic smaller, antialias": (resized(0.5, 0.25, mode="cubic", antialias=1), 4),
    "Resize linear smaller by a ratio, antialias": (
        resized(2 / 3, 0.75, mode="linear", antialias=1),
        4,
    ),
    "Resize cubic larger, antialias": (resized(2, 3, mode="cubic", antialias=1), 4),
    "Resize of some axes": (
        lambda chain: chain.add(
            "Resize", "image", "", chain.constant(np.array([2], np.float32)), axes=[3]
        ),
        1,
    ),
    "Resize to the image's size": (resized_back(mode="linear"), 2),
    "SpaceToDepth and back half way": (rearranged, 3),
}


@pytest.mark.parametrize("name", CONTAINED)
def test_the_span_holds_what_the_probe_finds_and_little_more(name: str) -> None:
    build, spare = CONTAINED[name]

    for span, depends in field_and_probe(build, EVEN):
        outside = depends & ~predicted(span, *depends.shape)
        low, high = reach(span, depends)

        assert not outside.any(), np.argwhere(outside)
        assert 0 <= low - span.low <= spare
        assert 0 <= span.high - high <= spare


# the mirrored samples of the border are those that a tile at this border has, too
@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_padding_with_the_images_own_pixels_moves_the_inside_as_zeros_do(mode: str) -> None:
    for span, depends in field_and_probe(padded(0, 0, 2, 1, 0, 0, 0, 3, mode=mode), SIZE):
        assert reach(span, depends) == (span.low, span.high)


def one_axis_less(chain: Chain) -> str:
    return chain.add("ArgMax", wide(chain), axis=1, keepdims=0)


def channels_last(chain: Chain) -> str:
    return chain.add("Transpose", wide(chain), perm=[0, 2, 3, 1])


def turned(chain: Chain) -> str:
    return chain.add("Squeeze", chain.add("Transpose", "image", perm=[0, 1, 3, 2]), chain.ints(1))


@pytest.mark.parametrize(
    ("build", "axes"), [(one_axis_less, (1, 2)), (channels_last, (1, 2)), (turned, (2, 1))]
)
def test_axes_of_the_image_are_followed_where_they_go(build: Build, axes: tuple[int, int]) -> None:
    for span, depends in field_and_probe(build, SIZE, axes=axes):
        assert not (depends & ~predicted(span, *depends.shape)).any()
        assert reach(span, depends) == (span.low, span.high)


def upsampled(chain: Chain) -> str:
    factors = chain.constant(np.array([1, 1, 2, 3], np.float32))
    return chain.add("Upsample", "image", factors, mode="linear")


def resized_of_old(chain: Chain) -> str:
    return chain.add("Resize", "image", chain.constant(np.array([1, 1, 2, 0.5], np.float32)))


def second_of_old_split(chain: Chain) -> str:
    chain.add("Split", wide(chain), outputs=2, axis=1, split=[1, 2])
    return str(chain.nodes[-1].output[1])


OLDER: dict[str, tuple[int, Build]] = {
    "Upsample": (9, upsampled),
    "Resize": (10, resized_of_old),
    "Pad": (10, unary("Pad", pads=[0, 0, 2, 1, 0, 0, 0, 3])),
    "Slice": (9, unary("Slice", starts=[1, 2], ends=[-3, 2**31 - 1], axes=[2, 3])),
    "Squeeze": (
        11,
        lambda chain: chain.add("Unsqueeze", chain.add("Squeeze", "image", axes=[1]), axes=[1]),
    ),
    "Split": (
        11,
        second_of_old_split,
    ),
    "ReduceMean": (13, on_channels("ReduceMean", axes=[1])),
    "Clip": (6, unary("Clip", min=0.0, max=6.0)),
}


@pytest.mark.parametrize("name", OLDER)
def test_older_forms_of_operators_have_the_same_spans(name: str) -> None:
    opset, build = OLDER[name]

    for span, depends in field_and_probe(build, EVEN, opset=opset):
        low, high = reach(span, depends)

        assert not (depends & ~predicted(span, *depends.shape)).any()
        assert 0 <= low - span.low < 1  # nearest samples are said to lie between two
        assert 0 <= span.high - high < 1


def and_image(build: Build) -> Build:
    """What an operator makes of the whole image, added to the image."""
    return lambda chain: chain.add("Add", "image", build(chain))


def trained(chain: Chain) -> str:
    values = [chain.constant(np.full(1, value, np.float32)) for value in (2.0, 1.0, 0.5, 4.0)]
    return chain.add("BatchNormalization", "image", *values, outputs=3, training_mode=1)


def reduced_rows(op: str) -> Build:
    return lambda chain: chain.add("Add", "image", chain.add(op, "image", chain.ints(2)))


WHOLE: dict[str, tuple[int, Build]] = {
    **{op: (21, and_image(unary(op))) for op in ("GlobalAveragePool", "GlobalMaxPool")},
    "GlobalLpPool": (21, and_image(unary("GlobalLpPool", p=2))),
    **{f"Reduce{op}": (21, reduced_rows(f"Reduce{op}")) for op in REDUCTIONS.split()},
    "ArgMax": (21, lambda chain: chain.add(
        "Add", "image", chain.add("Cast", chain.add("ArgMax", "image", axis=2), to=1)
    )),
    "Softmax": (21, unary("Softmax", axis=-1)),
    "Softmax of old": (11, unary("Softmax", axis=1)),
    "LogSoftmax": (21, unary("LogSoftmax", axis=2)),
    "InstanceNormalization": (
        21,
        lambda chain: chain.add(
            "InstanceNormalization", "image", chain.floats(1), chain.floats(1)
        ),
    ),
    "GroupNormalization": (
        21,
        lambda chain: chain.add(
            "GroupNormalization", "image", chain.floats(1), chain.floats(1), num_groups=1
        ),
    ),
    "MeanVarianceNormalization": (21, unary("MeanVarianceNormalization", axes=[2, 3])),
    "LayerNormalization": (
        21,
        lambda chain: chain.add(
            "LayerNormalization", "image", chain.constant(np.float32(2)), axis=1
        ),
    ),
    "BatchNormalization": (15, trained),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_operators_that_read_the_whole_image_are_named(name: str) -> None:
    opset, build = WHOLE[name]
    chain = Chain(opset=opset)
    model = chain.model(build(chain))

    field = field_of(model)
    depends = probe(model, (12, 14))

    assert isinstance(field, ReceptiveField), field
    assert any(len(seen) > 2 for one in depends for seen in map(np.flatnonzero, one))
    assert [text.split()[0] for text in field.broken_by] == [name.split()[0]]
    assert field.broken_by[0].endswith("reads the whole image")


def both_turned(chain: Chain) -> str:
    return chain.add(
        "Slice", "image", chain.ints(-1), chain.ints(-END), chain.ints(3), chain.ints(-1)
    )


def side_by_side(chain: Chain) -> str:
    return chain.add("Concat", "image", "image", axis=2)


def a_column(chain: Chain) -> str:
    return chain.add("Gather", "image", chain.ints(0, 1, 2), axis=3)


def halves(chain: Chain) -> str:
    return chain.add("Split", "image", outputs=2, axis=3, num_outputs=2)


def from_the_end(chain: Chain) -> str:
    return chain.add("Slice", "image", chain.ints(-9), chain.ints(END), chain.ints(2))


def fixed_part(chain: Chain) -> str:
    return chain.add("Slice", "image", chain.ints(0), chain.ints(9), chain.ints(2))


def mixed(chain: Chain) -> str:
    return chain.add("Reshape", "image", chain.ints(0, 1, -1, 2))


def other_strides(chain: Chain) -> str:
    return chain.add("Add", "image", chain.conv("image", (1, 1), strides=[1, 2]))


def over_columns(chain: Chain) -> str:
    return chain.add("MatMul", "image", chain.add("Transpose", "image", perm=[0, 1, 3, 2]))


def to_a_fixed_size(chain: Chain) -> str:
    return chain.add("Resize", "image", "", "", chain.ints(1, 1, 32, 32))


REFUSED: dict[str, tuple[Build, str]] = {
    "turned round": (both_turned, "turns an axis round"),
    "side by side": (side_by_side, "joins images side by side"),
    "a column": (a_column, "picks rows or columns"),
    "halves": (halves, "cuts the image apart"),
    "from the end": (from_the_end, "in another ratio in an image of another size"),
    "fixed part": (fixed_part, "does not follow the image's size"),
    "mixed": (mixed, "mixes rows or columns"),
    "other strides": (other_strides, "meets sizes|meets strides"),
    "over columns": (over_columns, "multiplies matrices over the image"),
    "to a fixed size": (to_a_fixed_size, "in another ratio in an image of another size"),
    "half_pixel_symmetric": (
        resized(2, 2, coordinate_transformation_mode="half_pixel_symmetric"),
        "has the coordinates half_pixel_symmetric",
    ),
    "computed padding": (transposed((3, 3), auto_pad="SAME_UPPER"), "computes its padding"),
    "unknown": (lambda chain: chain.add("CumSum", "image", chain.ints(2)), "is not known"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_fixed_span_is_refused_with_the_reason(name: str) -> None:
    build, reason = REFUSED[name]
    chain = Chain()

    field = field_of(chain.model(build(chain)))

    assert isinstance(field, str)
    assert any(text in field for text in reason.split("|")), field


def padded_to_multiples(chain: Chain, multiple: int) -> str:
    """Pad behind until height and width are multiples, at run time, and blur at half the size."""
    sizes = chain.add("Slice", chain.add("Shape", "image"), chain.ints(2), chain.ints(4))
    missing = chain.add("Mod", chain.add("Neg", sizes), chain.ints(multiple))
    pads = chain.add("Concat", chain.ints(0, 0, 0, 0, 0, 0), missing, axis=0)
    return chain.conv(chain.add("Pad", "image", pads), (3, 3), strides=[2, 2], pads=[1, 1, 1, 1])


def test_padding_to_more_than_the_strides_is_said_to_depend_on_the_size() -> None:
    """A tile's rest to a multiple of 32 is not the image's, where tiles begin at multiples of 2."""
    chain = Chain()

    field = field_of(chain.model(padded_to_multiples(chain, 32)))

    assert isinstance(field, ReceptiveField), field
    assert field.alignment == (2, 2)
    reason = field.differs_at((36, 64))
    assert reason is not None
    assert "Pad" in reason
    assert "does not follow the image's size" in reason


def test_padding_to_multiples_of_the_strides_is_a_tiles_own() -> None:
    chain = Chain()

    field = field_of(chain.model(padded_to_multiples(chain, 2)))

    assert isinstance(field, ReceptiveField), field
    assert [field.differs_at(size) for size in ((36, 64), (37, 65))] == [None, None]


def test_values_scaled_by_the_images_size_are_said_to_depend_on_it() -> None:
    chain = Chain()
    height = chain.add("Gather", chain.add("Shape", "image"), chain.ints(2))
    scaled = chain.add("Mul", "image", chain.add("Cast", height, to=TensorProto.FLOAT))

    field = field_of(chain.model(scaled))

    assert isinstance(field, ReceptiveField), field
    assert field.broken_by == ("Mul 'out' takes a value that depends on the image's size",)
