"""Previews: as files, above the bars of a colour terminal, and a note where they cannot be shown."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from sdrt.commands import live_preview as module
from sdrt.commands.live_preview import COLUMNS, SIDE_BY_SIDE, HalfBlocks
from sdrt.progress import Bars
from tests.command_line import Ended
from tests.doubles.terminal import Terminal

Denoise = Callable[..., Ended]


@pytest.fixture
def denoise(denoise: Denoise) -> Denoise:
    """Return a function that draws one prompt in four steps."""
    return partial(denoise, "--prompt", "a red circle", "--steps", 4, "--seed", 3)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """Return a function that makes stderr a colour terminal, for tests to call: pytest replaces stderr first."""

    def start() -> Terminal:
        stderr = Terminal()
        monkeypatch.setattr(sys, "stderr", stderr)
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLORTERM", "truecolor")
        return stderr

    return start


def files(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def test_a_file_after_each_step_but_the_first(denoise: Denoise) -> None:
    assert denoise().code == 0
    plain = Path("picture.png").read_bytes()
    ended = denoise("--preview-dir", "previews")
    assert ended.code == 0, ended.err
    assert files("previews") == ["step-0002.png", "step-0003.png", "step-0004.png"]
    assert "3 previews in previews" in ended.err
    # Latents of the hand-made engines are 8x8.
    with Image.open("previews/step-0004.png") as preview:
        assert (preview.size, preview.mode) == ((32, 32), "RGB")
    assert Path("previews/step-0002.png").read_bytes() != Path("previews/step-0004.png").read_bytes()
    assert Path("picture.png").read_bytes() == plain


def test_json_names_the_files(denoise: Denoise) -> None:
    facts = denoise("--preview-dir", "previews", "--num-images", 2, "--json").json
    assert facts["previews"] == [f"previews/{number:04}-step-{step:04}.png" for step in (2, 3, 4) for number in (1, 2)]
    assert denoise("--json").json["previews"] == []


def test_pictures_of_later_groups_have_numbers_of_their_own(denoise: Denoise) -> None:
    assert denoise("--preview-dir", "previews", "--num-images", 5).code == 0
    assert {name[:4] for name in files("previews")} == {"0001", "0002", "0003", "0004", "0005"}
    assert len(files("previews")) == 15


def test_an_empty_folder_is_used_and_a_full_one_is_not(denoise: Denoise) -> None:
    Path("empty").mkdir()
    assert denoise("--preview-dir", "empty").code == 0
    assert len(files("empty")) == 3
    for folder, named in (("empty", "is not empty"), ("missing/previews", "there is no folder missing")):
        ended = denoise("--preview-dir", folder, "--out", "other.png")
        assert (ended.code, named in ended.complaint) == (2, True)
    assert denoise("--preview-dir", "picture.png").code == 2
    assert not Path("other.png").exists()


def test_where_nothing_can_be_shown_it_is_said(denoise: Denoise) -> None:
    ended = denoise("--preview")
    assert ended.code == 0
    assert "--preview needs a terminal with colours" in ended.err
    assert "--preview shows" not in denoise("--preview-dir", "previews").err


def test_a_terminal_shows_what_is_drawn(
    denoise: Denoise, terminal: Callable[[], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    blocks = module.HalfBlocks

    def keep(pictures: Any) -> HalfBlocks:
        shown.append(pictures)
        return blocks(pictures)

    monkeypatch.setattr(module, "INTERVAL_S", 0.0)
    monkeypatch.setattr(module, "HalfBlocks", keep)
    stderr = terminal()
    assert denoise("--preview").code == 0
    assert len(shown) == 3
    assert "\N{UPPER HALF BLOCK}" in stderr.getvalue()
    assert "\x1b[38;2;" in stderr.getvalue()


def test_a_terminal_is_not_drawn_too_often(
    denoise: Denoise, terminal: Callable[[], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdrt.commands.live_preview.time.monotonic", lambda: 100.0)
    shown: list[Any] = []

    def keep(pictures: Any) -> str:
        shown.append(pictures)
        return "a picture"

    monkeypatch.setattr(module, "HalfBlocks", keep)
    terminal()
    assert denoise("--preview").code == 0
    assert len(shown) == 1


def test_no_color_is_obeyed(
    denoise: Denoise, terminal: Callable[[], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = terminal()
    monkeypatch.setenv("NO_COLOR", "1")
    assert denoise("--preview").code == 0
    assert "--preview needs a terminal with colours" in stderr.getvalue()
    assert "\N{UPPER HALF BLOCK}" not in stderr.getvalue()


def rendered(pictures: list[Image.Image], width: int = 200) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", no_color=False, width=width)
    console.print(HalfBlocks(pictures))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_character_holds_two_pixels() -> None:
    pixels = np.zeros((COLUMNS, COLUMNS, 3), np.uint8)
    pixels[::2], pixels[1::2] = (250, 1, 2), (3, 4, 250)
    lines = rendered([Image.fromarray(pixels)]).splitlines()
    assert len(lines) == COLUMNS // 2
    assert all(line.count("\N{UPPER HALF BLOCK}") == COLUMNS for line in lines)
    assert "38;2;250;1;2;48;2;3;4;250" in lines[0]


def test_pictures_stand_side_by_side_as_far_as_there_is_room() -> None:
    picture = Image.new("RGB", (64, 64), (9, 9, 9))
    block = "\N{UPPER HALF BLOCK}"
    assert rendered([picture] * 2).splitlines()[0].count(block) == 2 * COLUMNS
    assert rendered([picture] * 9).splitlines()[0].count(block) == SIDE_BY_SIDE * COLUMNS
    assert rendered([picture] * 2, width=40).splitlines()[0].count(block) == 40


def test_what_stands_above_the_bars_is_shown_with_them(terminal: Callable[[], Terminal]) -> None:
    stderr = terminal()
    bars = Bars()
    assert bars.coloured
    with bars.stage("denoise", 2) as advance:
        bars.above = "a picture"
        advance(2)
    assert "a picture" in stderr.getvalue()
    assert stderr.getvalue().index("a picture") < stderr.getvalue().rindex("denoise")
