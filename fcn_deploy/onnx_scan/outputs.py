"""Inner tensors as further outputs, without a parser: protobuf merges what is appended."""

from __future__ import annotations

from collections.abc import Sequence

from fcn_deploy.onnx_scan.limits import ScanLimits
from fcn_deploy.onnx_scan.parse import parse_model
from fcn_deploy.onnx_scan.schema import ELEMENT_TYPES, FLOAT_CODE
from fcn_deploy.onnx_scan.wire import encode_delimited, encode_int

__all__ = ["with_extra_outputs"]

# field numbers of onnx.proto
_MODEL_GRAPH = 7
_GRAPH_OUTPUT = 12
_VALUE_INFO_NAME, _VALUE_INFO_TYPE = 1, 2
_TYPE_TENSOR = 1
_TENSOR_ELEM_TYPE = 1


def with_extra_outputs(data: bytes, names: Sequence[str]) -> bytes:
    """Let a model give out inner tensors as well.

    Their element type is the one that the model says, float32 where it says none; their shape is
    left open.

    Args:
        data: a model that has been scanned.
        names: tensors that nodes make; they become outputs after those that are there.

    Returns:
        The model's bytes, followed by a fragment that declares the outputs.

    Raises:
        ValueError: no node makes the tensor, or it is an output already, or is named twice.
        ArtifactError, UnsupportedOpError: as scan_onnx.
    """
    graph = parse_model(data, name="the model", limits=ScanLimits())
    outputs = {tensor.name for tensor in graph.outputs}
    codes = {kind.name: code for code, kind in ELEMENT_TYPES.items()}
    fragment = b""
    for name in names:
        if graph.producer(name) is None:
            raise ValueError(f"no node makes the tensor {name!r}")
        if name in outputs:
            raise ValueError(f"the tensor {name!r} is an output already")
        outputs.add(name)
        described = graph.value_infos.get(name)
        dtype = described.dtype if described is not None else None
        code = FLOAT_CODE if dtype is None else codes[dtype]
        tensor_type = encode_delimited(_TYPE_TENSOR, encode_int(_TENSOR_ELEM_TYPE, code))
        value_info = encode_delimited(_VALUE_INFO_NAME, name.encode())
        value_info += encode_delimited(_VALUE_INFO_TYPE, tensor_type)
        fragment += encode_delimited(_GRAPH_OUTPUT, value_info)
    return data + encode_delimited(_MODEL_GRAPH, fragment) if fragment else data
