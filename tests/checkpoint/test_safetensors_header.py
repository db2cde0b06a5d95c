"""Fault-matrix rows 1, 2, 3, 6 and 29, and random damage, on the header of a safetensors file."""

from __future__ import annotations

import json
import pickle
import re
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from sdrt.checkpoint.safetensors_header import DTYPE_BITS, header_bytes, read_header
from sdrt.errors import CheckpointError
from tests.attacks.material import Sentinel

F32 = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """Write a safetensors file from its parts; ``header`` is JSON unless it is bytes."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def refused(path: Path, reason: str) -> None:
    """Assert that the file is refused by name and reason, in one line, with exit code 3."""
    with pytest.raises(CheckpointError, match=re.escape(reason)) as caught:
        read_header(path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.exit_code == 3


def test_reads_what_the_reference_library_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"b": np.zeros((2, 3), np.float16), "a": np.ones(5, np.float32)}, path, metadata={"k": "v"})
    header = read_header(path)
    assert {name: (entry.dtype, entry.shape) for name, entry in header.tensors.items()} == {
        "a": ("F32", (5,)),
        "b": ("F16", (2, 3)),
    }
    assert header.metadata == {"k": "v"}
    entry = header.tensors["a"]
    raw = path.read_bytes()[header.data_start + entry.begin : header.data_start + entry.end]
    assert np.array_equal(np.frombuffer(raw, np.float32), np.ones(5, np.float32))


def test_header_bytes_are_what_the_reference_library_reads(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    path = tmp_path / "a.safetensors"
    values = np.arange(6, dtype=np.float32)
    path.write_bytes(header_bytes({"x": ("F32", (2, 3)), "empty": ("F32", (0,))}) + values.tobytes())
    loaded = load_file(path)
    assert np.array_equal(loaded["x"], values.reshape(2, 3))
    assert loaded["empty"].shape == (0,)


@pytest.mark.parametrize("length", [9, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_row_1_header_longer_than_the_file(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "a.safetensors", b"{}", length=length)
    tracemalloc.start()
    refused(path, f"states a header of {length} bytes in a file of 10")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1 << 20  # far below what the file states


@pytest.mark.parametrize("size", range(8))
def test_row_1_file_shorter_than_its_length_field(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"\0" * size)
    refused(path, f"in a file of {size}")


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b'{"a\xff": 1}', "not UTF-8 JSON"),
        (b"{", "not UTF-8 JSON"),
        (b"[" * 100_000, "not UTF-8 JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not UTF-8 JSON"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"a": 1, "a": 2}', "names 'a' twice"),
        (b'{"a": {"dtype": "F32", "dtype": "F16"}}', "names 'dtype' twice"),
        ({"__metadata__": {"k": 1}}, "__metadata__"),
        ({"__metadata__": []}, "__metadata__"),
    ],
)
def test_row_2_header_that_is_not_an_object_of_unique_names(tmp_path: Path, header: Any, reason: str) -> None:
    refused(write(tmp_path / "a.safetensors", header), reason)


@pytest.mark.parametrize(
    ("header", "data_bytes", "reason"),
    [
        ({"a": F32, "b": {**F32, "data_offsets": [8, 24]}}, 24, "'b' where it overlaps"),
        ({"a": F32, "b": F32}, 16, "'b' where it overlaps"),
        ({"a": F32, "b": {**F32, "data_offsets": [20, 36]}}, 36, "'b' where it leaves a hole"),
        ({"a": {**F32, "data_offsets": [4, 20]}}, 20, "'a' where it leaves a hole"),
        ({"a": F32}, 15, "15 bytes of weights where its header describes 16"),
        ({"a": F32}, 17, "17 bytes of weights where its header describes 16"),
        ({"a": {**F32, "shape": [2, 3]}}, 16, "16 bytes where F32 [2, 3] takes 24"),
        ({"a": {**F32, "dtype": "F16"}}, 16, "16 bytes where F16 [2, 2] takes 8"),
        ({"a": {**F32, "dtype": "F33"}}, 16, "unknown dtype 'F33'"),
        ({"a": {**F32, "dtype": ["F32"]}}, 16, "unknown dtype ['F32']"),
        ({"a": {**F32, "shape": [1 << 62, 1 << 62, 1 << 62]}}, 16, "16 bytes where F32"),
        ({"a": {**F32, "shape": [1 << 64]}}, 16, "not a list of sizes"),
        ({"a": {**F32, "shape": [-2, -2]}}, 16, "not a list of sizes"),
        ({"a": {**F32, "shape": [2.0, 2]}}, 16, "not a list of sizes"),
        ({"a": {**F32, "shape": [True, 4]}}, 16, "not a list of sizes"),
        ({"a": {**F32, "shape": 4}}, 16, "not a list of sizes"),
        ({"a": {**F32, "data_offsets": [16, 0]}}, 16, "-16 bytes where"),
        ({"a": {**F32, "data_offsets": [-16, 0]}}, 16, "not two offsets"),
        ({"a": {**F32, "data_offsets": [0]}}, 16, "not two offsets"),
        ({"a": {**F32, "extra": 1}}, 16, "other fields"),
        ({"a": {"dtype": "F32", "shape": [2, 2]}}, 16, "other fields"),
        ({"a": 1}, 16, "other fields"),
    ],
)
def test_row_3_offsets_shapes_and_dtypes_that_do_not_fit(
    tmp_path: Path, header: Any, data_bytes: int, reason: str
) -> None:
    refused(write(tmp_path / "a.safetensors", header, bytes(data_bytes)), reason)


def test_row_3_negative_control(tmp_path: Path) -> None:
    header = {"a": F32, "b": {**F32, "data_offsets": [16, 32]}}
    assert set(read_header(write(tmp_path / "a.safetensors", header, bytes(32))).tensors) == {"a", "b"}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [False, True])
def test_row_6_pickle_under_the_name_of_safetensors(tmp_path: Path, protocol: int, zipped: bool) -> None:
    path, sentinel = tmp_path / "model.safetensors", tmp_path / "sentinel"
    payload = pickle.dumps(Sentinel(sentinel), protocol)
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", payload)
    else:
        path.write_bytes(payload)
    refused(path, "is a PyTorch pickle under the name of a safetensors file")
    assert not sentinel.exists()
    pickle.loads(payload)  # negative control: the payload does what the test says it does
    assert sentinel.exists()


def test_row_29_git_lfs_pointer(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 3438167536\n")
    with pytest.raises(CheckpointError, match="is a git-lfs pointer") as caught:
        read_header(path)
    assert "git lfs pull" in caught.value.hint


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\n  <html lang='en'>", "a web page"),
        (b"GGUF\x03\0\0\0\x30\x04", "a GGUF file"),
    ],
)
def test_what_else_is_found_under_that_name(tmp_path: Path, start: bytes, what: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(start + bytes(100))
    refused(path, f"is {what} under the name of a safetensors file")


def test_every_type_of_the_format_is_known(tmp_path: Path) -> None:
    tensors = {name: (name, (8,)) for name in DTYPE_BITS}
    path = tmp_path / "a.safetensors"
    path.write_bytes(header_bytes(tensors) + bytes(sum(DTYPE_BITS.values())))
    assert {entry.dtype for entry in read_header(path).tensors.values()} == DTYPE_BITS.keys()
    with safe_open(path, framework="np") as file:
        assert {file.get_slice(name).get_dtype() for name in tensors} == DTYPE_BITS.keys()


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_what_cannot_be_read_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.safetensors"
    if kind == "folder":
        path.mkdir()
    refused(path, "cannot read")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_refused_or_still_well_formed(tmp_path: Path, data: st.DataObject) -> None:
    whole = header_bytes({"a": ("F32", (2, 2)), "b": ("F16", (3,))}) + bytes(22)
    damaged = bytearray(whole)
    for position in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        damaged[position] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.safetensors"
    path.write_bytes(damaged[: data.draw(st.integers(0, len(whole)))])
    try:
        header = read_header(path)
    except CheckpointError:
        return
    ends = [header.data_start + entry.end for entry in header.tensors.values()]
    assert max(ends, default=header.data_start) == path.stat().st_size
