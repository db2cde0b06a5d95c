"""``sdrt denoise``: prompts -> PNG."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdrt.commands.options import (
    BACKENDS,
    PRECISIONS,
    Number,
    backend_option,
    checkpoint_option,
    file_option,
    folder_option,
    json_option,
    precision_option,
    print_json,
    provider_option,
    revision_option,
    store_option,
    threads_option,
)
from sdrt.errors import ArtefactError, CheckpointError, UsageError
from sdrt.runtime.request import MAX_GUIDANCE_SCALE, MAX_PICTURES, MAX_SEED, MAX_STEPS

if TYPE_CHECKING:
    from sdrt.progress import Progress
    from sdrt.runtime.pipeline import Pipeline, Result
    from sdrt.runtime.request import Request


@dataclass(frozen=True)
class Options:
    """The options of the command, by name."""

    prompt: str | None
    negative_prompt: str | None
    steps: int | None
    guidance_scale: float | None
    seed: int | None
    num_images: int | None
    checkpoint: str | None
    revision: str | None
    bundle: Path | None
    engines: Path | None
    trust: str | None
    backend: str | None
    precision: str | None
    latents: Path | None
    save_latents: Path | None
    out: Path
    repeat: Path | None
    store: Path | None
    build: bool
    threads: int | None
    loop: str
    cuda_graphs: bool | None
    provider: str | None
    as_json: bool


@click.command("denoise")
@click.option("--prompt", metavar="TEXT", help="What to draw; may be empty.")
@click.option("--negative-prompt", metavar="TEXT", help="What to stay away from.")
@click.option("--steps", type=Number(int, 1, MAX_STEPS), metavar="N", help="Denoising steps, 1 to 1000.  [default: 50]")
@click.option(
    "--guidance-scale",
    type=Number(float, -MAX_GUIDANCE_SCALE, MAX_GUIDANCE_SCALE),
    metavar="X",
    help="1 and below turn guidance off.  [default: 7.5]",
)
@click.option(
    "--seed",
    type=Number(int, 0, MAX_SEED),
    metavar="N",
    help="Of the noise, 0 to 2^64 - 1.  [default: drawn, and said]",
)
@click.option(
    "--num-images", type=Number(int, 1, MAX_PICTURES), metavar="N", help="With seeds N, N + 1, ...  [default: 1]"
)
@checkpoint_option
@revision_option
@folder_option("--bundle", "A bundle to run, in place of a checkpoint.")
@folder_option("--engines", "An engine set to run, in place of a checkpoint.")
@click.option("--trust", metavar="DIGEST", help="SHA-256 of the manifest.json of --engines from elsewhere.")
@backend_option(("auto", *BACKENDS), "auto")
@precision_option(PRECISIONS)
@provider_option
@file_option("--latents", "Unit noise to start from, an .npy of [n,4,64,64].")
@file_option("--save-latents", "Write the final latents, before the scaling factor, as .npy.")
@click.option("--out", type=click.Path(path_type=Path), default="picture.png", show_default=True, metavar="FILE.png")
@file_option("--from", "Repeat a picture that sdrt wrote.", "repeat")
@store_option
@click.option(
    "--no-build", "build", flag_value=False, default=True, help="Fail where something must be exported or built."
)
@threads_option
@click.option(
    "--loop",
    type=click.Choice(("auto", "plain")),
    default="auto",
    show_default=True,
    help="auto runs a guided step as one graph where the engines hold denoise_step; plain never does.",
)
@click.option(
    "--cuda-graphs/--no-cuda-graphs",
    default=None,
    help="Whether tensorrt and tensorrt-rtx replay their steps from a CUDA graph.  [default: they do]",
)
@json_option
def command(**values: Any) -> None:
    """Make pictures from a prompt by LMS denoising.

    What is missing, the checkpoint's bundle or its engines, is exported and built first and reused afterwards.
    Several pictures are written as NAME-0001.png and on.
    """
    run(Options(**values))


def run(options: Options) -> None:
    """Check everything that can be checked before the first engine opens; then make and write the pictures."""
    from sdrt.progress import for_terminal

    check_png(options.out)
    if options.save_latents:
        check_writable("--save-latents", options.save_latents)
    progress = for_terminal()
    record = _record(options)
    options = _with_record(options, record)
    request = _request(options, record)
    for path in _paths(options.out, 1 if record else len(request.pictures)):
        check_writable("--out", path)
    noise = _noise(options, request)
    with _load(options, progress) as pipeline:
        _check_repeats(record, pipeline, progress)
        result = pipeline.run(request, latents=noise, progress=progress)
        _warn(result, progress)
        written = _write(options, result, record)
        if options.as_json:
            print_json(facts(pipeline, result, written))
        else:
            for path in written:
                click.echo(bytes(path))


def check_png(path: Path) -> None:
    """Hold that a picture can be written.

    Raises:
        UsageError: It is not named .png, or its folder is missing or not writable.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"--out: {str(path)[:80]!r} does not end in .png", hint="pictures are written as PNG")
    check_writable("--out", path)


