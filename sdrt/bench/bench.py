"""A whole benchmark, from the request to every figure: plan, rounds, ratios, ceilings, roofline."""

from __future__ import annotations

import datetime
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdrt.bench.contender import Ran
from sdrt.bench.machine import machine, versions
from sdrt.bench.plan import BenchRequest, Entry, Plan, make_plan
from sdrt.bench.roofline import points
from sdrt.bench.rounds import ColdValues, Measured, measure
from sdrt.bench.schema import Bench, BenchSettings, Build, Ceiling, Cold, ContenderResult, Figure, Ratio, Sample, Warm
from sdrt.bench.statistics import paired, sample
from sdrt.errors import EngineError
from sdrt.files import temporary_folder
from sdrt.progress import Progress, silent
from sdrt.version import __version__

if TYPE_CHECKING:
    from sdrt.artefacts.manifest import Precision

#: Load average from which a warning is given; an idle machine stays below. Under a load of 12 on two cores, a UNet step
#: of torch took 94 times as long as sdrt's at two threads and 2.6 times at one: its OpenMP threads busy-wait for a
#: thread that is not scheduled.
BUSY_LOAD = 0.5


def bench(
    request: BenchRequest,
    settings: BenchSettings,
    progress: Progress = silent,
    *,
    build_times: bool = False,
) -> Bench:
    """Run a benchmark.

    Args:
        request: Engine sets and peers to measure.
        settings: Numbers of rounds and steps, batches, and the prompt.
        progress: Progress callback.
        build_times: Whether to export and build again from scratch, and time that.

    Raises:
        SdrtError: sdrt's own engines cannot be built or do not run. A peer that does not run is reported in the result.
    """
    with temporary_folder() as folder:
        plan = make_plan(request, settings.threads, folder, progress)
        facts = machine()
        _warn_of_load(facts, progress)
        if build_times:
            plan = _with_build_times(plan, request, folder, progress)
        jobs = {entry.result.name: entry.job for entry in plan.entries if entry.job is not None}
        precisions = _precisions(plan)
        measured = measure(jobs, settings, precisions, plan.device, folder, progress)
        results = [entry.result for entry in plan.entries]
        first = results[0].name
        if first in measured.problems and not any(first in runs for runs in measured.warm.values()):
            raise measured.problems[first]
        found = tuple(_result(each, measured, settings, _reference(each, results)) for each in results)
    ceilings = _ceilings(measured, precisions)
    copied = [float(limits["bytes_a_second"]) for rows in measured.limits.values() for limits in rows]
    return Bench(
        schema_version=1,
        sdrt=__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        checkpoint=plan.bundle.checkpoint.name,
        checkpoint_digest=plan.bundle.checkpoint.digest,
        bundle_digest=plan.bundle.digest,
        settings=settings,
        machine=facts,
        versions=versions(),
        contenders=found,
        ratios=_ratios(found),
        ceilings=ceilings,
        copy_bytes_a_second=sample(copied) if copied else None,
        points=points(found, plan.bundle, measured.limits),
    )


def _warn_of_load(facts: Mapping[str, str], progress: Progress) -> None:
    """Warn if the machine is busy: spinning threads make even ratios of interleaved runs wrong."""
    load = float(facts.get("load", "0"))
    if load > BUSY_LOAD:
        progress.note(
            f"warning: the load average is {load:.1f} before the benchmark starts; times and ratios will be inaccurate"
        )


def _result(result: ContenderResult, measured: Measured, settings: BenchSettings, first: str) -> ContenderResult:
    """Return a contender's result with its figures added."""
    name = result.name
    changes: dict[str, object] = {}
    problem = measured.problems.get(name)
    if problem is not None:
        changes |= {"problem": problem.message, "remedy": problem.hint}
    if name in measured.cold:
        changes["cold"] = _cold(measured.cold[name])
    warm = {batch: runs[name] for batch, runs in measured.warm.items() if runs.get(name)}
    changes["warm"] = tuple(_warm(batch, runs, settings.steps) for batch, runs in warm.items())
    if name != first and result.scheduler == "LMS" and {name, first} <= measured.pictures.keys():
        decibels = _psnr_db(measured.pictures[first], measured.pictures[name])
        changes |= {"psnr_db": decibels, "equal_picture": decibels is None}
    return result.model_copy(update=changes)


def _reference(result: ContenderResult, results: Sequence[ContenderResult]) -> str:
    """Return the name of the contender to compare pictures with: sdrt's in the same precision, else sdrt's first."""
    ours = [each for each in results if each.ours and not each.problem]
    equal = [each.name for each in ours if each.precision == result.precision and each.name != result.name]
    return equal[0] if equal and not result.ours else results[0].name


def _psnr_db(first: Path, other: Path) -> float | None:
    from PIL import Image

    from sdrt.compare.images import psnr_db

    with Image.open(first) as reference, Image.open(other) as candidate:
        return psnr_db(reference, candidate)


def _cold(values: ColdValues) -> Cold:
    return Cold(
        imported=sample(values.imported),
        loaded=sample(values.loaded),
        first_step=sample(values.first_step) if values.first_step else None,
        picture=sample(values.picture),
        peak_memory_bytes=max(values.peak_memory_bytes, default=None),
    )


