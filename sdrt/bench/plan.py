"""Contenders of a benchmark: sdrt's engine sets, and the peers that can run here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sdrt.artefacts.store import Store
from sdrt.bench.contender import Job
from sdrt.bench.schema import Build, ComponentBuild, ContenderResult
from sdrt.checkpoint import open_checkpoint
from sdrt.checkpoint.places import find_recorded
from sdrt.errors import BackendUnavailableError, CheckpointError, SdrtError, UsageError
from sdrt.graphs.validate import validate_once
from sdrt.install_lines import extra_line, package_line
from sdrt.machine.cpu import supports_bf16
from sdrt.machine.packages import package_version
from sdrt.prepare.bundles import open_bundle
from sdrt.prepare.choice import Choice, choose
from sdrt.prepare.engines import prepare
from sdrt.prepare.source import Source
from sdrt.progress import Progress
from sdrt.runtime.backends.registry import GPU_BACKENDS

if TYPE_CHECKING:
    from sdrt.artefacts.bundle import Bundle
    from sdrt.artefacts.engine_set import EngineSet
    from sdrt.artefacts.manifest import Precision
    from sdrt.checkpoint import Checkpoint


@dataclass(frozen=True)
class BenchRequest:
    """Request of a benchmark: every backend in every precision with every loop, and the peers.

    Empty ``precisions`` stand for the backend's default. The loop "fused" is denoise_step, "plain" is the UNet, and
    "auto" is what the backend's default engines hold. ``threads`` overrides the threads of a tuned configuration; None
    keeps them.
    """

    source: Source
    backends: tuple[str, ...] = ("auto",)
    precisions: tuple[Precision, ...] = ()
    peers: tuple[str, ...] = ()
    store: Path | None = None
    loops: tuple[str, ...] = ("auto",)
    threads: int | None = None


@dataclass(frozen=True)
class Peer:
    """Another library's way to run the checkpoint.

    Attributes:
        kind: Name of the contender in `sdrt.bench.worker.KINDS`.
        packages: Packages that have to be installed.
        brought_by: Extras that install them, or a package specifier, in which "{openvino}" stands for the installed
            release of OpenVINO.
        precisions: Precisions to choose from; the first that this machine supports natively is taken.
        how: Its documented fast path, in a line.
        scheduler: Scheduler that it draws with.
        gpu: Whether it can run on a GPU.
    """

    kind: str
    packages: tuple[str, ...]
    brought_by: tuple[str, ...] | str
    precisions: tuple[Precision, ...]
    how: str
    scheduler: str = "LMS"
    gpu: bool = True


PEERS: dict[str, Peer] = {
    "diffusers-fp32": Peer(
        "diffusers", ("torch", "diffusers", "scipy"), ("export", "compare"), ("fp32",), "SDPA, inference"
    ),
    "diffusers-bf16": Peer(
        "diffusers",
        ("torch", "diffusers", "scipy"),
        ("export", "compare"),
        ("bf16",),
        "SDPA, channels-last weights",
    ),
    "torch-compile": Peer(
        "torch-compile",
        ("torch", "diffusers", "scipy"),
        ("export", "compare"),
        ("bf16", "fp32"),
        "torch.compile of UNet and VAE decoder; its cache is kept between processes",
    ),
    "onnxruntime": Peer(
        "onnxruntime",
        ("onnxruntime",),
        ("cpu",),
        ("fp32",),
        "default session options on the exported graphs, NumPy between",
        gpu=False,
    ),
    "openvino-genai": Peer(
        "openvino-genai",
        ("openvino", "openvino-genai", "openvino-tokenizers"),
        "openvino-genai=={openvino}.*",
        ("bf16", "fp32"),
        "Text2ImagePipeline, converted from the same graphs",
        scheduler="Euler (it has no LMS)",
        gpu=False,
    ),
    "stable-diffusion-cpp": Peer(
        "stable-diffusion-cpp",
        ("stable-diffusion-cpp-python",),
        "stable-diffusion-cpp-python",
        ("fp16",),
        "GGML on the CPU with flash attention",
        scheduler="Euler (it has no LMS)",
        gpu=False,
    ),
}


@dataclass(frozen=True)
class Entry:
    """One contender: its result, and the job of its process; None if it cannot run, which the result explains."""

    result: ContenderResult
    job: Job | None
    engines: EngineSet | None = None


@dataclass(frozen=True)
class Plan:
    """All contenders, sdrt's own first, and the fp32 bundle that FLOPs are counted on."""

    bundle: Bundle
    entries: tuple[Entry, ...]
    device: str
    threads: int


