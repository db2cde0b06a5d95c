"""Rows 86 and 87 of the fault matrix: ``make engines`` without some backends, and pages that agree with the code."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from sdrt.artefacts.store import Store
from tests.makefile import ROOT, make

README = (ROOT / "README.md").read_text()
#: An sdrt for the Makefile that builds for one backend; another lacks its library or device.
STUB = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/asked"
case "$*" in
  *"--backend tensorrt "*) echo "sdrt: no GPU (none)" >&2; exit 4;;
  *"--backend openvino "*) echo "sdrt: malformed (none)" >&2; exit ${BROKEN:-0};;
esac
"""


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    """Write an environment for the Makefile whose sdrt is a stub."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sdrt").write_text(STUB)
    (tmp_path / "bin" / "sdrt").chmod(0o755)
    for name in ("python", "sdrt"):
        (tmp_path / "bin" / name).touch()
    for stamp in ("ready-to-run", "ready-to-build"):
        (tmp_path / f".{stamp}").touch()
    return tmp_path


def make_engines(stub: Path, *variables: str, **environment: str) -> tuple[int, str, list[str]]:
    """Return the exit code, the output, and the requested backends."""
    words = ["make", "--old-file", str(stub / ".ready-to-build"), "engines", f"VENV={stub}", *variables]
    clean = {name: value for name, value in os.environ.items() if "MAKE" not in name and name != "MFLAGS"}
    ended = subprocess.run(words, cwd=ROOT, env={**clean, **environment}, capture_output=True, text=True, check=False)
    asked = re.findall(r"--backend (\S+)", (stub / "bin" / "asked").read_text())
    return ended.returncode, ended.stderr, asked


def test_row_86_what_cannot_be_built_here_is_skipped_and_named(stub: Path) -> None:
    code, said, asked = make_engines(stub)
    assert (code, asked) == (0, ["onnxruntime", "openvino", "tensorrt-rtx", "tensorrt"])
    assert "make engines: tensorrt is skipped: it cannot be built here, for the reason above" in said
    assert said.count("is skipped") == 1


def test_row_86_what_is_asked_for_by_name_is_not_skipped(stub: Path) -> None:
    code, said, asked = make_engines(stub, "BACKENDS=tensorrt openvino")
    assert (code, asked) == (2, ["tensorrt"])
    assert "Error 4" in said
    assert "is skipped" not in said


def test_row_86_another_error_ends_it(stub: Path) -> None:
    code, said, asked = make_engines(stub, BROKEN="3")
    assert (code, asked) == (2, ["onnxruntime", "openvino"])
    assert "Error 3" in said


def commands() -> list[list[str]]:
    """Return the commands that the README tells users to type."""
    return [shlex.split(line) for line in re.findall(r"^    ((?:make|sdrt) .*)$", README, re.MULTILINE)]


def test_row_87_the_readme_names_what_there_is() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert commands()
    for name, target, *variables in commands():
        assert (name, target in targets) == ("make", True)
        for variable in variables:
            assert re.search(rf"^{variable.partition('=')[0]} \?=", (ROOT / "Makefile").read_text(), re.MULTILINE)
    linked = re.findall(r"\]\(([^)#:]+)\)", README)
    assert linked
    for place in (*linked, *re.findall(r"^\| `([^`]+)`", README, re.MULTILINE)):
        assert (ROOT / place).exists(), place


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_row_87_the_page_of_the_command_line_is_its_help() -> None:
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == generator().page()


@pytest.mark.long
def test_row_87_the_readmes_commands_do_what_they_say(store: Store, tmp_path: Path) -> None:
    (words,) = [words for words in commands() if words[1] == "denoise"]
    out = tmp_path / "picture.png"
    done = make("denoise", "ready-to-run", *words[2:], f"OUT={out}", f"STORE={store.root}")
    assert done.returncode == 0, done.stderr
    with Image.open(out) as picture:
        assert (picture.size, picture.mode) == ((512, 512), "RGB")


@pytest.mark.long
def test_row_87_the_readmes_python_runs(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert [path.suffix for path in tmp_path.iterdir()] == [".png"]