def _warm(batch: int, runs: Sequence[Ran], steps: int) -> Warm:
    total = sample([run.total for run in runs])
    return Warm(
        batch=batch,
        total=total,
        unet_step=sample([_unet(run) / steps for run in runs]),
        text_encoder=_stage([run.text_encoder for run in runs]),
        unet=_stage([run.unet for run in runs]),
        vae_decoder=_stage([run.vae_decoder for run in runs]),
        pictures_a_minute=60 * batch / total.p50,
        peak_memory_bytes=max((run.peak_memory_bytes for run in runs if run.peak_memory_bytes), default=None),
        device_bytes=max((run.device_bytes for run in runs if run.device_bytes is not None), default=None),
    )


def _unet(run: Ran) -> float:
    """Return the seconds of all steps, or of the whole run if the contender does not report stages."""
    return run.total if run.unet is None else run.unet


def _stage(values: Sequence[float | None]) -> Sample | None:
    known = [value for value in values if value is not None]
    return sample(known) if known else None


def _ratios(contenders: Sequence[ContenderResult]) -> tuple[Ratio, ...]:
    """Return the ratios of every peer to each of sdrt's engine sets, and of sdrt's further sets to its first."""
    ours = [each for each in contenders if each.ours]
    pairs = [(mine, peer) for mine in ours for peer in contenders if not peer.ours]
    pairs += [(ours[0], other) for other in ours[1:]]
    found: list[Ratio] = []
    for mine, other in pairs:
        above, below = _figures(other), _figures(mine)
        for figure, batch in above.keys() & below.keys():
            top, bottom = above[figure, batch], below[figure, batch]
            if len(top.values) != len(bottom.values):
                continue
            quotient = paired(top.values, bottom.values)
            equal = mine.precision == other.precision
            found.append(
                Ratio(
                    of=mine.name,
                    peer=other.name,
                    figure=figure,
                    batch=batch,
                    equal_precision=equal,
                    sample=quotient,
                    max=max(quotient.values),
                )
            )
    return tuple(sorted(found, key=lambda ratio: (ratio.of, ratio.peer, ratio.figure, ratio.batch)))


def _figures(result: ContenderResult) -> dict[tuple[Figure, int], Sample]:
    """Return a contender's comparable samples by figure and batch."""
    figures: dict[tuple[Figure, int], Sample] = {}
    for warm in result.warm:
        figures["total", warm.batch] = warm.total
        figures["unet_step", warm.batch] = warm.unet_step
    if result.cold is not None:
        figures["cold_picture", 1] = result.cold.picture
        if result.cold.first_step is not None:
            figures["cold_first_step", 1] = result.cold.first_step
    return figures


def _precisions(plan: Plan) -> tuple[Precision, ...]:
    """Return the precisions of all contenders and of their components, each once."""
    found: dict[Precision, None] = {}
    for result in (entry.result for entry in plan.entries if entry.job is not None):
        parts = result.build.components if result.build is not None else ()
        found |= dict.fromkeys([result.precision, *(part.precision for part in parts)])
    return tuple(found)


def _ceilings(measured: Measured, precisions: Sequence[Precision]) -> tuple[Ceiling, ...]:
    found = []
    for precision in precisions:
        rows = [
            limits["products"][precision]
            for rounds in measured.limits.values()
            for limits in rounds
            if precision in limits["products"]
        ]
        if rows:
            libraries = sorted({row["library"] for row in rows})
            rates = sample([row["gflops"] for row in rows])
            found.append(Ceiling(precision=precision, gflops=rates, library=" or ".join(libraries)))
    return tuple(found)


def _with_build_times(plan: Plan, request: BenchRequest, folder: Path, progress: Progress) -> Plan:
    """Return the plan with the times of ``sdrt export`` and ``sdrt build`` from scratch added."""
    source = request.source
    checkpoint = source.checkpoint or ("demo" if source.bundle is None else None)
    export_s = None
    if checkpoint is not None:
        revision = ["--revision", source.revision] if source.revision else []
        variant = ["--variant", source.variant] if source.variant else []
        words = ["export", "--checkpoint", checkpoint, *revision, *variant, "--out", str(folder / "exported")]
        with progress.stage("export again"):
            export_s = _command_s(words)
    entries: list[Entry] = []
    for entry in plan.entries:
        if entry.engines is not None:
            manifest = entry.engines.manifest
            how = ["--backend", manifest.backend, "--precision", manifest.precision, "--threads", str(plan.threads)]
            out = folder / f"built-{len(entries)}"
            with progress.stage(f"build again: {entry.result.name}"):
                build_s = _command_s(["build", str(plan.bundle.path), *how, "--out", str(out)])
            build = (entry.result.build or Build()).model_copy(update={"export_s": export_s, "build_s": build_s})
            entries.append(Entry(entry.result.model_copy(update={"build": build}), entry.job, entry.engines))
        else:
            entries.append(entry)
    return Plan(plan.bundle, tuple(entries), plan.device, plan.threads)


def _command_s(words: Sequence[str]) -> float:
    """Run an sdrt command in a new process and return its wall time in seconds.

    Raises:
        EngineError: The command failed.
    """
    start = time.perf_counter()
    ended = subprocess.run([sys.executable, "-m", "sdrt", *words], capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        said = (ended.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise EngineError(f"sdrt {words[0]} failed: {said}", hint=f"run sdrt {words[0]} by itself")
    return time.perf_counter() - start
