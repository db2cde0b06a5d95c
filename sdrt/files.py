"""File operations: digests, atomic writes, folders published by one rename, and errors that name the file."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from sdrt.errors import ResourceError, SdrtError, TrustError
from sdrt.unfinished import ASIDE_PREFIX, PART_PREFIX, owner_name, remove, sweep, try_exclusive

#: Prefix of temporary folders, whose place TMPDIR decides.
TEMPORARY_PREFIX = "sdrt-temporary-"
#: Bytes that must be free when a temporary file is created.
TEMPORARY_ROOM_BYTES = 1 << 16
TEMPORARY_HINT = "free space, or set TMPDIR to a folder that has more"
#: Error numbers of a full file system.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
#: Bytes that are read and hashed at a time; they fit a processor's cache.
READ_BYTES = 1 << 18
#: Hints for errors that another folder would not cure.
HINTS_BY_ERRNO = {
    errno.EMFILE: "allow the process more open files, by ulimit -n",
    errno.ENFILE: "close programs that hold many files open",
    errno.ENOMEM: "free memory, or request less at once",
    errno.EIO: "check the disk, or copy readable files to another one",
    errno.ESTALE: "mount the network file system again",
}
#: Reasons for which the system refuses to use any path ...
REFUSALS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would exceed the size limit",
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EROFS: "the file system is read-only",
    errno.EMFILE: "too many open files",
    errno.ENFILE: "too many open files on this machine",
    errno.ENOMEM: "out of memory",
    errno.EIO: "disk I/O error",
    errno.ESTALE: "stale file handle of a network file system",
    errno.ENOLCK: "the file system does not support locks",
    errno.ENOTSUP: "the file system does not support the operation",
}
#: ... and further ones for which it refuses to write.
OBSTACLES = {
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EEXIST: "a part of the path is a file, not a folder",
    errno.EISDIR: "the path is a folder, not a file",
    errno.ENAMETOOLONG: "the name is too long for the file system",
}
#: Error numbers that mean that a path does not exist.
NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
READ_HINT = "check its owner and mode and those of the folders above it, or give another path"
# renameat2(2): its arguments to exchange two names, and its error numbers where the file system cannot.
AT_FDCWD, RENAME_EXCHANGE = -100, 2
CANNOT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)


def sha256_bytes(data: bytes) -> str:
    """Return the SHA-256 of bytes, as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_with_sha256(path: Path) -> tuple[bytearray, str]:
    """Read a whole file; return its bytes and their SHA-256, computed in the same pass."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        data = bytearray(os.fstat(file.fileno()).st_size)
        rest = memoryview(data)
        while rest and (count := file.readinto(rest[:READ_BYTES])):
            digest.update(rest[:count])
            rest = rest[count:]
    return (data if not rest else data[: len(data) - len(rest)]), digest.hexdigest()


def canonical_json(value: Any) -> bytes:
    """Return JSON with sorted keys and a final newline; equal values give equal bytes."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


@contextlib.contextmanager
def disk_errors(path: Path, verb: str = "write", *, hint: str | None = None) -> Iterator[None]:
    """Raise ResourceError for operating system errors of the block, which writes (or ``verb``) ``path``.

    Args:
        path: The file or folder.
        verb: The failed action, as the message names it.
        hint: Hint of the error; None for one to choose another place, by TMPDIR in a temporary folder. Errors that
            another place would not cure have hints of their own.

    Raises:
        ResourceError: No space (the message names the file system), no permission, a read-only file system, a file in
            the place of a folder.
    """
    try:
        yield
    except OSError as error:
        reasons = REFUSALS | OBSTACLES
        if error.errno not in reasons:
            raise
        reason = reasons[error.errno] + (f", at {_file_system(path)}" if error.errno in DISK_FULL else "")
        if hint is None:
            temporary = any(part.startswith(TEMPORARY_PREFIX) for part in path.parts)
            place = "choose another place with --store or --out"
            hint = TEMPORARY_HINT if temporary else f"free space, or {place}" if error.errno in DISK_FULL else place
        raise ResourceError(f"cannot {verb} {path}: {reason}", hint=HINTS_BY_ERRNO.get(error.errno, hint)) from error


