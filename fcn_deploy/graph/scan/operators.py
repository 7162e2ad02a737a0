"""The first inputs that an operator cannot do without, which libraries read without counting.

`onnx` counts them in a foreign file, but a crafted artifact is opened without it: OpenVINO 2026.4.1
then ends with a segmentation fault on a Conv, Pad, Max or Min with too few. An operator that is not
here has one, so that a new one needs no line.
"""

from __future__ import annotations

__all__ = ["required_inputs"]

_SEVERAL = frozenset(("Concat", "Einsum", "Max", "Mean", "Min", "Sum"))  # each that is there
_NUMBERS = {
    0: "Constant RandomNormal RandomUniform",
    2: """
        Add AffineGrid And BitShift BitwiseAnd BitwiseOr BitwiseXor CastLike CausalConvWithState
        CenterCropPad Compress Conv ConvInteger ConvTranspose CumProd CumSum DequantizeLinear Div
        Equal Expand Gather GatherElements GatherND Gemm Greater GreaterOrEqual GridSample
        LayerNormalization Less LessOrEqual MatMul MatMulInteger MaxRoiPool MaxUnpool Mod Mul
        NegativeLogLikelihoodLoss NonMaxSuppression Or PRelu Pow QuantizeLinear RMSNormalization
        ReverseSequence STFT SoftmaxCrossEntropyLoss Sub SwiGLU TensorScatter Tile Xor
    """,
    3: """
        Attention Col2Im DeformConv GRU GroupNormalization InstanceNormalization LSTM
        LinearAttention OneHot RNN Range RoiAlign RotaryEmbedding Scatter ScatterElements ScatterND
        Where
    """,
    5: "BatchNormalization MelWeightMatrix",
    8: "QLinearConv QLinearMatMul",
}
_REQUIRED = {name: number for number, names in _NUMBERS.items() for name in names.split()}
_MORE_SINCE = {  # first opset, number of inputs; one before
    "Pad": (11, 2),
    "Reshape": (5, 2),
    "Slice": (10, 3),
    "TopK": (10, 2),
    "Unsqueeze": (13, 2),
    "Upsample": (9, 2),
}


def required_inputs(op_type: str, given: int, opset: int) -> int:
    """Give how many of the first inputs must be there, of an operator that is given some."""
    if op_type in _SEVERAL:
        return max(given, 1)
    first, number = _MORE_SINCE.get(op_type, (1, 1))
    return _REQUIRED.get(op_type, number if opset >= first else 1)
