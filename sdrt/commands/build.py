"""The command ``sdrt build``: from a bundle to an engine set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdrt.artefacts.manifest import DEEPCACHE
from sdrt.commands.export import COMPONENTS
from sdrt.commands.options import (
    BACKENDS,
    PRECISIONS,
    backend_option,
    checkpoint_option,
    json_option,
    output_folder_option,
    precision_option,
    print_json,
    print_text,
    provider_option,
    revision_option,
    store_option,
    threads_option,
    token_merging_option,
    variant_option,
)
from sdrt.commands.paths import InputName, InputPath, check_free
from sdrt.errors import UsageError
from sdrt.terminal import size_text

if TYPE_CHECKING:
    from sdrt.artefacts.bundle import Bundle
    from sdrt.artefacts.engine_set import BatchRange, EngineSet
    from sdrt.artefacts.store import Store
    from sdrt.engines.recipe import Recipe
    from sdrt.engines.request import BuildRequest
    from sdrt.progress import Progress


@click.command("build")
@click.argument("bundle", required=False, type=InputPath(folder=True))
@checkpoint_option
@revision_option
@variant_option
@backend_option(("auto", *BACKENDS), "auto")
@precision_option(PRECISIONS)
@provider_option
@click.option("--batch", metavar="N|MIN:OPT:MAX", help="Pictures per call.  [default: any number, or the recipe's]")
@click.option(
    "--components",
    multiple=True,
    type=click.Choice((*COMPONENTS, "denoise_step", *DEEPCACHE)),
    metavar="NAME",
    help="Build only this component (repeatable).",
)
@click.option(
    "--recipe",
    type=InputName(),
    metavar="NAME|FILE",
    help="TensorRT build recipe, by name or as a TOML file.  [default: sd-v1-default]",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Override a field of the recipe, such as targets=sm86,sm89 (repeatable).",
)
@threads_option
@click.option("--deepcache", is_flag=True, help="Build the DeepCache engines instead of the UNet.")
@token_merging_option
@store_option
@output_folder_option("--out", "Write a portable engine set to this folder instead of the store.")
@click.option("--force", is_flag=True, help="Replace --out even if it is not empty.")
@json_option
def command(
    bundle: Path | None,
    checkpoint: str | None,
    revision: str | None,
    variant: str | None,
    backend: str,
    precision: str | None,
    provider: str | None,
    batch: str | None,
    components: tuple[str, ...],
    recipe: str | None,
    settings: tuple[str, ...],
    threads: int | None,
    deepcache: bool,
    token_merging: float | None,
    store: Path | None,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Build engines from BUNDLE, or from a checkpoint's bundle, which is exported if missing.

    TensorRT builds by a recipe for the GPU of this machine. TensorRT-RTX needs no GPU and builds for the recipe's
    targets; without targets it builds for sm86, sm89 and sm120, or only for the GPU of this machine if that is another.

    Engines are kept in the store and reused as long as nothing that they depend on changes. --out writes them to a
    folder that can be copied: sdrt denoise --engines DIR --trust DIGEST runs it on a machine without torch and without
    the bundle.
    """
    from sdrt.artefacts.store import Store
    from sdrt.engines.build import check_buildable
    from sdrt.engines.request import BuildRequest
    from sdrt.prepare.bundles import bundle_precision, open_bundle
    from sdrt.prepare.choice import build_request, check_provider, choose
    from sdrt.prepare.source import Source
    from sdrt.progress import for_terminal

    if out is not None:
        check_free(out, force)
    progress = for_terminal()
    user_store, pictures = Store.at(store), parse_batch(batch)
    named = Source(checkpoint, revision, bundle, token_merging=token_merging, variant=variant)
    arguments: Any = {"backend": backend, "precision": precision, "provider": provider, "store": store}
    choice = choose(named, **arguments, deepcache=deepcache, progress=progress)
    check_provider(choice.backend, provider)  # type: ignore[arg-type]
    request = BuildRequest(
        choice.backend,
        choice.precision,
        components or None,  # type: ignore[arg-type]
        threads,
        pictures or choice.batch,
        parse_recipe(choice.backend, recipe, settings),
        provider or "cpu",  # type: ignore[arg-type]
    )
    check_buildable(request)
    exported = bundle_precision(choice.backend, choice.precision)
    source = open_bundle(named, user_store, precision=exported, deepcache=deepcache, progress=progress)
    if not components:
        request = replace(request, components=build_request(choice, source).components)
    _print(_build(source, request, out, user_store, progress), as_json)


