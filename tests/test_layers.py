"""Packages import downward only, and no module takes part in a circle; type-checking imports count.

The table is the architecture: a package may import what stands on a lower floor, and on its own floor only what
BESIDE names.
"""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "sdrt"
#: From the lowest floor up. "sdrt" is the package's face: sdrt/__init__.py.
FLOORS = (
    (
        "arguments",
        "arrays",
        "errors",
        "files",
        "install_lines",
        "interruption",
        "limits",
        "progress",
        "streams",
        "terminal",
        "unfinished",
        "version",
        "web_page",
    ),
    ("families", "machine", "sampling"),
    ("artefacts", "libraries"),
    ("graphs",),
    ("checkpoint", "engines", "runtime"),
    ("export",),
    ("prepare",),
    ("pipeline", "doctor"),
    ("sdrt",),
    ("compare",),
    ("bench",),
    ("inspect", "plots"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
FLOOR = {package: number for number, floor in enumerate(FLOORS) for package in floor}
#: Packages that a package may import on its own floor.
BESIDE = {
    "arguments": {"errors"},
    "arrays": {"errors"},
    "errors": {"terminal"},
    "files": {"errors", "unfinished"},
    "progress": {"terminal"},
    "streams": {"errors", "files"},
}
#: The one import that runs upward: opening a bundle's graph validates it, so that every graph in use is validated.
UPWARD = {("sdrt.artefacts.bundle", "sdrt.graphs.validate")}


def modules(root: Path) -> dict[str, Path]:
    """Return every module below a package's folder, by its dotted name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Return the modules of sdrt that a file imports anywhere: at its top, in functions, and for type checking."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in inside}
    return {name for name in found if name.split(".")[0] == "sdrt"}


def package(module: str) -> str:
    """Return the package or top-level module below sdrt that a module belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "sdrt"


def misplaced(root: Path) -> list[str]:
    """List imports that the table does not allow, as "importer -> imported"."""
    known = modules(root)
    wrong = []
    for module, path in known.items():
        for name in sorted(imports(path, known)):
            above, below = package(module), package(name)
            lower = FLOOR[below] < FLOOR[above] or below in BESIDE.get(above, ())
            if above != below and not lower and (module, name) not in UPWARD:
                wrong.append(f"{module} -> {name}")
    return wrong


def circle(root: Path) -> list[str]:
    """Return the modules of a circle of imports; empty if there is none."""
    known = modules(root)
    graph = {
        module: {name for name in imports(path, known) if name != module and (module, name) not in UPWARD}
        for module, path in known.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_imports_run_downward() -> None:
    assert misplaced(ROOT) == []


def test_no_module_takes_part_in_a_circle() -> None:
    assert circle(ROOT) == []


def test_every_exception_is_needed() -> None:
    known = modules(ROOT)
    assert {(above, below) for above, below in UPWARD if below in imports(known[above], known)} == UPWARD
    used = {(package(module), package(name)) for module, path in known.items() for name in imports(path, known)}
    assert {(above, below) for above, others in BESIDE.items() for below in others} <= used


@pytest.mark.parametrize("where", ["top", "function", "type checking"])
def test_an_upward_import_is_found(tmp_path: Path, where: str) -> None:
    statement = "from sdrt.commands import denoise"
    text = {
        "top": statement,
        "function": f"def draw() -> None:\n    {statement}",
        "type checking": f"from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    {statement}",
    }[where]
    _package(tmp_path, {"runtime/loop.py": text, "commands/denoise.py": ""})
    assert misplaced(tmp_path / "sdrt") == ["sdrt.runtime.loop -> sdrt.commands.denoise"]


def test_an_import_beside_is_found(tmp_path: Path) -> None:
    _package(tmp_path, {"runtime/loop.py": "import sdrt.engines.build", "engines/build.py": ""})
    assert misplaced(tmp_path / "sdrt") == ["sdrt.runtime.loop -> sdrt.engines.build"]


def test_a_circle_inside_a_package_is_found(tmp_path: Path) -> None:
    text = {"runtime/one.py": "from sdrt.runtime import two", "runtime/two.py": "import sdrt.runtime.one"}
    _package(tmp_path, text)
    assert set(circle(tmp_path / "sdrt")) == {"sdrt.runtime.one", "sdrt.runtime.two"}


def _package(folder: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        path = folder / "sdrt" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for place in (folder / "sdrt", path.parent):
            (place / "__init__.py").touch()
        path.write_text(text + "\n")
