"""Building an engine set from a bundle: into the store, or into a folder that can be moved to another machine."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import SCHEDULER, TOKENIZER, EngineManifest, EngineSet
from sdrt.artefacts.locks import Lease
from sdrt.artefacts.manifest import MANIFEST, ComponentName, file_records, seal
from sdrt.artefacts.store import PRIVATE_MODE, Store
from sdrt.engines import build_processes
from sdrt.engines.builders import ComponentJob, builder
from sdrt.engines.key import BuildKey
from sdrt.engines.request import BuildRequest
from sdrt.engines.rows import component_batch
from sdrt.errors import BundleError, EngineError, TrustError, UsageError
from sdrt.files import disk_errors, folder_published_as, sha256_file, utf8_path
from sdrt.machine.cpu import available_memory_bytes, usable_cpus
from sdrt.progress import Progress


def build_key(bundle: Bundle, request: BuildRequest) -> BuildKey:
    """Return the key of the engine set for a request: everything that it depends on.

    Raises:
        UsageError: No engines are built for the backend, or no component is requested.
        BackendUnavailableError: Its library is not installed, or cannot compute in the requested precision.
        BundleError: The bundle lacks a component.
    """
    maker = builder(request.backend)
    held = bundle.manifest.components
    requested = maker.components(frozenset(held)) if request.components is None else request.components
    if not requested:
        raise UsageError("no component is given", hint="name at least one with --components")
    for component in requested:
        bundle.component(component)
    precision = maker.precision(request.precision, bundle.manifest.precision)
    components = tuple(sorted(set(requested)))
    recipe = maker.recipe(request.recipe, request.batch)
    return BuildKey(
        backend=maker.backend,
        builder=maker.version,
        versions=maker.library_versions(),
        host=maker.must_match(recipe),
        machine=maker.also_in_key(),
        bundle=bundle.digest,
        components=components,
        precision=precision,
        component_precision={
            name: maker.component_precision(name, precision, held[name].precision) for name in components
        },
        batch=None if recipe else request.batch,
        options={
            f"{name}.{option}": value
            for name in components
            for option, value in maker.options(name, request.provider).items()
        },
        recipe=recipe,
    )


def check_buildable(request: BuildRequest) -> None:
    """Check that a request can be built here, before its bundle is made, which may take minutes.

    Raises:
        UsageError: No engines are built for the backend, or a recipe is given to one that has none.
        BackendUnavailableError: Its library is not installed, or there is no GPU to build on.
    """
    maker = builder(request.backend)
    maker.library_versions()
    maker.must_match(maker.recipe(request.recipe, request.batch))


def find(bundle: Bundle, request: BuildRequest, store: Store, *, verify: bool = True) -> EngineSet | None:
    """Return the stored engine set for a request, or None if there is none or it is damaged; write nothing.

    Args:
        bundle: Bundle that it was built from.
        request: Engines to find.
        store: Store to search.
        verify: As in `build`.

    Raises:
        SdrtError: As `build_key`; TrustError or ResourceError if other users may write the store.
    """
    found = _stored(store, build_key(bundle, request), verify)
    return None if found is None else replace(found, named=bundle.named)


def build(bundle: Bundle, request: BuildRequest, store: Store, progress: Progress, *, verify: bool = True) -> EngineSet:
    """Return the engine set for a request from the store; compile it first if it is missing or damaged.

    A damaged set is moved to the store's quarantine. If several processes need the same set, one compiles it. The set
    takes the name of the bundle's checkpoint.

    Args:
        bundle: Bundle to build from.
        request: Engines to build.
        store: Store that keeps the set.
        progress: Progress callback; one stage a component.
        verify: Whether to hash the engines of a stored set now, rather than each when it is opened.

    Raises:
        UsageError: The request names no known backend or no component.
        BackendUnavailableError: The backend's library is missing or does not support the request.
        BundleError, TrustError: The bundle lacks a component, or is not what its manifest says.
        EngineError: A graph does not compile.
        ResourceError: The store cannot be written, or memory ran out.
        TimeLimitError: Another process held the set for too long.
    """
    return replace(_found_or_built(bundle, request, store, progress, verify), named=bundle.named)


def _found_or_built(bundle: Bundle, request: BuildRequest, store: Store, progress: Progress, verify: bool) -> EngineSet:
    key = build_key(bundle, request)
    found = _stored(store, key, verify)
    if found is not None:
        # A process may have been killed between publishing the set and clearing up.
        store.sweep()
        return found
    path = store.engines_path(key.backend, key.digest)
    with store.locked(path, progress):
        if path.exists():
            # Another process has made it meanwhile, or it is the damaged one.
            try:
                return store.open_engines(path, verify=verify)
            except (EngineError, TrustError) as error:
                store.quarantine(path, error, progress)
        with store.staged(path) as part:
            part.mkdir(mode=PRIVATE_MODE)
            _compile(bundle, request, key, part, progress, store.timing_caches)
        return store.open_engines(path, verify=verify)


def _stored(store: Store, key: BuildKey, verify: bool) -> EngineSet | None:
    path = store.engines_path(key.backend, key.digest)
    if not path.is_dir():
        return None
    store.check()
    try:
        return store.open_engines(path, verify=verify)
    except (EngineError, TrustError):
        return None


def build_to(
    bundle: Bundle, request: BuildRequest, out: Path, progress: Progress, *, timing_caches: Path | None = None
) -> EngineSet:
    """Compile an engine set into a folder, to be moved to another machine and opened there by its digest.

    Args:
        bundle: Bundle to build from.
        request: Engines to build.
        out: Folder to write; replaced if it exists.
        progress: Progress callback; one stage a component.
        timing_caches: Folder of TensorRT's timing caches; None measures everything again.

    Raises:
        SdrtError: As `build`; then nothing is left at ``out``.
    """
    key = build_key(bundle, request)
    with folder_published_as(out) as part:
        digest = _compile(bundle, request, key, part, progress, timing_caches)
    return EngineSet.open(out, trust=digest)


def _compile(
    bundle: Bundle,
    request: BuildRequest,
    key: BuildKey,
    folder: Path,
    progress: Progress,
    timing_caches: Path | None,
) -> str:
    """Write a whole engine set into a folder; return the digest of its manifest."""
    with ExitStack() as stack:
        stack.enter_context(_in_use(bundle))
        # Paths travel to the workers as JSON, and from there to compilers.
        spelled = stack.enter_context(utf8_path(folder))
        caches = None
        if key.recipe and timing_caches is not None:
            with disk_errors(timing_caches):
                timing_caches.mkdir(mode=PRIVATE_MODE, parents=True, exist_ok=True)
            caches = stack.enter_context(utf8_path(timing_caches))
        with progress.stage("checking the bundle"):
            bundle.verify_weights()
        jobs = [_job(bundle, request, key, name, spelled, caches) for name in key.components]
        at_once = usable_cpus() if builder(key.backend).side_by_side else 1
        components = build_processes.build_all(jobs, progress, available_memory_bytes(), at_once)
        with disk_errors(folder):
            for name in (TOKENIZER, SCHEDULER):
                if name not in bundle.manifest.files:
                    raise BundleError(f"{bundle.path} holds no {name}", hint="export the checkpoint again")
                (folder / name).parent.mkdir()
                shutil.copyfile(bundle.path / name, folder / name)
    manifest = EngineManifest(
        schema_version=1,
        backend=key.backend,
        key=key.digest,
        precision=key.precision,
        checkpoint=bundle.manifest.checkpoint,
        bundle_digest=bundle.digest,
        model=bundle.manifest.model,
        components=components,
        files=file_records(folder),
        versions=key.versions,
        host=key.host,
        version_compatible=builder(key.backend).version_compatible(key.recipe),
        token_merging=bundle.manifest.token_merging,
    )
    with disk_errors(folder):
        seal(folder, manifest)
    return sha256_file(folder / MANIFEST)


def _job(
    bundle: Bundle,
    request: BuildRequest,
    key: BuildKey,
    name: ComponentName,
    folder: Path,
    timing_caches: Path | None,
) -> ComponentJob:
    return ComponentJob(
        backend=key.backend,
        component=name,
        graph=bundle.graph(name),
        spec=bundle.manifest.components[name],
        precision=key.component_precision[name],
        batch=key.recipe.rows(name) if key.recipe else component_batch(name, key.batch),
        options=builder(key.backend).options(name, request.provider),
        threads=request.threads or usable_cpus(),
        folder=folder,
        recipe=key.recipe,
        timing_caches=timing_caches,
    )


@contextlib.contextmanager
def _in_use(bundle: Bundle) -> Iterator[None]:
    """Keep ``sdrt store gc`` from removing the bundle while it is read."""
    lease = Lease(bundle.path)
    try:
        yield
    finally:
        lease.release()
