"""Files that are whole or absent, and paths that stay below their folder."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tempfile
from pathlib import Path

import pytest

from sdrt import files, unfinished
from sdrt.errors import CheckpointError, ResourceError, SdrtError, TrustError
from sdrt.files import (
    READ_BYTES,
    canonical_json,
    disk_errors,
    folder_published_as,
    path_inside,
    read_with_sha256,
    sha256_bytes,
    sha256_file,
    temporary_file,
    temporary_folder,
    write_atomically,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_digests_are_sha256(tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    (tmp_path / "file").write_bytes(data)
    assert sha256_file(tmp_path / "file") == sha256_bytes(data) == hashlib.sha256(data).hexdigest()


def test_equal_values_give_equal_json() -> None:
    assert (
        canonical_json({"b": 1, "a": "ü"})
        == canonical_json({"a": "ü", "b": 1})
        == '{\n "a": "ü",\n "b": 1\n}\n'.encode()
    )
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": float("nan")})


def test_writing_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"a much longer old content")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["picture.png"]


def test_written_files_obey_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="the disk is full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, "full"),
        (errno.EDQUOT, "quota"),
        (errno.EFBIG, "size limit"),
        (errno.EACCES, "permission"),
        (errno.EROFS, "read-only"),
        (errno.ENAMETOOLONG, "too long"),
        (errno.EMFILE, "open files"),
    ],
)
def test_refusals_of_the_system_have_a_reason(code: int, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=reason) as caught, disk_errors(tmp_path):
        raise OSError(code, os.strerror(code))
    assert str(tmp_path) in caught.value.message


@pytest.mark.parametrize(
    ("code", "hint"), [(errno.EMFILE, "ulimit -n"), (errno.ENOMEM, "free memory"), (errno.EACCES, "--store")]
)
def test_another_place_is_the_hint_where_it_would_help(code: int, hint: str, tmp_path: Path) -> None:
    with pytest.raises(ResourceError) as caught, disk_errors(tmp_path):
        raise OSError(code, os.strerror(code))
    assert hint in caught.value.hint
    assert ("--store" in caught.value.hint) == (hint == "--store")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_what_is_full_is_the_file_system_of_the_path(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk/store").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk/store")
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) in (tmp_path / "disk", Path("/")))
    path = tmp_path / "link/absent/file"
    with pytest.raises(ResourceError) as caught, disk_errors(path):
        raise OSError(code, os.strerror(code))
    assert caught.value.message.startswith(f"cannot write {path}: the disk ")
    assert caught.value.message.endswith(f", at {tmp_path / 'disk'}")
    assert "--store" in caught.value.hint
    with pytest.raises(ResourceError) as caught, disk_errors(path):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    assert caught.value.message == f"cannot write {path}: no permission"


def fill(path: Path) -> None:
    with disk_errors(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_temporary_folder_is_gone_and_its_hint_is_tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary_folder() as folder:
        assert folder.parent == tmp_path
        with pytest.raises(ResourceError, match="the disk is full, at /") as caught:
            fill(folder / "copy/graph")
    assert "TMPDIR" in caught.value.hint
    assert names(tmp_path) == []


def test_a_temporary_file_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary_file() as file:
        assert file.read() == b""
        file.write(b"answers")
        file.seek(0)
        assert file.read() == b"answers"
    with Path("/dev/full").open("w+b", buffering=0) as full:
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda: full)
        said = f"cannot write temporary files into {tmp_path}: the disk is full"
        with pytest.raises(ResourceError, match=said) as caught:
            temporary_file()
    assert "TMPDIR" in caught.value.hint


def test_without_any_place_for_temporary_files_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    with pytest.raises(ResourceError, match="no folder for temporary files") as caught, temporary_folder():
        pass
    assert "TMPDIR" in caught.value.hint


def test_other_errors_of_the_system_are_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path):
        (tmp_path / "absent").read_bytes()


def test_writing_onto_a_folder_or_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="the path is a folder, not a file"):
        write_atomically(tmp_path / "folder", b"")
    with pytest.raises(ResourceError, match="a part of the path is a file, not a folder"):
        write_atomically(tmp_path / "file" / "below", b"")
    assert names(tmp_path) == ["file", "folder"]


def test_a_folder_is_published_whole(tmp_path: Path) -> None:
    out = tmp_path / "missing" / "out"
    with folder_published_as(out) as part:
        (part / "sub").mkdir()
        (part / "sub" / "file").write_text("new")
        assert not out.exists()
    assert (out / "sub" / "file").read_text() == "new"
    assert stat.S_IMODE(out.stat().st_mode) == 0o755
    assert names(out.parent) == ["out"]


def test_a_published_folder_replaces_the_old_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "old").mkdir(parents=True)
    with folder_published_as(out) as part:
        (part / "new").touch()
    assert names(out) == ["new"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_published_folder_replaces_a_file_and_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, exchange: bool
) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    out.touch() if kind == "file" else out.symlink_to(elsewhere)
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    with folder_published_as(out) as part:
        (part / "new").touch()
    assert names(out) == ["new"]
    assert names(tmp_path) == ["elsewhere", "out"]
    assert names(elsewhere) == ["kept"]


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_is_published_when_the_block_raises(kind: type[BaseException], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()

    def fail() -> None:
        with folder_published_as(out) as part:
            (part / "half").touch()
            raise kind

    with pytest.raises(kind):
        fail()
    assert names(tmp_path) == ["out"]
    assert names(out) == ["old"]


def test_the_old_folder_comes_back_when_the_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if target == out and self.parent == out.parent:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(KeyboardInterrupt), folder_published_as(out) as part:
        (part / "new").touch()
    assert names(out) == ["old"]
    assert names(tmp_path) == ["out"]


def test_a_file_system_that_cannot_exchange_names_is_served_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "first").mkdir()
    assert not files._exchange(Path("/proc/self/fd"), Path("/proc/self/task"))
    with pytest.raises(FileNotFoundError):
        files._exchange(tmp_path / "first", tmp_path / "absent")
    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    for name in ("old", "new"):
        with folder_published_as(tmp_path / "out") as part:
            (part / name).touch()
    assert names(tmp_path / "out") == ["new"]
    assert names(tmp_path) == ["first", "out"]


def test_the_current_folder_can_be_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with folder_published_as(Path()) as part:
        (part / "file").touch()
    assert names(tmp_path / "here") == ["file"]


def test_a_file_in_the_way_of_the_parent_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ResourceError, match="a part of the path is a file, not a folder"),
        folder_published_as(tmp_path / "file" / "out"),
    ):
        pass


def test_a_path_inside_may_be_absent_or_a_plain_file(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model.onnx").touch()
    assert path_inside(tmp_path, "unet/model.onnx") == tmp_path / "unet" / "model.onnx"
    assert path_inside(tmp_path, "unet/absent") == tmp_path / "unet" / "absent"
    assert path_inside(tmp_path, "absent/absent") == tmp_path / "absent" / "absent"
    assert path_inside(tmp_path, "unet/model.onnx/below") == tmp_path / "unet" / "model.onnx" / "below"


@pytest.mark.parametrize(
    "relative",
    [
        "../outside",
        "unet/../../outside",
        "unet/../unet/model.onnx",
        "..",
        ".",
        "",
        "/etc/passwd",
        "//etc/passwd",
        "unet\\..\\outside",
        "nul\0",
        "n" * 300,
        "\ud800",
        "unet",
    ],
)
def test_paths_that_leave_the_folder_or_are_no_files_are_refused(relative: str, tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model.onnx").touch()
    with pytest.raises(TrustError):
        path_inside(tmp_path, relative)


def test_links_are_refused_wherever_they_stand(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "real").touch()
    (tmp_path / "canary").touch()
    (folder / "out").symlink_to(tmp_path / "canary")
    (folder / "in").symlink_to(folder / "unet" / "real")
    (folder / "dangling").symlink_to(tmp_path / "absent")
    (folder / "parent").symlink_to(folder / "unet")
    os.link(tmp_path / "canary", folder / "hard")
    os.mkfifo(folder / "pipe")
    for name in ("out", "in", "dangling", "parent/real", "hard", "pipe"):
        with pytest.raises(TrustError) as caught:
            path_inside(folder, name)
        assert "copy the file itself" in caught.value.hint


def test_the_folder_itself_may_be_reached_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert path_inside(tmp_path / "link", "file").exists()


def test_unfinished_things_are_hidden() -> None:
    assert unfinished.PART_PREFIX.startswith(".")
    assert unfinished.ASIDE_PREFIX.startswith(".")


@pytest.mark.parametrize("size_bytes", [0, 1, READ_BYTES, 2 * READ_BYTES + 3])
def test_reading_and_hashing_in_one_pass_is_reading_and_hashing(tmp_path: Path, size_bytes: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(index % 251 for index in range(size_bytes)))
    data, digest = read_with_sha256(path)
    assert data == path.read_bytes()
    assert digest == sha256_file(path)


ODD = os.fsdecode(b"mod\xe8le")


@pytest.mark.parametrize("name", ["folder/file", f"{ODD}/file", f"{ODD}/{ODD}", f"{ODD}/below/file"])
def test_every_file_has_a_path_in_utf_8(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"bytes")
    file.with_name("beside").write_bytes(b"weights")
    with files.utf8_path(file) as path:
        str(path).encode()
        assert path.read_bytes() == b"bytes"
        if ODD not in file.name:
            assert path.with_name("beside").read_bytes() == b"weights"
        assert (path == file) == (ODD not in name)
    assert path == file or not path.exists()


def test_a_folder_and_a_new_file_have_a_path_in_utf_8(tmp_path: Path) -> None:
    (tmp_path / ODD).mkdir()
    for target in (tmp_path / ODD, tmp_path / ODD / "folder"):
        target.mkdir(exist_ok=True)
        with files.utf8_path(target) as path:
            (path / "file").write_bytes(b"bytes")
        assert (target / "file").read_bytes() == b"bytes"
    with files.utf8_path(tmp_path / ODD / "new") as path:
        path.write_bytes(b"bytes")
    assert (tmp_path / ODD / "new").read_bytes() == b"bytes"


@pytest.mark.parametrize("text", ["modèle", "model"])
def test_text_stays_and_other_bytes_are_spelled_out(text: str) -> None:
    assert files.utf8_text(text) == text
    assert files.utf8_text(f"{text}{ODD}") == rf"{text}mod\xe8le"


@pytest.mark.parametrize(
    ("code", "kind", "reason"),
    [
        (errno.EACCES, ResourceError, "no permission"),
        (errno.EIO, ResourceError, "disk I/O error"),
        (errno.EMFILE, ResourceError, "too many open files"),
        (errno.ENOENT, CheckpointError, "No such file or directory"),
        (errno.EISDIR, CheckpointError, "Is a directory"),
    ],
)
def test_what_the_system_refuses_to_read_is_told_from_what_is_wrong(
    code: int, kind: type[SdrtError], reason: str
) -> None:
    error = files.unreadable(Path("file"), OSError(code, os.strerror(code)), CheckpointError, hint="", subject="--x: ")
    assert type(error) is kind
    assert error.message == f"--x: cannot read file: {reason}"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, "", "a file"), "cannot use a file: no permission"),
        (OSError(errno.ENOSPC, "", b"mod\xe8le"), r"cannot use mod\xe8le: the disk is full"),
        (OSError(errno.EBUSY, "Device or resource busy", "a file"), "cannot use a file: Device or resource busy"),
        (OSError(errno.ENOSPC, ""), "a file operation failed: the disk is full"),
    ],
)
def test_every_error_of_the_system_is_one_of_ours(error: OSError, message: str) -> None:
    with pytest.raises(ResourceError) as caught, files.system_errors():
        raise error
    assert caught.value.message == message


def test_a_librarys_own_error_stays() -> None:
    with pytest.raises(OSError, match="a library"), files.system_errors():
        raise OSError("a library")


def test_whether_anything_is_there(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_bytes(b"")
    assert files.is_there(tmp_path)
    for name in ("nothing", "file/below", "loop", "n" * 300, "nul\0"):
        assert not files.is_there(tmp_path / name)