def unreadable(path: Path, error: OSError, kind: type[SdrtError], *, hint: str, subject: str = "") -> SdrtError:
    """Return the error to raise if an input cannot be read.

    Args:
        path: The file or folder.
        error: The operating system's error.
        kind: Class of the error if the path is wrong: it does not exist, or is of another type.
        hint: Hint of that error.
        subject: Start of the message, such as ``"--prompts: "``.

    Returns:
        A ResourceError if the system refuses to read an existing path, for example without permission; else ``kind``.
    """
    if error.errno in REFUSALS:
        refusal = HINTS_BY_ERRNO.get(error.errno, READ_HINT)
        return ResourceError(f"{subject}cannot read {path}: {REFUSALS[error.errno]}", hint=refusal)
    return kind(f"{subject}cannot read {path}: {error.strerror}", hint=hint)


@contextlib.contextmanager
def system_errors() -> Iterator[None]:
    """Raise ResourceError, which names the file, for operating system errors of the block.

    It wraps the entry points, for calls below them that have no handler of their own.

    Raises:
        ResourceError: No permission, a full disk, a removed working folder, or another refusal of the system.
    """
    try:
        yield
    except OSError as error:
        # OSErrors that libraries raise themselves have no number.
        if error.errno is None:
            raise
        raise system_error(error) from error


def system_error(error: OSError) -> ResourceError:
    """Return the ResourceError of an operating system error; it names the reason and the file."""
    if error.errno == errno.ENOENT and working_folder_is_gone():
        return ResourceError("the working folder is gone", hint="change to a folder that exists")
    reasons = REFUSALS | OBSTACLES
    reason = reasons.get(error.errno or 0, error.strerror or type(error).__name__)
    hint = HINTS_BY_ERRNO.get(error.errno or 0, READ_HINT)
    if error.errno in DISK_FULL:
        hint = "free space, or choose another place"
    if isinstance(error.filename, str | bytes | os.PathLike):
        return ResourceError(f"cannot use {os.fsdecode(error.filename)}: {reason}", hint=hint)
    return ResourceError(f"a file operation failed: {reason}", hint=hint)


def working_folder_is_gone() -> bool:
    """Return whether the current folder was removed, so that no relative path can be resolved."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def is_there(path: Path) -> bool:
    """Return whether a path exists, links followed.

    Raises:
        ResourceError: The system refuses to tell, for example without permission.
    """
    try:
        path.stat()
    except ValueError:
        return False
    except OSError as error:
        if error.errno in NOTHING_THERE:
            return False
        raise unreadable(path, error, ResourceError, hint=READ_HINT) from error
    return True


def check_readable(path: Path) -> None:
    """Raise ResourceError if a path exists that this process may not read.

    Raises:
        ResourceError: No permission for it or for a folder above it.
    """
    if is_there(path) and not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
        denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        raise unreadable(path, denied, ResourceError, hint=READ_HINT)


@contextlib.contextmanager
def utf8_path(path: Path) -> Iterator[Path]:
    """Yield a UTF-8 path of a file or folder, for libraries that need one; it is valid until the block ends.

    It is ``path`` itself if that is UTF-8, else a path through a file descriptor of the folder (/proc/<pid>/fd).

    Args:
        path: An existing file or folder, or a new one whose own name is UTF-8.

    Raises:
        ResourceError: It cannot be opened.
    """
    if _is_utf8(str(path)):
        yield path
        return
    # Through its folder if possible: libraries look for weights beside the graph.
    opened, name = (path.parent, path.name) if _is_utf8(path.name) else (path, "")
    with disk_errors(opened, "open", hint=READ_HINT):
        handle = os.open(opened, os.O_RDONLY)
    try:
        yield Path(f"/proc/{os.getpid()}/fd/{handle}", name)
    finally:
        os.close(handle)


def utf8_text(text: str) -> str:
    r"""Return a file name as UTF-8 text; other bytes are escaped, as in ``mod\xe8le``."""
    return os.fsencode(text).decode(errors="backslashreplace")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _file_system(path: Path) -> Path:
    """Return the mount point of the file system of a path, which need not exist."""
    place = Path(os.path.realpath(path))
    while not os.path.ismount(place):
        place = place.parent
    return place


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield an empty temporary folder that is removed when the block ends.

    Raises:
        ResourceError: It cannot be created.
    """
    with contextlib.ExitStack() as stack:
        with _temporary_errors():
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX))
        yield stack.enter_context(utf8_path(Path(folder)))


