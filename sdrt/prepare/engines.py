"""From what a user names to opened engines: export and build what is missing, reuse what is there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from sdrt.artefacts.engine_set import EngineSet


def prepare(
    source: Source,
    *,
    backend: str = "auto",
    precision: Precision | None = None,
    store: Path | None = None,
    build: bool = True,
    provider: Provider | None = None,
    choice: Choice | None = None,
    progress: Progress = silent,
) -> EngineSet:
    """Open the engines of a source to be run here, exporting and building what is missing.

    ``choice`` stands in place of ``backend`` and ``precision`` where it was made before, by `choose`.

    Raises:
        SdrtError: Of the kind that fits; with ``build`` False, ArtefactError naming the
            command that makes what is missing.
    """
    user_store = Store.at(store)
    if source.engines:
        opened = user_store.open_engines(source.engines, trust=source.trust, verify=False)
        _check_asked(opened, backend, precision, provider)
        check_merging(source, opened)
        return opened
    if choice is None:
        choice = choose(source, backend=backend, precision=precision, provider=provider, store=store, progress=progress)
    check_provider(choice.backend, provider)
    # An export takes minutes, and a GPU's engines can be compiled where none can run.
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


def _check_asked(engines: EngineSet, backend: str, precision: Precision | None, provider: Provider | None) -> None:
    """Hold that a set given by its folder is of the backend, precision and provider asked for.

    Raises:
        UsageError: It is not.
    """
    providers = (part.options.get("provider", "cpu") for part in engines.manifest.components.values())
    for name, asked, held in (
        ("backend", backend, engines.manifest.backend),
        ("precision", precision, engines.manifest.precision),
        ("provider", provider, next(providers, "cpu")),
    ):
        if asked not in ("auto", None, held):
            hint = f"leave out --{name}, or give other --engines"
            raise UsageError(f"--{name} is {asked}; the engines in {engines.path} are for {held}", hint=hint)
