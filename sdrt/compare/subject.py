"""Subject of a comparison: the bundle or engines that a user names, run as `sdrt denoise` would."""

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

#: Backends that can be compared without being run: the results of stand-ins are reported, labelled as such.
WITHOUT_GPU = ("tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class SubjectRequest:
    """The user's request. ``folder`` is a bundle or an engine set; if None, the checkpoint's engines are built."""

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
    """The opened subject of a comparison, and the checkpoint to compare it with.

    Attributes:
        made: Its components as a candidate.
        engines: The engine set that draws pictures; None if its backend cannot run here.
        step: A set with denoise_step only, if the bundle has it and the backend's own sets leave it out.
        bundle: Bundle that it was built from; None if only engines were given.
        made_from: The checkpoint that its manifest names.
        checkpoint: The checkpoint to compare with.
        bundle_digest: Digest of the bundle, even if the bundle itself is not available.
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
        """Share of tokens that its UNet merges; None if it merges none."""
        held = self.engines or self.bundle
        return held.manifest.token_merging if held else None

    def limits(self, component: ComponentName) -> BatchRange | None:
        """Return the batch range of a component's engine; None if it takes any batch."""
        alone = self.step is not None and component == "denoise_step"
        parts = self.step.manifest.components if alone and self.step else self.made.parts
        return parts[component].batch


def open_subject(request: SubjectRequest, progress: Progress, threads: int | None = None) -> Subject:
    """Open the subject and the checkpoint to compare it with; missing artefacts are exported and built.

    Engines of a GPU backend that cannot run here are not built, since they cannot be verified.

    Raises:
        UsageError: Options contradict each other.
        ArtefactError: The folder is neither a bundle nor an engine set, or is malformed.
        CheckpointError: The checkpoint is not available.
        BackendUnavailableError: A CPU backend is not installed.
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
            progress.note("DeepCache's passes are not compared one by one; pictures are drawn without reusing features")
        return Subject(made, engines, None, None, made_from, checkpoint, manifest.bundle_digest)
    if request.trust is not None:
        raise UsageError("--trust is for engines, and none are given", hint="give the engines' folder, or leave it out")
    return _from_bundle(request, source, progress, threads)


def open_graphs(request: SubjectRequest, progress: Progress) -> tuple[Bundle, Checkpoint]:
    """Open the fp32 bundle to plant faults in, exported if it is missing, and the checkpoint to compare it with.

    Raises:
        UsageError: Engines are given, which hold no graph, or a bundle that is not in fp32.
        ArtefactError: The folder is neither a bundle nor an engine set, or is malformed.
        CheckpointError: The checkpoint is not available.
    """
    source = _source(request)
    if _holds_engines(request):
        raise UsageError("--self-test needs a bundle; engines are given", hint="give the bundle they were built from")
    bundle = open_bundle(source, Store.at(request.store), progress=progress)
    precision = bundle.manifest.precision
    if precision != "fp32":
        hint = "export one with --precision fp32: rounding in other precisions would hide the faults"
        raise UsageError(f"--self-test needs a bundle in fp32; {bundle.path} is in {precision}", hint=hint)
    return bundle, open_reference(request, bundle.checkpoint)


def _source(request: SubjectRequest) -> Source:
    """Return the bundle or checkpoint of the request as a source.

    Raises:
        UsageError: A revision is given without a checkpoint.
    """
    named = Source(request.checkpoint, request.revision, variant=request.variant)
    return named if request.folder is None else Source(bundle=request.folder)


def _holds_engines(request: SubjectRequest) -> bool:
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
    """Open the checkpoint to compare with: the requested one, or the one that the subject was made from.

    Raises:
        CheckpointError: It is not available, or malformed.
    """
    if request.checkpoint is not None:
        return open_checkpoint(request.checkpoint, revision=request.revision, variant=request.variant)
    found = find_recorded(made_from)
    if found is None:
        hint = "name it with --checkpoint"
        raise CheckpointError(f"the checkpoint {made_from.name!r}, from which this was made, was not found", hint=hint)
    return open_checkpoint(found[0], revision=found[1], variant=made_from.variant)
