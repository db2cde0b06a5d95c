"""From what a user names to opened engines: export and build what is missing, reuse what is there."""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import BatchRange, Provider
from sdrt.artefacts.manifest import DEEPCACHE, Precision, check_token_merging
from sdrt.artefacts.store import Store
from sdrt.checkpoint import open_checkpoint
from sdrt.engines import build as engines_build
from sdrt.engines.builders import builder
from sdrt.engines.request import BuildRequest
from sdrt.errors import ArtefactError, BackendUnavailableError, BundleError, TrustError, UsageError
from sdrt.files import canonical_json, sha256_bytes
from sdrt.install_lines import extra_line
from sdrt.limits import DEFAULT_GUIDANCE_SCALE
from sdrt.progress import Progress, silent
from sdrt.runtime.backends import GPU_BACKENDS, available, choose_backend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sdrt.artefacts.engine_set import BackendName, EngineSet
    from sdrt.artefacts.manifest import ComponentName
    from sdrt.artefacts.tuned import TuneRecord
    from sdrt.checkpoint import Checkpoint

#: The demo's bundle, which a wheel carries so that it runs without torch.
DEMO_BUNDLE = Path(__file__).parent / "assets" / "demo-bundle"
#: Counts changes of the exporter that change what it writes.
EXPORTER = 3
STEP: ComponentName = "denoise_step"
#: Where a store keeps what was tuned, as sdrt.artefacts.tuned names it.
TUNED = "tuned"
EXPORTED_WITH = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx-ir")
QUANTISED_WITH = ("onnx", "onnxruntime")
CUT_WITH = ("onnx", "onnxruntime")


@dataclass(frozen=True)
class Source:
    """What to run: a checkpoint (default: the demo), or a bundle, or an engine set.

    ``token_merging`` is the share of tokens that the checkpoint's UNet is to merge; a bundle's or an engine set's is
    what it was exported with, and is held against what is asked.
    """

    checkpoint: str | None = None
    revision: str | None = None
    bundle: Path | None = None
    engines: Path | None = None
    trust: str | None = None
    token_merging: float | None = None
    variant: str | None = None

    def __post_init__(self) -> None:
        check_token_merging(self.token_merging)
        given = [name for name in ("checkpoint", "bundle", "engines") if getattr(self, name)]
        if len(given) > 1:
            raise UsageError(f"--{given[0]} and --{given[1]} exclude each other", hint="give one of them")
        if self.trust and not self.engines:
            raise UsageError("--trust is for --engines, which is missing", hint="give both, or neither")
        if self.revision and not self.checkpoint:
            raise UsageError("--revision is for --checkpoint, which is missing", hint="give both, or neither")
        if self.variant is not None and not self.checkpoint:
            raise UsageError("--variant is for --checkpoint, which is missing", hint="give both, or neither")


@dataclass(frozen=True)
class Choice:
    """How a source is run: what the user asked for, and for the rest what ``sdrt tune`` found or the backend's own way.

    Attributes:
        backend: Never "auto".
        precision: None is the backend's choice on this machine.
        threads: None is all that this process may use.
        loop: auto or plain, as the pipeline takes it.
        batch: Pictures at once that the engines are built for; None takes any.
        step: Whether the engines must hold denoise_step though the backend's own sets leave it out.
        tuned: What ``sdrt tune`` found, in a line; "" where its record had no say.
        deepcache: Whether the engines must hold DeepCache's passes, in the UNet's place.
    """

    backend: BackendName
    precision: Precision | None = None
    threads: int | None = None
    loop: str = "auto"
    batch: BatchRange | None = None
    step: bool = False
    tuned: str = ""
    deepcache: bool = False


def choose(
    source: Source,
    *,
    backend: str = "auto",
    precision: Precision | None = None,
    threads: int | None = None,
    loop: str = "auto",
    provider: Provider | None = None,
    deepcache: bool = False,
    store: Path | None = None,
    progress: Progress = silent,
) -> Choice:
    """Choose what the user left open. "auto" is what was tuned for this bundle here, else what suits the machine.

    A record is used where it answers what is asked: not for another precision or provider, or with DeepCache, and what
    the user says of threads and loop stands.

    Raises:
        ArtefactError: The record is malformed.
        BackendUnavailableError: No backend can run here.
        UsageError: DeepCache does not go with what else is asked.
    """
    if deepcache:
        chosen = resolve_backend(backend, progress)
        check_deepcache(chosen, precision, provider)
        return Choice(chosen, precision, threads, loop, deepcache=True)
    record = None
    if backend == "auto" and not source.engines and provider in (None, "cpu"):
        record = tune_record(source, Store(store) if store else Store.default())
    best = record.best if record else None
    if best is None or precision not in (None, best.precision):
        return Choice(resolve_backend(backend, progress), precision, threads, loop)
    chosen = resolve_backend(backend, progress, record)
    progress.note(f"as tuned: {best.name}")
    return Choice(
        chosen,
        best.precision,
        threads or best.threads,
        "plain" if best.loop == "plain" else loop,
        None if best.batch is None else BatchRange(min=best.batch, opt=best.batch, max=best.batch),
        best.loop == "fused" and loop == "auto",
        best.name,
    )


