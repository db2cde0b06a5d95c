"""Jobs for the TensorRT builders, without a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdrt.artefacts.engine_set import BatchRange
from sdrt.artefacts.manifest import Component
from sdrt.engines.builders.base import ComponentJob
from sdrt.engines.recipe import Recipe

ONE_TO_FOUR = BatchRange(min=1, opt=1, max=4)
RECIPE = Recipe.model_validate(
    {
        "targets": ("sm86",),
        "hardware_compatibility": "none",
        "version_compatible": False,
        # The lowest level, so that tests build quickly; the plans' results do not change.
        "optimization_level": 0,
        "workspace_mib": 256,
        "batch": {"unet": ONE_TO_FOUR},
    }
)


def make_job(graph: Path, spec: Component, folder: Path, **changes: Any) -> ComponentJob:
    """Return a job that builds one graph as the component "unet", batch 1 to 4, for sm86."""
    folder.mkdir(exist_ok=True)
    job = ComponentJob(
        backend="tensorrt-rtx",
        component="unet",
        graph=graph,
        spec=spec,
        precision="fp16",
        batch=ONE_TO_FOUR,
        options={},
        threads=1,
        folder=folder,
        recipe=RECIPE,
    )
    return job.model_copy(update=changes)


class Heard:
    """A progress report that records percentages and notes."""

    def __init__(self) -> None:
        self.percents: list[int] = []
        self.notes: list[str] = []

    def percent(self, done: int) -> None:
        self.percents.append(done)

    def note(self, text: str) -> None:
        self.notes.append(text)
