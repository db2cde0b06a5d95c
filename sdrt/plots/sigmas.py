"""The schedule by sampling step: sigmas, timesteps, and the coefficients of LMS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sdrt.plots.figure import new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sdrt.sampling.lms import Schedule

#: Quantities that can be plotted.
QUANTITIES = ("sigmas", "timesteps", "coefficients")
WIDTH, HEIGHT = 7.6, 3.4
LABELS = {"sigmas": "sigma", "timesteps": "timestep", "coefficients": "LMS coefficient"}
TITLES = {"sigmas": "noise level", "timesteps": "what the UNet is told", "coefficients": "weights of the derivatives"}
DERIVATIVES = ("newest derivative", "one step back", "two steps back", "three steps back")


def schedule_numbers(schedule: Schedule) -> dict[str, Any]:
    """Return all numbers of a schedule, as --json prints them."""
    return {
        "num_inference_steps": schedule.num_inference_steps,
        "prediction_type": schedule.prediction_type,
        "init_noise_sigma": schedule.init_noise_sigma,
        "sigmas": schedule.sigmas.tolist(),
        "timesteps": schedule.timesteps.tolist(),
        "coefficients": schedule.coefficients.tolist(),
    }


@styled
def draw_schedule(schedule: Schedule, quantities: Sequence[str], checkpoint: str) -> Figure:
    """Return a figure of quantities over the sampling step, in a row of axes each.

    Args:
        schedule: Schedule to plot.
        quantities: Names from `QUANTITIES`.
        checkpoint: Name of the schedule's checkpoint, for the caption.
    """
    names = " and ".join(quantities) if len(quantities) < 3 else "sigmas, timesteps and coefficients"
    steps = schedule.num_inference_steps
    caption = f"checkpoint {checkpoint}, LMS, {steps} steps, {schedule.prediction_type} prediction"
    figure = new_figure(f"{names.capitalize()} by sampling step", caption, WIDTH, 0.6 + HEIGHT * len(quantities))
    for row, quantity in enumerate(quantities):
        axes = figure.add_subplot(len(quantities), 1, row + 1)
        axes.set_xlabel("sampling step")
        axes.set_ylabel(LABELS[quantity])
        axes.set_title(TITLES[quantity], loc="left")
        {"sigmas": _sigmas, "timesteps": _timesteps, "coefficients": _coefficients}[quantity](axes, schedule)
    return figure


def _sigmas(axes: Axes, schedule: Schedule) -> None:
    """Plot the sigma of each step, and the final 0."""
    steps = schedule.num_inference_steps
    axes.plot(np.arange(steps + 1), schedule.sigmas, marker="o", markersize=3)
    axes.annotate(f"{schedule.sigmas[0]:.4g}", (0, schedule.sigmas[0]), (8, -3), textcoords="offset points")
    axes.annotate(
        f"last step {schedule.sigmas[-2]:.3g}, then 0", (steps, 0), (0, 12), textcoords="offset points", ha="right"
    )


def _timesteps(axes: Axes, schedule: Schedule) -> None:
    axes.plot(np.arange(schedule.num_inference_steps), schedule.timesteps, marker="o", markersize=3)


def _coefficients(axes: Axes, schedule: Schedule) -> None:
    """Plot the coefficient of each derivative of the history, and their sum, which is the step's width in sigma."""
    steps = np.arange(schedule.num_inference_steps)
    for back, name in enumerate(DERIVATIVES):
        # There is no history before step 0.
        axes.plot(steps[back:], schedule.coefficients[back:, back], marker="o", markersize=2.5, label=name)
    axes.plot(steps, schedule.coefficients.sum(axis=1), linestyle="--", label="sum: the step in sigma")
    axes.legend()
