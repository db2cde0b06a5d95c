"""Headers of safetensors files: reading and checking without reading the weights, and writing.

Format: https://github.com/huggingface/safetensors#format. Files are untrusted: every value is checked before use, and
no allocation depends on a size that the file states but does not have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdrt.errors import CheckpointError
from sdrt.files import unreadable

HEADER_LIMIT_BYTES = 100_000_000  # the format's own limit
DTYPE_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
WEB_PAGE_STARTS = (b"<!doctype", b"<html", b"<?xml", b"<head")
GGUF_START = b"GGUF"
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
HINT = "download or save the file again"


@dataclass(frozen=True)
class TensorEntry:
    """One tensor: dtype in the format's names, shape, and offsets of its bytes after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A parsed header; ``data_start`` is the file offset from which the tensors' offsets count."""

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]
    data_start: int


def read_header(path: Path) -> Header:
    """Read and check a safetensors header.

    Raises:
        CheckpointError: The file cannot be read or is anything but a well-formed safetensors file; the message
            names the file and the first fault.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            _check_start(path, start + file.read(64 - 8))
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(size - 8, HEADER_LIMIT_BYTES):
                raise _fault(path, f"states a header of {length} bytes in a file of {size}")
            file.seek(8)
            raw = file.read(length)
    except OSError as error:
        raise unreadable(path, error, CheckpointError, hint="check the path and its mode") from error
    header = _parse(path, raw)
    metadata = _metadata(path, header.pop("__metadata__", {}))
    tensors = {name: _entry(path, name, value) for name, value in header.items()}
    _check_offsets(path, tensors, size - 8 - length)
    return Header(tensors, metadata, 8 + length)


def header_bytes(tensors: Mapping[str, tuple[str, Sequence[int]]]) -> bytes:
    """Return the header of a safetensors file that holds the tensors in the given order, without gaps.

    Args:
        tensors: Dtype, in the format's names, and shape by tensor name.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, (dtype, shape) in tensors.items():
        end = begin + math.prod(shape) * DTYPE_BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _fault(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} is not a well-formed safetensors file: it {what}", hint=HINT)


def _check_start(path: Path, start: bytes) -> None:
    """Raise CheckpointError for other kinds of files that often have the suffix .safetensors."""
    if start.startswith(LFS_POINTER):
        raise CheckpointError(f"{path} is a git-lfs pointer, not the weights", hint="run: git lfs pull")
    if start.startswith(PICKLE_STARTS):
        hint = "get the checkpoint in safetensors; sdrt never opens pickle"
        raise CheckpointError(f"{path} is a PyTorch pickle under the name of a safetensors file", hint=hint)
    if start.lstrip().lower().startswith(WEB_PAGE_STARTS):
        hint = "download the file itself; sites that require a login or consent return a page instead"
        raise CheckpointError(f"{path} is a web page under the name of a safetensors file", hint=hint)
    if start.startswith(GGUF_START):
        hint = "get the checkpoint in safetensors, in fp32 or fp16"
        raise CheckpointError(f"{path} is a GGUF file under the name of a safetensors file", hint=hint)


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise _fault(path, f"names {twice!r} twice in its header")
        return value

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _fault(path, "has a header that is not UTF-8 JSON") from error
    if not isinstance(header, dict):
        raise _fault(path, "has a header that is not a JSON object")
    return header


def _metadata(path: Path, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _fault(path, "has __metadata__ that is not a map of strings")
    return value


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _entry(path: Path, name: str, value: Any) -> TensorEntry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise _fault(path, f"describes {name!r} by other fields than dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _fault(path, f"gives {name!r} the unknown dtype {dtype!r}")
    if not isinstance(shape, list) or not all(_is_count(size) for size in shape):
        raise _fault(path, f"gives {name!r} a shape that is not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        raise _fault(path, f"gives {name!r} data_offsets that are not two offsets")
    begin, end = offsets
    size_bytes = math.prod(shape) * DTYPE_BITS[dtype] // 8  # exact: Python's integers do not overflow
    if end - begin != size_bytes:
        raise _fault(path, f"gives {name!r} {end - begin} bytes where {dtype} {shape} takes {size_bytes}")
    return TensorEntry(dtype, tuple(shape), begin, end)


def _check_offsets(path: Path, tensors: dict[str, TensorEntry], data_bytes: int) -> None:
    """Raise CheckpointError unless the tensors fill the file without gap or overlap."""
    position = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            fault = "overlaps the tensor before it" if entry.begin < position else "leaves a hole before it"
            raise _fault(path, f"puts {name!r} where it {fault}")
        position = entry.end
    if position != data_bytes:
        raise _fault(path, f"has {data_bytes} bytes of weights where its header describes {position}")