def tune_record(source: Source, store: Store) -> TuneRecord | None:
    """What ``sdrt tune`` found for a source on this machine; None where it was not run. Exports nothing.

    Raises:
        ArtefactError: The record is malformed.
    """
    if not (store.root / TUNED).is_dir():
        return None
    from sdrt.artefacts.tuned import find_record

    try:
        bundle = open_bundle(source, store, build=False)
    except (ArtefactError, BackendUnavailableError):
        # What was not exported yet was not tuned either.
        return None
    store.check()
    return find_record(store.root, bundle.digest)


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
    shelf = Store(store) if store else Store.default()
    if source.engines:
        opened = shelf.open_engines(source.engines, trust=source.trust, verify=False)
        _check_asked(opened, backend, precision, provider)
        _check_merging(source, opened)
        return opened
    if choice is None:
        choice = choose(source, backend=backend, precision=precision, provider=provider, store=store, progress=progress)
    check_provider(choice.backend, provider)
    # An export takes minutes, and a GPU's engines can be compiled where none can run.
    available(choice.backend)
    exported = bundle_precision(choice.backend, choice.precision)
    bundle = open_bundle(source, shelf, precision=exported, deepcache=choice.deepcache, build=build, progress=progress)
    request = build_request(choice, bundle, provider)
    if build:
        return engines_build.build(bundle, request, shelf, progress, verify=False)
    found = engines_build.find(bundle, request, shelf, verify=False)
    if found is None:
        options = {
            "backend": request.backend,
            "precision": choice.precision,
            "provider": provider,
            "batch": choice.batch.opt if choice.batch else None,
            "deepcache": choice.deepcache or None,
            "store": _named(shelf),
        }
        hint = "run: " + _command("build", str(bundle.path), **options)
        raise ArtefactError(f"no {request.backend} engines are stored for {bundle.path}", hint=hint)
    return found


def build_request(choice: Choice, bundle: Bundle, provider: Provider | None = None) -> BuildRequest:
    """What a choice asks a build for."""
    components = None
    usual = builder(choice.backend).components(frozenset(bundle.manifest.components))
    if choice.step:
        components = tuple(dict.fromkeys((*usual, STEP)))
    elif choice.deepcache:
        # The whole pass is the UNet, and runs as one where it has to.
        components = (*(name for name in usual if name != "unet"), *DEEPCACHE)
    return BuildRequest(
        choice.backend, choice.precision, components=components, batch=choice.batch, provider=provider or "cpu"
    )


def check_provider(backend: str, provider: Provider | None) -> None:
    """Hold that ONNX Runtime's provider can be had here, before anything is exported or built for it.

    Raises:
        UsageError: The backend is another.
        BackendUnavailableError: The installed ONNX Runtime lacks the provider.
    """
    if provider is None or (provider == "cpu" and backend != "onnxruntime"):
        return
    if backend != "onnxruntime":
        hint = "add --backend onnxruntime, or leave --provider out"
        raise UsageError(f"--provider {provider} is for onnxruntime; the backend is {backend}", hint=hint)
    from sdrt.libraries.onnxruntime import check_provider as check_installed

    available(backend)
    check_installed(provider)


def check_deepcache(backend: str, precision: Precision | None, provider: Provider | None) -> None:
    """Hold that DeepCache goes with what else is asked, before anything is exported or built for it.

    Raises:
        UsageError: The backend or the provider computes on a GPU, or the precision is int8.
    """
    if backend in GPU_BACKENDS or provider not in (None, "cpu"):
        where = f"the backend is {backend}" if backend in GPU_BACKENDS else f"the provider is {provider}"
        hint = "add --backend openvino or onnxruntime, without --provider; or leave --deepcache out"
        raise UsageError(f"--deepcache runs on the CPU alone; {where}", hint=hint)
    if precision == "int8":
        hint = "add --precision bf16 or fp32, or leave --deepcache out"
        raise UsageError("--deepcache and --precision int8 exclude each other", hint=hint)


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


