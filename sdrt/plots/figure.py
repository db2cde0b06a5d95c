"""Figures as files: PNG or SVG by the name's ending, legible on light pages and on dark ones (docs/decisions/0064)."""

from __future__ import annotations

import re
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from html import escape
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import numpy as np

from sdrt.compare.error_plot import COLOURS
from sdrt.errors import BackendUnavailableError, UsageError
from sdrt.files import write_atomically
from sdrt.install_lines import extra_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

Arguments = ParamSpec("Arguments")
Drawn = TypeVar("Drawn")

SUFFIXES = (".png", ".svg")
DPI = 160
#: Text, quiet text, lines of a grid and background; and what they are where an SVG's reader prefers dark, and the one
#: colour of lines that would be hard to see there.
INK, QUIET, GRID, PAPER = "#1f2328", "#59636e", "#d1d9e0", "#ffffff"
DARK = {INK: "#e6edf3", QUIET: "#9da7b3", GRID: "#3d444d", PAPER: "#0d1117", COLOURS[0]: "#4ea8de"}
#: Inches: one picture of a grid, the space around it, and what a title above one takes.
CELL, GAP, CELL_TITLE = 2.6, 0.12, 0.28
#: Inches that a line of the title and of the caption takes, and what axes need at their left and below for their words.
TITLE_LINE, CAPTION_LINE, AXES_LEFT, AXES_BELOW = 0.24, 0.17, 0.75, 0.55
#: Inches: the narrowest figure of pictures, and a bar of colours.
MIN_WIDTH, BAR = 5.4, 0.14
TITLE_SIZE, CAPTION_SIZE = 12, 8
#: Of a letter's width to its height, on the safe side.
LETTER = 0.62
STYLE = {
    "axes.edgecolor": QUIET,
    "axes.facecolor": PAPER,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.prop_cycle": f"cycler(color={list(COLOURS)})",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "figure.facecolor": PAPER,
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "grid.color": GRID,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "savefig.facecolor": PAPER,
    # Text stays text: it can be searched and read aloud, and has the letters that DejaVu lacks.
    "svg.fonttype": "none",
    "svg.hashsalt": "sdrt",
    "text.color": INK,
    # A prompt may hold dollar signs.
    "text.parse_math": False,
    "xtick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.color": QUIET,
    "ytick.labelcolor": INK,
}
SHOWN_CHARACTERS = 90

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]+")


@dataclass(frozen=True)
class Panel:
    """One picture of a grid, and what stands above it."""

    picture: Image.Image
    title: str