def temporary_file() -> IO[bytes]:
    """Open a nameless temporary file, which is removed when it is closed.

    Raises:
        ResourceError: It cannot be created, or fewer than TEMPORARY_ROOM_BYTES are free.
    """
    with _temporary_errors(), contextlib.ExitStack() as stack:
        file = stack.enter_context(tempfile.TemporaryFile())
        file.write(bytes(TEMPORARY_ROOM_BYTES))
        file.flush()
        file.seek(0)
        file.truncate()
        stack.pop_all()
    return file


@contextlib.contextmanager
def _temporary_errors() -> Iterator[None]:
    """Raise ResourceError for operating system errors in creating temporary files."""
    try:
        with disk_errors(Path(tempfile.gettempdir()), "write temporary files into", hint=TEMPORARY_HINT):
            yield
    except FileNotFoundError as error:
        raise ResourceError("no folder for temporary files is writable", hint=TEMPORARY_HINT) from error


def fsync_path(path: Path) -> None:
    """Write a file's or folder's buffered data to disk by fsync(2)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old bytes or the new ones, never a part.

    Unfinished files of killed processes in the same folder are removed.

    Raises:
        ResourceError: The file cannot be written; an earlier file stays.
    """
    with system_errors(), disk_errors(path):
        sweep(path.parent)
        handle, name = tempfile.mkstemp(prefix=PART_PREFIX + owner_name(), dir=path.parent)
        part = Path(name)
        try:
            with os.fdopen(handle, "wb") as file, try_exclusive(part):
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.chmod(0o666 & ~_umask())
            part.replace(path)
            fsync_path(path.parent)
        finally:
            part.unlink(missing_ok=True)


def _umask() -> int:
    """Return the process's file mode mask."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def folder_published_as(path: Path, mode: int = 0o755) -> Iterator[Path]:
    """Yield an empty folder beside ``path``; rename it to ``path`` when the block succeeds.

    An existing ``path`` is replaced. Nothing is left behind if the block raises; unfinished folders of killed processes
    beside ``path`` are removed.

    Raises:
        ResourceError: The folder cannot be written.
    """
    with system_errors(), disk_errors(path):
        # "." and ".." cannot be renamed under these names.
        path = path.resolve() if path.name in ("", "..") else path.absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        part = Path(tempfile.mkdtemp(prefix=PART_PREFIX + owner_name(), dir=path.parent))
    try:
        with disk_errors(path), try_exclusive(part):
            yield part
            for folder, _, names in os.walk(part):
                for name in names:
                    fsync_path(Path(folder, name))
                fsync_path(Path(folder))
            part.chmod(mode)
            _swap(part, path)
            fsync_path(path.parent)
    finally:
        # After an exchange this is the former content of ``path``, which may be a link or a file.
        remove(part)


def _swap(part: Path, path: Path) -> None:
    """Rename ``part`` to ``path``; a former ``path`` is renamed to ``part``, or removed.

    If the file system can exchange two names, ``path`` exists at every moment.
    """
    if not path.exists():
        part.rename(path)
        return
    if _exchange(part, path):
        return
    aside = Path(tempfile.mkdtemp(prefix=ASIDE_PREFIX + owner_name(), dir=path.parent))
    try:
        path.rename(aside / path.name)
        part.rename(path)
    except BaseException:
        # The former content must not be removed with the folder it was moved to.
        if not path.exists():
            (aside / path.name).rename(path)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names atomically; return False if the system or file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in CANNOT_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code))


def path_inside(folder: Path, relative: str) -> Path:
    """Return the path of a file in ``folder``, given as a relative POSIX path; the file need not exist.

    Raises:
        TrustError: The path is absolute, leaves the folder, or is a link or anything but a plain file.
    """
    pure = PurePosixPath(relative)
    hint = "copy the file itself into the folder and create the manifest again"
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\\" in relative or "\0" in relative:
        raise TrustError(f"{relative[:80]!r} is not a path inside {folder}", hint=hint)
    current = folder
    try:
        for part in pure.parts:
            current = current / part
            if stat.S_ISLNK(current.lstat().st_mode):
                raise TrustError(f"{current} is a link", hint=hint)
        status = current.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return folder / pure
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in REFUSALS:
            raise unreadable(current, error, ResourceError, hint=hint) from error
        raise TrustError(f"{relative[:80]!r} is not the path of a file in {folder}", hint=hint) from error
    if not stat.S_ISREG(status.st_mode):
        raise TrustError(f"{current} is not a plain file", hint=hint)
    if status.st_nlink > 1:
        raise TrustError(f"{current} is a hard link", hint=hint)
    return current
