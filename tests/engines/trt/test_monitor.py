"""Nested phases as one percentage, and interruptions, which must not cross C++."""

from __future__ import annotations

import pytest

from sdrt.engines.trt.monitor import Phases


def test_a_phase_is_a_part_of_its_parents_step() -> None:
    heard: list[int] = []
    phases = Phases(heard.append)
    phases.start("build", None, 2)
    phases.start("clone", "build", 4)
    assert phases.step("clone", 0)
    assert heard == [12]
    phases.step("clone", 1)
    assert heard == [12, 25]
    phases.finish("clone")
    phases.step("build", 0)
    phases.step("build", 1)
    phases.finish("build")
    assert heard == [12, 25, 50, 100]


def test_percents_never_fall() -> None:
    heard: list[int] = []
    phases = Phases(heard.append)
    phases.start("build", None, 4)
    for name in ("first", "second", "third"):
        phases.start(name, "build", 10)
        for step in range(10):
            phases.step(name, step)
        phases.finish(name)
    phases.step("build", 0)
    phases.finish("build")
    assert heard == sorted(set(heard))
    assert heard[-1] == 100


def test_what_the_report_raises_stops_the_build_and_is_raised_later() -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    phases = Phases(interrupt)
    phases.start("build", None, 2)
    assert not phases.step("build", 0)
    assert not phases.step("build", 1)
    with pytest.raises(KeyboardInterrupt):
        phases.check()


def test_a_build_that_nobody_stops_goes_on() -> None:
    phases = Phases(lambda _: None)
    phases.start("build", None, 0)
    assert phases.step("build", 0)
    phases.step("unheard of", 3)
    phases.finish("unheard of")
    phases.check()
