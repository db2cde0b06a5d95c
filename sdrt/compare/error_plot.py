"""Errors by step as one SVG: a line a picture on a logarithmic scale, the tolerance as a dashed one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from sdrt.compare.schema import TrajectoryResult

WIDTH, HEIGHT = 860, 300
# Above the highest line there is room for a limit's label.
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 20, 40
#: Errors below this are drawn as this: a logarithm has no zero.
FLOOR = 1e-9
#: Colours that stay apart for colour-blind readers (Okabe and Ito 2008), as far as they are legible on white and black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9")


def error_plot(trajectories: Sequence[TrajectoryResult]) -> str:
    """The plot as an SVG element; "" where no trajectory has a step.

    Each line has a swatch of its colour, by number, in `swatch`; what failed is drawn thicker.
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
    """The sample of a line's colour, as an SVG element."""
    return f'<svg class="swatch" viewBox="0 0 24 8" aria-hidden="true"><path d="M1 4H23" {_stroke(number)}/></svg>'


class _Axes:
    """Steps 1 to n along, powers of ten from 10^low to 10^high up."""

    def __init__(self, steps: int, low: int, high: int) -> None:
        self.steps, self.low, self.high = steps, low, high

    def x(self, step: int) -> float:
        """Where a step counted from 0 stands."""
        return LEFT + (WIDTH - LEFT - RIGHT) * step / max(1, self.steps - 1)

    def y(self, error: float) -> float:
        """Where an error stands."""
        share = (math.log10(max(FLOOR, error)) - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    def grid(self) -> list[str]:
        """Lines at the powers of ten, marks at some steps, and what the axes are."""
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
    """One trajectory's line, and a point to rest the mouse on at each step."""
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
    """Colours go round; a line of the second round is dashed, of the third dotted."""
    dashes = ("", ' stroke-dasharray="7 4"', ' stroke-dasharray="2 3"')[number // len(COLOURS) % 3]
    return f'fill="none" stroke="{COLOURS[number % len(COLOURS)]}"{dashes}'
