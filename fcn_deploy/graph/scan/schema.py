"""Field numbers of onnx.proto, IR version 14 (onnx 1.23), and what its element types are called."""

from __future__ import annotations

from dataclasses import dataclass

from fcn_deploy.graph.scan.wire import Kind, Message

__all__ = [
    "ATTRIBUTE",
    "ATTRIBUTE_TYPES",
    "DIMENSION",
    "ELEMENT_TYPES",
    "ENTRY",
    "GRAPH",
    "IR_VERSION",
    "MODEL",
    "NODE",
    "OPSET",
    "SHAPE",
    "TENSOR",
    "TENSOR_TYPE",
    "TYPE",
    "VALUE_INFO",
    "ElementType",
]

IR_VERSION = 14
"""The format that these tables describe; a newer file may have more fields."""

_INT64, _INT32, _UINT64, _FLOAT = Kind.INT64, Kind.INT32, Kind.UINT64, Kind.FLOAT
_STRING, _BYTES, _MESSAGE = Kind.STRING, Kind.BYTES, Kind.MESSAGE
_INTS, _FLOATS, _DOUBLES = Kind.PACKABLE_INT, Kind.PACKABLE_FLOAT, Kind.PACKABLE_DOUBLE


def _message(
    name: str, fields: dict[int, tuple[str, Kind]], children: dict[str, Message] | None = None
) -> Message:
    return Message(name, fields, children or {})


ENTRY = _message("StringStringEntryProto", {1: ("key", _STRING), 2: ("value", _STRING)})
OPSET = _message("OperatorSetIdProto", {1: ("domain", _STRING), 2: ("version", _INT64)})
TENSOR = _message(
    "TensorProto",
    {
        1: ("dims", _INTS),
        2: ("data_type", _INT32),
        3: ("segment", _MESSAGE),
        4: ("float_data", _FLOATS),
        5: ("int32_data", _INTS),
        6: ("string_data", _BYTES),
        7: ("int64_data", _INTS),
        8: ("name", _STRING),
        9: ("raw_data", _BYTES),
        10: ("double_data", _DOUBLES),
        11: ("uint64_data", _INTS),
        12: ("doc_string", _STRING),
        13: ("external_data", _MESSAGE),
        14: ("data_location", _INT32),
        16: ("metadata_props", _MESSAGE),
    },
    {"external_data": ENTRY, "metadata_props": ENTRY},
)
DIMENSION = _message(
    "TensorShapeProto.Dimension",
    {1: ("dim_value", _INT64), 2: ("dim_param", _STRING), 3: ("denotation", _STRING)},
)
SHAPE = _message("TensorShapeProto", {1: ("dim", _MESSAGE)}, {"dim": DIMENSION})
TENSOR_TYPE = _message(
    "TypeProto.Tensor", {1: ("elem_type", _INT32), 2: ("shape", _MESSAGE)}, {"shape": SHAPE}
)
TYPE = _message(
    "TypeProto",
    {
        1: ("tensor_type", _MESSAGE),
        4: ("sequence_type", _MESSAGE),
        5: ("map_type", _MESSAGE),
        6: ("denotation", _STRING),
        7: ("opaque_type", _MESSAGE),
        8: ("sparse_tensor_type", _MESSAGE),
        9: ("optional_type", _MESSAGE),
    },
    {"tensor_type": TENSOR_TYPE},  # the other kinds are refused
)
VALUE_INFO = _message(
    "ValueInfoProto",
    {
        1: ("name", _STRING),
        2: ("type", _MESSAGE),
        3: ("doc_string", _STRING),
        4: ("metadata_props", _MESSAGE),
    },
    {"type": TYPE, "metadata_props": ENTRY},
)
ATTRIBUTE = _message(
    "AttributeProto",
    {
        1: ("name", _STRING),
        2: ("f", _FLOAT),
        3: ("i", _INT64),
        4: ("s", _BYTES),
        5: ("t", _MESSAGE),
        6: ("g", _MESSAGE),
        7: ("floats", _FLOATS),
        8: ("ints", _INTS),
        9: ("strings", _BYTES),
        10: ("tensors", _MESSAGE),
        11: ("graphs", _MESSAGE),
        13: ("doc_string", _STRING),
        14: ("tp", _MESSAGE),
        15: ("type_protos", _MESSAGE),
        20: ("type", _INT32),
        21: ("ref_attr_name", _STRING),
        22: ("sparse_tensor", _MESSAGE),
        23: ("sparse_tensors", _MESSAGE),
    },
    {"t": TENSOR, "tensors": TENSOR},  # graphs, types and sparse tensors are refused
)
ATTRIBUTE_TYPES: dict[int, str] = {
    1: "f",
    2: "i",
    3: "s",
    4: "t",
    5: "g",
    6: "floats",
    7: "ints",
    8: "strings",
    9: "tensors",
    10: "graphs",
    11: "sparse_tensor",
    12: "sparse_tensors",
    13: "tp",
    14: "type_protos",
}
"""AttributeProto.AttributeType to the field that holds the value."""

