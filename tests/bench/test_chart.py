from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from sdrt.bench.chart import COLOURS, HEIGHT, LEGEND, WIDTH, Chart, Series, draw

SVG = "{http://www.w3.org/2000/svg}"


def chart(*series: Series, **changes: Any) -> Chart:
    return Chart("a < b & c", "steps", "seconds", series, **changes)


def test_a_chart_is_xml_with_title_and_axes() -> None:
    root = ElementTree.fromstring(draw(chart(Series("one", ((1.0, 2.0), (2.0, 3.0))))))
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert {"a < b & c", "steps", "seconds", "one"} <= set(texts)
    assert len(list(root.iter(f"{SVG}circle"))) == 3


def test_it_is_legible_in_the_dark() -> None:
    text = draw(chart(Series("one", ((1.0, 2.0),))))
    dark = text[text.index("prefers-color-scheme: dark") :]
    assert "fill: #e8e8e8" in dark
    assert "fill: #111418" in dark


@pytest.mark.parametrize("logarithmic", [False, True])
def test_everything_lies_on_the_paper_and_in_order(logarithmic: bool) -> None:
    points = ((1.0, 400.0), (30.0, 5.0), (900.0, 0.02))
    text = draw(chart(Series("one", points, "dots"), log_x=logarithmic, log_y=logarithmic))
    places = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', text)][:3]
    assert all(0 < x < WIDTH - LEGEND and 0 < y < HEIGHT for x, y in places)
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    # Larger values stand higher, and higher is a smaller y.
    assert [y for _, y in places] == sorted(y for _, y in places)


def test_logarithmic_axes_give_factors_equal_lengths() -> None:
    text = draw(chart(Series("one", ((1.0, 1.0), (10.0, 1.0), (100.0, 1.0)), "dots"), log_x=True, log_y=True))
    first, second, third = (float(x) for x in re.findall(r'<circle cx="([\d.]+)"', text)[:3])
    # Coordinates are written to a tenth of a pixel.
    assert second - first == pytest.approx(third - second, abs=0.2)


def test_marks_stand_at_round_values() -> None:
    text = draw(chart(Series("one", ((1.0, 0.3), (8.0, 1.9)))))
    marks = [float(mark) for mark in re.findall(r'text-anchor="end">([\d.e+-]+)<', text)]
    assert marks == [0.0, 0.5, 1.0, 1.5, 2.0]


def test_more_series_than_colours_have_other_marks() -> None:
    series = [Series(str(index), ((1.0, 1.0 + index),)) for index in range(len(COLOURS) + 1)]
    root = ElementTree.fromstring(draw(chart(*series)))
    assert len([element for element in root.iter(f"{SVG}rect") if element.get("class") != "paper"]) == 2


def test_nothing_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="no points"):
        draw(chart(Series("one", ())))
