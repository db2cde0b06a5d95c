"""Charts as SVG: lines and dots on linear or logarithmic axes, legible on white and on black."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, LEGEND = 960, 480, 76, 44, 56, 290
#: Colours that colour-blind readers can tell apart (Okabe and Ito 2008), adapted to be legible on white and on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#8a63d2", "#7f7f7f")
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1a1a1a; }
.title { font-size: 16px; font-weight: 600; }
.grid { stroke: #d0d0d0; stroke-width: 1; }
.paper { fill: #ffffff; }
@media (prefers-color-scheme: dark) {
  text { fill: #e8e8e8; }
  .grid { stroke: #444444; }
  .paper { fill: #111418; }
}
"""


@dataclass(frozen=True)
class Series:
    """A named series of points. ``dots`` are not joined; a ``limit`` is a dashed line.

    ``colour`` and ``mark`` are numbers that related series share. By default each series has its own colour, and the
    shape of the marks changes when the colours repeat.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    kind: Literal["line", "dots", "limit"] = "line"
    colour: int | None = None
    mark: int | None = None


@dataclass(frozen=True)
class Chart:
    """A chart; the labels of the axes include units."""

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False
    log_y: bool = False


def draw(chart: Chart) -> str:
    """Return the chart as the text of an SVG file, in which each dot has a tooltip with its values.

    Raises:
        ValueError: The chart has no points.
    """
    points = [point for series in chart.series for point in series.points]
    if not points:
        raise ValueError("the chart has no points")
    across = _Axis([x for x, _ in points], chart.log_x, LEFT, WIDTH - LEGEND)
    upwards = _Axis([y for _, y in points], chart.log_y, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(chart.title)}">',
        f"<style>{STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>',
        f'<text class="title" x="{LEFT}" y="26">{escape(chart.title)}</text>',
    ]
    parts += _grid(across, upwards, chart)
    for number, series in enumerate(chart.series):
        pen = _Pen.of(number, series)
        parts += _series(pen, series, across, upwards)
        parts += _legend(number, min(21.0, (HEIGHT - TOP - 20) / len(chart.series)), pen, series)
    return "\n".join([*parts, "</svg>", ""])


class _Axis:
    """Map from values to positions on the page, from ``start`` to ``end``."""

    def __init__(self, values: Sequence[float], logarithmic: bool, start: float, end: float) -> None:
        self._log, self._start, self._end = logarithmic, start, end
        if logarithmic:
            low, high = math.log10(min(values)), math.log10(max(values))
            margin = 0.06 * (high - low) + 0.05
            self._low, self._high = low - margin, high + margin
        else:
            self._low, self._high = 0.0, max(values) * 1.06 or 1.0

    def place(self, value: float) -> float:
        """Return the position of a value."""
        share = ((math.log10(value) if self._log else value) - self._low) / (self._high - self._low)
        return self._start + (self._end - self._start) * share

    def marks(self) -> list[float]:
        """Return the values to label: 1, 2 and 5 times powers of ten within the axis."""
        if self._log:
            powers = range(math.floor(self._low), math.ceil(self._high) + 1)
            wide = self._high - self._low > 2.5
            steps = (1,) if wide else (1, 2, 5)
            marks = [step * 10.0**power for power in powers for step in steps]
            return [mark for mark in marks if self._low <= math.log10(mark) <= self._high]
        step = 10.0 ** math.floor(math.log10(self._high / 4))
        step *= next(factor for factor in (1, 2, 5, 10) if self._high / (factor * step) <= 8)
        return [index * step for index in range(math.floor(self._high / step) + 1)]


def _grid(across: _Axis, upwards: _Axis, chart: Chart) -> list[str]:
    parts = []
    right, bottom = WIDTH - LEGEND, HEIGHT - BOTTOM
    for mark in across.marks():
        x = across.place(mark)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{mark:g}</text>')
    for mark in upwards.marks():
        y = upwards.place(mark)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{mark:g}</text>')
    middle = (LEFT + right) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 14}" text-anchor="middle">{escape(chart.x_label)}</text>')
    middle = (TOP + bottom) / 2
    turned = f'transform="rotate(-90 18 {middle:.0f})"'
    parts.append(f'<text x="18" y="{middle:.0f}" text-anchor="middle" {turned}>{escape(chart.y_label)}</text>')
    return parts


@dataclass(frozen=True)
class _Pen:
    """The colour and the shape of the marks of a series."""

    colour: str
    mark: int

    @classmethod
    def of(cls, number: int, series: Series) -> _Pen:
        """Return the pen of a series; what the series leaves open follows from its number."""
        colour = number if series.colour is None else series.colour
        mark = colour // len(COLOURS) if series.mark is None else series.mark
        return cls(COLOURS[colour % len(COLOURS)], mark % 3)

    def dot(self, x: float, y: float, title: str = "") -> str:
        """Return the SVG of a circle, a square or a triangle."""
        fill = f'fill="{self.colour}"'
        if self.mark == 0:
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" {fill}>{title}</circle>'
        if self.mark == 1:
            return f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9" {fill}>{title}</rect>'
        corners = f"M{x:.1f} {y - 6:.1f}l6 10.5h-12z"
        return f'<path d="{corners}" {fill}>{title}</path>'

    def line(self, path: str, kind: str) -> str:
        """Return the SVG of a line, dashed if the series is a limit."""
        dash = ' stroke-dasharray="7 5"' if kind == "limit" else ""
        return f'<path d="{path}" fill="none" stroke="{self.colour}" stroke-width="2"{dash}/>'


def _series(pen: _Pen, series: Series, across: _Axis, upwards: _Axis) -> list[str]:
    places = [(across.place(x), upwards.place(y)) for x, y in series.points]
    parts = []
    if series.kind != "dots":
        parts.append(pen.line("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places), series.kind))
    if series.kind != "limit":
        for (x, y), (value_x, value_y) in zip(places, series.points, strict=True):
            title = f"<title>{escape(series.name)}: {value_x:.4g}, {value_y:.4g}</title>"
            parts.append(pen.dot(x, y, title))
    return parts


def _legend(number: int, pitch: float, pen: _Pen, series: Series) -> list[str]:
    x, y = WIDTH - LEGEND + 18, round(TOP + 10 + pitch * number)
    parts = [] if series.kind == "dots" else [pen.line(f"M{x} {y}H{x + 24}", series.kind)]
    if series.kind != "limit":
        parts.append(pen.dot(x + 12, y))
    return [*parts, f'<text x="{x + 32}" y="{y + 4}">{escape(series.name)}</text>']
