"""Structural checks of a bundle's graph, on its bytes, before any library runs or compiles it.

Stricter than ONNX: one flat graph of ONNX's own operators, weights in one plain file beside it, inputs and outputs as
the manifest says. The exporter writes such graphs; any other graph comes from another program and is refused.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdrt.errors import BundleError, TrustError
from sdrt.files import path_inside, unreadable
from sdrt.graphs.wire import Message, WireError, read_model

#: The largest graph without its weights; the demo's UNet takes 0.34 MB.
GRAPH_LIMIT_BYTES = 64 << 20
#: Opsets that sdrt exports.
OPSETS = range(20, 25)
#: Bits of an element by TensorProto.DataType; strings and complex numbers are refused.
BITS = {
    **dict.fromkeys((1, 6, 12), 32),  # FLOAT, INT32, UINT32
    **dict.fromkeys((7, 11, 13), 64),  # INT64, DOUBLE, UINT64
    **dict.fromkeys((4, 5, 10, 16), 16),  # UINT16, INT16, FLOAT16, BFLOAT16
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20), 8),  # UINT8, INT8, BOOL and the four FLOAT8
    **dict.fromkeys((21, 22), 4),  # UINT4, INT4
}
RANK_LIMIT = 16
DTYPES = {1: "float32", 7: "int64", 10: "float16"}
EXTERNAL_KEYS = {"location", "offset", "length", "checksum"}
#: Attributes that libraries use as divisors.
POSITIVE = {"strides", "dilations", "kernel_shape", "group", "num_groups", "num_outputs", "q_num_heads", "kv_num_heads"}
HINT = "export the checkpoint again with sdrt; graphs of other programs are not supported"
_EXTERNAL = 1
_NUMBERS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
_SHORT = reprlib.Repr()
_SHORT.maxstring = 60
_SHOWN = 5

#: An input or output: name, dtype, and shape of sizes and names of axes.
Spec = tuple[str, str, tuple[int | str, ...]]


@dataclass(frozen=True)
class Expected:
    """The manifest's description of a graph.

    Attributes:
        inputs: Inputs, in any order.
        outputs: Outputs, in any order.
        weights: Name of the file of weights beside the graph; None if it has none.
        opset: Version of ONNX's own operators.
    """

    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]
    weights: str | None
    opset: int


def check_structure(path: Path, expected: Expected | None = None) -> None:
    """Raise unless a file is a graph such as sdrt exports.

    Args:
        path: The .onnx file.
        expected: The manifest's description; without it the weights may be in any plain file of the graph's folder.

    Raises:
        BundleError: The graph is malformed or differs from ``expected``; the message names the first fault.
        TrustError: The file is a link, or its weights are outside its folder, in a link, or in a file that the manifest
            does not name.
    """
    inside = path_inside(path.parent, path.name)
    try:
        size = inside.stat().st_size
        if size > GRAPH_LIMIT_BYTES:
            hint = "keep the weights in a file beside the graph, as sdrt export does"
            raise BundleError(f"{path} is larger than {GRAPH_LIMIT_BYTES >> 20} MiB", hint=hint)
        model = read_model(inside.read_bytes())
    except OSError as error:
        raise unreadable(path, error, BundleError, hint=HINT) from error
    except WireError as error:
        raise BundleError(f"{path} is not a well-formed ONNX file: it {error}", hint=HINT) from error
    _Checks(path, expected).run(model)


class _Checks:
    """The checks of one file, whose path their messages name."""

    def __init__(self, path: Path, expected: Expected | None) -> None:
        self._path = path
        self._expected = expected
        self._sizes: dict[str, int] = {}

    def run(self, model: Message) -> None:
        graph = model.get("graph")
        if graph is None or not graph.get("node"):
            raise self._fault("holds no graph")
        for part in ("functions", "training_info"):
            if part in model:
                raise self._fault(f"has {len(model[part])} {part}; a bundle's graphs have none")
        if "sparse_initializer" in graph:
            raise self._fault("has sparse weights; a bundle's graphs have none")
        self._check_opset(model)
        self._check_operators(graph["node"])
        for tensor in graph.get("initializer", []):
            self._check_tensor(tensor, external=True)
        self._check_order(graph)
        if self._expected is not None:
            self._compare("inputs", _specs(graph.get("input", [])), self._expected.inputs)
            self._compare("outputs", _specs(graph.get("output", [])), self._expected.outputs)

    def _fault(self, what: str) -> BundleError:
        return BundleError(f"{self._path} {what}", hint=HINT)

    def _check_opset(self, model: Message) -> None:
        imports = model.get("opset_import", [])
        found = [entry.get("version", 0) for entry in imports if _is_onnx(entry.get("domain", ""))]
        wanted = OPSETS if self._expected is None else (self._expected.opset,)
        if len(found) != 1 or found[0] not in wanted:
            named = ", ".join(str(version) for version in found) or "none"
            raise self._fault(f"is in opset {named}; expected {wanted[0]}" + f" to {wanted[-1]}" * (len(wanted) > 1))

    def _check_operators(self, nodes: Sequence[Message]) -> None:
        """Raise unless all operators are ONNX's own, hold no graph and have no attribute that would divide by 0."""
        foreign = {
            f"{node['domain']}.{node.get('op_type', '')}" for node in nodes if not _is_onnx(node.get("domain", ""))
        }
        if foreign:
            more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
            listed = ", ".join(_SHORT.repr(name) for name in sorted(foreign)[:_SHOWN])
            raise self._fault(f"uses operators that are not ONNX's: {listed}{more}")
        for node in nodes:
            for attribute in node.get("attribute", []):
                self._check_attribute(node, attribute)

    def _check_attribute(self, node: Message, attribute: Message) -> None:
        name = _SHORT.repr(attribute.get("name", ""))
        at = f"in attribute {name} of a {_SHORT.repr(node.get('op_type', ''))}"
        for part in ("g", "graphs", "sparse_tensor", "sparse_tensors", "ref_attr_name"):
            if part in attribute:
                raise self._fault(f"has {part} {at}; a bundle's graphs have none")
        numbers = [*attribute.get("ints", []), *([attribute["i"]] if "i" in attribute else [])]
        if attribute.get("name") in POSITIVE and any(number < 1 for number in numbers):
            raise self._fault(f"has {min(numbers)} {at}; it must be 1 or more")
        for tensor in (*attribute.get("tensors", []), *([attribute["t"]] if "t" in attribute else [])):
            self._check_tensor(tensor, external=False)

    def _check_tensor(self, tensor: Message, *, external: bool) -> None:
        """Raise unless a tensor has the bytes that its shape and type need, in the graph or in the file of weights."""
        name = _SHORT.repr(tensor.get("name", ""))
        bits, dims = BITS.get(tensor.get("data_type", 0)), tensor.get("dims", [])
        if bits is None:
            raise self._fault(f"gives tensor {name} data type {tensor.get('data_type', 0)}")
        if len(dims) > RANK_LIMIT or any(size < 0 for size in dims):
            raise self._fault(f"gives tensor {name} {len(dims)} axes, or a negative size")
        if "segment" in tensor or "string_data" in tensor:
            raise self._fault(f"gives tensor {name} a segment or text")
        elements = math.prod(dims)  # exact: Python's integers do not overflow
        size_bytes = (elements * bits + 7) // 8
        if tensor.get("data_location", 0) == _EXTERNAL:
            if not external or "raw_data" in tensor or any(field in tensor for field in _NUMBERS):
                raise self._fault(f"stores tensor {name} both in the graph and outside, or an attribute's outside")
            self._check_external(name, tensor.get("external_data", []), size_bytes)
            return
        if "external_data" in tensor or tensor.get("data_location", 0) != 0:
            raise self._fault(f"says both that tensor {name} is in the graph and that it is not")
        self._check_embedded(name, tensor, elements, size_bytes)

    def _check_embedded(self, name: str, tensor: Message, elements: int, size_bytes: int) -> None:
        held = [field for field in ("raw_data", *_NUMBERS) if field in tensor]
        if len(held) > 1:
            raise self._fault(f"gives tensor {name} its numbers twice")
        if held == ["raw_data"]:
            found, wanted, unit = len(tensor["raw_data"]), size_bytes, "bytes"
        else:
            found, wanted, unit = sum(_counts(tensor, held)), elements, "numbers"
        if found != wanted:
            raise self._fault(f"gives tensor {name} {found} {unit} where its shape takes {wanted}")

    def _check_external(self, name: str, entries: Sequence[Message], size_bytes: int) -> None:
        keys = [entry.get("key", "") for entry in entries]
        values = {entry.get("key", ""): entry.get("value", "") for entry in entries}
        if len(keys) != len(values) or not {"location", "length"} <= values.keys() <= EXTERNAL_KEYS:
            shown = ", ".join(_SHORT.repr(key) for key in keys[:_SHOWN])
            raise self._fault(f"describes the place of tensor {name} by {shown or 'nothing'}")
        offset, length = (self._number(name, key, values.get(key, "0")) for key in ("offset", "length"))
        if length != size_bytes:
            raise self._fault(f"gives tensor {name} {length} bytes where its shape takes {size_bytes}")
        held = self._size(values["location"])
        if offset + length > held:
            raise self._fault(f"puts tensor {name} at bytes {offset} to {offset + length} of a file of {held}")

    def _number(self, name: str, key: str, text: str) -> int:
        # 2**63 has 19 digits; int() takes longer than linear time for more.
        if not (text.isascii() and text.isdecimal()) or len(text) > 19:
            raise self._fault(f"gives tensor {name} the {key} {_SHORT.repr(text)}")
        return int(text)

    def _size(self, location: str) -> int:
        """Return the bytes of a file of weights, which must be in the graph's folder and named by the manifest."""
        if location not in self._sizes:
            inside = path_inside(self._path.parent, location)
            if self._expected is not None and location != self._expected.weights:
                hint = "weights are read from the file that the manifest names and nowhere else"
                raise TrustError(f"{self._path} has weights in {_SHORT.repr(location)}", hint=hint)
            if not inside.exists():
                raise BundleError(f"{inside} is missing", hint=HINT)
            self._sizes[location] = inside.stat().st_size
        return self._sizes[location]

    def _check_order(self, graph: Message) -> None:
        """Raise unless every value is computed once, and before its use; so the graph has no cycle."""
        known = {""}
        for name in _names([*graph.get("input", []), *graph.get("initializer", [])]):
            if name in known:
                raise self._fault(f"has two values named {_SHORT.repr(name)}, or one without a name")
            known.add(name)
        for node in graph["node"]:
            for name in node.get("input", []):
                if name not in known:
                    raise self._fault(f"uses {_SHORT.repr(name)} before it is computed")
            for name in filter(None, node.get("output", [])):
                if name in known:
                    raise self._fault(f"computes {_SHORT.repr(name)} twice")
                known.add(name)
        for name in _names(graph.get("output", [])):
            if name not in known or not name:
                raise self._fault(f"has output {_SHORT.repr(name)}, which no node computes")

    def _compare(self, side: str, found: Sequence[Spec], wanted: Sequence[Spec]) -> None:
        """Raise unless inputs or outputs equal those of the manifest, in any order."""
        differences = differing(found, wanted)
        if differences:
            raise self._fault(f"has {side} that differ from the manifest: {differences}")


