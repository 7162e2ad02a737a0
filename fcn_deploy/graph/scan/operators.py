"""The standard operators and how many inputs and outputs each takes, by opset (1 to 28).

A library may index the inputs that an operator must have without counting them: OpenVINO 2026.4.1
ends with a segmentation fault on a Conv that has one input. Operators that are not here are not
run: control flow, sequences, optional values, texts and encoded images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["REFUSED", "Arity", "find_arity"]


@dataclass(frozen=True, slots=True)
class Arity:
    """Numbers of inputs and outputs.

    Attributes:
        min_inputs: as many of the first inputs must be given.
        max_inputs: None where any number is taken.
        max_outputs: None where any number is given.
    """

    min_inputs: int
    max_inputs: int | None
    max_outputs: int | None


REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        ("If", "Loop", "Scan"),
        "holds a graph of its own",
    ),
    **dict.fromkeys(
        (
            *("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase"),
            *("SequenceInsert", "SequenceLength", "SequenceMap", "SplitToSequence"),
            *("ConcatFromSequence",),
        ),
        "works on sequences",
    ),
    **dict.fromkeys(
        ("Optional", "OptionalGetElement", "OptionalHasElement"),
        "works on optional values",
    ),
    **dict.fromkeys(
        (
            *("StringConcat", "StringNormalizer", "StringSplit", "RegexFullMatch"),
            *("TfIdfVectorizer",),
        ),
        "works on texts",
    ),
    **dict.fromkeys(
        ("ImageDecoder",),
        "works on encoded images",
    ),
}
"""Operators that no plain network needs, and why each is refused."""

_ARITIES: dict[tuple[int, int | None, int | None], tuple[str, ...]] = {
    (0, 0, 1): ("Constant", "RandomNormal", "RandomUniform"),
    (1, 1, 1): (
        *(
            "Abs",
            "Acos",
            "Acosh",
            "ArgMax",
            "ArgMin",
            "Asin",
            "Asinh",
            "Atan",
            "Atanh",
            "AveragePool",
        ),
        *("Bernoulli", "BitCast", "BitwiseNot", "BlackmanWindow", "Cast", "Ceil", "Celu"),
        *("ConstantOfShape", "Cos", "Cosh", "DepthToSpace", "Det", "Elu", "Erf", "Exp", "EyeLike"),
        *("Flatten", "Floor", "Gelu", "GlobalAveragePool", "GlobalLpPool"),
        *("GlobalMaxPool", "HammingWindow", "HannWindow", "HardSigmoid", "HardSwish"),
        *("Hardmax", "Identity", "IsInf", "IsNaN", "LRN", "LeakyRelu", "Log", "LogSoftmax"),
        *("LpNormalization", "LpPool", "MeanVarianceNormalization", "Mish"),
        *("Multinomial", "Neg", "NonZero", "Not", "RandomNormalLike", "RandomUniformLike"),
        *(
            "Reciprocal",
            "Relu",
            "Round",
            "Selu",
            "Shape",
            "Shrink",
            "Sigmoid",
            "Sign",
            "Sin",
            "Sinh",
        ),
        *("Size", "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Sqrt", "Swish", "Tan"),
        *("Tanh", "ThresholdedRelu", "Transpose"),
    ),
    (1, 1, 3): ("DynamicQuantizeLinear",),
    (1, 1, 4): ("Unique",),
    (1, 2, 1): ("Trilu",),
    (1, None, 1): ("Concat", "Einsum", "Max", "Mean", "Min", "Sum"),
    (2, 2, 1): (
        *("Add", "AffineGrid", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor"),
        *("CastLike", "CenterCropPad", "Compress", "CumProd", "CumSum", "Div", "Equal"),
        *("Expand", "Gather", "GatherElements", "GatherND", "Greater", "GreaterOrEqual"),
        *("GridSample", "Less", "LessOrEqual", "MatMul", "MaxRoiPool", "Mod", "Mul", "Or", "PRelu"),
        *("Pow", "RMSNormalization", "ReverseSequence", "Sub", "SwiGLU", "Xor"),
    ),
    (2, 3, 1): (
        *("Conv", "ConvTranspose", "DequantizeLinear", "MaxUnpool"),
        *("NegativeLogLikelihoodLoss", "QuantizeLinear", "TensorScatter"),
    ),
    (2, 3, 2): ("SoftmaxCrossEntropyLoss",),
    (2, 3, 3): ("LayerNormalization",),
    (2, 4, 1): ("ConvInteger", "MatMulInteger", "STFT"),
    (2, 4, 2): ("CausalConvWithState",),
    (2, 5, 1): ("NonMaxSuppression",),
    (3, 3, 1): (
        *("Col2Im", "GroupNormalization", "InstanceNormalization", "OneHot", "Range"),
        *("RoiAlign", "Scatter", "ScatterElements", "ScatterND", "Where"),
    ),
    (3, 4, 1): ("RotaryEmbedding",),
    (3, 5, 1): ("DeformConv",),
    (3, 6, 2): ("GRU", "LinearAttention", "RNN"),
    (3, 8, 3): ("LSTM",),
    (5, 5, 1): ("MelWeightMatrix",),
    (8, 8, 1): ("QLinearMatMul",),
    (8, 9, 1): ("QLinearConv",),
}

_CHANGED: dict[tuple[tuple[int, int, int | None, int | None], ...], tuple[str, ...]] = {
    ((23, 3, 6, 4), (24, 3, 7, 4)): ("Attention",),
    ((1, 5, 5, 5), (14, 5, 5, 3)): ("BatchNormalization",),
    ((1, 1, 1, 1), (11, 1, 3, 1)): ("Clip",),
    ((17, 1, 2, 1), (20, 1, 3, 1)): ("DFT",),
    ((1, 1, 1, 2), (12, 1, 3, 2)): ("Dropout",),
    ((1, 3, 3, 1), (11, 2, 3, 1)): ("Gemm",),
    ((1, 1, 1, 1), (8, 1, 1, 2)): ("MaxPool",),
    ((1, 1, 1, 1), (11, 2, 3, 1), (18, 2, 4, 1)): ("Pad",),
    ((1, 1, 1, 1), (18, 1, 2, 1)): (
        *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax"),
        *("ReduceMean", "ReduceMin", "ReduceProd", "ReduceSumSquare"),
    ),
    ((1, 1, 1, 1), (13, 1, 2, 1)): ("ReduceSum", "Squeeze"),
    ((1, 1, 1, 1), (5, 2, 2, 1)): ("Reshape",),
    ((10, 2, 2, 1), (11, 3, 4, 1), (13, 1, 4, 1)): ("Resize",),
    ((1, 1, 1, 1), (10, 3, 5, 1)): ("Slice",),
    ((1, 1, 2, None), (2, 1, 1, None), (13, 1, 2, None)): ("Split",),
    ((1, 3, 3, 1), (6, 2, 2, 1)): ("Tile",),
    ((1, 1, 1, 2), (10, 2, 2, 2)): ("TopK",),
    ((1, 1, 1, 1), (13, 2, 2, 1)): ("Unsqueeze",),
    ((1, 1, 1, 1), (9, 2, 2, 1)): ("Upsample",),
}
"""Operators whose numbers changed: (first opset, then as in Arity), in order."""

_TABLE: dict[str, tuple[tuple[int, Arity], ...]] = {
    **{name: ((1, Arity(*key)),) for key, names in _ARITIES.items() for name in names},
    **{
        name: tuple((entry[0], Arity(*entry[1:])) for entry in key)
        for key, names in _CHANGED.items()
        for name in names
    },
}


def find_arity(op_type: str, opset: int) -> Arity | None:
    """Give an operator's numbers in an opset; None for one that does not exist or is refused."""
    found = None
    for first, arity in _TABLE.get(op_type, ()):
        if found is None or first <= opset:
            found = arity
    return found
