"""The page on inspecting: its commands run, and its drawing equals the code's."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
from pathlib import Path

import pytest

from sdrt.artefacts.bundle import Bundle
from tests.command_line import CommandLine

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "how-to-inspect.md").read_text()
COMMANDS = [line.strip() for line in PAGE.splitlines() if line.startswith("    sdrt inspect")]
#: Needs a benchmark: tests/commands/test_inspect.py has one.
NOT_RUN = "--benchmark"


@pytest.mark.parametrize("line", [line for line in COMMANDS if NOT_RUN not in line])
def test_the_pages_commands_run(
    line: str, tiny_bundle: Bundle, tmp_path: Path, sdrt: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_bundle.path, "bundle")
    ended = sdrt(*shlex.split(line)[1:])
    assert ended.code == 0, ended.err
    assert "up_blocks.3" in ended.out
    named = [word for word in shlex.split(line) if word.endswith((".svg", ".html"))]
    assert [path.name for path in sorted(tmp_path.iterdir()) if path.name != "bundle"] == sorted(named)


def test_the_page_has_its_commands() -> None:
    assert len(COMMANDS) == 7


def test_the_drawing_is_the_codes() -> None:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    drawn = generate.DRAWING.read_text()
    assert drawn == generate.unet(), "run make docs"
    assert "images/sd-v1-unet.svg" in PAGE
    assert "859.5 M parameters" in drawn
