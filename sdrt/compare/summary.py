"""Text of a comparison: the headline, failures, unverified results, and the table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable

from sdrt.compare.pictures import label
from sdrt.compare.schema import (
    ChangeReport,
    Comparison,
    ComponentCase,
    ComponentResult,
    Outcome,
    OutputResult,
    PictureResult,
    TrajectoryResult,
)

#: Largest number of changes printed on a terminal.
MAX_CHANGES = 20


def headline(comparison: Comparison) -> str:
    """Return the counts of outcomes in one line."""
    counts = (
        ("component", [each.outcome for each in comparison.components]),
        ("trajectory", [each.outcome for each in comparison.trajectories]),
        ("picture", [each.outcome for each in comparison.pictures]),
    )
    parts = [_count(noun, outcomes) for noun, outcomes in counts if outcomes]
    return "; ".join(parts) or "nothing was compared"


def failures(comparison: Comparison) -> list[str]:
    """Return one line per failure."""
    return _named(comparison, "failed")


def unverified(comparison: Comparison) -> list[str]:
    """Return one line per result that could not be verified, including stand-ins."""
    lines = _named(comparison, "unverified")
    for component in comparison.components:
        for proxy in component.proxies:
            worst = worst_output(proxy.cases)
            error = f", relative L2 {worst.metrics.relative_l2:.2g}" if worst and worst.metrics else ""
            lines.append(f"{component.component}, a proxy only: {proxy.label}: {proxy.outcome}{error}; {proxy.note}")
    return lines


def table(comparison: Comparison) -> list[str]:
    """Return the comparison as lines for a terminal."""
    lines = [f"{'component':14}{'outcome':12}{'relative L2':>12}{'limit':>10}{'peak':>12}{'limit':>10}  worst element"]
    lines += [_component_line(each) for each in comparison.components]
    lines += [_trajectory_line(each) for each in comparison.trajectories]
    lines += [f"picture       {label(each)}" for each in comparison.pictures]
    for heading, found in (("failed", failures(comparison)), ("not verified", unverified(comparison))):
        lines += [f"{heading}: {line}" for line in found]
    lines += departures(comparison)
    if comparison.compared_with.mismatch:
        lines.append(mismatch(comparison))
    if comparison.against is not None:
        lines += _moved(comparison.against)
    return [*lines, f"{comparison.outcome}: {headline(comparison)}"]


def mismatch(comparison: Comparison) -> str:
    """Return the line that says that the reference is not the checkpoint that the subject was made from."""
    return (
        f"another checkpoint: the reference is {comparison.compared_with.name}; the candidate was made from "
        f"{comparison.checkpoint.name}, whose digest differs"
    )


def _moved(earlier: ChangeReport) -> list[str]:
    """Return the lines of the first changes, those that are worse first."""
    count = len(earlier.moved)
    lines = [f"since {earlier.created}: {f'{count} figures moved' if count else 'nothing moved'}"]
    for move in earlier.moved[:MAX_CHANGES]:
        change = f"{move.figure} {_value(move.before)} -> {_value(move.after)}"
        lines.append(f"  {_direction(move.worse)} {move.what}: {change}")
    if count > MAX_CHANGES:
        lines.append(f"  and {count - MAX_CHANGES} more; see the report or --json")
    return lines


def departures(comparison: Comparison) -> list[str]:
    """Return one line per component with a known departure."""
    return [
        f"{each.component} first departs at {each.departure.tensor}: node {each.departure.node} "
        f"({each.departure.operator}) of {each.departure.source_module}"
        for each in comparison.components
        if each.departure is not None
    ]


def worst_output(cases: Iterable[ComponentCase]) -> OutputResult | None:
    """Return the output with the largest share of its limits; None if there is no output."""
    return max((output for case in cases for output in case.outputs), key=share, default=None)


def share(output: OutputResult) -> float:
    """Return an output's largest ratio of error to limit, Inf if it was not measured; without limits, relative L2."""
    metrics, limits = output.metrics, output.tolerance
    if metrics is None:
        return math.inf
    bounds = [(metrics.relative_l2, limits.relative_l2), (metrics.peak, limits.peak)] if limits else []
    shares = [_ratio(value, limit) for value, limit in bounds if limit is not None]
    return max(shares) if shares else metrics.relative_l2


def _ratio(value: float, limit: float) -> float:
    if limit == 0:
        return math.inf if value else 0.0
    return value / limit


def _count(noun: str, outcomes: list[Outcome]) -> str:
    plural = {"trajectory": "trajectories"}.get(noun, f"{noun}s")
    passed = f"{outcomes.count('passed')} of {len(outcomes)} {noun if len(outcomes) == 1 else plural} passed"
    others = [f"{outcomes.count(other)} {other}" for other in ("failed", "unverified") if other in outcomes]
    return ", ".join([passed, *others])


def _named(comparison: Comparison, outcome: Outcome) -> list[str]:
    named: list[tuple[str, ComponentResult | TrajectoryResult | PictureResult]] = []
    named += [(each.component, each) for each in comparison.components]
    named += [(f"trajectory of {each.prompt!r}, seed {each.seed}", each) for each in comparison.trajectories]
    named += [(f"picture of {each.prompt!r}, seed {each.seed}", each) for each in comparison.pictures]
    return [f"{name}: {each.reason}" for name, each in named if each.outcome == outcome]


def _component_line(component: ComponentResult) -> str:
    start = f"{component.component:14}{component.outcome:12}"
    worst = worst_output(component.cases)
    if worst is None or worst.metrics is None:
        return start.rstrip()
    metrics, limits = worst.metrics, worst.tolerance
    figures = ""
    for name, width in (("relative_l2", 12), ("peak", 12)):
        limit = getattr(limits, name) if limits else None
        figures += f"{getattr(metrics, name):>{width}.2e}{'' if limit is None else f'{limit:.1e}':>10}"
    place = f"[{', '.join(map(str, metrics.worst_index))}]" if metrics.max_absolute else "equal"
    return f"{start}{figures}  {place}"


def _trajectory_line(each: TrajectoryResult) -> str:
    last = f"{each.relative_l2[-1]:.2e} after step {len(each.relative_l2)}" if each.relative_l2 else each.reason
    return f"trajectory    {each.outcome}: relative L2 {last}; {each.prompt!r}, seed {each.seed}"


def _direction(worse: bool | None) -> str:
    return {True: "worse:", False: "better:", None: "other:"}[worse]


def _value(value: float | str | None) -> str:
    return "none" if value is None else f"{value:.3g}" if isinstance(value, float) else value
