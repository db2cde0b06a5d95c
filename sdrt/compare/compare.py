"""A whole comparison: components, trajectories and pictures compared with PyTorch, up to the verdict."""

from __future__ import annotations

import datetime
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdrt.compare.bisect import check_available, locate
from sdrt.compare.components import CAUSAL, compare_components, unavailable
from sdrt.compare.faults import run_planted_faults
from sdrt.compare.inputs import Inputs
from sdrt.compare.perceptual import open_lpips
from sdrt.compare.pictures import Pair, compare_pictures
from sdrt.compare.prompts import PromptSeed, default_prompts
from sdrt.compare.reference import Reference, ReferenceTrajectory
from sdrt.compare.schema import (
    Compared,
    Comparison,
    ComponentResult,
    Engines,
    FaultResult,
    PictureResult,
    SubjectSource,
    TrajectoryResult,
    verdict,
)
from sdrt.compare.subject import Subject, SubjectRequest, open_graphs, open_subject
from sdrt.compare.tensors import check_replaceable, save_tensors
from sdrt.compare.tolerances import Tolerances
from sdrt.compare.trajectories import compare_trajectories, draw
from sdrt.doctor import gpu, processor
from sdrt.errors import UsageError
from sdrt.machine.packages import package_versions
from sdrt.progress import Progress, silent
from sdrt.runtime.request import Picture, Request
from sdrt.version import __version__

if TYPE_CHECKING:
    from sdrt.checkpoint import Checkpoint
    from sdrt.compare.perceptual import Lpips

GUIDANCE_SCALE = 7.5
#: Distributions whose versions affect the numbers of either side.
PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "polygraphy",
    "numpy",
)


@dataclass(frozen=True)
class ComparisonSettings:
    """Settings of a comparison.

    Attributes:
        tolerances: Table of limits.
        prompts: Prompts to draw; None is the default set of the checkpoint.
        steps: Number of denoising steps.
        bisect: Whether to search failed components for the first tensor that departs.
        threads: Number of CPU threads of the candidate; None is all that this process may use.
        tensors: Folder to save every component's inputs and reference outputs in, in Polygraphy's format.
    """

    tolerances: Tolerances
    prompts: tuple[PromptSeed, ...] | None = None
    steps: int = 25
    bisect: bool = False
    threads: int | None = None
    tensors: Path | None = None


@dataclass(frozen=True, eq=False)
class ReferenceRun:
    """The reference's side: PyTorch's networks, the trajectory they drew, and component inputs captured along it."""

    reference: Reference
    prompts: tuple[PromptSeed, ...]
    trajectory: ReferenceTrajectory
    inputs: Inputs


