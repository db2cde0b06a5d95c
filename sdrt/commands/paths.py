"""Parameter types and checks of paths, so that unusable paths are refused before any work starts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from sdrt.errors import UsageError
from sdrt.files import check_readable, working_folder_is_gone

#: Name of the checkpoint that ships with the package, even if a file of that name exists.
DEMO = "demo"


class InputPath(click.Path):
    """A file or folder to read; the command itself checks its contents.

    Args:
        exists: Whether it must exist.
        folder: Whether it is a folder (True), a file (False) or either (None).
    """

    def __init__(self, *, exists: bool = False, folder: bool | None = None) -> None:
        super().__init__(
            exists=exists,
            file_okay=folder is not True,
            dir_okay=folder is not False,
            readable=False,
            path_type=Path,
        )

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path; raise ResourceError if it exists and cannot be read."""
        check_readable(Path(value))
        return super().convert(value, param, ctx)


class InputName(click.ParamType):  # type: ignore[type-arg]
    """The name of something to read: a path, a Hub id or a built-in name."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name; raise ResourceError if it is the path of something that cannot be read."""
        if value != DEMO:
            check_readable(Path(value))
        return str(value)


class OutputFile(click.Path):
    """A file to write or replace."""

    def __init__(self) -> None:
        super().__init__(readable=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path; raise UsageError unless it can be written."""
        check_writable(_option(param), Path(value))
        return super().convert(value, param, ctx)


class OutputFolder(click.Path):
    """A folder to write; it and its parents are created if they are missing."""

    def __init__(self) -> None:
        super().__init__(readable=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path; raise UsageError unless it can be written. Nothing is created yet."""
        check_folder(_option(param), Path(value))
        return super().convert(value, param, ctx)


def check_writable(option: str, path: Path) -> None:
    """Raise UsageError unless a file can be written or replaced.

    Raises:
        UsageError: Its folder is missing or not writable, its name is too long, or it is a folder or a device.
    """
    try:
        _check_working_folder(option, path)
        if not path.parent.is_dir():
            raise UsageError(f"{option}: there is no folder {path.parent}", hint="create the folder first")
        if len(os.fsencode(path.name)) > os.pathconf(path.parent, "PC_NAME_MAX"):
            raise UsageError(f"{option}: the name is too long for the file system", hint="choose a shorter name")
        _check_permission(option, path.parent)
        if path.is_dir():
            raise UsageError(f"{option}: {path} is a folder", hint="name a file")
        if path.exists() and not path.is_file():
            raise UsageError(f"{option}: {path} is not a regular file", hint="name a file")
    except PermissionError as error:
        raise _no_permission(option, path) from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{option}: {str(path)!r} is not a usable path", hint="choose another file") from error


def check_folder(option: str, folder: Path) -> None:
    """Raise UsageError unless a folder can be written or created.

    Raises:
        UsageError: It is a file or below one, its parent is not writable, or its name is too long.
    """
    try:
        _check_working_folder(option, folder)
        place = folder.absolute()
        while not place.exists():
            place = place.parent
        if not place.is_dir():
            raise UsageError(f"{option}: {place} is a file", hint="name a folder")
    except PermissionError as error:
        raise _no_permission(option, folder) from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{option}: {str(folder)!r} is not a usable path", hint="choose another folder") from error
    _check_permission(option, place)


def check_empty(option: str, folder: Path) -> None:
    """Raise UsageError unless a folder is empty, or missing in an existing parent, and can be written.

    Raises:
        UsageError: Its parent is missing, it is not empty, or there is no permission.
    """
    check_writable(option, folder / "step-0001.png" if folder.is_dir() else folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{option}: {folder} is a file", hint="name a folder")
    if folder.is_dir() and _holds_something(option, folder):
        raise UsageError(
            f"{option}: {folder} is not empty", hint="give an empty folder, or one that does not exist yet"
        )


def check_free(out: Path, force: bool) -> None:
    """Raise UsageError unless the folder of ``--out`` can be created, or replaced.

    Raises:
        UsageError: It is a file, is not empty and ``force`` is False, contains the current folder, or there is no
            permission.
    """
    try:
        if out.exists() and not out.is_dir():
            raise UsageError(f"--out: {out} is a file", hint="name a folder")
        if out.is_dir() and _holds_something("--out", out) and not force:
            raise UsageError(f"--out: {out} is not empty", hint="name another folder, or replace it with --force")
        if not working_folder_is_gone() and Path.cwd().is_relative_to(out.resolve()):
            raise UsageError(f"--out: {out} contains the current folder", hint="name another folder")
        # It is replaced by a folder that is created beside it.
        check_folder("--out", out.absolute().parent)
    except PermissionError as error:
        raise _no_permission("--out", out) from error
    except (OSError, ValueError) as error:
        raise UsageError(f"--out: {str(out)!r} is not a usable path", hint="choose another folder") from error


def _option(param: click.Parameter | None) -> str:
    return param.opts[0] if param is not None else "path"


def _check_working_folder(option: str, path: Path) -> None:
    """Raise UsageError for a relative path if the working folder was removed; the system would accept it."""
    if not path.is_absolute() and working_folder_is_gone():
        hint = "change to a folder that exists, or give an absolute path"
        raise UsageError(f"{option}: the working folder is gone, so {path} cannot be written", hint=hint)


def _check_permission(option: str, folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{option}: no permission to write in {folder}", hint="choose another folder")


def _holds_something(option: str, folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except PermissionError as error:
        raise UsageError(f"{option}: no permission to read {folder}", hint="choose another folder") from error


def _no_permission(option: str, path: Path) -> UsageError:
    return UsageError(f"{option}: no permission for {path}", hint="choose a folder that you can write to")


def check_png(path: Path) -> None:
    """Raise UsageError unless a path is named .png."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"--out: {str(path)!r} does not end in .png", hint="pictures are written as PNG")
