"""Figures as files: PNG or SVG by the name's suffix, legible on light pages and on dark ones (docs/decisions/0064)."""

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
#: Colours of text, secondary text, grid lines and background; and their replacements in an SVG whose reader prefers a
#: dark page, with that of the one line colour that would be hard to see there.
INK, QUIET, GRID, PAPER = "#1f2328", "#59636e", "#d1d9e0", "#ffffff"
DARK = {INK: "#e6edf3", QUIET: "#9da7b3", GRID: "#3d444d", PAPER: "#0d1117", COLOURS[0]: "#4ea8de"}
#: Inches: side of a picture of a grid, space between pictures, and height of a picture's title.
CELL, GAP, CELL_TITLE = 2.6, 0.12, 0.28
#: Inches: heights of a line of the title and of the caption, and space for labels at the left of axes and below them.
TITLE_LINE, CAPTION_LINE, AXES_LEFT, AXES_BELOW = 0.24, 0.17, 0.75, 0.55
#: Inches: least width of a grid of pictures, and width of a colour bar.
MIN_WIDTH, BAR = 5.4, 0.14
TITLE_SIZE, CAPTION_SIZE = 12, 8
#: Upper estimate of the ratio of a letter's width to the font size.
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
    # Keep text as text: it can be searched and read aloud, and other fonts have the letters that DejaVu lacks.
    "svg.fonttype": "none",
    "svg.hashsalt": "sdrt",
    "text.color": INK,
    # A prompt may contain dollar signs.
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
    """One picture of a grid, and its title."""

    picture: Image.Image
    title: str


def check_drawable(path: Path) -> None:
    """Raise an error unless a figure can be written to this path; called before anything is built for it.

    Raises:
        UsageError: The path ends in neither .png nor .svg.
        BackendUnavailableError: Matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        hint = "the suffix sets the format: use .png or .svg"
        raise UsageError(f"--out: {str(path)!r} ends in neither .png nor .svg", hint=hint)
    if find_spec("matplotlib") is None:
        raise BackendUnavailableError("matplotlib is needed to plot and is not installed", hint=extra_line("plot"))


def shown(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """Return a user's text as one line, without control characters and cut to ``limit`` characters."""
    line = " ".join(_UNPRINTABLE.sub(" ", text).split())
    return line if len(line) <= limit else line[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def quoted(prompt: str) -> str:
    """Return a prompt in quotation marks for a figure's title."""
    return f"\u201c{shown(prompt)}\u201d" if prompt.strip() else "the empty prompt"


def styled(draw: Callable[Arguments, Drawn]) -> Callable[Arguments, Drawn]:
    """Wrap a function so that it draws in the common style of the figures."""

    @wraps(draw)
    def drawn(*arguments: Arguments.args, **named: Arguments.kwargs) -> Drawn:
        import matplotlib

        with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
            return draw(*arguments, **named)

    return drawn


def new_figure(title: str, caption: str, width: float, height: float) -> Figure:
    """Return an empty figure with a title and, at its foot, a caption that says how it was made.

    Args:
        title: Title of the figure.
        caption: Text at the foot.
        width: Width in inches.
        height: Height in inches.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(_wrapped(title, width, TITLE_SIZE), fontsize=TITLE_SIZE, fontweight="bold")
    figure.supxlabel(_wrapped(caption, width, CAPTION_SIZE), fontsize=CAPTION_SIZE, color=QUIET)
    return figure


def _wrapped(text: str, width: float, size: float) -> str:
    """Return a text broken into lines that fit a width in inches at a font size in points."""
    return textwrap.fill(text, max(1, int(width * 72 / (size * LETTER))))


@dataclass(frozen=True, eq=False)
class Grid:
    """A figure of pictures, and the axes below and beside them, if any."""

    figure: Figure
    below: Axes | None = None
    beside: Axes | None = None


def picture_grid(
    title: str, caption: str, panels: Sequence[Panel], columns: int, *, below: float = 0.0, beside: float = 0.0
) -> Grid:
    """Return a figure of titled pictures of equal size.

    Args:
        title: Title of the figure.
        caption: Text at the foot.
        panels: Pictures, row by row.
        columns: Number of pictures in a row.
        below: Height in inches of axes below the pictures, labels included; 0 for none.
        beside: Width in inches of axes at the right of the pictures; 0 for none.
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
        """Add axes at a position in inches."""
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
    """Return the number of lines of a text."""
    return text.count("\n") + 1


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all; equal figures give equal bytes.

    Raises:
        ResourceError: The file cannot be written.
    """
    import matplotlib

    kind = path.suffix.lower().removeprefix(".")
    stream = BytesIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():  # type: ignore[arg-type]
        # A prompt may contain letters that the font lacks; they appear as boxes, which is harmless.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(stream, format=kind, dpi=DPI, metadata=metadata)
    data = stream.getvalue()
    write_atomically(path, _for_readers(data, figure.get_suptitle()) if kind == "svg" else data)


def _for_readers(svg: bytes, title: str) -> bytes:
    """Add a title for screen readers and colours for dark pages to an SVG.

    The light colours stay in place, so that a viewer without style sheets shows the light figure.
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
