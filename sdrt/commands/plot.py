"""The command ``sdrt plot``: plots of what each part of the model does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdrt.commands.options import (
    BACKENDS,
    Command,
    Number,
    backend_option,
    checkpoint_option,
    file_option,
    folder_option,
    json_option,
    output_file_option,
    print_json,
    revision_option,
    store_option,
    variant_option,
)
from sdrt.commands.paths import OutputFile
from sdrt.errors import UsageError
from sdrt.limits import MAX_GUIDANCE_SCALE, MAX_SEED, MAX_STEPS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sdrt.plots.model import Model
    from sdrt.prepare.source import Source
    from sdrt.progress import Progress
    from sdrt.runtime.denoise import Latents
    from sdrt.sampling.lms import Schedule


@dataclass(frozen=True)
class PlotOptions:
    """The options that every plot takes, by the names that click gives them."""

    checkpoint: str | None
    revision: str | None
    variant: str | None
    bundle: Path | None
    backend: str
    store: Path | None
    seed: int
    out: Path
    as_json: bool

    def source(self) -> Source:
        """Return the checkpoint or bundle that the options name."""
        from sdrt.prepare.source import Source

        return Source(self.checkpoint, self.revision, self.bundle, variant=self.variant)

    def model(self, progress: Progress) -> Model:
        """Load its engines, which are built if missing."""
        from sdrt.plots.model import Model

        return Model.load(self.source(), backend=self.backend, store=self.store, progress=progress)


def common_options(name: str) -> Callable[[Command], Command]:
    """Build the options that every plot takes.

    Args:
        name: Stem of the default file of --out.
    """
    options: Sequence[Callable[[Command], Command]] = (
        checkpoint_option,
        revision_option,
        variant_option,
        folder_option("--bundle", "Bundle to use instead of a checkpoint."),
        backend_option(("auto", *BACKENDS), "auto"),
        store_option,
        click.option(
            "--seed",
            type=Number(int, 0, MAX_SEED),
            default=0,
            show_default=True,
            metavar="N",
            help="Seed of the noise.",
        ),
        click.option(
            "--out",
            type=OutputFile(),
            default=f"{name}.png",
            show_default=True,
            metavar="FILE",
            help="File to write, .png or .svg.",
        ),
        json_option,
    )

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def steps_option(default: int) -> Callable[[Command], Command]:
    """Build the --steps option of a plot."""
    text = "Number of denoising steps."
    return click.option(
        "--steps", type=Number(int, 1, MAX_STEPS), default=default, show_default=True, metavar="N", help=text
    )


def every_option(default: int) -> Callable[[Command], Command]:
    """Build the --every option of a plot."""
    text = "Show every N-th step."
    return click.option(
        "--every", type=Number(int, 1, MAX_STEPS), default=default, show_default=True, metavar="N", help=text
    )


def guidance_option(default: float | None) -> Callable[[Command], Command]:
    """Build the --guidance-scale option of a plot; a default of None leaves it to the checkpoint."""
    shown = "the checkpoint's recommendation, else 7.5" if default is None else default
    return click.option(
        "--guidance-scale",
        type=Number(float, -MAX_GUIDANCE_SCALE, MAX_GUIDANCE_SCALE),
        default=default,
        metavar="X",
        help=f"Guidance scale; 1 and below turn guidance off.  [default: {shown}]",
    )


@click.group("plot")
def command() -> None:
    """Plot what each part of the model does.

    Plots run the engines of a checkpoint, which are exported and built if missing. The ending of --out selects PNG or
    SVG, and the path is printed; --json prints the plotted numbers instead.
    """


@command.command("sigmas")
@steps_option(51)
@click.option(
    "--what",
    "quantities",
    multiple=True,
    type=click.Choice(("sigmas", "timesteps", "coefficients")),
    default=("sigmas",),
    show_default=True,
    help="Quantity to plot (repeatable).",
)
@common_options("sigmas")
def sigmas(steps: int, quantities: tuple[str, ...], **values: Any) -> None:
    """Plot the noise level by sampling step.

    --what selects other quantities: the timesteps that the UNet receives, or the coefficients with which LMS weights
    the last four derivatives. A schedule needs no engines, so --backend and --seed have no effect.
    """
    from sdrt.plots.sigmas import draw_schedule, schedule_numbers

    options = _checked(PlotOptions(**values))
    name, schedule = _schedule(options, steps)
    figure = draw_schedule(schedule, tuple(dict.fromkeys(quantities)), name)
    _finish(options, figure, {"plot": "sigmas", "checkpoint": {"name": name}, **schedule_numbers(schedule)})


@command.command("noising")
@file_option("--image", "Picture to add noise to; its largest centred square is used.  [required]")
@steps_option(51)
@every_option(10)
@common_options("noising")
def noising(image: Path | None, steps: int, every: int, **values: Any) -> None:
    """Plot a picture with increasing noise.

    The VAE encodes the picture, the scheduler's noise at steps 0, N, 2N, ... is added, and the VAE decodes each.
    """
    from sdrt.plots.noising import draw_noising, noise_picture, shown_steps
    from sdrt.progress import for_terminal

    options = _checked(PlotOptions(**values))
    if image is None:
        raise UsageError("--image is missing", hint="give a picture: --image picture.png")
    shown_steps(steps, every)
    progress = for_terminal()
    picture = _opened(image)
    with options.model(progress) as model:
        found = noise_picture(
            model,
            picture(model),
            seed=options.seed,
            num_inference_steps=steps,
            every=every,
            progress=progress,
        )
        caption = f"{_file(image)}, seed {options.seed}, {steps} steps, {model.described}"
        numbers = {"image": str(image), "num_inference_steps": steps, "pictures": [each.numbers() for each in found]}
        _finish(options, draw_noising(found, caption), _facts("noising", options, model, numbers))


@command.command("prediction")
@file_option("--image", "Picture to add the step's noise to; its largest centred square is used.")
@click.option("--prompt", metavar="TEXT", help="Prompt; may be empty.  [default: empty with --image]")
@click.option(
    "--step",
    type=Number(int, 0, MAX_STEPS - 1),
    default=40,
    show_default=True,
    metavar="N",
    help="Step to plot, counted from 0.",
)
@steps_option(51)
@guidance_option(1.0)
@common_options("prediction")
def prediction(
    image: Path | None, prompt: str | None, step: int, steps: int, guidance_scale: float, **values: Any
) -> None:
    """Plot the input and the prediction of one UNet call.

    Shows, each decoded: the noisy latents, the predicted noise, the latents minus that noise, and the latents minus
    sigma times that noise, which is the scheduler's estimate of the picture. The noisy latents come from --image, or
    from denoising the prompt up to the step.
    """
    from sdrt.plots.figure import quoted
    from sdrt.plots.prediction import check_step, draw_prediction, predict
    from sdrt.progress import for_terminal

    options = _checked(PlotOptions(**values))
    if image is None and prompt is None:
        raise UsageError("neither --image nor --prompt is given", hint='give a picture or a prompt, which may be ""')
    check_step(step, steps)
    progress = for_terminal()
    picture = None if image is None else _opened(image)
    with options.model(progress) as model:
        found = predict(
            model,
            prompt=prompt or "",
            sample=None if picture is None else picture(model),
            step=step,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            seed=options.seed,
            progress=progress,
        )
        what = quoted(prompt or "") if image is None else f"{_file(image)}, {quoted(prompt or '')}"
        caption = f"{what}, guidance {guidance_scale:g}, seed {options.seed}, {steps} steps, {model.described}"
        numbers = {
            "image": None if image is None else str(image),
            "prompt": prompt or "",
            "guidance_scale": guidance_scale,
            "num_inference_steps": steps,
            **found.numbers(),
        }
        _finish(options, draw_prediction(found, caption), _facts("prediction", options, model, numbers))


@command.command("trajectory")
@click.option("--prompt", metavar="TEXT", help="Text to draw; may be empty.  [required]")
@steps_option(50)
@every_option(5)
@guidance_option(None)
@output_file_option("--animation", "Also write the pictures as an animated .gif or .png.")
@common_options("trajectory")
def trajectory(
    prompt: str | None, steps: int, every: int, guidance_scale: float | None, animation: Path | None, **values: Any
) -> None:
    """Plot a picture emerging from noise.

    Shows the decoded estimate of the picture at steps 0, N, 2N, ..., and the norms of the latents, the predicted noise
    and the estimate by step.
    """
    from sdrt.plots.figure import quoted
    from sdrt.plots.noising import shown_steps
    from sdrt.plots.trajectory import check_animation, draw_trajectory, follow, write_animation
    from sdrt.progress import for_terminal

    options, text = _checked(PlotOptions(**values)), _prompt(prompt)
    shown_steps(steps, every)
    if animation is not None:
        check_animation(animation)
        if animation.absolute() == options.out.absolute():
            raise UsageError("--animation and --out are the same file", hint="give the animation another name")
    progress = for_terminal()
    with options.model(progress) as model:
        guidance_scale = model.guidance_scale(guidance_scale)
        found = follow(
            model,
            prompt=text,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            every=every,
            seed=options.seed,
            progress=progress,
        )
        caption = f"guidance {guidance_scale:g}, seed {options.seed}, {steps} steps, {model.described}"
        written = [] if animation is None else [animation]
        if animation is not None:
            write_animation(found.frames, animation)
        numbers = {
            "prompt": text,
            "guidance_scale": guidance_scale,
            "num_inference_steps": steps,
            "shown": [each.step for each in found.shown],
            "steps": found.steps,
        }
        figure = draw_trajectory(found, quoted(text), caption)
        _finish(options, figure, _facts("trajectory", options, model, numbers), written)


@command.command("attention")
@click.option("--prompt", metavar="TEXT", help="Text to draw.  [required]")
@steps_option(50)
@guidance_option(None)
@common_options("attention")
def attention(prompt: str | None, steps: int, guidance_scale: float | None, **values: Any) -> None:
    """Plot the attention from each part of the picture to each word.

    Shows the cross-attention from every position of the picture to each word, averaged over heads, layers and steps.
    It is recomputed from the queries and keys of the bundle's graph, so ONNX Runtime runs the UNet on the CPU;
    --backend encodes the prompt and decodes the picture.
    """
    from sdrt.artefacts.store import Store
    from sdrt.machine.cpu import usable_cpus
    from sdrt.plots.attention import attend, draw_attention
    from sdrt.plots.figure import quoted
    from sdrt.plots.marked_graph import check_markable
    from sdrt.prepare.bundles import open_bundle
    from sdrt.progress import for_terminal

    options, text = _checked(PlotOptions(**values)), _prompt(prompt)
    check_markable()
    progress = for_terminal()
    with options.model(progress) as model:
        guidance_scale = model.guidance_scale(guidance_scale)
        bundle = open_bundle(options.source(), Store.at(options.store), progress=progress)
        found = attend(
            model,
            bundle,
            prompt=text,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            seed=options.seed,
            threads=usable_cpus(),
            progress=progress,
        )
        precision = bundle.manifest.components["unet"].precision
        caption = (
            f"mean of {len(found.layers)} cross-attentions, their heads and {steps} steps; start, end and padding take "
            f"{found.rest:.0%}; guidance {guidance_scale:g}, seed {options.seed}; {model.described}; "
            f"UNet: onnxruntime {precision}"
        )
        numbers = {
            "prompt": text,
            "guidance_scale": guidance_scale,
            "num_inference_steps": steps,
            "unet": {"backend": "onnxruntime", "precision": precision},
            **found.numbers(),
        }
        figure = draw_attention(found, quoted(text), caption)
        _finish(options, figure, _facts("attention", options, model, numbers))


def _checked(options: PlotOptions) -> PlotOptions:
    """Return the options after checking what can be checked before anything is built.

    Raises:
        UsageError: The file cannot be written, or two sources are given.
        BackendUnavailableError: Matplotlib is not installed.
    """
    from sdrt.plots.figure import check_drawable

    check_drawable(options.out)
    options.source()
    return options


def _prompt(prompt: str | None) -> str:
    """Return the prompt.

    Raises:
        UsageError: It is missing or not valid text.
    """
    from sdrt.runtime.request import check_text

    if prompt is None:
        raise UsageError("--prompt is missing", hint='say what to draw: --prompt "a red circle"')
    check_text("prompt", prompt)
    return prompt


def _schedule(options: PlotOptions, steps: int) -> tuple[str, Schedule]:
    """Return the checkpoint's name and its schedule, read from its configs alone."""
    import json

    from sdrt.artefacts.bundle import Bundle
    from sdrt.artefacts.engine_set import SCHEDULER
    from sdrt.checkpoint import open_checkpoint
    from sdrt.sampling.lms import Schedule

    if options.bundle:
        bundle = Bundle.open(options.bundle)
        config = json.loads((bundle.path / SCHEDULER).read_bytes())
        return bundle.manifest.checkpoint.name, Schedule.from_config(config, steps)
    checkpoint = open_checkpoint(options.checkpoint or "demo", revision=options.revision, variant=options.variant)
    return checkpoint.name, Schedule.from_config(checkpoint.scheduler, steps)


def _opened(path: Path) -> Callable[[Model], Latents]:
    """Open a picture file; return a function that makes the input of a model's VAE encoder from it.

    Raises:
        ArtefactError: The file is no picture, is damaged or is too large.
    """
    from sdrt.runtime.init_image import InitImage, open_picture

    picture = open_picture(path)
    return lambda model: InitImage.of(picture, model.record.image_size).sample()


def _file(path: Path) -> str:
    """Return a file's name as figures show it."""
    from sdrt.plots.figure import shown

    return shown(path.name)


def _facts(name: str, options: PlotOptions, model: Model, numbers: dict[str, Any]) -> dict[str, Any]:
    return {"plot": name, **model.facts(), "seed": options.seed, **numbers}


def _finish(options: PlotOptions, figure: Figure, facts: dict[str, Any], written: Sequence[Path] = ()) -> None:
    """Write the figure; print the paths written, or with --json these and the numbers."""
    from sdrt.plots.figure import write_figure

    write_figure(figure, options.out)
    paths = [options.out, *written]
    if options.as_json:
        print_json({**facts, "written": [str(path) for path in paths]})
        return
    for path in paths:
        click.echo(bytes(path))
