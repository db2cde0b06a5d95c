"""Opening of a source's bundle; what is missing is exported, quantised or cut into the store."""

from __future__ import annotations

import contextlib
import shlex
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import DEEPCACHE, Precision
from sdrt.artefacts.store import Store
from sdrt.checkpoint import open_checkpoint
from sdrt.errors import ArtefactError, BackendUnavailableError, BundleError, TrustError, UsageError
from sdrt.files import canonical_json, sha256_bytes
from sdrt.install_lines import extra_line
from sdrt.limits import DEFAULT_GUIDANCE_SCALE
from sdrt.prepare.source import Source
from sdrt.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sdrt.artefacts.engine_set import BackendName, EngineSet
    from sdrt.checkpoint import Checkpoint

#: The demo's bundle, which a wheel carries so that it runs without torch.
DEMO_BUNDLE = Path(__file__).parents[1] / "assets" / "demo-bundle"
#: Version of the exporter: increased if the files that it writes change.
EXPORTER = 3
EXPORTED_WITH = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnx-ir")
QUANTISED_WITH = ("onnx", "onnxruntime")
CUT_WITH = ("onnx", "onnxruntime")


def check_merging(source: Source, opened: Bundle | EngineSet) -> None:
    """Raise UsageError unless what was opened from its folder merges the requested share of tokens."""
    requested, held = source.token_merging, opened.manifest.token_merging
    if requested not in (None, held):
        hint = "leave out --token-merging, or name a checkpoint in place of the folder"
        raise UsageError(f"--token-merging is {requested}; {opened.path} merges {held or 'none'}", hint=hint)


def store_argument(store: Store) -> Path | None:
    """Return the value of --store that names a store; None if it is the default one."""
    return None if store == Store.default() else store.root


def command_line(name: str, *arguments: str, **options: object) -> str:
    """Return a command line of sdrt, quoted for the shell; omit options that are None."""
    words = ["sdrt", name, *arguments]
    for option, value in options.items():
        if value is not None:
            words += [f"--{option}", *([] if value is True else [str(value)])]
    return shlex.join(words)


def bundle_precision(backend: BackendName, precision: Precision | None) -> Precision:
    """Return the precision in which a checkpoint must be exported for a backend.

    TensorRT's networks are strongly typed: they compute in the precision of the graph, fp16 unless fp32 is requested.
    The CPU backends take fp32 graphs and choose their own precision, except for OpenVINO's int8, which is in the graph.
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
    """Open the bundle of a source; export a checkpoint into the store unless it is there.

    Args:
        source: Checkpoint or bundle. A bundle is opened in its own precision, but quantised for int8 if necessary.
        store: Store of exported, quantised and cut bundles.
        precision: Precision of the graphs, fp32, fp16 or int8; see ``bundle_precision``.
        deepcache: Whether the bundle must hold DeepCache's passes; a copy in the store gets them if it does not.
        build: Whether to export, quantise and cut what is missing.
        progress: Progress callback.

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
        check_merging(source, bundle)
        return bundle
    name, merging = source.checkpoint or "demo", source.token_merging
    if name == "demo" and precision == "fp32" and merging is None and (DEMO_BUNDLE / "manifest.json").exists():
        return Bundle.open(DEMO_BUNDLE)
    checkpoint = open_checkpoint(name, revision=source.revision, variant=source.variant)
    path = store.bundle_path(_bundle_name(checkpoint, precision, merging))
    if build:

        def export(folder: Path) -> None:
            from sdrt.export import export_bundle  # here, since it imports torch

            export_bundle(checkpoint, folder, precision=precision, token_merging=merging, progress=progress)

        return _named_as(checkpoint, _stored_or_made(path, export, store, progress))
    if not path.exists():
        options = {
            "checkpoint": name,
            "revision": source.revision,
            "variant": source.variant,
            "precision": None if precision == "fp32" else precision,
            "token-merging": merging,
            "store": store_argument(store),
        }
        hint = "run: " + command_line("build", **options)
        raise ArtefactError(f"no bundle of {name} is stored", hint=hint)
    return _named_as(checkpoint, store.open_bundle(path))