def _build(source: Bundle, request: BuildRequest, out: Path | None, store: Store, progress: Progress) -> EngineSet:
    from sdrt.engines.build import build, build_to

    if out is None:
        return build(source, request, store, progress)
    return build_to(source, request, out, progress, timing_caches=store.timing_caches)


def _print(engines: EngineSet, as_json: bool) -> None:
    """Print the facts as JSON, or a line for each component, then the path and digest of the set."""
    if as_json:
        print_json(facts(engines))
        return
    for part, component in engines.manifest.components.items():
        size, peak = size_text(component.size_bytes), component.peak_memory_bytes
        memory = f", {size_text(peak)} of memory" if peak is not None else ""
        click.echo(f"{part:18}{component.precision:6}{component.seconds:8.1f} s {size:>10}{memory}")
    print_text(f"{engines.path} (digest {engines.digest})")


def facts(engines: EngineSet) -> dict[str, Any]:
    """Return the document that --json prints of an engine set."""
    return {
        "path": str(engines.path),
        "backend": engines.manifest.backend,
        "precision": engines.manifest.precision,
        "key": engines.manifest.key,
        "digest": engines.digest,
        "components": {
            name: {
                "precision": c.precision,
                "batch": c.batch.model_dump() if c.batch else None,
                "seconds": c.seconds,
                "size_bytes": c.size_bytes,
                "peak_memory_bytes": c.peak_memory_bytes,
                "layers": c.layers.model_dump() if c.layers else None,
            }
            for name, c in engines.manifest.components.items()
        },
    }


def parse_recipe(backend: str, name: str | None, settings: tuple[str, ...]) -> Recipe | None:
    """Load the recipe of --recipe with the changes of --set; None if neither is given.

    Raises:
        UsageError: The backend takes no recipe, there is no such recipe, or a field is invalid.
    """
    from sdrt.engines.recipe import DEFAULT, load_recipe

    if name is None and not settings:
        return None
    if backend not in WITH_RECIPES:
        hint = f"they are for {' and '.join(WITH_RECIPES)}"
        raise UsageError(f"--recipe and --set are not for backend {backend}", hint=hint)
    return load_recipe(name or DEFAULT, settings)


def parse_batch(text: str | None) -> BatchRange | None:
    """Parse ``N`` or ``MIN:OPT:MAX`` into a range of pictures; None stays None.

    Raises:
        UsageError: The text is neither, or not 1 <= MIN <= OPT <= MAX <= `MAX_PICTURES`.
    """
    from sdrt.artefacts.engine_set import BatchRange

    if text is None:
        return None
    parts = text.split(":")
    numbers = [int(part) for part in parts if part.isascii() and part.isdigit() and len(part) < 4]
    if len(numbers) == 1 == len(parts):
        numbers *= 3
    if len(numbers) != 3 or len(parts) not in (1, 3) or not 1 <= numbers[0] <= numbers[1] <= numbers[2] <= MAX_PICTURES:
        hint = "give N, or MIN:OPT:MAX in rising order"
        raise UsageError(f"--batch is {text[:40]!r}; it must be 1 to {MAX_PICTURES} pictures", hint=hint)
    return BatchRange(min=numbers[0], opt=numbers[1], max=numbers[2])


MAX_PICTURES = 16
WITH_RECIPES = ("tensorrt", "tensorrt-rtx")
