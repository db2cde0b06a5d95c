"""Who takes part in a benchmark: sdrt's engine sets, and the peers that can be had here."""

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
class Asked:
    """What a benchmark is asked to run, every backend in every precision by every loop.

    Empty ``precisions`` are the backend's own choice. The loop "fused" is denoise_step, "plain" is the UNet, "auto"
    what the backend's own engines hold. ``threads`` are those that the user asked for, which a tuned way follows too.
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
    """Somebody else's way. ``how`` is its documented fast path, ``packages`` what has to be installed for it.

    ``brought_by`` names the extras that bring them, or the package, in which "{openvino}" stands for the release of
    OpenVINO that is installed.

    ``precisions`` are those that it computes in, the first that this machine has natively being taken.
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
    """One contender: what is reported of it, and the process that it is; None where it cannot take part."""

    result: ContenderResult
    job: Job | None
    engines: EngineSet | None = None


@dataclass(frozen=True)
class Plan:
    """Who takes part, and the fp32 bundle whose FLOPs count. sdrt's own come first."""

    bundle: Bundle
    entries: tuple[Entry, ...]
    device: str
    threads: int


def make_plan(asked: Asked, threads: int, folder: Path, progress: Progress) -> Plan:
    """Export and build what is missing of sdrt's own, and see which peers can be had.

    Args:
        asked: What to run.
        threads: With so many, each.
        folder: For what is converted for peers; it has to last as long as they run.
        progress: Told of exports and builds.

    Raises:
        SdrtError: None of sdrt's own engines can be had.
        UsageError: There is no such peer.
    """
    unknown = [name for name in asked.peers if name not in PEERS]
    if unknown:
        raise UsageError(f"there is no peer {unknown[0][:40]!r}", hint=f"choose from {', '.join(PEERS)}")
    store = Store.at(asked.store)
    bundle = open_bundle(asked.source, store, progress=progress)
    choices = _choices(asked, threads, progress)
    ours = [_ours(asked, choice, store, progress) for choice in choices]
    if all(entry.job is None for entry in ours):
        raise BackendUnavailableError(ours[0].result.problem, hint=ours[0].result.remedy)
    device = "cuda" if {choice.backend for choice in choices} & set(GPU_BACKENDS) else "cpu"
    if asked.peers:
        validate_once(bundle)  # peers open its graphs by themselves
    checkpoint = _checkpoint_folder(asked.source, bundle) if asked.peers else None
    base = Job("", "fp32", threads, checkpoint=str(checkpoint or ""), bundle=str(bundle.path), device=device)
    peers = [_peer(name, base, folder, progress) for name in asked.peers]
    return Plan(bundle, tuple(ours + peers), device, threads)


def _choices(asked: Asked, threads: int, progress: Progress) -> tuple[Choice, ...]:
    """Every way to run sdrt's own engines that is asked for, once; "auto" is what denoise would run.

    A way that was tuned keeps its threads unless the user asks for some, and its loop unless the loop is asked for.
    """
    found: dict[Choice, None] = {}
    for backend in asked.backends:
        for precision in asked.precisions or (None,):
            chosen = choose(
                asked.source,
                backend=backend,
                precision=precision,
                threads=asked.threads,
                store=asked.store,
                progress=progress,
            )
            chosen = replace(_for_any_batch(chosen, progress), threads=chosen.threads or threads)
            for loop in asked.loops:
                found[chosen if loop == "auto" else replace(chosen, loop=loop, fused=loop == "fused")] = None
    return tuple(found)


def _for_any_batch(choice: Choice, progress: Progress) -> Choice:
    """The choice without engines for exactly several pictures, which cannot draw the one of a cold start."""
    if choice.batch is None or choice.batch.min == 1:
        return choice
    progress.note(f"a cold start draws one picture: engines for any number are measured, not for {choice.batch.min}")
    return replace(choice, batch=None)


def _ours(asked: Asked, choice: Choice, store: Store, progress: Progress) -> Entry:
    """One of sdrt's own engine sets.

    Raises:
        SdrtError: It cannot be had; but one whose backend cannot run here is an entry with its reason.
    """
    threads = choice.threads or 1
    try:
        engines = prepare(asked.source, choice, store=asked.store, progress=progress)
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
    """The folder of the checkpoint in diffusers' layout; None where it is not here."""
    try:
        return find_checkpoint(source, bundle).path
    except CheckpointError:
        return None


def find_checkpoint(source: Source, bundle: Bundle) -> Checkpoint:
    """The checkpoint that was named, or the one that the bundle was made from.

    Raises:
        CheckpointError: It is not here.
    """
    if source.checkpoint:
        return open_checkpoint(source.checkpoint, revision=source.revision, variant=source.variant)
    found = find_recorded(bundle.checkpoint)
    if found is None:
        hint = "name its place with --checkpoint, in place of the bundle"
        name = bundle.checkpoint.name
        raise CheckpointError(f"the checkpoint {name!r}, of which the bundle was made, is not here", hint=hint)
    return open_checkpoint(found[0], revision=found[1], variant=bundle.checkpoint.variant)


def _peer(name: str, base: Job, folder: Path, progress: Progress) -> Entry:
    """A peer, or why it does not take part."""
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
        return _absent(result, "this processor has no bf16 of its own", "measure on one that has")
    if base.device == "cuda" and not peer.gpu:
        return _absent(result, "it computes on the CPU; the engines beside it on a GPU", "--backend openvino")
    if not base.checkpoint and peer.kind != "onnxruntime":
        return _absent(result, "the checkpoint is not here", "name its place with --checkpoint")
    job = replace(base, kind=peer.kind, precision=result.precision)
    try:
        prepared, seconds = prepare_peer(job, folder, progress)
    except BackendUnavailableError as error:
        return _absent(result, error.message, error.hint)
    return Entry(result.model_copy(update={"prepare_s": seconds}), prepared)


def _absent(result: ContenderResult, problem: str, remedy: str) -> Entry:
    return Entry(result.model_copy(update={"problem": problem, "remedy": remedy}), None)


def _install_line(peer: Peer) -> str:
    """The command that brings a peer and leaves the OpenVINO that is here as it is: engines go by its version."""
    if not isinstance(peer.brought_by, str):
        return extra_line(*peer.brought_by)
    if "{openvino}" not in peer.brought_by:
        return package_line(peer.brought_by)
    # The release has to match OpenVINO's.
    openvino = package_version("openvino")
    return extra_line("cpu") if openvino is None else package_line(peer.brought_by.format(openvino=openvino))


def _installed(package: str) -> bool:
    return package_version(package) is not None


def names_of(peers: Sequence[str]) -> tuple[str, ...]:
    """The peers that names stand for: "all" is every one."""
    return tuple(PEERS) if "all" in peers else tuple(dict.fromkeys(peers))
