"""Plans of a real TensorRT: their builds, equality with and without CUDA graphs, the GPU tests, and full-size times."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sdrt import Pipeline
from sdrt.artefacts.engine_set import BackendName
from sdrt.engines.builders import ComponentJob, builder
from sdrt.engines.recipe import DEFAULT, load_recipe
from sdrt.libraries.tensorrt_log import Messages, listen
from sdrt.machine.cpu import usable_cpus
from tools.gpu_day.findings import Findings, tail
from tools.gpu_day.workbench import Workbench

LATENCY = "sd-v1-latency"
PROMPT = "a large green star on a purple background"
SEED = 3
#: Messages of the log about missing kernels, memory and internal failures.
TELLING = ("MyelinCheckException", "insufficient memory", "Could not find any implementation", "[E]", "Internal Error")
VERBOSE_LOG = "build.log"
_SUMMARY = re.compile(r"(\d+) (passed|failed|error|errors|skipped|deselected)")


def plans(found: Findings, bench: Workbench) -> None:
    """Build the demo by the latency recipe, component by component, and keep TensorRT's whole log."""
    backend = bench.backend()
    found.fact("backend", backend)
    bundle, maker = bench.bundle(), builder(backend)
    held = bundle.manifest.components
    recipe = maker.recipe(load_recipe(LATENCY, []), None)
    folder = bench.out / "plans"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with log_kept(bench.library(backend), bench.out / VERBOSE_LOG):
        for name in maker.components(frozenset(held)):
            job = ComponentJob(
                backend=backend,
                component=name,
                graph=bundle.graph(name),
                spec=held[name],
                precision=maker.component_precision(name, "fp16", held[name].precision),
                batch=recipe.rows(name) if recipe else None,
                options=maker.options(name),
                threads=usable_cpus(),
                folder=folder,
                recipe=recipe,
            )
            built = maker.build(job)
            attentions = built.layers.attentions if built.layers else ()
            unfused = [attention.name for attention in attentions if not attention.fused]
            found.fact(f"{name}: s, MB", (built.seconds, round(built.size_bytes / 1e6, 1)))
            # The VAE's attention has one head with all channels, for which there is no fused kernel.
            fused = not unfused or name.startswith("vae")
            found.check(f"{name}: its attentions are fused", fused, f"{len(attentions)} in all; unfused: {unfused}")
    log = (bench.out / VERBOSE_LOG).read_text(encoding="utf-8")
    found.fact("lines of log", log.count("\n"))
    for words in TELLING:
        lines = [line[:300] for line in log.splitlines() if words in line]
        found.fact(f"log: {words}", (len(lines), lines[:2]))


@contextlib.contextmanager
def log_kept(library: Any, path: Path) -> Iterator[None]:
    """Write every message of a library's logger, verbose ones too, to a file in addition to the logger's own work."""
    kind: Any = type(listen(library, Messages()))
    log = kind.log
    with path.open("w", encoding="utf-8") as file:

        def keep(self: Any, severity: Any, msg: str) -> None:
            file.write(f"{severity}: {msg}\n")
            log(self, severity, msg)

        kind.log = keep
        try:
            yield
        finally:
            kind.log = log


def pictures(found: Findings, bench: Workbench) -> None:
    """Draw the demo without CUDA graphs, then with them; a difference comes from the capture."""
    backend = bench.backend()
    engines = bench.engines(backend, LATENCY)
    latents = {}
    for graphs in (False, True):
        start = time.perf_counter()
        with Pipeline(engines, cuda_graphs=graphs) as pipeline:
            opened = time.perf_counter() - start
            first = pipeline(PROMPT, num_inference_steps=bench.steps, seed=SEED)
            again = pipeline(PROMPT, num_inference_steps=bench.steps, seed=SEED)
        name = "with graphs" if graphs else "without graphs"
        latents[graphs] = first.latents
        found.check(f"{name}: finite", bool(np.isfinite(first.latents).all()))
        found.check(f"{name}: the same again", np.array_equal(first.latents, again.latents))
        found.fact(f"{name}: s to open", round(opened, 2))
        found.fact(f"{name}: ms a step, median", round(float(np.median(again.timings.steps)) * 1e3, 3))
        first.images[0].save(bench.out / f"{name.replace(' ', '-')}.png")
    found.check("graphs change nothing", np.array_equal(latents[True], latents[False]))


def gpu_tests(found: Findings, bench: Workbench) -> None:
    """Run the GPU tests up to the fifth failure."""
    bench.backend()
    log = bench.out / "tests.log"
    with log.open("wb") as file:
        ended = subprocess.run(
            [*bench.tests, "-o", "faulthandler_timeout=120"], stdout=file, stderr=subprocess.STDOUT, check=False
        )
    said = tail(log)
    last = said.splitlines()[-1] if said else ""
    found.fact("last line", last)
    found.fact("counts", {what: int(count) for count, what in _SUMMARY.findall(last)})
    found.check("no test fails", ended.returncode == 0, f"pytest ended with {ended.returncode}; see {log.name}")


def full_size(found: Findings, bench: Workbench) -> None:
    """Compare the latency recipe with the default one at full size, for one picture and for four."""
    backend = bench.backend()
    checkpoint = bench.full_size_checkpoint()
    times: dict[tuple[str, int], float] = {}
    for recipe in (LATENCY, DEFAULT):
        times |= _recipe_times(found, bench, backend, recipe, checkpoint)
    one, four = times[DEFAULT, 1] / times[LATENCY, 1], times[DEFAULT, 4] / times[LATENCY, 1] / 4
    found.fact("default against latency at one picture", round(one, 3))
    found.fact("default, a picture of four, against latency at one", round(four, 3))


def _recipe_times(
    found: Findings, bench: Workbench, backend: BackendName, recipe: str, checkpoint: str
) -> dict[tuple[str, int], float]:
    start = time.perf_counter()
    engines = bench.engines(backend, recipe, checkpoint)
    found.fact(f"{recipe}: s to build", round(time.perf_counter() - start, 1))
    times = {}
    with Pipeline(engines) as pipeline:
        for count in (1, 4):
            settings: dict[str, Any] = {"num_images_per_prompt": count, "num_inference_steps": bench.steps}
            pipeline(PROMPT, seed=SEED, **settings)
            result = pipeline(PROMPT, seed=SEED, **settings)
            at_once = min(count, pipeline.pictures_at_once(result.request))
            # A request of more pictures than fit in a batch takes several passes, and the list has the steps of all.
            times[recipe, count] = float(np.sum(result.timings.steps)) / bench.steps * 1e3
            found.check(f"{recipe}, {count} pictures: finite", bool(np.isfinite(result.latents).all()))
            found.fact(
                f"{recipe}, {count} pictures: ms a step of all, at once", (round(times[recipe, count], 3), at_once)
            )
        found.fact(f"{recipe}: device bytes", pipeline.device_bytes)
    return times
