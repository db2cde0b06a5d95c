"""The schedule's plot: its lines are the schedule's numbers."""

from __future__ import annotations

import numpy as np
import pytest

from sdrt.plots.sigmas import QUANTITIES, draw_schedule, schedule_numbers
from sdrt.sampling.lms import Schedule

CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.fixture
def schedule() -> Schedule:
    return Schedule.from_config(CONFIG, 51)


def test_the_lines_are_the_schedule(schedule: Schedule) -> None:
    figure = draw_schedule(schedule, QUANTITIES, "demo")
    assert figure.get_suptitle() == "Sigmas, timesteps and coefficients by sampling step"
    sigmas, timesteps, coefficients = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == ["sigma", "timestep", "LMS coefficient"]
    assert {axes.get_xlabel() for axes in figure.axes} == {"sampling step"}
    (line,) = sigmas.get_lines()
    assert np.array_equal(line.get_xdata(), np.arange(52))
    assert np.array_equal(line.get_ydata(), schedule.sigmas)
    (line,) = timesteps.get_lines()
    assert np.array_equal(line.get_ydata(), schedule.timesteps)
    *lines, total = coefficients.get_lines()
    for back, line in enumerate(lines):
        assert np.array_equal(line.get_xdata(), np.arange(back, 51))
        assert np.array_equal(line.get_ydata(), schedule.coefficients[back:, back])
    # The coefficients of a step sum to its width: a constant derivative is integrated exactly.
    assert np.allclose(np.asarray(total.get_ydata()), np.diff(schedule.sigmas), atol=1e-9)


def test_one_quantity_is_one_row(schedule: Schedule) -> None:
    for quantity in QUANTITIES:
        figure = draw_schedule(schedule, [quantity], "demo")
        assert len(figure.axes) == 1
        assert figure.get_suptitle() == f"{quantity.capitalize()} by sampling step"


def test_the_numbers_are_all_there(schedule: Schedule) -> None:
    numbers = schedule_numbers(schedule)
    assert numbers["sigmas"] == schedule.sigmas.tolist()
    assert numbers["timesteps"] == schedule.timesteps.tolist()
    assert numbers["coefficients"] == schedule.coefficients.tolist()
    assert numbers["num_inference_steps"] == 51
