"""The choice of backend, precision, threads and loop, for what the user leaves open."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import BatchRange, Provider
from sdrt.artefacts.manifest import DEEPCACHE, Precision
from sdrt.artefacts.store import Store
from sdrt.engines.builders import builder
from sdrt.engines.request import BuildRequest
from sdrt.errors import ArtefactError, BackendUnavailableError, UsageError
from sdrt.prepare.bundles import open_bundle
from sdrt.prepare.source import Source
from sdrt.progress import Progress, silent
from sdrt.runtime.backends.registry import GPU_BACKENDS, available, choose_backend

if TYPE_CHECKING:
    from sdrt.artefacts.engine_set import BackendName
    from sdrt.artefacts.manifest import ComponentName
    from sdrt.artefacts.tuned import TuneRecord

STEP: ComponentName = "denoise_step"
#: Folder of tune records in a store, as in sdrt.artefacts.tuned, whose import takes longer.
TUNED = "tuned"


@dataclass(frozen=True)
class Choice:
    """The settings of a run: the user's, completed by the record of ``sdrt tune`` or the backend's defaults.

    Attributes:
        backend: Name of the backend, never "auto".
        precision: Precision of the engines; None is the backend's default on this machine.
        threads: Number of CPU threads; None is all that this process may use.
        loop: auto or plain, as for `Pipeline.load`.
        batch: Pictures at once that the engines are built for; None is any number.
        fused: Whether the engines must hold denoise_step even if it is not one of the backend's default components.
        tuned: Name of the setting that ``sdrt tune`` found best; "" if no record was used.
        deepcache: Whether the engines must hold DeepCache's passes, in place of the UNet.
    """

    backend: BackendName
    precision: Precision | None = None
    threads: int | None = None
    loop: str = "auto"
    batch: BatchRange | None = None
    fused: bool = False
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
    """Choose the settings of a run; "auto" is the backend tuned for this bundle here, else the fastest that can run.

    The record of ``sdrt tune`` is used unless a backend, another precision, a GPU's provider or DeepCache is requested.
    It does not override the user's threads and loop.

    Raises:
        ArtefactError: The record is malformed.
        BackendUnavailableError: No backend can run here.
        UsageError: DeepCache and another setting exclude each other.
    """
    if deepcache:
        chosen = resolve_backend(backend, progress)
        check_deepcache(chosen, precision, provider)
        return Choice(chosen, precision, threads, loop, deepcache=True)
    record = None
    if backend == "auto" and not source.engines and provider in (None, "cpu"):
        record = tune_record(source, Store.at(store))
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
    """Return the record of ``sdrt tune`` for a source on this machine, or None if there is none; export nothing.

    Raises:
        ArtefactError: The record is malformed.
    """
    if not (store.root / TUNED).is_dir():
        return None
    from sdrt.artefacts.tuned import find_record

    try:
        bundle = open_bundle(source, store, build=False)
    except (ArtefactError, BackendUnavailableError):
        # A checkpoint that was never exported was never tuned.
        return None
    store.check()
    return find_record(store.root, bundle.digest)


def build_request(choice: Choice, bundle: Bundle, provider: Provider | None = None) -> BuildRequest:
    """Return the build request of a choice."""
    components = None
    usual = builder(choice.backend).components(frozenset(bundle.manifest.components))
    if choice.fused:
        components = tuple(dict.fromkeys((*usual, STEP)))
    elif choice.deepcache:
        # The full pass is a whole UNet, and can run as one.
        components = (*(name for name in usual if name != "unet"), *DEEPCACHE)
    return BuildRequest(
        choice.backend, choice.precision, components=components, batch=choice.batch, provider=provider or "cpu"
    )


def check_provider(backend: str, provider: Provider | None) -> None:
    """Check that ONNX Runtime's provider is available, before anything is exported or built for it.

    Raises:
        UsageError: The backend is not onnxruntime.
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
    """Check that DeepCache supports the other settings, before anything is exported or built for it.

    Raises:
        UsageError: The backend or the provider computes on a GPU, or the precision is int8.
    """
    if backend in GPU_BACKENDS or provider not in (None, "cpu"):
        where = f"the backend is {backend}" if backend in GPU_BACKENDS else f"the provider is {provider}"
        hint = "add --backend openvino or onnxruntime, without --provider; or leave --deepcache out"
        raise UsageError(f"--deepcache runs on the CPU only; {where}", hint=hint)
    if precision == "int8":
        hint = "add --precision bf16 or fp32, or leave --deepcache out"
        raise UsageError("--deepcache and --precision int8 exclude each other", hint=hint)


def resolve_backend(backend: str, progress: Progress, record: TuneRecord | None = None) -> BackendName:
    """Return the requested backend; for "auto" choose one, by the record of a tuning if given, and report it."""
    if backend != "auto":
        name: BackendName = backend  # type: ignore[assignment]
        return name
    chosen, reason = choose_backend(record)
    progress.note(f"backend {chosen}: {reason}")
    return chosen
