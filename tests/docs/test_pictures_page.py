"""The page on pictures: its commands and its program, executed on engines of hand-written graphs."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdrt.artefacts.engine_set import EngineSet
from sdrt.pipeline import Pipeline
from tests.command_line import CommandLine

PAGE = Path(__file__).parents[2] / "docs" / "how-to-pictures.md"


def indented(start: str) -> list[str]:
    """Return the page's indented lines with this beginning."""
    return [line.strip() for line in PAGE.read_text().splitlines() if line.startswith(f"    {start}")]


@pytest.fixture(autouse=True)
def here(hand_sets: Callable[..., EngineSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a folder with the page's files, and with quick engines in place of a checkpoint's."""

    def load(*_: Any, keep_loaded: bool = True, **__: Any) -> Pipeline:
        return Pipeline(hand_sets(), keep_loaded=keep_loaded)

    monkeypatch.setattr(Pipeline, "load", load)
    monkeypatch.chdir(tmp_path)
    # --from searches for the checkpoint of the record.
    Path("tiny").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)).save("sketch.jpg")
    Path("prompts.jsonl").write_text("\n".join(indented('{"prompt"')))


def test_its_commands_do_what_it_says(sdrt: CommandLine) -> None:
    commands = indented("sdrt denoise")
    assert len(commands) == 5
    for command in commands:
        ended = sdrt(*shlex.split(command)[1:])
        assert ended.code == 0, ended.err
        if "--prompts" in command:
            assert [Path(image["path"]).name for image in ended.json["images"]] == [
                "drawn-0001.png",
                "drawn-0002-0001.png",
                "drawn-0002-0002.png",
                "drawn-0003.png",
            ]
    assert Path("again.png").read_bytes() == Path("touched-up.png").read_bytes()
    assert len(list(Path("previews").iterdir())) == 49


def test_its_program_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = [part.partition("```")[0] for part in PAGE.read_text().split("```python\n")[1:]]
    exec(program, {})
    assert capsys.readouterr().out == "8\n"
    with Image.open("step-5.png") as picture:
        assert picture.size == (16, 16)
