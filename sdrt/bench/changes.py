"""Changes since an earlier benchmark, corrected for the change of the machine's own speed."""

from __future__ import annotations

from pathlib import Path

from sdrt.artefacts.manifest import read_document
from sdrt.bench.schema import SCHEMA_VERSION, Bench, BenchChanges, ContenderResult, Figure, FigureChange, Sample
from sdrt.bench.statistics import spread

LIMIT_BYTES = 16 << 20

Figures = dict[tuple[str, Figure, int], Sample]


def read_bench(path: Path) -> Bench:
    """Read a ``bench.json`` file of any name.

    Raises:
        ArtefactError: The file is missing, malformed, or from a newer sdrt.
    """
    hint = "give a bench.json that sdrt bench wrote"
    return read_document(path, Bench, limit_bytes=LIMIT_BYTES, newest=SCHEMA_VERSION, hint=hint)


def compare_benchmarks(before: Bench, after: Bench) -> BenchChanges:
    """Return the changes of all figures that both benchmarks have: slower ones first, then faster, then the same."""
    earlier, later = figures(before), figures(after)
    changes = [
        _change(name, earlier[name], later[name], _machine_factor(before, after, name[0]))
        for name in later
        if name in earlier
    ]
    order = ("slower", "faster", "same")
    changes.sort(key=lambda change: (order.index(change.verdict), -change.adjusted))
    return BenchChanges(created=before.created, remarks=_remarks(before, after), moves=tuple(changes))


def figures(bench: Bench) -> Figures:
    """Return all comparable figures of a benchmark by contender, figure and batch."""
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


def _change(name: tuple[str, Figure, int], before: Sample, after: Sample, machine: float) -> FigureChange:
    contender, figure, batch = name
    factor = after.p50 / before.p50
    adjusted = factor * machine
    wide = max(spread(before), spread(after))
    verdict = "slower" if adjusted > 1 + wide else "faster" if adjusted * (1 + wide) < 1 else "same"
    return FigureChange.model_validate(
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
    """Return the ratio of the ceilings of a contender's precision, after over before; 1 if either is unknown."""
    precision = _contender(after, contender).precision
    rates = [
        next((each.gflops.p50 for each in bench.ceilings if each.precision == precision), None)
        for bench in (before, after)
    ]
    return rates[1] / rates[0] if rates[0] and rates[1] else 1.0


def _contender(bench: Bench, name: str) -> ContenderResult:
    return next(each for each in bench.contenders if each.name == name)


def _remarks(before: Bench, after: Bench) -> tuple[str, ...]:
    """Return a sentence for each difference of machine, checkpoint, settings and library versions."""
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