def make_plan(request: BenchRequest, threads: int, folder: Path, progress: Progress) -> Plan:
    """Build sdrt's engine sets as far as they are missing, and prepare the peers that can run here.

    Args:
        request: Engine sets and peers to measure.
        threads: Number of CPU threads of each contender.
        folder: Folder for files converted for peers; it has to exist as long as they run.
        progress: Progress callback for exports and builds.

    Raises:
        SdrtError: None of sdrt's engine sets can be built.
        UsageError: A peer's name is unknown.
    """
    unknown = [name for name in request.peers if name not in PEERS]
    if unknown:
        raise UsageError(f"there is no peer {unknown[0][:40]!r}", hint=f"choose from {', '.join(PEERS)}")
    store = Store.at(request.store)
    bundle = open_bundle(request.source, store, progress=progress)
    choices = _choices(request, threads, progress)
    ours = [_ours(request, choice, store, progress) for choice in choices]
    if all(entry.job is None for entry in ours):
        raise BackendUnavailableError(ours[0].result.problem, hint=ours[0].result.remedy)
    device = "cuda" if {choice.backend for choice in choices} & set(GPU_BACKENDS) else "cpu"
    if request.peers:
        validate_once(bundle)  # peers open its graphs by themselves
    checkpoint = _checkpoint_folder(request.source, bundle) if request.peers else None
    base = Job("", "fp32", threads, checkpoint=str(checkpoint or ""), bundle=str(bundle.path), device=device)
    peers = [_peer(name, base, folder, progress) for name in request.peers]
    return Plan(bundle, tuple(ours + peers), device, threads)


def _choices(request: BenchRequest, threads: int, progress: Progress) -> tuple[Choice, ...]:
    """Return the requested configurations of sdrt, each once; the backend "auto" is what ``sdrt denoise`` would run.

    A tuned configuration keeps its threads and its loop unless the request sets them.
    """
    found: dict[Choice, None] = {}
    for backend in request.backends:
        for precision in request.precisions or (None,):
            chosen = choose(
                request.source,
                backend=backend,
                precision=precision,
                threads=request.threads,
                store=request.store,
                progress=progress,
            )
            chosen = replace(_for_any_batch(chosen, progress), threads=chosen.threads or threads)
            for loop in request.loops:
                found[chosen if loop == "auto" else replace(chosen, loop=loop, fused=loop == "fused")] = None
    return tuple(found)


def _for_any_batch(choice: Choice, progress: Progress) -> Choice:
    """Return the choice without a fixed batch above 1: engines for one could not draw the cold start's one picture."""
    if choice.batch is None or choice.batch.min == 1:
        return choice
    progress.note(f"a cold start draws one picture: measuring engines for any batch, not for {choice.batch.min}")
    return replace(choice, batch=None)


def _ours(request: BenchRequest, choice: Choice, store: Store, progress: Progress) -> Entry:
    """Build one of sdrt's engine sets; if its backend cannot run here, the entry has no job and gives the reason.

    Raises:
        SdrtError: The engine set cannot be built for another reason.
    """
    threads = choice.threads or 1
    try:
        engines = prepare(request.source, choice, store=request.store, progress=progress)
    except BackendUnavailableError as error:
        return Entry(_described(choice, choice.precision or "fp32", threads, error), None)
    manifest = engines.manifest
    loop = "plain" if choice.loop == "plain" else "auto"
    job = Job("sdrt", manifest.precision, threads, engines=str(engines.path), store=str(store.root), loop=loop)
    parts = tuple(
        ComponentBuild(
            component=name,
            precision=part.precision,
            seconds=part.seconds,
            size_bytes=part.size_bytes,
            peak_memory_bytes=part.peak_memory_bytes,
        )
        for name, part in manifest.components.items()
    )
    result = _described(choice, manifest.precision, threads, None)
    return Entry(result.model_copy(update={"build": Build(components=parts)}), job, engines)


