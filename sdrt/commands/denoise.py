"""The command ``sdrt denoise``: from prompts to PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdrt.commands.denoise_options import DenoiseOptions, init_image, load, say_guidance, settings, stages
from sdrt.commands.options import (
    BACKENDS,
    PRECISIONS,
    Number,
    backend_option,
    checkpoint_option,
    file_option,
    folder_option,
    json_option,
    output_file_option,
    output_folder_option,
    precision_option,
    print_json,
    provider_option,
    revision_option,
    store_option,
    threads_option,
    token_merging_option,
    variant_option,
)
from sdrt.commands.paths import OutputFile, check_empty, check_png, check_writable
from sdrt.errors import UsageError
from sdrt.limits import (
    MAX_GUIDANCE_SCALE,
    MAX_PICTURES,
    MAX_SEED,
    MAX_SIGMA,
    MAX_STEPS,
    MIN_DEEPCACHE,
)
from sdrt.runtime.request import LMS_STARTS

if TYPE_CHECKING:
    from sdrt.commands.live_preview import LivePreview
    from sdrt.pipeline import Pipeline
    from sdrt.progress import Progress
    from sdrt.runtime.request import Request
    from sdrt.runtime.result import Result


@click.command("denoise")
@click.option(
    "--prompt", metavar="TEXT", help="Text to draw; may be empty. Required unless --prompts or --from is given."
)
@file_option("--prompts", 'JSON Lines file of prompts, one object per line: {"prompt": "a red circle", "seed": 7}.')
@click.option("--negative-prompt", metavar="TEXT", help="Text to steer away from.")
@click.option(
    "--steps", type=Number(int, 1, MAX_STEPS), metavar="N", help="Number of denoising steps, 1 to 1000.  [default: 50]"
)
@click.option(
    "--guidance-scale",
    type=Number(float, -MAX_GUIDANCE_SCALE, MAX_GUIDANCE_SCALE),
    metavar="X",
    help="Guidance scale; 1 and below turn guidance off.  [default: the checkpoint's recommendation, else 7.5]",
)
@click.option(
    "--guidance-interval",
    type=Number(float, 0, MAX_SIGMA),
    nargs=2,
    metavar="LOW HIGH",
    help="Guide only the steps with LOW < sigma <= HIGH; the others take half the time.",
)
@click.option(
    "--deepcache",
    type=Number(int, MIN_DEEPCACHE, MAX_STEPS),
    metavar="N",
    help="Run the whole UNet in every N-th step only, and its outermost level in the others. CPU backends only.",
)
@token_merging_option
@click.option(
    "--seed",
    type=Number(int, 0, MAX_SEED),
    metavar="N",
    help="Seed of the first picture, 0 to 2^64 - 1.  [default: random, printed]",
)
@click.option(
    "--num-images",
    type=Number(int, 1, MAX_PICTURES),
    metavar="N",
    help="Number of pictures; their seeds count up from --seed.  [default: 1]",
)
@file_option("--init-image", "Picture to start from; its largest centred square is used.")
@click.option(
    "--strength",
    type=Number(float, 0, 1),
    metavar="S",
    help="Share of the steps to run on --init-image, above 0 and up to 1.  [default: 0.8]",
)
@click.option(
    "--start-step",
    type=Number(int, 0, MAX_STEPS - 1),
    metavar="K",
    help="First step to run on --init-image, counted from 0; in place of --strength.",
)
@click.option(
    "--lms-start",
    type=click.Choice(LMS_STARTS),
    help="How LMS starts on --init-image; fresh leaves less noise at low --strength.  [default: diffusers]",
)
@checkpoint_option
@revision_option
@variant_option
@folder_option("--bundle", "Bundle to run instead of a checkpoint.")
@folder_option("--engines", "Engine set to run instead of a checkpoint.")
@click.option("--trust", metavar="DIGEST", help="Trust --engines if its manifest.json has this SHA-256.")
@backend_option(("auto", *BACKENDS), "auto")
@precision_option(PRECISIONS)
@provider_option
@file_option(
    "--latents", "Initial noise of unit variance, as .npy of shape [n,channels,height,width]; [n,4,64,64] for SD v1."
)
@output_file_option("--save-latents", "Write the final latents as .npy, before division by the scaling factor.")
@click.option(
    "--out",
    type=OutputFile(),
    default="picture.png",
    show_default=True,
    metavar="FILE.png",
    help="PNG file to write.",
)
@click.option("--preview", is_flag=True, help="Show previews in the terminal, if it has colours.")
@output_folder_option("--preview-dir", "Write a preview of each step to this folder, new or empty.")
@file_option("--from", "Repeat a picture that sdrt wrote, from its metadata.", "repeat")
@store_option
@click.option(
    "--no-build", "build", flag_value=False, default=True, help="Fail if something must be exported or built first."
)
@threads_option
@click.option(
    "--loop",
    type=click.Choice(("auto", "plain")),
    default="auto",
    show_default=True,
    help="auto runs a guided step as one graph if the engines contain denoise_step; plain never does.",
)
@click.option(
    "--cuda-graphs/--no-cuda-graphs",
    default=None,
    help="Replay steps from a CUDA graph on tensorrt and tensorrt-rtx.  [default: on]",
)
@click.option("--keep-loaded", is_flag=True, help="Keep engines in memory after their last use.")
@json_option
def command(**values: Any) -> None:
    """Generate pictures from a prompt by LMS denoising.

    The checkpoint's bundle and engines are exported and built if they are missing, and reused afterwards. Several
    pictures are written as NAME-0001.png, NAME-0002.png and so on; those of --prompts are numbered by line.
    """
    run(DenoiseOptions(**values))


def run(options: DenoiseOptions) -> None:
    """Generate and write pictures; check everything that can be checked before the first engine opens."""
    from sdrt.commands.denoise_repeat import check_repeats, record_of, with_record
    from sdrt.progress import for_terminal
    from sdrt.sampling.latents import check_latents_of

    check_together(options)
    check_png(options.out)
    if options.prompts is not None:
        from sdrt.commands.denoise_queue import run_prompts

        run_prompts(options)
        return
    if options.preview_dir:
        check_empty("--preview-dir", options.preview_dir)
    progress = for_terminal()
    record = record_of(options)
    options = with_record(options, record)
    request = _request(options, record)
    for path in _paths(options.out, 1 if record else len(request.pictures)):
        check_writable("--out", path)
    noise, image = _noise(options, request), init_image(options)
    with load(options, progress) as pipeline:
        if noise is not None and options.latents is not None:
            check_latents_of(options.latents, noise, pipeline.latent_shape)
        check_repeats(record, pipeline, image, progress)
        say_guidance(pipeline, [request], progress)
        preview = _preview(options, request, progress)
        result = pipeline.run(request, image=image, latents=noise, callback_on_step_end=preview, progress=progress)
        _warn(result, progress)
        written = _write(options, result, record)
        if options.as_json:
            previews = [] if preview is None else [str(path) for path in preview.written]
            print_json(facts(pipeline, result, written) | {"previews": previews})
        else:
            if preview is not None and preview.written:
                progress.note(f"{len(preview.written)} previews in {options.preview_dir}")
            for path in written:
                click.echo(bytes(path))


def check_together(options: DenoiseOptions) -> None:
    """Raise UsageError unless the given options go together.

    Raises:
        UsageError: Two exclude each other, or one belongs to another that is missing.
    """
    not_with_prompts = {
        "--prompt": options.prompt is not None,
        "--from": options.repeat is not None,
        "--latents": options.latents is not None,
        "--save-latents": options.save_latents is not None,
        "--preview": options.preview,
        "--preview-dir": options.preview_dir is not None,
    }
    of_init_image = {
        "--strength": options.strength is not None,
        "--start-step": options.start_step is not None,
        "--lms-start": options.lms_start is not None,
    }
    if options.prompts is not None:
        for name in (name for name, given in not_with_prompts.items() if given):
            raise UsageError(f"--prompts and {name} exclude each other", hint="give one of them")
    if options.strength is not None and options.start_step is not None:
        raise UsageError("--strength and --start-step exclude each other", hint="give one of them")
    if options.init_image is None:
        for name in (name for name, given in of_init_image.items() if given):
            raise UsageError(f"{name} is for --init-image, which is missing", hint="give both, or neither")


def _request(options: DenoiseOptions, record: dict[str, Any] | None) -> Request:
    from sdrt.runtime.request import Picture, Request, make_request

    if record is not None:
        pictures = tuple(Picture(*row) for row in record["batch"])
        return Request(
            pictures,
            record["num_inference_steps"],
            record["guidance_scale"],
            record["start_step"],
            record["lms_start"] or "diffusers",
            tuple(record["guidance_interval"]) if record["guidance_interval"] else None,
            record["deepcache"],
        )
    if options.prompt is None:
        raise UsageError("--prompt is missing", hint='say what to draw: --prompt "a red circle"')
    return make_request(options.prompt, **settings(options))


def _preview(options: DenoiseOptions, request: Request, progress: Progress) -> LivePreview | None:
    """Return the callback that shows and writes previews; None if none are requested or none can be shown."""
    if not options.preview and options.preview_dir is None:
        return None
    from sdrt.commands.live_preview import live_preview

    return live_preview(len(request.pictures), options.preview, options.preview_dir, progress)


def _noise(options: DenoiseOptions, request: Request) -> Any:
    if options.latents is None:
        return None
    from sdrt.sampling.latents import load_latents

    return load_latents(options.latents, len(request.pictures))


def _warn(result: Result, progress: Progress) -> None:
    """Print the seeds, and warn of truncated prompts and of pictures of a single colour."""
    from sdrt.runtime.images import is_degenerate

    progress.note("seed " + ", ".join(str(picture.seed) for picture in result.request.pictures))
    for lost in dict.fromkeys(filter(None, result.truncated)):
        progress.note(f"warning: the prompt was truncated to the text encoder's maximum; cut off: {lost!r}")
    for index, picture in enumerate(result.images):
        if is_degenerate(picture):
            progress.note(f"warning: degenerate_image: picture {index + 1} has a single colour")


def _write(options: DenoiseOptions, result: Result, record: dict[str, Any] | None) -> dict[Path, int]:
    """Write the pictures (with --from only the repeated one) and the latents; return the seed of each path."""
    from sdrt.runtime.images import write_png
    from sdrt.sampling.latents import save_latents

    chosen = range(len(result.images)) if record is None else [record["batch_index"]]
    written = {}
    for path, index in zip(_paths(options.out, len(chosen)), chosen, strict=True):
        write_png(result.images[index], path, result.records[index])
        written[path] = result.request.pictures[index].seed
    if options.save_latents:
        save_latents(options.save_latents, result.latents)
    return written


def _paths(out: Path, count: int) -> list[Path]:
    """Return the path of each picture: ``out``, or NAME-0001.png and so on if there are several."""
    if count == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{number:04}{out.suffix}") for number in range(1, count + 1)]


def facts(pipeline: Pipeline, result: Result, written: dict[Path, int]) -> dict[str, Any]:
    """Return the document that --json prints."""
    manifest, timings, request = pipeline.engines.manifest, result.timings, result.request
    return {
        "images": [{"path": str(path), "seed": seed} for path, seed in written.items()],
        "checkpoint": pipeline.engines.checkpoint.name,
        "backend": manifest.backend,
        "precision": manifest.precision,
        **pipeline.how_it_ran(request),
        "pictures_at_once": pipeline.pictures_at_once(request),
        "scheduler": "LMS",
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "guidance_interval": request.guidance_interval,
        "deepcache": request.deepcache,
        "token_merging": manifest.token_merging,
        "start_step": request.start_step,
        "strength": request.strength,
        "truncated": list(result.truncated),
        "timings_s": stages(timings, with_encoder=request.start_step is not None),
        "unet_s_per_step": round(timings.unet_s_per_step, 5),
        "device_bytes": pipeline.device_bytes,
    }
