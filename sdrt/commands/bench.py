"""The command ``sdrt bench``: measure engines against other runtimes and the machine's limit."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdrt.commands.options import (
    BACKENDS,
    PRECISIONS,
    Number,
    checkpoint_option,
    file_option,
    folder_option,
    json_option,
    output_folder_option,
    print_json,
    print_text,
    revision_option,
    store_option,
    threads_option,
    variant_option,
)
from sdrt.errors import UsageError
from sdrt.files import utf8_text
from sdrt.limits import MAX_GUIDANCE_SCALE, MAX_STEPS

if TYPE_CHECKING:
    from sdrt.bench.plan import BenchRequest
    from sdrt.bench.schema import BenchSettings

MAX_BATCH, MAX_ROUNDS = 64, 1000


@dataclass(frozen=True)
class BenchOptions:
    """The options of ``sdrt bench``, by the names that click gives them."""

    checkpoint: str | None
    revision: str | None
    variant: str | None
    bundle: Path | None
    backend: str
    precision: str | None
    steps: int
    guidance_scale: float
    batch: str
    rounds: int
    cold_rounds: int
    peers: str
    prompt: str | None
    loop: str
    build_times: bool
    against: Path | None
    report: Path | None
    store: Path | None
    threads: int | None
    as_json: bool


@click.command("bench")
@checkpoint_option
@revision_option
@variant_option
@folder_option("--bundle", "Bundle to measure instead of a checkpoint.")
@click.option(
    "--backend", default="auto", show_default=True, metavar="NAME,...", help=f"auto, or any of {', '.join(BACKENDS)}."
)
@click.option("--precision", metavar="NAME,...", help=f"Any of {', '.join(PRECISIONS)}.  [default: the backend's]")
@click.option(
    "--steps",
    type=Number(int, 1, MAX_STEPS),
    default=20,
    show_default=True,
    metavar="N",
    help="Number of denoising steps.",
)
@click.option(
    "--guidance-scale",
    type=Number(float, 1.01, MAX_GUIDANCE_SCALE),
    default=7.5,
    show_default=True,
    metavar="X",
    help="Guidance scale, above 1: every contender runs with guidance.",
)
@click.option("--batch", default="1", show_default=True, metavar="N,...", help="Pictures per request.")
@click.option(
    "--rounds",
    type=Number(int, 1, MAX_ROUNDS),
    default=5,
    show_default=True,
    metavar="N",
    help="Warm runs per contender.",
)
@click.option(
    "--cold-rounds",
    type=Number(int, 0, MAX_ROUNDS),
    default=3,
    show_default=True,
    metavar="N",
    help="Cold starts per contender, each in a new process.",
)
@click.option(
    "--peers",
    default="",
    metavar="NAME,...",
    help="Other runtimes to measure: all, or any of diffusers-fp32, diffusers-bf16, torch-compile, onnxruntime, "
    "openvino-genai, stable-diffusion-cpp.",
)
@click.option("--prompt", metavar="TEXT", help="Text to draw.  [default: one that suits the checkpoint]")
@click.option(
    "--loop",
    default="auto",
    show_default=True,
    metavar="NAME,...",
    help="auto, or any of plain (the UNet) and fused (denoise_step, built if the backend's engines lack it).",
)
@click.option("--build-times", is_flag=True, help="Also export and build from scratch, and time that.")
@file_option("--against", "Earlier bench.json; mark what got slower by more than its spread.")
@output_folder_option("--report", "Write bench.json, bench.md and roofline.svg to this folder.")
@store_option
@threads_option
@json_option
def command(**values: Any) -> None:
    """Benchmark sdrt's engines, cold and warm, against other runtimes.

    Every contender runs in a process of its own. Contenders take turns, with equal steps, guidance and threads;
    settings found by sdrt tune keep their own threads unless --threads is given. A matrix product timed in the same
    rounds shows how close each component is to the machine's limit.
    """
    run(BenchOptions(**values))


def run(options: BenchOptions) -> None:
    """Run the benchmark, print it and write its report."""
    from sdrt.bench.bench import bench
    from sdrt.bench.changes import compare_benchmarks, read_bench
    from sdrt.bench.report import lines, write_report
    from sdrt.progress import for_terminal

    asked, settings = _asked(options), _settings(options)
    earlier = read_bench(options.against) if options.against else None
    found = bench(asked, settings, for_terminal(), build_times=options.build_times)
    found = found.model_copy(update={"command": command_line(options)})
    if earlier is not None:
        found = found.model_copy(update={"against": compare_benchmarks(earlier, found)})
    written = write_report(options.report, found) if options.report is not None else ()
    if options.as_json:
        print_json(found.model_dump(mode="json"))
        return
    for line in lines(found):
        click.echo(line)
    for path in written:
        print_text(f"written: {path}")


def command_line(options: BenchOptions) -> str:
    """Return the command that repeats the benchmark, without the paths of its store and report."""
    words = ["sdrt", "bench"]
    left_out = ("store", "report", "against", "as_json")
    for field in (each.name for each in fields(options) if each.name not in left_out):
        value, option = getattr(options, field), f"--{field.replace('_', '-')}"
        if isinstance(value, bool):
            words += [option] if value else []
        elif value not in (None, ""):
            words += [option, str(value)]
    return utf8_text(shlex.join(words))


def _asked(options: BenchOptions) -> BenchRequest:
    from sdrt.bench.plan import PEERS, BenchRequest, expand_peers
    from sdrt.prepare.source import Source

    return BenchRequest(
        Source(options.checkpoint, options.revision, options.bundle, variant=options.variant),
        names("--backend", options.backend, ("auto", *BACKENDS)),
        names("--precision", options.precision, PRECISIONS) if options.precision else (),  # type: ignore[arg-type]
        expand_peers(names("--peers", options.peers, ("all", *PEERS))) if options.peers else (),
        options.store,
        names("--loop", options.loop, ("auto", "plain", "fused")),
        options.threads,
    )


def _settings(options: BenchOptions) -> BenchSettings:
    from sdrt.bench.schema import BenchSettings
    from sdrt.compare.prompts import default_prompts
    from sdrt.machine.cpu import usable_cpus

    prompt = options.prompt
    if prompt is None:
        name = options.checkpoint or ("demo" if options.bundle is None else str(options.bundle))
        prompt = default_prompts(name)[0].prompt
    return BenchSettings(
        steps=options.steps,
        guidance_scale=options.guidance_scale,
        threads=options.threads or usable_cpus(),
        batches=numbers("--batch", options.batch, MAX_BATCH),
        rounds=options.rounds,
        cold_rounds=options.cold_rounds,
        prompt=prompt,
    )


def names(option: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names in a text separated by commas, each once.

    Raises:
        UsageError: A name is not among ``known``.
    """
    found = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    for name in found:
        if name not in known:
            raise UsageError(f"{option}: unknown name {name[:40]!r}", hint=f"choose from {', '.join(known)}")
    return found


def numbers(option: str, text: str, most: int) -> tuple[int, ...]:
    """Return the whole numbers in a text separated by commas, each once.

    Raises:
        UsageError: A word is not a whole number from 1 to ``most``.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and len(word) < 6 and 1 <= int(word) <= most for word in words):
        raise UsageError(f"{option} is {text[:40]!r}; it must be numbers from 1 to {most}", hint="for example 1,2,4")
    return tuple(dict.fromkeys(int(word) for word in words))
