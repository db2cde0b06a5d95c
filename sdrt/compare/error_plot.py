"""SVG plot of errors by step: one line per picture on a logarithmic scale, tolerances dashed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from sdrt.compare.schema import TrajectoryResult

WIDTH, HEIGHT = 860, 300
# The top margin leaves room for a limit's label.
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 20, 40
#: Smaller errors are drawn at this value, as a logarithm has no zero.
FLOOR = 1e-9
#: Colours that colour-blind readers can tell apart (Okabe and Ito 2008) and that are legible on white and black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9")


def error_plot(trajectories: Sequence[TrajectoryResult]) -> str:
    """Return the plot as an SVG element; "" if no trajectory has a step.

    `swatch` gives the colour sample of each line by its number; failed trajectories are drawn thicker.
    """
    drawn = [(number, each) for number, each in enumerate(trajectories) if each.relative_l2]
    if not drawn:
        return ""
    steps = max(each.steps for _, each in drawn)
    limits = {each.tolerance.relative_l2 for _, each in drawn if each.tolerance and each.tolerance.relative_l2}
    values = [max(FLOOR, error) for _, each in drawn for error in each.relative_l2] + list(limits)
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    axes = _Axes(steps, low, max(high, low + 1))
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Relative L2 error of the latents after each step">'
    ]
    parts += axes.grid()
    for limit in sorted(limits):
        y = axes.y(limit)
        parts.append(f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="limit" x="{WIDTH - RIGHT - 4}" y="{y - 5:.1f}" text-anchor="end">limit {limit:g}</text>'
        )
    for number, each in drawn:
        parts += _line(number, each, axes)
    return "\n".join([*parts, "</svg>"])


def swatch(number: int) -> str:
    """Return a sample of a line's colour as an SVG element."""
    return f'<svg class="swatch" viewBox="0 0 24 8" aria-hidden="true"><path d="M1 4H23" {_stroke(number)}/></svg>'


class _Axes:
    """Axes of the plot: steps 1 to n horizontally, powers of ten from 10^low to 10^high vertically."""

    def __init__(self, steps: int, low: int, high: int) -> None:
        self.steps, self.low, self.high = steps, low, high

    def x(self, step: int) -> float:
        """Return the x coordinate of a step, counted from 0, in pixels."""
        return LEFT + (WIDTH - LEFT - RIGHT) * step / max(1, self.steps - 1)

    def y(self, error: float) -> float:
        """Return the y coordinate of an error, in pixels."""
        share = (math.log10(max(FLOOR, error)) - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    def grid(self) -> list[str]:
        """Draw lines at the powers of ten, marks at some steps, and the axis labels, as SVG elements."""
        parts = []
        for power in range(self.low, self.high + 1):
            y = self.y(10.0**power)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            label = f'10<tspan dy="-5" font-size="9">{power}</tspan>'
            parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
        every = max(1, round(self.steps / 10))
        for step in range(0, self.steps, every):
            parts.append(
                f'<text x="{self.x(step):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{step + 1}</text>'
            )
        parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">step</text>')
        return parts


def _line(number: int, each: TrajectoryResult, axes: _Axes) -> list[str]:
    """Draw one trajectory's line, and a point with a tooltip at each step."""
    name = escape(f"{number + 1}: {each.prompt or '(no words)'}, seed {each.seed}")
    places = [(axes.x(step), axes.y(error)) for step, error in enumerate(each.relative_l2)]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    width = 3 if each.outcome == "failed" else 1.6
    parts = [f'<path d="{path}" stroke-width="{width}" {_stroke(number)}><title>{name}</title></path>']
    colour = COLOURS[number % len(COLOURS)]
    for step, ((x, y), error) in enumerate(zip(places, each.relative_l2, strict=True)):
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}">'
            f"<title>{name}\nstep {step + 1}: {error:.3g}</title></circle>"
        )
    return parts


def _stroke(number: int) -> str:
    """Return the stroke attributes of a line; colours repeat, dashed the second time and dotted the third."""
    dashes = ("", ' stroke-dasharray="7 4"', ' stroke-dasharray="2 3"')[number // len(COLOURS) % 3]
    return f'fill="none" stroke="{COLOURS[number % len(COLOURS)]}"{dashes}'
