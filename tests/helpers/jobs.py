"""Compile jobs over hand-written graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import Component, ComponentName
from sdrt.engines.builders import ComponentJob


def job(bundle: Bundle, component: ComponentName, folder: Path, **changes: Any) -> ComponentJob:
    made = ComponentJob(
        backend="onnxruntime",
        component=component,
        graph=bundle.graph(component),
        spec=bundle.manifest.components[component],
        precision="fp32",
        batch=None,
        options={},
        threads=1,
        folder=folder,
    )
    return made.model_copy(update=changes)


def without_weights(bundle: Bundle, component: ComponentName) -> Component:
    return bundle.manifest.components[component].model_copy(update={"weights": None})
