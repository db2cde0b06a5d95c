"""Changes since an earlier comparison: outcomes, figures of outputs, steps and pictures, and the environment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from sdrt.artefacts.manifest import read_document
from sdrt.compare.schema import SCHEMA_VERSION, ChangeReport, Comparison, FigureChange, Metrics, PictureResult

LIMIT_BYTES = 16 << 20
#: A smaller factor between two errors is no change: another number of threads alone can cause it.
FACTOR = 1.5
#: Smallest changes of PSNR, in dB (a factor of 1.5 in amplitude), and of SSIM.
PSNR_DB, SSIM = 3.5, 0.005

Value = float | str | None
#: (subject, figure) to its value, as ("unet, early, batch 2, out_sample", "peak").
Figures = dict[tuple[str, str], Value]


def read_comparison(path: Path) -> Comparison:
    """Read a ``comparison.json``, under any file name.

    Raises:
        ArtefactError: The file is missing or malformed, or from a newer sdrt.
    """
    hint = "give a comparison.json that sdrt compare wrote"
    return read_document(path, Comparison, limit_bytes=LIMIT_BYTES, newest=SCHEMA_VERSION, hint=hint)


def find_changes(before: Comparison, after: Comparison) -> ChangeReport:
    """Return every difference between two comparisons, those that are worse first."""
    earlier, later = _figures(before), _figures(after)
    both = {what for what, _ in earlier} & {what for what, _ in later}
    # If only one comparison has an output or picture, its outcome alone is reported.
    names = [name for name in {**later, **earlier} if name[0] in both or name[1] == "outcome"]
    found = [change for change in (_change(name, earlier, later) for name in names) if change is not None]
    return ChangeReport(created=before.created, moved=tuple(sorted(found, key=lambda change: change.worse is not True)))


def _figures(comparison: Comparison) -> Figures:
    """Return every value of a comparison that is checked for changes."""
    figures: Figures = {("run", name): getattr(comparison, name) for name in ("backend", "precision", "steps")}
    figures["run", "guidance_scale"] = comparison.guidance_scale
    figures["run", "bundle_digest"] = comparison.bundle_digest
    figures["run", "checkpoint"] = comparison.compared_with.digest
    figures["run", "outcome"] = comparison.outcome
    for component in comparison.components:
        figures[component.component, "outcome"] = component.outcome
        for case in component.cases:
            for output in case.outputs:
                what = f"{component.component}, {case.label}, {output.output}"
                figures[what, "outcome"] = output.outcome
                figures |= _metrics(what, output.metrics)
    for trajectory in comparison.trajectories:
        what = f"trajectory of {trajectory.prompt!r}, seed {trajectory.seed}"
        figures[what, "outcome"] = trajectory.outcome
        figures[what, "relative_l2"] = trajectory.relative_l2[-1] if trajectory.relative_l2 else None
        # Steps are shown counted from 1.
        figures[what, "first_over"] = None if trajectory.first_over is None else trajectory.first_over + 1.0
    for picture in comparison.pictures:
        figures |= _picture(picture)
    return figures | {("environment", name): value for name, value in comparison.environment.items()}


def _metrics(what: str, metrics: Metrics | None) -> Figures:
    names = ("relative_l2", "peak")
    return {(what, name): None if metrics is None else getattr(metrics, name) for name in names}


def _picture(picture: PictureResult) -> Figures:
    what = f"picture of {picture.prompt!r}, seed {picture.seed}"
    # Equal pictures have no PSNR; a picture that could not be made has no SSIM either.
    equal = picture.psnr_db is None and picture.ssim is not None
    return {
        (what, "outcome"): picture.outcome,
        (what, "psnr_db"): "equal" if equal else picture.psnr_db,
        (what, "ssim"): picture.ssim,
        (what, "lpips"): picture.lpips,
        (what, "candidate_verdict"): picture.candidate_verdict,
    }


def _change(name: tuple[str, str], earlier: Mapping[tuple[str, str], Value], later: Figures) -> FigureChange | None:
    """Return the change of one figure; None if it did not change."""
    before, after = earlier.get(name), later.get(name)
    what, figure = name
    if not _moved(figure, before, after):
        return None
    return FigureChange(what=what, figure=figure, before=before, after=after, worse=_worse(figure, before, after))


def _moved(figure: str, before: Value, after: Value) -> bool:
    if before == after:
        return False
    if not isinstance(before, float) or not isinstance(after, float):
        return True
    if figure in ("relative_l2", "peak", "lpips"):
        low, high = sorted((before, after))
        return low == 0 or high / low >= FACTOR
    limits = {"psnr_db": PSNR_DB, "ssim": SSIM}
    return abs(after - before) >= limits.get(figure, 0)


def _worse(figure: str, before: Value, after: Value) -> bool | None:
    """Return whether the later value is worse; None if the two cannot be ranked."""
    ranks = {"outcome": ("passed", "unverified", "failed")}
    if figure in ranks and before in ranks[figure] and after in ranks[figure]:
        return ranks[figure].index(str(after)) > ranks[figure].index(str(before))
    if figure == "candidate_verdict":
        return False if after == "right" else True if before == "right" else None
    if figure == "psnr_db":
        first, second = (math.inf if value == "equal" else value for value in (before, after))
        return second < first if isinstance(first, float) and isinstance(second, float) else None
    if not isinstance(before, float) or not isinstance(after, float):
        return None
    if figure == "ssim":
        return after < before
    return after > before if figure in ("relative_l2", "peak", "lpips") else None
