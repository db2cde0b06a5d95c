"""Command lines that install missing packages into the Python that runs sdrt.

sdrt is on no package index, so ``pip install sdrt[...]`` would find nothing. An extra is installed from the clone, or,
if sdrt was installed from a wheel, by the extra's requirements in the package's metadata.
"""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NAME = "sdrt"
#: The part of a requirement's marker that names its extra, as metadata has it: "onnx>=1.20; extra == 'plot'".
_EXTRA = re.compile(r"""(?:\s*\band)?\s*\bextra\s*==\s*["']([^"']+)["']""")


def extra_line(*extras: str) -> str:
    """Return the command that installs extras of sdrt.

    Raises:
        ValueError: There is no such extra.
    """
    try:
        wanted = dict.fromkeys(each for extra in extras for each in requirements(extra))
    except PackageNotFoundError:
        return f"install sdrt by pip, with {', '.join(extras)}"
    clone = clone_root()
    return (
        package_line(*wanted) if clone is None else _pip("install", "--editable", f"{_here(clone)}[{','.join(extras)}]")
    )


def requirement_line(package: str, *, extra: str) -> str:
    """Return the command that installs one package of an extra, in the versions that the extra requires.

    Raises:
        ValueError: The extra does not require the package.
    """
    try:
        found = [wanted for wanted in requirements(extra) if _package(wanted) == _package(package)]
    except PackageNotFoundError:
        found = [package]
    if not found:
        raise ValueError(f"{package} is not in the extra {extra}")
    return package_line(*found)


def package_line(*wanted: str) -> str:
    """Return the command that installs packages from the package index, as "onnx>=1.20"."""
    return _pip("install", *wanted)


def removal_line(*packages: str) -> str:
    """Return the command that removes packages."""
    return _pip("uninstall", "--yes", *packages)


def requirements(extra: str) -> tuple[str, ...]:
    """Return the requirements of an extra, as pip takes them.

    Raises:
        ValueError: There is no such extra.
        PackageNotFoundError: sdrt runs neither from a clone nor as an installed package.
    """
    clone = clone_root()
    if clone is None:
        found = tuple(_without_extra(wanted, extra) for wanted in requires(NAME) or () if _names(wanted, extra))
    else:
        found = tuple(_project(clone).get("optional-dependencies", {}).get(extra, ()))
    if not found:
        raise ValueError(f"sdrt has no extra {extra}")
    return found


def clone_root() -> Path | None:
    """Return the folder of the clone that sdrt runs from; None if sdrt is installed from a wheel."""
    root = Path(__file__).parent.parent
    return root if _project(root).get("name") == NAME else None


def _project(root: Path) -> dict[str, Any]:
    """Return the project table of a pyproject.toml; empty if there is none."""
    try:
        project: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except (OSError, ValueError, KeyError):
        return {}
    return project


def _package(requirement: str) -> str:
    """Return the name of a requirement's package as indexes normalise it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()


def _names(requirement: str, extra: str) -> bool:
    return extra in _EXTRA.findall(requirement.partition(";")[2])


def _without_extra(requirement: str, extra: str) -> str:
    """Return a requirement of the metadata without the part of its marker that names the extra."""
    wanted, _, marker = requirement.partition(";")
    rest = _EXTRA.sub("", marker).strip().removeprefix("and ")
    return f"{wanted.strip()}; {rest}" if rest else wanted.strip()


def _pip(*words: str) -> str:
    """Return a command of the running Python's pip, or of uv, whose environments have no pip."""
    python = _here(Path(sys.executable or "python3"))
    if find_spec("pip") is None:
        action, *rest = words
        return shlex.join(["uv", "pip", action, "--python", python, *(word for word in rest if word != "--yes")])
    return shlex.join([python, "-m", "pip", *words])


def _here(path: Path) -> str:
    """Return a path relative to the current folder, if below it, with a slash unless it is that folder."""
    try:
        inside = path.relative_to(Path.cwd()).as_posix()
    except (OSError, ValueError):
        return str(path)
    return inside if inside == "." or "/" in inside else f"./{inside}"