def _check_merging(source: Source, opened: Bundle | EngineSet) -> None:
    """Hold that what was opened from its folder merges as many tokens as asked for.

    Raises:
        UsageError: It does not.
    """
    asked, held = source.token_merging, opened.manifest.token_merging
    if asked not in (None, held):
        hint = "leave out --token-merging, or name a checkpoint in place of the folder"
        raise UsageError(f"--token-merging is {asked}; {opened.path} merges {held or 'none'}", hint=hint)


def _named(store: Store) -> Path | None:
    """What --store has to say to mean this store."""
    return None if store == Store.default() else store.root


def _command(name: str, *arguments: str, **options: object) -> str:
    """A command line of sdrt, quoted for the shell; options that are None are left out."""
    words = ["sdrt", name, *arguments]
    for option, value in options.items():
        if value is not None:
            words += [f"--{option}", *([] if value is True else [str(value)])]
    return shlex.join(words)


def resolve_backend(backend: str, progress: Progress, record: TuneRecord | None = None) -> BackendName:
    """The backend asked for; for "auto" the one that was tuned or that suits this machine, said aloud."""
    if backend != "auto":
        name: BackendName = backend  # type: ignore[assignment]
        return name
    chosen, reason = choose_backend(record)
    progress.note(f"backend {chosen}: {reason}")
    return chosen


def bundle_precision(backend: BackendName, precision: Precision | None) -> Precision:
    """What a checkpoint's bundle has to be exported in for a backend.

    TensorRT's networks are strongly typed: they compute as the graph says, in fp16 unless fp32 is asked for. The CPU
    backends take fp32 graphs and choose how to compute themselves, but for OpenVINO's int8, which is in the graph.
    """
    if backend in ("tensorrt", "tensorrt-rtx"):
        return "fp32" if precision == "fp32" else "fp16"
    return "int8" if precision == "int8" and backend == "openvino" else "fp32"


def open_bundle(
    source: Source,
    store: Store,
    *,
    precision: Precision = "fp32",
    deepcache: bool = False,
    build: bool = True,
    progress: Progress = silent,
) -> Bundle:
    """Open the bundle of a source; a checkpoint's is exported into the store unless it is there.

    Args:
        source: A bundle is opened as it is, whatever its precision; in int8 it is quantised unless it is so already.
        store: Where exported and quantised bundles are kept.
        precision: fp32, fp16 or int8, of the graphs; see ``bundle_precision``.
        deepcache: Whether it must hold DeepCache's passes: they are cut into a copy in the store unless it does.
        build: Whether to export what is missing.
        progress: Told of exports.

    Raises:
        BackendUnavailableError: torch is needed to export, and is not installed.
        ArtefactError: The bundle is missing and ``build`` is False, or something is malformed.
    """
    if deepcache:
        plain = open_bundle(source, store, precision=precision, build=build, progress=progress)
        held = set(DEEPCACHE) <= plain.manifest.components.keys()
        return plain if held else replace(_cut(plain, store, build, progress), named=plain.named)
    if precision == "int8":
        exported = open_bundle(source, store, build=build, progress=progress)
        held = exported.manifest.precision == "int8"
        return exported if held else replace(_quantised(exported, store, build, progress), named=exported.named)
    if source.bundle:
        bundle = Bundle.open(source.bundle)
        _check_merging(source, bundle)
        return bundle
    name, merging = source.checkpoint or "demo", source.token_merging
    if name == "demo" and precision == "fp32" and merging is None and (DEMO_BUNDLE / "manifest.json").exists():
        return Bundle.open(DEMO_BUNDLE)
    checkpoint = open_checkpoint(name, revision=source.revision, variant=source.variant)
    path = store.bundle_path(_bundle_name(checkpoint, precision, merging))
    if build:

        def export(folder: Path) -> None:
            # Only by whom it is exported: it imports torch.
            from sdrt.export import export_bundle

            export_bundle(checkpoint, folder, precision=precision, token_merging=merging, progress=progress)

        return _named_as(checkpoint, _stored_or_made(path, export, store, progress))
    if not path.exists():
        options = {
            "checkpoint": name,
            "revision": source.revision,
            "variant": source.variant,
            "precision": None if precision == "fp32" else precision,
            "token-merging": merging,
            "store": _named(store),
        }
        hint = "run: " + _command("build", **options)
        raise ArtefactError(f"no bundle of {name} is stored", hint=hint)
    return _named_as(checkpoint, store.open_bundle(path))