def check_drawable(path: Path) -> None:
    """Hold that a figure can be drawn into a file of this name, before anything is built for it.

    Raises:
        UsageError: The name ends in neither .png nor .svg.
        BackendUnavailableError: Matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        hint = "its ending says what is written: name it .png or .svg"
        raise UsageError(f"--out: {str(path)!r} ends in neither .png nor .svg", hint=hint)
    if find_spec("matplotlib") is None:
        raise BackendUnavailableError("matplotlib is needed to plot and is not installed", hint=extra_line("plot"))


def shown(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """Text of a user's as one line of a figure, cut where it is longer than ``limit`` characters."""
    line = " ".join(_UNPRINTABLE.sub(" ", text).split())
    return line if len(line) <= limit else line[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def quoted(prompt: str) -> str:
    """A prompt as a figure names it."""
    return f"\u201c{shown(prompt)}\u201d" if prompt.strip() else "the empty prompt"


def styled(draw: Callable[Arguments, Drawn]) -> Callable[Arguments, Drawn]:
    """A function that draws in the style of all our figures."""

    @wraps(draw)
    def drawn(*arguments: Arguments.args, **named: Arguments.kwargs) -> Drawn:
        import matplotlib

        with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
            return draw(*arguments, **named)

    return drawn


def new_figure(title: str, caption: str, width: float, height: float) -> Figure:
    """An empty figure of so many inches, with a title and, quietly at its foot, how it was made."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(_wrapped(title, width, TITLE_SIZE), fontsize=TITLE_SIZE, fontweight="bold")
    figure.supxlabel(_wrapped(caption, width, CAPTION_SIZE), fontsize=CAPTION_SIZE, color=QUIET)
    return figure


def _wrapped(text: str, width: float, size: float) -> str:
    """Text in as many lines as it needs at a font size, in points, within so many inches."""
    return textwrap.fill(text, max(1, int(width * 72 / (size * LETTER))))


@dataclass(frozen=True, eq=False)
class Grid:
    """A figure of pictures, and the axes below and beside them, where there are any."""

    figure: Figure
    below: Axes | None = None
    beside: Axes | None = None


def picture_grid(
    title: str, caption: str, panels: Sequence[Panel], columns: int, *, below: float = 0.0, beside: float = 0.0
) -> Grid:
    """A figure of titled pictures, each as large as the others.

    Args:
        title: Of the figure.
        caption: How it was made.
        panels: Row by row.
        columns: Pictures in a row.
        below: Inches for axes below the pictures, their words included; 0 is none.
        beside: Inches for axes at their right; 0 is none.
    """
    from matplotlib.figure import Figure

    rows = -(-len(panels) // columns)
    width = max(MIN_WIDTH, columns * (CELL + GAP) + GAP + beside)
    heading, footing = _wrapped(title, width, TITLE_SIZE), _wrapped(caption, width, CAPTION_SIZE)
    head = _lines(heading) * TITLE_LINE + 2 * GAP
    foot = _lines(footing) * CAPTION_LINE + 2 * GAP
    height = head + rows * (CELL + CELL_TITLE + GAP) + below + foot
    figure = Figure(figsize=(width, height))

    def place(left: float, bottom: float, wide: float, high: float) -> Axes:
        """Axes at so many inches."""
        return figure.add_axes((left / width, bottom / height, wide / width, high / height))

    figure.suptitle(heading, y=1 - GAP / height, fontsize=TITLE_SIZE, fontweight="bold")
    figure.supxlabel(footing, y=GAP / height, fontsize=CAPTION_SIZE, color=QUIET)
    start = (width - beside - columns * (CELL + GAP) + GAP) / 2
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        top = height - head - row * (CELL + CELL_TITLE + GAP) - CELL_TITLE
        axes = place(start + column * (CELL + GAP), top - CELL, CELL, CELL)
        axes.imshow(np.asarray(panel.picture))
        axes.set_title(panel.title)
        axes.set_axis_off()
    lower = right = None
    if below:
        lower = place(AXES_LEFT, foot + AXES_BELOW, width - AXES_LEFT - 2 * GAP, below - AXES_BELOW - CELL_TITLE - GAP)
    if beside:
        middle = height - head - rows * (CELL + CELL_TITLE + GAP) / 2
        right = place(width - beside + GAP, middle - CELL / 2, BAR, CELL)
    return Grid(figure, lower, right)


def _lines(text: str) -> int:
    """How many lines a text has."""
    return text.count("\n") + 1


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all; equal figures give equal bytes.

    Raises:
        ResourceError: The place cannot be written.
    """
    import matplotlib

    kind = path.suffix.lower().removeprefix(".")
    stream = BytesIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():  # type: ignore[arg-type]
        # A prompt may hold letters that the font lacks; a box in a title is no reason to disturb anybody.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(stream, format=kind, dpi=DPI, metadata=metadata)
    data = stream.getvalue()
    write_atomically(path, _for_readers(data, figure.get_suptitle()) if kind == "svg" else data)


def _for_readers(svg: bytes, title: str) -> bytes:
    """An SVG with a name for those who hear it, and dark colours for those whose pages are dark.

    The colours stay where they are, so that a viewer without style sheets shows the light figure.
    """
    rules = "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{dark}!important}}'
        for light, dark in DARK.items()
        for kind in ("fill", "stroke")
    )
    head, start, rest = svg.decode().partition("<svg ")
    attributes, end, body = rest.partition(">")
    style = f"<style>@media (prefers-color-scheme:dark){{{rules}}}</style>"
    return f'{head}{start}role="img" {attributes}{end}\n<title>{escape(title)}</title>{style}{body}'.encode()
