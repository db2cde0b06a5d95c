"""Sealed files: the written content comes back; content from elsewhere is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdrt.artefacts.locks import exclusive
from sdrt.artefacts.sealed import DIGEST_BYTES, SealedFile
from sdrt.errors import ResourceError, TimeLimitError
from sdrt.files import sha256_bytes
from sdrt.progress import silent


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def file(tmp_path: Path, notes: list[str]) -> SealedFile:
    return SealedFile(tmp_path / "caches" / "one.cache", notes.append, subject="set unet sm86")


def test_what_is_written_is_read(file: SealedFile, notes: list[str]) -> None:
    assert file.read() == b""
    for data in (b"kernels", b"", b"other kernels"):
        with file.locked():
            file.write(data)
        assert file.read() == data
    assert notes == []
    assert file.path.parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"kernels",
        sha256_bytes(b"kernels").encode() + b"kernels",
        sha256_bytes(b"set unet sm89kernels").encode() + b"kernels",
        sha256_bytes(b"set unet sm86kernels").encode()[:-1] + b"0kernels",
    ],
)
def test_what_is_not_sealed_for_it_goes(file: SealedFile, notes: list[str], content: bytes) -> None:
    file.path.write_bytes(content)
    assert file.read() == b""
    (note,) = notes
    assert "does not match its digest" in note
    assert not file.path.exists()


def test_the_seal_is_of_subject_and_data(file: SealedFile) -> None:
    file.write(b"kernels")
    seal, data = file.path.read_bytes()[:DIGEST_BYTES], file.path.read_bytes()[DIGEST_BYTES:]
    assert (seal.decode(), data) == (sha256_bytes(b"set unet sm86kernels"), b"kernels")


def test_a_lock_held_elsewhere_is_waited_for_so_long(tmp_path: Path, notes: list[str]) -> None:
    file = SealedFile(tmp_path / "one.cache", notes.append, timeout_s=0.01)
    with (
        exclusive(tmp_path / "one.lock", "the file", 1, silent),
        pytest.raises(TimeLimitError, match=r"one\.cache"),
        file.locked(),
    ):
        pass


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path, notes: list[str]) -> None:
    (tmp_path / "caches").write_text("")
    with pytest.raises(ResourceError, match="a part of the path is a file, not a folder"):
        SealedFile(tmp_path / "caches" / "one.cache", notes.append)


def test_a_file_that_cannot_be_read_is_an_error_of_ours(file: SealedFile) -> None:
    file.path.mkdir()
    with pytest.raises(ResourceError, match=r"cannot read .*one\.cache"):
        file.read()
