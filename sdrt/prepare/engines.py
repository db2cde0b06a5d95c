"""Opening of a source's engines; what is missing is exported and built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdrt.artefacts.engine_set import Provider
from sdrt.artefacts.manifest import Precision
from sdrt.artefacts.store import Store
from sdrt.engines import build as engines_build
from sdrt.errors import ArtefactError, UsageError
from sdrt.prepare.bundles import bundle_precision, check_merging, command_line, open_bundle, store_argument
from sdrt.prepare.choice import Choice, build_request, check_provider, choose
from sdrt.prepare.source import Source
from sdrt.progress import Progress, silent
from sdrt.runtime.backends.registry import available
from sdrt.runtime.backends.session import check_cuda_graphs

if TYPE_CHECKING:
    from sdrt.artefacts.engine_set import EngineSet


def load_engines(arguments: Mapping[str, Any], progress: Progress = silent) -> tuple[EngineSet, dict[str, Any]]:
    """Open the engines that arguments of ``Pipeline.load`` name; export and build what is missing.

    Args:
        arguments: All but ``progress``, checked, by name.
        progress: Progress callback.

    Returns:
        The engine set, and the keyword arguments of ``Pipeline`` for it, threads and loop as chosen.

    Raises:
        SdrtError: Of the kind that fits: see sdrt.errors.
    """
    source = Source(**{field.name: arguments[field.name] for field in fields(Source)})
    requested = {name: arguments[name] for name in ("backend", "precision", "provider", "store")}
    settings = {name: arguments[name] for name in ("threads", "loop", "cuda_graphs", "keep_loaded")}
    if source.engines:
        return open_engines(source, **requested), settings
    run = {name: arguments[name] for name in ("threads", "loop", "deepcache")}
    choice = choose(source, **requested, **run, progress=progress)
    # Before anything is exported or built for a backend that has none.
    check_cuda_graphs(choice.backend, arguments["cuda_graphs"])
    settings |= {"threads": choice.threads, "loop": choice.loop}
    where = {name: arguments[name] for name in ("provider", "store", "build")}
    return prepare(source, choice, **where, progress=progress), settings


def open_engines(
    source: Source,
    *,
    backend: str = "auto",
    precision: Precision | None = None,
    provider: Provider | None = None,
    store: Path | None = None,
) -> EngineSet:
    """Open the engine set that a source names by its folder.

    Args:
        source: ``engines`` is the folder.
        backend: Backend that the set must be built for; auto is any.
        precision: Precision that it must compute in; None is any.
        provider: Provider of ONNX Runtime that it must be built for; None is any.
        store: Folder of the store; None is the user's cache.

    Raises:
        UsageError: The source names no engine set, or the set is not as requested.
        SdrtError: As `EngineSet.open`.
    """
    if source.engines is None:
        raise UsageError("the source names no engine set", hint="set engines to its folder")
    opened = Store.at(store).open_engines(source.engines, trust=source.trust, verify=False)
    _check_requested(opened, backend, precision, provider)
    check_merging(source, opened)
    return opened


def prepare(
    source: Source,
    choice: Choice,
    *,
    provider: Provider | None = None,
    store: Path | None = None,
    build: bool = True,
    progress: Progress = silent,
) -> EngineSet:
    """Open the engines of a checkpoint or bundle; export and build what is missing.

    Args:
        source: A checkpoint or bundle; `open_engines` opens an engine set.
        choice: Backend, precision and loop, see `choose`.
        provider: Provider of ONNX Runtime; None is the CPU.
        store: Folder of the store; None is the user's cache.
        build: Whether to export and build what is missing.
        progress: Progress callback.

    Raises:
        ArtefactError: Something is malformed; or it is missing and ``build`` is False: the hint is the command that
            makes it.
        SdrtError: Of the kind that fits, see sdrt.errors.
    """
    user_store = Store.at(store)
    check_provider(choice.backend, provider)
    # Before the export, which takes minutes: engines for a GPU can also be compiled without one.
    available(choice.backend)
    exported = bundle_precision(choice.backend, choice.precision)
    bundle = open_bundle(
        source, user_store, precision=exported, deepcache=choice.deepcache, build=build, progress=progress
    )
    request = build_request(choice, bundle, provider)
    if build:
        return engines_build.build(bundle, request, user_store, progress, verify=False)
    found = engines_build.find(bundle, request, user_store, verify=False)
    if found is None:
        options = {
            "backend": request.backend,
            "precision": choice.precision,
            "provider": provider,
            "batch": choice.batch.opt if choice.batch else None,
            "deepcache": choice.deepcache or None,
            "store": store_argument(user_store),
        }
        hint = "run: " + command_line("build", str(bundle.path), **options)
        raise ArtefactError(f"no {request.backend} engines are stored for {bundle.path}", hint=hint)
    return found


def _check_requested(engines: EngineSet, backend: str, precision: Precision | None, provider: Provider | None) -> None:
    """Raise UsageError unless a set is of the backend, precision and provider requested."""
    providers = (part.options.get("provider", "cpu") for part in engines.manifest.components.values())
    for name, requested, held in (
        ("backend", backend, engines.manifest.backend),
        ("precision", precision, engines.manifest.precision),
        ("provider", provider, next(providers, "cpu")),
    ):
        if requested not in ("auto", None, held):
            hint = f"leave out --{name}, or give other --engines"
            raise UsageError(f"--{name} is {requested}; the engines in {engines.path} are for {held}", hint=hint)
