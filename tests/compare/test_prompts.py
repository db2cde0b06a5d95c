"""Prompt files are read exactly, and errors name their line."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdrt.compare.prompts import DEMO, GENERAL, MAX_PROMPTS, PromptSeed, default_prompts, read_prompts
from sdrt.compare.scene_grammar import parse_caption
from sdrt.errors import UsageError


def test_lines_with_and_without_seeds(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("# mine\n\na red circle \r\n7\tein Grün, 2\n18446744073709551615\t\nlast, 9".encode())
    expected = (
        PromptSeed("a red circle", 0),
        PromptSeed("ein Grün, 2", 7),
        PromptSeed("", 2**64 - 1),
        PromptSeed("last, 9", 3),
    )
    assert read_prompts(path) == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds 0 prompts"),
        (b"# only this\n\n", "holds 0 prompts"),
        (b"a\n" * (MAX_PROMPTS + 1), f"holds {MAX_PROMPTS + 1} prompts; 1 to {MAX_PROMPTS} are allowed"),
        (b"a\nx\tb\n", "line 2: the seed is 'x'"),
        (b"-1\tb\n", "line 1: the seed is '-1'"),
        (b"18446744073709551616\tb\n", "the seed is '18446744073709551616'"),
        ("²\tb\n".encode(), "the seed is '²'"),
        (b"a\xff\n", "is not UTF-8 at byte 1"),
        (b"x" * 100_001, "line 1 has 100001 characters"),
        (b"x" * ((1 << 20) + 1), "is larger than 1 MiB"),
    ],
)
def test_what_is_wrong_is_named(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_prompts(path)
    assert said in caught.value.message
    assert "prompts.txt" in caught.value.message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*nothing\.txt"):
        read_prompts(tmp_path / "nothing.txt")


def test_the_demo_has_captions_of_its_grammar() -> None:
    scenes = [parse_caption(each.prompt) for each in default_prompts("demo")]
    assert {len(scene.things) for scene in scenes} == {0, 1, 2}
    assert default_prompts("demo") is DEMO
    assert default_prompts("org/other") is GENERAL
