"""Requirements of pyproject.toml, their pins, and the installed packages that they depend on."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
#: Extras that are resolved apart: their packages overwrite others' files, or come from an index that not all can reach.
APART = ("gpu", "trt")
#: Packages that an editable install needs in addition to those in pyproject.toml.
BUILD = ("hatchling", "editables")


def requirement_groups() -> dict[str, list[Requirement]]:
    """Return the requirements by group: "runtime", each extra, and "build"."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"runtime": project["dependencies"], **project["optional-dependencies"], "build": BUILD}
    return {name: [Requirement(text) for text in group] for name, group in groups.items()}


def pinned() -> dict[str, str]:
    """Return the versions in constraints.txt by canonical name."""
    lines = (line.partition("#")[0].strip() for line in CONSTRAINTS.read_text().splitlines())
    pairs = (line.split("==") for line in lines if line)
    return {canonicalize_name(name): version for name, version in pairs}


def closure(requirements: Iterable[Requirement]) -> dict[str, Distribution]:
    """Return the installed distributions of requirements and of all that they depend on, by canonical name.

    Packages that are not installed are left out.
    """
    found: dict[str, Distribution] = {}
    queue = [(requirement, extra) for requirement in requirements for extra in ("", *sorted(requirement.extras))]
    seen: set[tuple[str, str]] = set()
    while queue:
        requirement, extra = queue.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            installed = distribution(requirement.name)
        except PackageNotFoundError:
            continue
        found[name] = installed
        for line in installed.requires or ():
            below = Requirement(line)
            if below.marker is None or below.marker.evaluate({"extra": extra}):
                queue += [(below, each) for each in ("", *sorted(below.extras))]
    return found