def differing(found: Sequence[Spec], wanted: Sequence[Spec]) -> str:
    """Return how inputs or outputs differ, as ``sample: float16 [batch,4] not float32 [batch,4]``; or ""."""
    have, want = ({name: _shown(dtype, shape) for name, dtype, shape in specs} for specs in (found, wanted))
    lines = [
        f"{_SHORT.repr(name)}: {have.get(name, 'absent')} not {want.get(name, 'present')}"
        for name in sorted(have.keys() | want.keys())
        if have.get(name) != want.get(name)
    ]
    if not lines and len(found) != len(wanted):
        return f"{len(found)} not {len(wanted)}"
    return "; ".join(lines[:_SHOWN]) + (f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else "")


def _shown(dtype: str, shape: Iterable[int | str]) -> str:
    return f"{dtype} [{','.join(map(str, shape))}]"[:80]


def _specs(values: Iterable[Message]) -> tuple[Spec, ...]:
    return tuple(_spec(value) for value in values)


def _spec(value: Message) -> Spec:
    """Return an input or output; one that is not a tensor of known rank gets a dtype that no manifest has."""
    kind = value.get("type", {})
    tensor = kind.get("tensor_type", {})
    others = kind.keys() - {"tensor_type", "denotation"}
    if others or "shape" not in tensor:
        return value.get("name", ""), "no plain tensor", ()
    dtype = DTYPES.get(tensor.get("elem_type", 0), f"type {tensor.get('elem_type', 0)}")
    return value.get("name", ""), dtype, tuple(_axis(axis) for axis in tensor["shape"].get("dim", []))


def _axis(axis: Message) -> int | str:
    if "dim_value" in axis and "dim_param" in axis:
        return "two lengths"
    length: int | str = axis["dim_value"] if "dim_value" in axis else axis.get("dim_param", "?")
    return length


def _names(values: Iterable[Message]) -> Iterator[str]:
    return (value.get("name", "") for value in values)


def _counts(tensor: Message, held: Sequence[str]) -> Iterator[int]:
    """Yield the count of numbers in each field of a tensor; floats were read as counts."""
    for field in held:
        numbers: list[Any] = tensor[field]
        yield sum(numbers) if field in ("float_data", "double_data") else len(numbers)


def _is_onnx(domain: str) -> bool:
    return domain in ("", "ai.onnx")