def _named_as(checkpoint: Checkpoint, bundle: Bundle) -> Bundle:
    """Return a bundle under the name of the checkpoint that was asked for: one with equal weights may have made it."""
    asked = {"name": checkpoint.name, "revision": checkpoint.revision, "variant": checkpoint.variant}
    record = bundle.manifest.checkpoint.model_copy(update=asked)
    return replace(bundle, named=record)


def _bundle_name(checkpoint: Checkpoint, precision: Precision, merging: float | None) -> str:
    """What a store calls a checkpoint's bundle: all that decides its bytes."""
    parts = [checkpoint.digest[:16], precision]
    if merging is not None:
        parts.append(f"merging-{merging}")
    if checkpoint.guidance_scale != DEFAULT_GUIDANCE_SCALE:
        # The manifest says it, and the checkpoint's digest does not count it.
        parts.append(f"guidance-{checkpoint.guidance_scale}")
    return "-".join([*parts, _exporter_key()[:16]])


def _versions(libraries: Iterable[str], purpose: str, extras: Sequence[str]) -> dict[str, str]:
    """The installed versions of the libraries that something is made with.

    Raises:
        BackendUnavailableError: One is not installed.
    """
    try:
        return {name: version(name) for name in libraries}
    except PackageNotFoundError as error:
        message = f"{error.name} is needed to {purpose} and is not installed"
        raise BackendUnavailableError(message, hint=extra_line(*extras)) from error


def _exporter_key() -> str:
    """Digest of all but the checkpoint that decides what an export writes.

    Raises:
        BackendUnavailableError: A library that exports is not installed.
    """
    versions = _versions(EXPORTED_WITH, "export a checkpoint", ["export"])
    return sha256_bytes(canonical_json({"exporter": EXPORTER, **versions}))


def _quantised(exported: Bundle, store: Store, build: bool, progress: Progress) -> Bundle:
    """A bundle's int8 form, quantised into the store unless it is there.

    Raises:
        BackendUnavailableError: A library that quantises is not installed.
        ArtefactError: It is missing and ``build`` is False.
    """
    from sdrt.export.quantised_bundle import QUANTISER, quantise_bundle

    versions = _versions(QUANTISED_WITH, "quantise a bundle", ["cpu", "export"])
    made_by = sha256_bytes(canonical_json({"quantiser": QUANTISER, "exporter": EXPORTER, **versions}))
    path = store.bundle_path(f"{exported.digest[:16]}-int8-{made_by[:16]}")
    if build:
        return _stored_or_made(path, partial(quantise_bundle, exported, progress=progress), store, progress)
    command = _command("build", str(exported.path), precision="int8", store=_named(store))
    return _stored(path, f"{exported.path} is not quantised yet", command, store)


def _cut(plain: Bundle, store: Store, build: bool, progress: Progress) -> Bundle:
    """A bundle's copy with DeepCache's passes, made into the store unless it is there.

    Raises:
        BackendUnavailableError: A library that cuts and checks them is not installed.
        ArtefactError: It is missing and ``build`` is False.
    """
    from sdrt.export.deepcache import CUTTER, add_deepcache

    versions = _versions(CUT_WITH, "cut the UNet for DeepCache", ["cpu", "export"])
    made_by = sha256_bytes(canonical_json({"cutter": CUTTER, **versions}))
    path = store.bundle_path(f"{plain.digest[:16]}-deepcache-{made_by[:16]}")
    if build:
        return _stored_or_made(path, partial(add_deepcache, plain, progress=progress), store, progress)
    command = _command("build", str(plain.path), deepcache=True, store=_named(store))
    return _stored(path, f"{plain.path} does not hold DeepCache's passes yet", command, store)


def _stored(path: Path, missing: str, command: str, store: Store) -> Bundle:
    """A bundle that is in the store.

    Raises:
        ArtefactError: It is not; the command would make it.
    """
    if not path.exists():
        raise ArtefactError(missing, hint=f"run: {command}")
    return store.open_bundle(path)


def _stored_or_made(path: Path, make: Callable[[Path], object], store: Store, progress: Progress) -> Bundle:
    """The stored bundle, if it is sound; else made into the store, once, however many processes want it.

    A bundle that is not sound goes to the store's quarantine.
    """
    if path.exists():
        with contextlib.suppress(BundleError, TrustError):
            return store.open_bundle(path)
    with store.locked(path, progress):
        if path.exists():
            # Another process has made it meanwhile, or it is what was not sound.
            try:
                return store.open_bundle(path)
            except (BundleError, TrustError) as error:
                store.quarantine(path, error, progress)
        with store.staged(path) as folder:
            make(folder)
    return store.open_bundle(path)
