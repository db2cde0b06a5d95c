"""The tutorial: its commands run, and write the pictures it shows."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import click
import pytest
from PIL import Image

from sdrt.artefacts.store import Store
from sdrt.cli import cli
from tests.command_line import CommandLine

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "tutorial.md").read_text(encoding="utf-8")
#: Limit of all pictures together, so that the page loads quickly.
LIMIT_BYTES = 4 << 20


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """Load docs/generate_tutorial.py."""
    spec = importlib.util.spec_from_file_location("generate_tutorial", DOCS / "generate_tutorial.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def outputs(words: list[str]) -> list[str]:
    """Return the files that a command writes."""
    return [words[index + 1] for index, word in enumerate(words) if word in ("--out", "--animation", "--drawing")]


def test_every_picture_is_written_by_a_command_above_it(generator: ModuleType) -> None:
    written: set[str] = set()
    shown = []
    for line in PAGE.splitlines():
        if line.startswith("    sdrt "):
            written |= set(outputs(shlex.split(line)))
        for picture in generator.pictures(line):
            shown.append(picture)
            assert generator.source(picture, Path()).name in written, f"{picture} stands above its command"
    assert sorted(shown) == sorted(path.relative_to(DOCS) for path in (DOCS / "images" / "tutorial").iterdir())
    assert {generator.source(picture, Path()).name for picture in shown} == written
    assert len(shown) > 9


def test_every_picture_is_whole_and_light() -> None:
    paths = sorted((DOCS / "images" / "tutorial").iterdir())
    for path in paths:
        if path.suffix == ".svg":
            assert "prefers-color-scheme" in path.read_text(encoding="utf-8"), f"{path} is not for dark pages"
        else:
            with Image.open(path) as picture:
                picture.load()
    assert sum(path.stat().st_size for path in paths) < LIMIT_BYTES


def test_every_command_and_option_exists(
    generator: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = generator.commands(PAGE)
    assert {tuple(words[1:3]) for words in found} >= {
        ("plot", name) for name in ("sigmas", "noising", "prediction", "trajectory", "attention")
    }
    for words in found:
        command: click.Command = cli
        context = click.Context(cli, info_name="sdrt", **cli.context_settings)
        rest = words[1:]
        while isinstance(command, click.Group):
            inner = command.get_command(context, rest[0])
            assert inner is not None, words
            command, rest = inner, rest[1:]
        # Parses the options and converts their values, and runs nothing.
        command.make_context(words[1], list(rest), parent=context)


def test_a_wrong_option_would_be_found() -> None:
    command = cli.get_command(click.Context(cli, **cli.context_settings), "plot")
    assert isinstance(command, click.Group)
    with pytest.raises(click.NoSuchOption):
        command.commands["sigmas"].make_context("sigmas", ["--step", "3"], **cli.context_settings)


@pytest.mark.long
def test_the_commands_run_in_order(
    generator: ModuleType,
    tiny_path: Path,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sdrt: CommandLine,
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in generator.commands(PAGE):
        inspecting = words[1] == "inspect"
        changed = [str(tiny_path) if word == "demo" else word for word in words[1:]]
        where = () if inspecting else ("--checkpoint", tiny_path, "--store", store.root)
        ended = sdrt(*changed, *where)
        assert ended.code == 0, f"{words}: {ended.err}"
        for name in outputs(words):
            assert (tmp_path / name).stat().st_size > 0
            assert name in ended.out + ended.err
    for picture in generator.pictures(PAGE):
        generator.publish(generator.source(picture, tmp_path), tmp_path / "page" / picture)
    published = {path.relative_to(tmp_path / "page") for path in (tmp_path / "page").rglob("*.*")}
    assert published == set(generator.pictures(PAGE))


def test_what_the_page_says_of_the_schedule_is_so(sdrt: CommandLine, tmp_path: Path) -> None:
    found = sdrt("plot", "sigmas", "--steps", 51, "--json", "--out", tmp_path / "a.png").json
    sigmas, coefficients = found["sigmas"], found["coefficients"]
    said = [float(number) for number in re.findall(r"[Ii]t falls from ([\d.]+),.* to ([\d.]+) and", PAGE)[0]]
    assert [round(sigmas[0], 1), round(sigmas[50], 2)] == said
    assert round(sigmas[40], 2) == float(re.findall(r"step 40, where sigma is ([\d.]+),", PAGE)[0])
    assert round(sigmas[0]) == 15
    assert sigmas[0] - sigmas[17] > 0.7 * sigmas[0]
    for step in range(3, 50):
        signs = [weight > 0 for weight in coefficients[step]]
        assert signs == [False, True, False, True]