_SHARDED_DIM = _message(
    "ShardedDimProto",
    {1: ("axis", _INT64), 2: ("simple_sharding", _MESSAGE)},
    {
        "simple_sharding": _message(
            "SimpleShardedDimProto",
            {1: ("dim_value", _INT64), 2: ("dim_param", _STRING), 3: ("num_shards", _INT64)},
        )
    },
)
_SHARDING = _message(
    "ShardingSpecProto",
    {
        1: ("tensor_name", _STRING),
        2: ("device", _INTS),
        3: ("index_to_device_group_map", _MESSAGE),
        4: ("sharded_dim", _MESSAGE),
    },
    {
        "index_to_device_group_map": _message(
            "IntIntListEntryProto", {1: ("key", _INT64), 2: ("value", _INTS)}
        ),
        "sharded_dim": _SHARDED_DIM,
    },
)
NODE = _message(
    "NodeProto",
    {
        1: ("input", _STRING),
        2: ("output", _STRING),
        3: ("name", _STRING),
        4: ("op_type", _STRING),
        5: ("attribute", _MESSAGE),
        6: ("doc_string", _STRING),
        7: ("domain", _STRING),
        8: ("overload", _STRING),
        9: ("metadata_props", _MESSAGE),
        10: ("device_configurations", _MESSAGE),
    },
    {
        "attribute": ATTRIBUTE,
        "metadata_props": ENTRY,
        "device_configurations": _message(
            "NodeDeviceConfigurationProto",
            {
                1: ("configuration_id", _STRING),
                2: ("sharding_spec", _MESSAGE),
                3: ("pipeline_stage", _INT32),
            },
            {"sharding_spec": _SHARDING},
        ),
    },
)
GRAPH = _message(
    "GraphProto",
    {
        1: ("node", _MESSAGE),
        2: ("name", _STRING),
        5: ("initializer", _MESSAGE),
        10: ("doc_string", _STRING),
        11: ("input", _MESSAGE),
        12: ("output", _MESSAGE),
        13: ("value_info", _MESSAGE),
        14: ("quantization_annotation", _MESSAGE),
        15: ("sparse_initializer", _MESSAGE),
        16: ("metadata_props", _MESSAGE),
    },
    {
        "node": NODE,
        "initializer": TENSOR,
        "input": VALUE_INFO,
        "output": VALUE_INFO,
        "value_info": VALUE_INFO,
        "quantization_annotation": _message(
            "TensorAnnotation",
            {1: ("tensor_name", _STRING), 2: ("quant_parameter_tensor_names", _MESSAGE)},
            {"quant_parameter_tensor_names": ENTRY},
        ),
        "metadata_props": ENTRY,
    },
)
MODEL = _message(
    "ModelProto",
    {
        1: ("ir_version", _INT64),
        2: ("producer_name", _STRING),
        3: ("producer_version", _STRING),
        4: ("domain", _STRING),
        5: ("model_version", _INT64),
        6: ("doc_string", _STRING),
        7: ("graph", _MESSAGE),
        8: ("opset_import", _MESSAGE),
        14: ("metadata_props", _MESSAGE),
        20: ("training_info", _MESSAGE),
        25: ("functions", _MESSAGE),
        26: ("configuration", _MESSAGE),
    },
    {
        "graph": GRAPH,
        "opset_import": OPSET,
        "metadata_props": ENTRY,
        "configuration": _message(
            "DeviceConfigurationProto",
            {1: ("name", _STRING), 2: ("num_devices", _INT32), 3: ("device", _STRING)},
        ),
    },
)


@dataclass(frozen=True, slots=True)
class ElementType:
    """An element type of TensorProto.DataType.

    Attributes:
        name: NumPy's, or ml_dtypes' where NumPy has none.
        bits: of one element in raw data; 0 for strings.
        field: where elements go that are not in raw data.
        native: NumPy can hold it.
    """

    name: str
    bits: int
    field: str
    native: bool = True


ELEMENT_TYPES: dict[int, ElementType] = {
    1: ElementType("float32", 32, "float_data"),
    2: ElementType("uint8", 8, "int32_data"),
    3: ElementType("int8", 8, "int32_data"),
    4: ElementType("uint16", 16, "int32_data"),
    5: ElementType("int16", 16, "int32_data"),
    6: ElementType("int32", 32, "int32_data"),
    7: ElementType("int64", 64, "int64_data"),
    8: ElementType("string", 0, "string_data", native=False),
    9: ElementType("bool", 8, "int32_data"),
    10: ElementType("float16", 16, "int32_data"),
    11: ElementType("float64", 64, "double_data"),
    12: ElementType("uint32", 32, "uint64_data"),
    13: ElementType("uint64", 64, "uint64_data"),
    14: ElementType("complex64", 64, "float_data"),
    15: ElementType("complex128", 128, "double_data"),
    16: ElementType("bfloat16", 16, "int32_data", native=False),
    17: ElementType("float8_e4m3fn", 8, "int32_data", native=False),
    18: ElementType("float8_e4m3fnuz", 8, "int32_data", native=False),
    19: ElementType("float8_e5m2", 8, "int32_data", native=False),
    20: ElementType("float8_e5m2fnuz", 8, "int32_data", native=False),
    21: ElementType("uint4", 4, "int32_data", native=False),
    22: ElementType("int4", 4, "int32_data", native=False),
    23: ElementType("float4_e2m1fn", 4, "int32_data", native=False),
    24: ElementType("float8_e8m0fnu", 8, "int32_data", native=False),
    25: ElementType("uint2", 2, "int32_data", native=False),
    26: ElementType("int2", 2, "int32_data", native=False),
    27: ElementType("float6_e2m3fn", 6, "int32_data", native=False),
    28: ElementType("float6_e3m2fn", 6, "int32_data", native=False),
}