def _named_as(checkpoint: Checkpoint, bundle: Bundle) -> Bundle:
    """Return a bundle with the requested checkpoint's name: it may come from another one with equal weights."""
    named = {"name": checkpoint.name, "revision": checkpoint.revision, "variant": checkpoint.variant}
    record = bundle.manifest.checkpoint.model_copy(update=named)
    return replace(bundle, named=record)


def _bundle_name(checkpoint: Checkpoint, precision: Precision, merging: float | None) -> str:
    """Return the name of a checkpoint's bundle in a store, made of everything that its bytes depend on."""
    parts = [checkpoint.digest[:16], precision]
    if merging is not None:
        parts.append(f"merging-{merging}")
    if checkpoint.guidance_scale != DEFAULT_GUIDANCE_SCALE:
        # The manifest holds it, and the checkpoint's digest does not cover it.
        parts.append(f"guidance-{checkpoint.guidance_scale}")
    return "-".join([*parts, _exporter_key()[:16]])


def _versions(libraries: Iterable[str], purpose: str, extras: Sequence[str]) -> dict[str, str]:
    """Return the installed versions of libraries.

    Raises:
        BackendUnavailableError: A library is not installed; the message names the purpose, the hint the extras.
    """
    try:
        return {name: version(name) for name in libraries}
    except PackageNotFoundError as error:
        message = f"{error.name} is needed to {purpose} and is not installed"
        raise BackendUnavailableError(message, hint=extra_line(*extras)) from error


def _exporter_key() -> str:
    """Return the digest of everything but the checkpoint that an export depends on.

    Raises:
        BackendUnavailableError: A library that exports is not installed.
    """
    versions = _versions(EXPORTED_WITH, "export a checkpoint", ["export"])
    return sha256_bytes(canonical_json({"exporter": EXPORTER, **versions}))


def _quantised(exported: Bundle, store: Store, build: bool, progress: Progress) -> Bundle:
    """Return a bundle's int8 form; quantise it into the store unless it is there.

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
    command = command_line("build", str(exported.path), precision="int8", store=store_argument(store))
    return _stored(path, f"{exported.path} is not quantised yet", command, store)


def _cut(plain: Bundle, store: Store, build: bool, progress: Progress) -> Bundle:
    """Return a bundle's copy with DeepCache's passes; write it into the store unless it is there.

    Raises:
        BackendUnavailableError: A library that cuts and checks the UNet is not installed.
        ArtefactError: It is missing and ``build`` is False.
    """
    from sdrt.export.deepcache import CUTTER, add_deepcache

    versions = _versions(CUT_WITH, "cut the UNet for DeepCache", ["cpu", "export"])
    made_by = sha256_bytes(canonical_json({"cutter": CUTTER, **versions}))
    path = store.bundle_path(f"{plain.digest[:16]}-deepcache-{made_by[:16]}")
    if build:
        return _stored_or_made(path, partial(add_deepcache, plain, progress=progress), store, progress)
    command = command_line("build", str(plain.path), deepcache=True, store=store_argument(store))
    return _stored(path, f"{plain.path} does not hold DeepCache's passes yet", command, store)


def _stored(path: Path, missing: str, command: str, store: Store) -> Bundle:
    """Open a bundle of the store.

    Raises:
        ArtefactError: The bundle is missing; ``command`` makes it.
    """
    if not path.exists():
        raise ArtefactError(missing, hint=f"run: {command}")
    return store.open_bundle(path)


def _stored_or_made(path: Path, make: Callable[[Path], object], store: Store, progress: Progress) -> Bundle:
    """Open a stored bundle; make it if it is missing or damaged, in one of several processes that need it.

    A damaged bundle is moved to the store's quarantine.
    """
    if path.exists():
        with contextlib.suppress(BundleError, TrustError):
            return store.open_bundle(path)
    with store.locked(path, progress):
        if path.exists():
            # Another process has made it meanwhile, or it is the damaged one.
            try:
                return store.open_bundle(path)
            except (BundleError, TrustError) as error:
                store.quarantine(path, error, progress)
        with store.staged(path) as folder:
            make(folder)
    return store.open_bundle(path)
