"""Figures as files: legible on light and dark, equal for equal input, safe for any text."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from sdrt.compare.error_plot import COLOURS
from sdrt.errors import BackendUnavailableError, UsageError
from sdrt.install_lines import extra_line
from sdrt.plots import figure as figures
from sdrt.plots.figure import (
    DARK,
    GRID,
    INK,
    PAPER,
    QUIET,
    Panel,
    check_drawable,
    picture_grid,
    quoted,
    shown,
    styled,
    write_figure,
)

#: WCAG 2.2: contrast of text (1.4.3) and of graphics (1.4.11).
TEXT_CONTRAST, LINE_CONTRAST = 4.5, 3.0
#: Largest number of lines in a plot.
LINES = 5
SVG = "{http://www.w3.org/2000/svg}"
LONG = "a very long name of a file, which goes on and on, " * 6


@styled
def some_figure(title: str = "A title", caption: str = "a caption", columns: int = 2, pictures: int = 3) -> Figure:
    panels = [Panel(Image.new("RGB", (16, 16), (index, 80, 0)), f"step {index}") for index in range(pictures)]
    grid = picture_grid(title, caption, panels, columns, below=2, beside=1)
    assert grid.below is not None
    grid.below.plot([1, 2], [3, 4], label="a line")
    grid.below.set_ylabel("norm")
    grid.below.legend()
    return grid.figure


def luminance(colour: str) -> float:
    """Compute WCAG 2.2's relative luminance."""
    channels = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_everything_is_legible_on_light_and_on_dark() -> None:
    for colour in (INK, QUIET):
        assert contrast(colour, PAPER) >= TEXT_CONTRAST
        assert contrast(DARK[colour], DARK[PAPER]) >= TEXT_CONTRAST
    for colour in COLOURS[:LINES]:
        assert contrast(colour, PAPER) >= LINE_CONTRAST
        assert contrast(DARK.get(colour, colour), DARK[PAPER]) >= LINE_CONTRAST


def test_light_colours_alone_would_not_be() -> None:
    assert contrast(INK, DARK[PAPER]) < TEXT_CONTRAST
    assert contrast(GRID, PAPER) < TEXT_CONTRAST
    assert round(contrast("#000000", "#ffffff")) == 21


def texts(path: Path) -> list[tuple[str, str]]:
    """Return an SVG's texts and their styles."""
    found = ElementTree.parse(path).iter(f"{SVG}text")
    return [("".join(each.itertext()), each.get("style", "")) for each in found]


def test_an_svg_follows_its_reader(tmp_path: Path) -> None:
    path = tmp_path / "figure.svg"
    write_figure(some_figure(), path)
    root = ElementTree.parse(path).getroot()
    assert root.find(f"{SVG}title").text == "A title"  # type: ignore[union-attr]
    style = root.find(f"{SVG}style").text or ""  # type: ignore[union-attr]
    assert style.startswith("@media (prefers-color-scheme:dark){")
    found = texts(path)
    assert {"A title", "a caption", "step 0", "step 2", "norm", "a line"} <= {text for text, _ in found}
    for text, how in found:
        (colour,) = re.findall(r"fill: (#[0-9a-f]{6})", how)
        assert colour in DARK, f"{text!r} is {colour}, which no rule changes"
        assert f'[style*="fill: {colour}"]{{fill:{DARK[colour]}!important}}' in style
    assert f"fill: {PAPER}" in path.read_text()
    assert not re.search(r"(fill|stroke): #000000", path.read_text())


def test_a_png_is_opaque(tmp_path: Path) -> None:
    write_figure(some_figure(), tmp_path / "figure.PNG")
    with Image.open(tmp_path / "figure.PNG") as picture:
        assert picture.format == "PNG"
        assert (np.asarray(picture.convert("RGBA"))[..., 3] == 255).all()
        assert picture.convert("RGB").getpixel((2, 2)) == (255, 255, 255)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_equal_figures_give_equal_bytes(tmp_path: Path, suffix: str) -> None:
    paths = [tmp_path / f"{name}{suffix}" for name in ("first", "second", "other")]
    for path, title in zip(paths, ("A title", "A title", "Another"), strict=True):
        write_figure(some_figure(title), path)
    first, second, other = (path.read_bytes() for path in paths)
    assert first == second != other


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_prompt_is_never_a_formula_and_never_warned_of(tmp_path: Path, suffix: str) -> None:
    title = quoted("a $5 bill and $\\frac$, 绿色 ⭐ <b> & a\x00\x1b[31m\nnew line")
    write_figure(some_figure(title, title), tmp_path / f"figure{suffix}")
    if suffix == ".svg":
        said = " ".join(text for text, _ in texts(tmp_path / "figure.svg"))
        assert "a $5 bill and $\\frac$, 绿色 ⭐ <b> & a [31m new line" in " ".join(said.split())


@pytest.mark.parametrize("columns", [1, 4])
def test_long_words_stay_in_the_figure_and_off_the_pictures(columns: int) -> None:
    figure = some_figure(LONG, LONG, columns, 4)
    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    title, caption = (
        part.get_window_extent(renderer)
        for part in figure.findobj(lambda part: part in (figure._suptitle, figure._supxlabel))  # type: ignore[attr-defined]
    )
    title, caption = sorted((title, caption), key=lambda box: -box.y0)
    for box in (title, caption):
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
    drawn = [axes.get_tightbbox(renderer) for axes in figure.axes]
    assert all(caption.y1 <= box.y0 and box.y1 <= title.y0 for box in drawn if box is not None)
    assert title.y1 <= figure.bbox.y1
    assert caption.y0 >= 0


def test_pictures_are_square_and_apart() -> None:
    figure = some_figure(columns=2, pictures=4)
    boxes = [axes.get_window_extent() for axes in figure.axes[:4]]
    for box in boxes:
        assert box.width == pytest.approx(box.height)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_text_is_cut_and_made_one_line() -> None:
    assert shown("a\n b\t\x07c \ud800d") == "a b c d"
    assert shown("x" * 91) == "x" * 89 + "…"
    assert quoted(" ") == "the empty prompt"


def test_other_endings_are_refused() -> None:
    for name in ("figure.jpg", "figure", "png", ".svg/figure.pdf"):
        with pytest.raises(UsageError, match=r"\.png nor \.svg"):
            check_drawable(Path(name))
    check_drawable(Path("a.SVG"))


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "find_spec", lambda _: None)
    with pytest.raises(BackendUnavailableError) as caught:
        check_drawable(Path("a.png"))
    assert caught.value.hint == extra_line("plot")