def check_writable(option: str, path: Path) -> None:
    """Hold that a file can be written or replaced.

    Raises:
        UsageError: Its folder is missing or not writable, its name too long, or it is a folder itself.
    """
    try:
        if not path.parent.is_dir():
            raise UsageError(f"{option}: there is no folder {path.parent}", hint="make the folder first")
        if len(os.fsencode(path.name)) > os.pathconf(path.parent, "PC_NAME_MAX"):
            raise UsageError(f"{option}: the name is too long for the file system", hint="choose a shorter name")
        if path.is_dir():
            raise UsageError(f"{option}: {path} is a folder", hint="name a file")
    except (OSError, ValueError) as error:
        raise UsageError(f"{option}: {str(path)[:80]!r} is not a usable path", hint="choose another file") from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(f"{option}: no permission to write in {path.parent}", hint="choose another folder")


def _record(options: Options) -> dict[str, Any] | None:
    """How the picture of --from was made."""
    if options.repeat is None:
        return None
    from sdrt.runtime.images import read_record

    given = ("prompt", "negative_prompt", "steps", "guidance_scale", "seed", "num_images")
    for name in (name for name in given if getattr(options, name) is not None):
        raise UsageError(f"--{name.replace('_', '-')} and --from exclude each other", hint="--from sets it")
    if not options.repeat.is_file():
        raise UsageError(f"--from: there is no file {options.repeat}", hint="name a PNG that sdrt wrote")
    record = read_record(options.repeat)
    if record["latents_given"] and options.latents is None:
        hint = "give the same file again with --latents"
        raise UsageError(f"{options.repeat} was made from latents that it does not carry", hint=hint)
    return record


def _with_record(options: Options, record: dict[str, Any] | None) -> Options:
    """The options with what the record decides: checkpoint, backend, precision, and how the steps run."""
    if record is None:
        return options
    if record["loop"] == "plain":
        # The fused loop is what runs anyway wherever the engines hold it.
        options = replace(options, loop="plain")
    checkpoint = options.checkpoint
    if not (checkpoint or options.bundle or options.engines):
        checkpoint = record["checkpoint"]["name"]
        if checkpoint != "demo" and not Path(checkpoint).exists():
            raise CheckpointError(f"the checkpoint {checkpoint!r} is not here", hint="name its place with --checkpoint")
    if options.engines:
        return options
    backend = record["backend"] if options.backend in (None, "auto") else options.backend
    options = replace(
        options, checkpoint=checkpoint, backend=backend, precision=options.precision or record["precision"]
    )
    if backend != record["backend"]:
        return options
    graphs = record["cuda_graphs"] if options.cuda_graphs is None else options.cuda_graphs
    return replace(options, provider=options.provider or record["provider"], cuda_graphs=graphs)


def _request(options: Options, record: dict[str, Any] | None) -> Request:
    from sdrt.runtime.request import Picture, Request, make_request

    if record is not None:
        pictures = tuple(Picture(*row) for row in record["batch"])
        return Request(pictures, record["num_inference_steps"], record["guidance_scale"])
    if options.prompt is None:
        raise UsageError("--prompt is missing", hint='say what to draw: --prompt "a red circle"')
    return make_request(
        options.prompt,
        options.negative_prompt,
        seed=options.seed,
        num_images_per_prompt=1 if options.num_images is None else options.num_images,
        num_inference_steps=50 if options.steps is None else options.steps,
        guidance_scale=7.5 if options.guidance_scale is None else options.guidance_scale,
    )