def compare(
    request: SubjectRequest, settings: ComparisonSettings, progress: Progress = silent
) -> tuple[Comparison, tuple[Pair, ...]]:
    """Compare a bundle or engines with PyTorch; missing artefacts are exported and built.

    Returns:
        The comparison, and the pictures of both sides.

    Raises:
        SdrtError: The subject, the checkpoint or a tolerance table cannot be opened; the subclass says which. A broken
            tolerance is a result, not an error.
    """
    if settings.tensors is not None:
        check_replaceable(settings.tensors)
    if settings.bisect:
        check_available()
    subject = open_subject(request, progress, settings.threads)
    if settings.tensors is not None and subject.bundle is None:
        hint = "give the bundle that the engines were built from"
        raise UsageError("--save-tensors needs a bundle; engines are given", hint=hint)
    checkpoint = subject.checkpoint
    mismatch = checkpoint.digest != subject.made_from.digest
    if mismatch:
        progress.note(f"warning: this was made from {subject.made_from.name}; the digest of {checkpoint.name} differs")
    reference_run = _reference(checkpoint, subject.token_merging, settings, progress)
    components = _components(reference_run, subject, settings, progress)
    if settings.tensors is not None and subject.bundle is not None:
        for line in save_tensors(
            settings.tensors, reference_run.reference, subject.bundle, reference_run.inputs, settings.tolerances
        ):
            progress.note(line)
    runs = subject.engines is not None and not unavailable(subject.made)
    # Opening LPIPS may download a network, which is not needed if nothing is drawn.
    lpips, about_lpips = open_lpips() if runs else (None, "not measured: no picture was drawn")
    trajectories, pictures, pairs = _drawn(reference_run, subject, settings, lpips, progress)
    outcomes = [each.outcome for group in (components, trajectories, pictures) for each in group]
    engines = subject.engines
    comparison = Comparison(
        schema_version=1,
        sdrt=__version__,
        outcome=verdict(outcomes),
        checkpoint=SubjectSource(name=subject.made_from.name, digest=subject.made_from.digest),
        compared_with=Compared(name=checkpoint.name, digest=checkpoint.digest, mismatch=mismatch),
        bundle_digest=subject.bundle_digest,
        engines=Engines(key=engines.manifest.key, digest=engines.digest) if engines else None,
        backend=subject.made.backend,
        precision=subject.made.precision,
        steps=settings.steps,
        guidance_scale=GUIDANCE_SCALE,
        components=components,
        trajectories=trajectories,
        pictures=pictures,
        environment=environment(subject, settings.threads) | {"lpips": about_lpips},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    return comparison, pairs


def check_faults(
    request: SubjectRequest, settings: ComparisonSettings, progress: Progress = silent
) -> tuple[FaultResult, ...]:
    """Plant every fault in a copy of an fp32 bundle and check that the comparison finds it on ONNX Runtime.

    Raises:
        UsageError: Engines are given, which hold no graph to plant a fault in, or a bundle of another precision.
        NumericError: The bundle does not pass before a fault is planted.
    """
    bundle, checkpoint = open_graphs(request, progress)
    reference_run = _reference(checkpoint, bundle.manifest.token_merging, settings, progress)
    return run_planted_faults(reference_run.reference, bundle, reference_run.inputs, settings.tolerances, progress)


def _reference(
    checkpoint: Checkpoint, token_merging: float | None, settings: ComparisonSettings, progress: Progress
) -> ReferenceRun:
    """Denoise the prompts in PyTorch, with the same share of tokens merged as in the subject."""
    prompts = settings.prompts or default_prompts(checkpoint.name)
    pictures = tuple(Picture(each.prompt, "", each.seed) for each in prompts)
    reference = Reference(checkpoint, token_merging)
    if token_merging is not None:
        progress.note(f"the reference merges {token_merging} of the tokens too; merging's own error is not measured")
    trajectory = reference.denoise(Request(pictures, settings.steps, GUIDANCE_SCALE), progress)
    return ReferenceRun(reference, prompts, trajectory, Inputs(reference, trajectory))


def _components(
    reference_run: ReferenceRun, subject: Subject, settings: ComparisonSettings, progress: Progress
) -> tuple[ComponentResult, ...]:
    """Compare every component of the subject, in causal order, including denoise_step if it is a separate set."""
    found: list[ComponentResult] = []
    sources = (subject.made,) if subject.step is None else (subject.made, subject.step)
    for source in sources:
        found += compare_components(
            reference_run.reference,
            source,
            reference_run.inputs,
            settings.tolerances,
            progress,
            bundle=subject.bundle,
            threads=settings.threads,
        )
    found.sort(key=lambda result: CAUSAL.index(result.component))
    if settings.bisect:
        found = [
            _located(each, reference_run, subject, progress) if each.outcome == "failed" else each for each in found
        ]
    return tuple(found)


def _located(
    result: ComponentResult, reference_run: ReferenceRun, subject: Subject, progress: Progress
) -> ComponentResult:
    """Return a failed component's result with the first tensor of its graph that departs."""
    cases = reference_run.inputs.cases(result.component, subject.limits(result.component))
    return locate(result, reference_run.reference, subject.made.model, subject.bundle, cases, progress)


def _drawn(
    reference_run: ReferenceRun, subject: Subject, settings: ComparisonSettings, lpips: Lpips | None, progress: Progress
) -> tuple[tuple[TrajectoryResult, ...], tuple[PictureResult, ...], tuple[Pair, ...]]:
    """Draw and compare trajectories and pictures; nothing is drawn if the backend cannot run here."""
    engines, reference = subject.engines, reference_run.reference
    if engines is None or unavailable(subject.made):
        return (), (), ()
    reference.release()
    drawn = draw(engines, reference_run.trajectory.request, progress, threads=settings.threads)
    trajectories = compare_trajectories(reference_run.trajectory, drawn, engines, settings.tolerances)
    expected = reference.decode(reference_run.trajectory.latents[-1])
    pairs = tuple(
        Pair(prompt_seed, picture, each.picture, each.error)
        for prompt_seed, picture, each in zip(reference_run.prompts, expected, drawn, strict=True)
    )
    tolerance = settings.tolerances.of("", engines.manifest.backend, engines.manifest.precision, "picture")
    scored = reference.checkpoint.name == "demo"
    return trajectories, compare_pictures(pairs, tolerance, scored=scored, lpips=lpips), pairs


def environment(subject: Subject, threads: int | None) -> dict[str, str]:
    """Return the facts that affect the numbers besides the weights: versions, processor, threads, GPUs and driver.

    Args:
        subject: The subject of the comparison.
        threads: Number of CPU threads of the candidate; None is all that this process may use.
    """
    import torch

    facts = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    found = processor()
    features = [name for name in ("amx", "avx512_bf16", "bf16") if found[name]]
    facts["processor"] = f"{found['cpus']} CPUs, {', '.join(features) or 'no bf16'}"
    facts["threads"] = f"{threads or found['cpus']}; torch {torch.get_num_threads()}"
    facts |= _gpu_facts()
    if subject.token_merging is not None:
        facts["token_merging"] = f"{subject.token_merging}, also in the reference"
    if subject.made.backend == "onnxruntime":
        facts["provider"] = next((part.options.get("provider", "cpu") for part in subject.made.parts.values()), "cpu")
    return facts | package_versions(PACKAGES)


def _gpu_facts() -> dict[str, str]:
    """Return the GPUs of this machine and their driver."""
    found = gpu()
    if found["driver"] is None:
        return {"gpu": "none"}
    names = ", ".join(f"{each['name']} ({each['architecture']})" for each in found["gpus"])
    return {"gpu": names or "none", "driver": f"{found['driver']}, CUDA {found['cuda']}"}
