"""Reader of untrusted ONNX files: protocol buffers' wire format with ONNX's fields, in pure Python.

Format: https://protobuf.dev/programming-guides/encoding/; fields: onnx.proto of ONNX 1.23 (IR version 14), with which a
test compares `FIELDS`. Python code has no memory errors to exploit, and this reader refuses what parsers are known to
read differently: repeated scalar fields, unknown fields, and text that is not UTF-8. Bytes of tensors are not copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

#: Most fields of a file. The demo's UNet has 30,000; each takes some microseconds and 200 bytes.
FIELDS_LIMIT = 2_000_000
#: Deepest nesting of messages. A graph without subgraphs needs 7.
DEPTH_LIMIT = 24

Kind = Literal["int", "fixed32", "fixed64", "text", "bytes", "message"]
Message = dict[str, Any]

_WIRE_TYPES = {"int": 0, "fixed64": 1, "text": 2, "bytes": 2, "message": 2, "fixed32": 5}
_WIDTHS = {"fixed32": 4, "fixed64": 8}
_MORE = 0x80
_LEN = 2


class WireError(ValueError):
    """The bytes are malformed; the message completes "the file ...", as "ends inside a field"."""


class Field(NamedTuple):
    """One field of a message."""

    name: str
    kind: Kind
    repeated: bool
    message: str


def _fields(text: str) -> dict[int, Field]:
    """Parse fields from words ``number:name:kind``; other kinds than scalars name a message, ``*`` marks repeated."""
    fields = {}
    for word in text.split():
        number, name, kind = word.split(":")
        plain = kind.rstrip("*")
        scalar: Kind = plain if plain in _WIRE_TYPES else "message"  # type: ignore[assignment]
        fields[int(number)] = Field(name, scalar, kind.endswith("*"), "" if plain in _WIRE_TYPES else plain)
    return fields


FIELDS: dict[str, dict[int, Field]] = {
    name: _fields(text)
    for name, text in {
        "ModelProto": (
            "1:ir_version:int 8:opset_import:OperatorSetIdProto* 2:producer_name:text 3:producer_version:text "
            "4:domain:text 5:model_version:int 6:doc_string:text 7:graph:GraphProto "
            "14:metadata_props:StringStringEntryProto* 20:training_info:TrainingInfoProto* "
            "25:functions:FunctionProto* 26:configuration:DeviceConfigurationProto*"
        ),
        "OperatorSetIdProto": "1:domain:text 2:version:int",
        "GraphProto": (
            "1:node:NodeProto* 2:name:text 5:initializer:TensorProto* 15:sparse_initializer:SparseTensorProto* "
            "10:doc_string:text 11:input:ValueInfoProto* 12:output:ValueInfoProto* 13:value_info:ValueInfoProto* "
            "14:quantization_annotation:TensorAnnotation* 16:metadata_props:StringStringEntryProto*"
        ),
        "NodeProto": (
            "1:input:text* 2:output:text* 3:name:text 4:op_type:text 7:domain:text 8:overload:text "
            "5:attribute:AttributeProto* 6:doc_string:text 9:metadata_props:StringStringEntryProto* "
            "10:device_configurations:NodeDeviceConfigurationProto*"
        ),
        "AttributeProto": (
            "1:name:text 21:ref_attr_name:text 13:doc_string:text 20:type:int 2:f:fixed32 3:i:int 4:s:bytes "
            "5:t:TensorProto 6:g:GraphProto 22:sparse_tensor:SparseTensorProto 14:tp:TypeProto 7:floats:fixed32* "
            "8:ints:int* 9:strings:bytes* 10:tensors:TensorProto* 11:graphs:GraphProto* "
            "23:sparse_tensors:SparseTensorProto* 15:type_protos:TypeProto*"
        ),
        "TensorProto": (
            "1:dims:int* 2:data_type:int 3:segment:Segment 4:float_data:fixed32* 5:int32_data:int* "
            "6:string_data:bytes* 7:int64_data:int* 8:name:text 12:doc_string:text 9:raw_data:bytes "
            "13:external_data:StringStringEntryProto* 14:data_location:int 10:double_data:fixed64* "
            "11:uint64_data:int* 16:metadata_props:StringStringEntryProto*"
        ),
        "Segment": "1:begin:int 2:end:int",
        "StringStringEntryProto": "1:key:text 2:value:text",
        "SparseTensorProto": "1:values:TensorProto 2:indices:TensorProto 3:dims:int*",
        "TypeProto": (
            "1:tensor_type:Tensor 4:sequence_type:Sequence 5:map_type:Map 9:optional_type:Optional "
            "8:sparse_tensor_type:SparseTensor 7:opaque_type:Opaque 6:denotation:text"
        ),
        "Tensor": "1:elem_type:int 2:shape:TensorShapeProto",
        "TensorShapeProto": "1:dim:Dimension*",
        "Dimension": "1:dim_value:int 2:dim_param:text 3:denotation:text",
        "Sequence": "1:elem_type:TypeProto",
        "Map": "1:key_type:int 2:value_type:TypeProto",
        "Optional": "1:elem_type:TypeProto",
        "SparseTensor": "1:elem_type:int 2:shape:TensorShapeProto",
        "Opaque": "1:domain:text 2:name:text",
        "NodeDeviceConfigurationProto": (
            "1:configuration_id:text 2:sharding_spec:ShardingSpecProto* 3:pipeline_stage:int"
        ),
        "ShardingSpecProto": (
            "1:tensor_name:text 2:device:int* 3:index_to_device_group_map:IntIntListEntryProto* "
            "4:sharded_dim:ShardedDimProto*"
        ),
        "IntIntListEntryProto": "1:key:int 2:value:int*",
        "ShardedDimProto": "1:axis:int 2:simple_sharding:SimpleShardedDimProto*",
        "SimpleShardedDimProto": "1:dim_value:int 2:dim_param:text 3:num_shards:int",
        "ValueInfoProto": "1:name:text 2:type:TypeProto 3:doc_string:text 4:metadata_props:StringStringEntryProto*",
        "TensorAnnotation": "1:tensor_name:text 2:quant_parameter_tensor_names:StringStringEntryProto*",
        "TrainingInfoProto": (
            "1:initialization:GraphProto 2:algorithm:GraphProto 3:initialization_binding:StringStringEntryProto* "
            "4:update_binding:StringStringEntryProto*"
        ),
        "FunctionProto": (
            "1:name:text 4:input:text* 5:output:text* 6:attribute:text* 11:attribute_proto:AttributeProto* "
            "7:node:NodeProto* 8:doc_string:text 9:opset_import:OperatorSetIdProto* 10:domain:text 13:overload:text "
            "12:value_info:ValueInfoProto* 14:metadata_props:StringStringEntryProto*"
        ),
        "DeviceConfigurationProto": "1:name:text 2:num_devices:int 3:device:text*",
    }.items()
}


def read_model(data: bytes | memoryview) -> Message:
    """Read a ModelProto as nested dicts: fields by name, absent ones left out, repeated ones as lists.

    Integers are signed. Floats are only counted: a repeated field of floats is a list of counts, one a run. ``bytes``
    are views of ``data``.

    Raises:
        WireError: The bytes are no ModelProto, or have too many fields or levels.
    """
    return _Reader(memoryview(data)).message("ModelProto", 0, len(data), 0)


class _Reader:
    """Reads messages from one buffer and counts their fields."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._left = FIELDS_LIMIT

    def message(self, kind: str, position: int, end: int, depth: int) -> Message:
        """Read the message between two positions."""
        if depth > DEPTH_LIMIT:
            raise WireError(f"nests messages more than {DEPTH_LIMIT} deep")
        found: Message = {}
        fields = FIELDS[kind]
        while position < end:
            tag, position = self._varint(position, end)
            field, wire_type = fields.get(tag >> 3), tag & 7
            if field is None:
                raise WireError(f"has the unknown field {tag >> 3} in a {kind}")
            value, position = self._value(kind, field, wire_type, position, end, depth)
            if field.repeated:
                found.setdefault(field.name, []).extend(value)
            elif field.name in found:
                raise WireError(f"gives {field.name} of one {kind} twice")
            else:
                found[field.name] = value[0]
        return found

    def _value(
        self, kind: str, field: Field, wire_type: int, position: int, end: int, depth: int
    ) -> tuple[list[Any], int]:
        """Return the values of one occurrence of a field, several if it is packed, and the position of its end."""
        packed = wire_type == _LEN and field.repeated and field.kind in ("int", "fixed32", "fixed64")
        if wire_type != _WIRE_TYPES[field.kind] and not packed:
            raise WireError(f"gives {field.name} of a {kind} in wire type {wire_type}")
        self._count(1)
        if field.kind == "int" and not packed:
            number, position = self._varint(position, end)
            return [_signed(number)], position
        length = _WIDTHS.get(field.kind, 0)
        if packed or not length:
            length, position = self._varint(position, end)
        stop = position + length
        if stop > end:
            raise WireError(f"ends inside {field.name} of a {kind}")
        if field.kind == "message":
            return [self.message(field.message, position, stop, depth + 1)], stop
        if field.kind == "text":
            return [_text(self._data[position:stop])], stop
        if field.kind == "bytes":
            return [self._data[position:stop]], stop
        if field.kind == "int":
            return list(self._varints(position, stop)), stop
        if length % _WIDTHS[field.kind]:
            raise WireError(f"ends inside a number of {field.name} of a {kind}")
        return [length // _WIDTHS[field.kind]], stop

    def _varints(self, position: int, end: int) -> Iterator[int]:
        while position < end:
            self._count(1)
            number, position = self._varint(position, end)
            yield _signed(number)

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        """Return a 64-bit number, of seven bits a byte, and the position of its end."""
        value, shift = 0, 0
        while position < end:
            byte = self._data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < _MORE:
                if value >> 64:
                    break
                return value, position
            shift += 7
            if shift > 63:
                break
        raise WireError("holds a number that does not end or is over 64 bits")

    def _count(self, fields: int) -> None:
        self._left -= fields
        if self._left < 0:
            raise WireError(f"has over {FIELDS_LIMIT} fields")


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def _text(data: memoryview) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise WireError("holds text that is not UTF-8") from error
