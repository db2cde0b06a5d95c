"""What moved since an earlier benchmark, with the change of the machine itself taken out."""

from __future__ import annotations

from pathlib import Path

from sdrt.artefacts.manifest import read_document
from sdrt.bench.schema import SCHEMA_VERSION, AgainstResult, Bench, ContenderResult, Figure, Move, Sample
from sdrt.bench.statistics import spread

LIMIT_BYTES = 16 << 20

Figures = dict[tuple[str, Figure, int], Sample]


def read_bench(path: Path) -> Bench:
    """Read a ``bench.json``, whatever it is named.

    Raises:
        ArtefactError: It is missing or malformed, or from a newer sdrt.
    """
    hint = "give a bench.json that sdrt bench wrote"
    return read_document(path, Bench, limit_bytes=LIMIT_BYTES, newest=SCHEMA_VERSION, hint=hint)


def against(before: Bench, after: Bench) -> AgainstResult:
    """Every figure that both have, the slower first."""
    earlier, later = figures(before), figures(after)
    moves = [
        _move(name, earlier[name], later[name], _machine_factor(before, after, name[0]))
        for name in later
        if name in earlier
    ]
    order = ("slower", "faster", "same")
    moves.sort(key=lambda move: (order.index(move.verdict), -move.adjusted))
    return AgainstResult(created=before.created, remarks=_remarks(before, after), moves=tuple(moves))


def figures(bench: Bench) -> Figures:
    """Every figure of a benchmark that can move."""
    found: Figures = {}
    for each in bench.contenders:
        for warm in each.warm:
            found[each.name, "total", warm.batch] = warm.total
            found[each.name, "unet_step", warm.batch] = warm.unet_step
        if each.cold is not None:
            found[each.name, "cold_picture", 1] = each.cold.picture
            if each.cold.first_step is not None:
                found[each.name, "cold_first_step", 1] = each.cold.first_step
    return found


def _move(name: tuple[str, Figure, int], before: Sample, after: Sample, machine: float) -> Move:
    contender, figure, batch = name
    factor = after.p50 / before.p50
    adjusted = factor * machine
    wide = max(spread(before), spread(after))
    verdict = "slower" if adjusted > 1 + wide else "faster" if adjusted * (1 + wide) < 1 else "same"
    return Move.model_validate(
        {
            "contender": contender,
            "figure": figure,
            "batch": batch,
            "before": before.p50,
            "after": after.p50,
            "factor": factor,
            "adjusted": adjusted,
            "spread": wide,
            "verdict": verdict,
        }
    )


def _machine_factor(before: Bench, after: Bench, contender: str) -> float:
    """The ceiling of a contender's precision now over what it was; 1 where either was not measured."""
    precision = _contender(after, contender).precision
    rates = [
        next((each.gflops.p50 for each in bench.ceilings if each.precision == precision), None)
        for bench in (before, after)
    ]
    return rates[1] / rates[0] if rates[0] and rates[1] else 1.0


def _contender(bench: Bench, name: str) -> ContenderResult:
    return next(each for each in bench.contenders if each.name == name)


def _remarks(before: Bench, after: Bench) -> tuple[str, ...]:
    """What differs besides the code."""
    remarks = []
    for name in ("processor", "cpus", "gpu"):
        former, now = before.machine.get(name), after.machine.get(name)
        if former != now:
            remarks.append(f"{name} is {now}; it was {former}")
    if before.checkpoint_digest != after.checkpoint_digest:
        remarks.append("the checkpoint has other weights")
    for name in ("steps", "guidance_scale", "threads"):
        former, now = getattr(before.settings, name), getattr(after.settings, name)
        if former != now:
            remarks.append(f"{name} is {now}; it was {former}")
    for name in sorted(before.versions.keys() | after.versions.keys()):
        former, now = before.versions.get(name, "missing"), after.versions.get(name, "missing")
        if former != now:
            remarks.append(f"{name} is {now}; it was {former}")
    return tuple(remarks)