def _described(choice: Choice, precision: Precision, threads: int, error: SdrtError | None) -> ContenderResult:
    words = ["sdrt", choice.backend, precision]
    words += ["tuned"] if choice.tuned else []
    words += [] if choice.loop == "auto" else [choice.loop, "loop"]
    return ContenderResult(
        name=" ".join(words),
        ours=True,
        backend=choice.backend,
        precision=precision,
        threads=threads,
        scheduler="LMS",
        how="sdrt.Pipeline on built engines" + (f"; sdrt tune found {choice.tuned}" if choice.tuned else ""),
        problem=error.message if error else "",
        remedy=error.hint if error else "",
    )


def _checkpoint_folder(source: Source, bundle: Bundle) -> Path | None:
    """Return the folder of the checkpoint in diffusers' layout; None if it is not on this machine."""
    try:
        return find_checkpoint(source, bundle).path
    except CheckpointError:
        return None


def find_checkpoint(source: Source, bundle: Bundle) -> Checkpoint:
    """Open the checkpoint of the source, or else the one that the bundle was exported from.

    Raises:
        CheckpointError: The checkpoint is not on this machine.
    """
    if source.checkpoint:
        return open_checkpoint(source.checkpoint, revision=source.revision, variant=source.variant)
    found = find_recorded(bundle.checkpoint)
    if found is None:
        hint = "give its path with --checkpoint, in place of the bundle"
        name = bundle.checkpoint.name
        raise CheckpointError(f"the checkpoint {name!r} that the bundle was exported from is not here", hint=hint)
    return open_checkpoint(found[0], revision=found[1], variant=bundle.checkpoint.variant)


def _peer(name: str, base: Job, folder: Path, progress: Progress) -> Entry:
    """Prepare a peer; if it cannot run here, the entry has no job and gives the reason."""
    from sdrt.bench.peers.preparation import prepare_peer

    peer = PEERS[name]
    bf16 = base.device == "cuda" or supports_bf16()
    native = [precision for precision in peer.precisions if precision != "bf16" or bf16]
    result = ContenderResult(
        name=name,
        ours=False,
        backend=peer.kind,
        precision=(native or peer.precisions)[0],
        threads=base.threads,
        scheduler=peer.scheduler,
        how=peer.how,
    )
    missing = [package for package in peer.packages if not _installed(package)]
    if missing:
        return _absent(result, f"{', '.join(missing)} is not installed", _install_line(peer))
    if not native:
        return _absent(result, "this processor has no native bf16", "measure on one that has")
    if base.device == "cuda" and not peer.gpu:
        return _absent(result, "it runs on the CPU, but sdrt's engines run on a GPU", "--backend openvino")
    if not base.checkpoint and peer.kind != "onnxruntime":
        return _absent(result, "the checkpoint is not here", "give its path with --checkpoint")
    job = replace(base, kind=peer.kind, precision=result.precision)
    try:
        prepared, seconds = prepare_peer(job, folder, progress)
    except BackendUnavailableError as error:
        return _absent(result, error.message, error.hint)
    return Entry(result.model_copy(update={"prepare_s": seconds}), prepared)


def _absent(result: ContenderResult, problem: str, remedy: str) -> Entry:
    return Entry(result.model_copy(update={"problem": problem, "remedy": remedy}), None)


def _install_line(peer: Peer) -> str:
    """Return the command that installs a peer without changing OpenVINO's version, which engines depend on."""
    if not isinstance(peer.brought_by, str):
        return extra_line(*peer.brought_by)
    if "{openvino}" not in peer.brought_by:
        return package_line(peer.brought_by)
    # Its release has to match OpenVINO's.
    openvino = package_version("openvino")
    return extra_line("cpu") if openvino is None else package_line(peer.brought_by.format(openvino=openvino))


def _installed(package: str) -> bool:
    return package_version(package) is not None


def expand_peers(peers: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the peers, each once; "all" stands for every peer."""
    return tuple(PEERS) if "all" in peers else tuple(dict.fromkeys(peers))