def _noise(options: Options, request: Request) -> Any:
    if options.latents is None:
        return None
    from sdrt.runtime.latents import load_latents

    return load_latents(options.latents, len(request.pictures))


def _load(options: Options, progress: Progress) -> Pipeline:
    from sdrt.runtime.pipeline import Pipeline

    return Pipeline.load(
        options.checkpoint,
        revision=options.revision,
        bundle=options.bundle,
        engines=options.engines,
        trust=options.trust,
        backend=options.backend or "auto",
        precision=options.precision,  # type: ignore[arg-type]
        store=options.store,
        build=options.build,
        threads=options.threads,
        loop=options.loop,
        cuda_graphs=options.cuda_graphs,
        provider=options.provider,  # type: ignore[arg-type]
        progress=progress,
    )


def _check_repeats(record: dict[str, Any] | None, pipeline: Pipeline, progress: Progress) -> None:
    """Say where a repeated picture may differ: other weights are an error, other engines a remark."""
    if record is None:
        return
    manifest = pipeline.engines.manifest
    if record["checkpoint"]["digest"] != manifest.checkpoint.digest:
        hint = "name the checkpoint it was made with by --checkpoint"
        raise ArtefactError("the picture of --from was made with other weights", hint=hint)
    if record["engines"] != pipeline.engines.digest:
        progress.note(
            f"the picture was made by other {record['backend']} engines; this one may differ in its last bits"
        )


def _warn(result: Result, progress: Progress) -> None:
    """Say what the user may not expect: a drawn seed, words cut off, a picture of one colour."""
    from sdrt.runtime.images import is_degenerate

    progress.note("seed " + ", ".join(str(picture.seed) for picture in result.request.pictures))
    for lost in dict.fromkeys(filter(None, result.truncated)):
        progress.note(f"warning: the prompt is longer than the text encoder reads; cut off: {lost!r}")
    for index, picture in enumerate(result.images):
        if is_degenerate(picture):
            progress.note(f"warning: degenerate_image: picture {index + 1} is all of one colour")


def _write(options: Options, result: Result, record: dict[str, Any] | None) -> dict[Path, int]:
    """Write the pictures (of --from: the one it is) and the latents; gives each path its seed."""
    from sdrt.runtime.images import write_png
    from sdrt.runtime.latents import save_latents

    chosen = range(len(result.images)) if record is None else [record["batch_index"]]
    written = {}
    for path, index in zip(_paths(options.out, len(chosen)), chosen, strict=True):
        write_png(result.images[index], path, result.records[index])
        written[path] = result.request.pictures[index].seed
    if options.save_latents:
        save_latents(options.save_latents, result.latents)
    return written


def _paths(out: Path, count: int) -> list[Path]:
    """The file of each picture: ``out``, or of several NAME-0001.png and on."""
    if count == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{number:04}{out.suffix}") for number in range(1, count + 1)]


def facts(pipeline: Pipeline, result: Result, written: dict[Path, int]) -> dict[str, Any]:
    """What --json prints."""
    manifest, timings = pipeline.engines.manifest, result.timings
    return {
        "images": [{"path": str(path), "seed": seed} for path, seed in written.items()],
        "checkpoint": manifest.checkpoint.name,
        "backend": manifest.backend,
        "precision": manifest.precision,
        **pipeline.way(result.request),
        "pictures_at_once": pipeline.pictures_at_once(result.request),
        "scheduler": "LMS",
        "num_inference_steps": result.request.num_inference_steps,
        "guidance_scale": result.request.guidance_scale,
        "truncated": list(result.truncated),
        "timings_s": {
            name: round(getattr(timings, name), 4) for name in ("load", "text_encoder", "unet", "vae_decoder", "total")
        },
        "unet_s_per_step": round(timings.unet_s_per_step, 5),
        "device_bytes": pipeline.device_bytes,
    }
