"""What is compared: the bundle or engines that a user names, as `sdrt denoise` would run them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import DEEPCACHE, CheckpointRecord, ComponentName, Precision, read_manifest
from sdrt.artefacts.store import Store
from sdrt.checkpoint import open_checkpoint
from sdrt.checkpoint.places import find_recorded
from sdrt.compare.runners import Candidate, candidate
from sdrt.engines import build as engines_build
from sdrt.errors import ArtefactError, BackendUnavailableError, CheckpointError, UsageError
from sdrt.prepare.bundles import bundle_precision, open_bundle
from sdrt.prepare.choice import build_request, choose
from sdrt.prepare.engines import open_engines
from sdrt.prepare.source import Source
from sdrt.progress import Progress
from sdrt.runtime.backends.registry import available

if TYPE_CHECKING:
    from sdrt.artefacts.engine_set import BatchRange, EngineSet
    from sdrt.checkpoint import Checkpoint

#: Backends that compare without being run: what stands in for them is reported beside, as what it is.
WITHOUT_GPU = ("tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class SubjectRequest:
    """What the user names. ``folder`` is a bundle or an engine set; without one, the checkpoint's engines are made."""

    folder: Path | None = None
    checkpoint: str | None = None
    revision: str | None = None
    variant: str | None = None
    backend: str = "auto"
    precision: Precision | None = None
    trust: str | None = None
    store: Path | None = None


@dataclass(frozen=True)
class Subject:
    """What is compared.

    Attributes:
        made: Its components.
        engines: The set that draws pictures; None where its backend cannot run here.
        step: A set of denoise_step alone, where the backend's own sets leave it out and the bundle has it.
        bundle: What it was built from; None where only engines were given.
        made_from: The checkpoint that its manifest names.
        checkpoint: What it is compared with.
        bundle_digest: Of the bundle, whether it is here or not.
    """

    made: Candidate
    engines: EngineSet | None
    step: EngineSet | None
    bundle: Bundle | None
    made_from: CheckpointRecord
    checkpoint: Checkpoint
    bundle_digest: str

    @property
    def token_merging(self) -> float | None:
        """Share of tokens that its UNet merges."""
        held = self.engines or self.bundle
        return held.manifest.token_merging if held else None

    def limits(self, component: ComponentName) -> BatchRange | None:
        """The batches that a component's engine takes; None where it takes any."""
        alone = self.step is not None and component == "denoise_step"
        parts = self.step.manifest.components if alone and self.step else self.made.parts
        return parts[component].batch


def open_subject(request: SubjectRequest, progress: Progress, threads: int | None = None) -> Subject:
    """Open what is compared, and the checkpoint that it is compared with; export and build what is missing.

    A GPU's backend that cannot run here is not built either: it cannot be verified.

    Raises:
        UsageError: Options contradict each other.
        ArtefactError: The folder is neither a bundle nor an engine set, or is malformed; or the checkpoint is not here.
        BackendUnavailableError: A backend of the CPU is not installed.
    """
    source = _source(request)
    if _holds_engines(request):
        given = Source(engines=request.folder, trust=request.trust)
        engines = open_engines(given, backend=request.backend, precision=request.precision, store=request.store)
        manifest = engines.manifest
        made_from = engines.checkpoint
        checkpoint = open_reference(request, made_from)
        made = candidate(engines, threads=threads)
        if not set(DEEPCACHE).isdisjoint(made.parts):
            progress.note("DeepCache's passes are not compared one by one; pictures are drawn with every step whole")
        return Subject(made, engines, None, None, made_from, checkpoint, manifest.bundle_digest)
    if request.trust is not None:
        raise UsageError("--trust is for engines, and none are given", hint="give the engines' folder, or leave it out")
    return _from_bundle(request, source, progress, threads)


def open_graphs(request: SubjectRequest, progress: Progress) -> tuple[Bundle, Checkpoint]:
    """The bundle in fp32 that faults are planted in, exported if it is missing, and the checkpoint it is held against.

    Raises:
        UsageError: Engines are given, which hold no graph, or a bundle that is not in fp32.
        ArtefactError: As `open_subject`.
    """
    source = _source(request)
    if _holds_engines(request):
        raise UsageError("--self-test needs a bundle; engines are given", hint="give the bundle they were built from")
    bundle = open_bundle(source, Store.at(request.store), progress=progress)
    precision = bundle.manifest.precision
    if precision != "fp32":
        hint = "export one with --precision fp32: what faults do would drown in rounding"
        raise UsageError(f"--self-test needs a bundle in fp32; {bundle.path} is in {precision}", hint=hint)
    return bundle, open_reference(request, bundle.checkpoint)


def _source(request: SubjectRequest) -> Source:
    """The bundle or checkpoint of what is asked.

    Raises:
        UsageError: A revision is given of no checkpoint.
    """
    named = Source(request.checkpoint, request.revision, variant=request.variant)
    return named if request.folder is None else Source(bundle=request.folder)


def _holds_engines(request: SubjectRequest) -> bool:
    """Whether the folder asked for is an engine set's."""
    return request.folder is not None and "backend" in json.loads(read_manifest(request.folder, ArtefactError))


def _from_bundle(request: SubjectRequest, source: Source, progress: Progress, threads: int | None) -> Subject:
    store = Store.at(request.store)
    choice = choose(
        source, backend=request.backend, precision=request.precision, store=request.store, progress=progress
    )
    backend = choice.backend
    exported = bundle_precision(backend, choice.precision)
    bundle = open_bundle(source, store, precision=exported, progress=progress)
    record = bundle.checkpoint
    checkpoint = open_reference(request, record)
    try:
        available(backend)
    except BackendUnavailableError as error:
        if backend not in WITHOUT_GPU:
            raise
        progress.note(f"{backend} cannot be verified here: {error.message}")
        made = replace(candidate(bundle, threads=threads), backend=backend)
        return Subject(made, None, None, bundle, record, checkpoint, bundle.digest)
    engine_request = build_request(choice, bundle)
    engines = engines_build.build(bundle, engine_request, store, progress)
    step = None
    if "denoise_step" in bundle.manifest.components and "denoise_step" not in engines.manifest.components:
        step = engines_build.build(bundle, replace(engine_request, components=("denoise_step",)), store, progress)
    return Subject(candidate(engines, threads=threads), engines, step, bundle, record, checkpoint, bundle.digest)


def open_reference(request: SubjectRequest, made_from: CheckpointRecord) -> Checkpoint:
    """The checkpoint to compare with: the one asked for, or the one that the subject was made from.

    Raises:
        CheckpointError: It is not here, or malformed.
    """
    if request.checkpoint is not None:
        return open_checkpoint(request.checkpoint, revision=request.revision, variant=request.variant)
    found = find_recorded(made_from)
    if found is None:
        hint = "name its place with --checkpoint"
        raise CheckpointError(f"the checkpoint {made_from.name!r}, of which this was made, is not here", hint=hint)
    return open_checkpoint(found[0], revision=found[1], variant=made_from.variant)
