"""The reader of ONNX's bytes: it reads onnx's own files, and refuses bytes that parsers read differently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdrt.graphs import wire
from sdrt.graphs.wire import FIELDS, WireError, read_model
from tests.graphs.models import sound
from tests.models.tiny_bundle import tiny_bundle

#: By FieldDescriptorProto.Type of descriptor.proto; all others that ONNX uses are whole numbers.
KINDS = {1: "fixed64", 2: "fixed32", 9: "text", 11: "message", 12: "bytes"}

ENUMERATIONS = ("type", "data_location")


def varint(number: int) -> bytes:
    """Encode a number of protocol buffers."""
    head = b""
    while number > 0x7F:
        head += bytes([number & 0x7F | 0x80])
        number >>= 7
    return head + bytes([number])


def field(number: int, content: bytes) -> bytes:
    """Encode a length-delimited field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def plain(message: Any) -> Any:
    """Convert an onnx message to the form of `read_model`."""
    found: dict[str, Any] = {}
    for descriptor, value in message.ListFields():
        kind = KINDS.get(descriptor.type, "int")
        values = list(value) if descriptor.is_repeated else [value]
        if kind == "message":
            values = [plain(one) for one in values]
        if kind in ("fixed32", "fixed64"):
            values = [len(values)]
        found[descriptor.name] = values if descriptor.is_repeated else values[0]
    return found


def summed(value: Any) -> Any:
    """Return counts of floats as one number, whether packed or not; views as bytes.

    Enumerations are left out: onnx reads an unknown number as an absent field, and sdrt's checks refuse it.
    """
    if isinstance(value, dict):
        value = {name: one for name, one in value.items() if name not in ENUMERATIONS or isinstance(one, dict)}
        floats = {name: [sum(value[name])] for name in ("float_data", "double_data", "floats") if name in value}
        return {name: summed(one) for name, one in {**value, **floats}.items()}
    if isinstance(value, list):
        return [summed(one) for one in value]
    return bytes(value) if isinstance(value, memoryview) else value


def test_the_fields_are_onnxs() -> None:
    seen: dict[str, Any] = {}

    def walk(descriptor: Any) -> None:
        if descriptor.full_name not in seen:
            seen[descriptor.full_name] = descriptor
            for one in descriptor.fields:
                if one.message_type is not None:
                    walk(one.message_type)

    walk(onnx.ModelProto.DESCRIPTOR)
    found = {
        descriptor.name: {
            one.number: (
                one.name,
                KINDS.get(one.type, "int"),
                one.is_repeated,
                one.message_type.name if one.message_type is not None else "",
            )
            for one in descriptor.fields
        }
        for descriptor in seen.values()
    }
    assert found == {name: {number: tuple(one) for number, one in fields.items()} for name, fields in FIELDS.items()}


def test_it_reads_what_onnx_writes(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    for component in bundle.manifest.components.values():
        data = (bundle.path / component.graph).read_bytes()
        assert summed(read_model(data)) == summed(plain(onnx.load_from_string(data)))


def test_numbers_in_runs_and_one_by_one() -> None:
    packed = field(7, field(5, field(1, b"\x02\x80\x01") + field(4, bytes(8))))
    single = field(7, field(5, b"\x08\x02\x08\x80\x01" + 2 * (varint(4 << 3 | 5) + bytes(4))))
    assert read_model(packed) == {"graph": {"initializer": [{"dims": [2, 128], "float_data": [2]}]}}
    assert summed(read_model(single)) == read_model(packed)
    negative = varint(1 << 3) + varint((1 << 64) - 5)
    assert read_model(negative) == {"ir_version": -5}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (field(7, b"") * 2, "gives graph of one ModelProto twice"),
        (b"\x08\x01\x08\x02", "gives ir_version of one ModelProto twice"),
        (field(77, b"new"), "unknown field 77 in a ModelProto"),
        (varint(0 << 3) + b"\x00", "unknown field 0"),
        (varint(1 << 3 | 2) + b"\x01\x01", "gives ir_version of a ModelProto in wire type 2"),
        (varint(7 << 3 | 3) + varint(7 << 3 | 4), "wire type 3"),
        (varint(7 << 3 | 7), "wire type 7"),
        (field(2, b"\xff\xfe"), "not UTF-8"),
        (field(7, bytes(5))[:-1], "ends inside graph"),
        (varint(7 << 3 | 2) + varint(1 << 62), "ends inside graph"),
        (b"\x08" + b"\xff" * 10, "does not end or is over 64 bits"),
        (b"\x08" + b"\xff" * 9 + b"\x02", "does not end or is over 64 bits"),
        (b"\x08", "does not end"),
        (b"\x80", "does not end"),
        (field(7, field(5, field(4, bytes(7)))), "ends inside a number of float_data"),
        (field(7, field(5, field(1, b"\x80"))), "does not end"),
        (field(7, field(5, varint(4 << 3 | 5) + bytes(3))), "ends inside float_data"),
    ],
)
def test_what_is_malformed_or_ambiguous_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        read_model(data)


def test_depth_is_limited() -> None:
    inner = b""
    for _ in range(7):
        inner = field(1, field(5, field(6, inner)))  # three messages deep each
    read_model(field(7, inner))
    for _ in range(2000):
        inner = field(1, field(5, field(6, inner)))
    with pytest.raises(WireError, match="more than 24 deep"):
        read_model(field(7, inner))


def test_the_number_of_fields_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "FIELDS_LIMIT", 100)
    read_model(field(7, field(1, b"") * 99))
    for data in (field(7, field(1, b"") * 100), field(7, field(5, field(1, b"\x01" * 100)))):
        with pytest.raises(WireError, match="has over 100 fields"):
            read_model(data)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_is_refused_or_read_as_onnx_reads_it(data: st.DataObject) -> None:
    damaged = bytearray(sound().SerializeToString())
    for position in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=4)):
        damaged[position] = data.draw(st.integers(0, 255))
    try:
        found = read_model(bytes(damaged))
    except WireError:
        return
    model = onnx.ModelProto()
    model.ParseFromString(bytes(damaged))
    assert summed(found) == summed(plain(model))
