"""``sdrt denoise --prompts``: a file of prompts to PNG files."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdrt.commands.denoise_options import DenoiseOptions, init_image, load, say_guidance, settings, stages
from sdrt.commands.options import print_json
from sdrt.commands.paths import check_writable
from sdrt.errors import NumericError
from sdrt.runtime.request import DRAWN_SEEDS

if TYPE_CHECKING:
    from sdrt.pipeline import Pipeline
    from sdrt.progress import Progress
    from sdrt.runtime.picture_queue import Finished, Slot
    from sdrt.runtime.prompt_file import Line
    from sdrt.runtime.result import Timings


def run_prompts(options: DenoiseOptions) -> None:
    """Generate the pictures of a file of prompts, and write each one as soon as it is finished.

    Every line and every output path is checked before the first engine opens.

    Raises:
        UsageError: A line is invalid; nothing was generated.
        NumericError: Some pictures failed; all others were written.
    """
    from sdrt.progress import for_terminal
    from sdrt.runtime.picture_queue import run_queue
    from sdrt.runtime.prompt_file import read_prompt_file
    from sdrt.runtime.result import Timings

    if options.prompts is None:
        raise TypeError("prompts")
    defaults = settings(options)
    if defaults["seed"] is None:
        defaults["seed"] = secrets.randbelow(DRAWN_SEEDS)
    lines = read_prompt_file(options.prompts, defaults)
    paths = _paths(options.out, lines)
    for path in paths.values():
        check_writable("--out", path)
    image, progress, timings = init_image(options), for_terminal(), Timings()
    if options.seed is None:
        progress.note(f"seeds count up from {defaults['seed']} where lines give none")
    done: list[Finished] = []
    with load(options, progress) as pipeline:
        say_guidance(pipeline, [line.request for line in lines], progress)
        for finished in run_queue(pipeline, lines, timings, image=image, progress=progress):
            _write(finished, paths, options.as_json)
            _warn(finished, progress)
            # The pictures of a long file do not fit in memory.
            done.append(replace(finished, image=None, record=None))
        if options.as_json:
            print_json(_facts(pipeline, done, paths, timings, with_encoder=image is not None))
    _check_all_made(done)


def _paths(out: Path, lines: Sequence[Line]) -> dict[tuple[int, int], Path]:
    """Return each picture's path by (line, index): NAME-LINE.png, or NAME-LINE-PICTURE.png if a line has several."""
    paths = {}
    for line in lines:
        count = len(line.request.pictures)
        for index in range(count):
            part = f"-{index + 1:04}" if count > 1 else ""
            paths[line.number, index] = out.with_name(f"{out.stem}-{line.number:04}{part}{out.suffix}")
    return paths


def _path(paths: dict[tuple[int, int], Path], slot: Slot) -> Path:
    return paths[slot.line, slot.index]


def _write(finished: Finished, paths: dict[tuple[int, int], Path], as_json: bool) -> None:
    """Write a picture, if there is one, and print its path."""
    from sdrt.runtime.images import write_png

    if finished.image is None or finished.record is None:
        return
    path = _path(paths, finished.slot)
    write_png(finished.image, path, finished.record)
    if not as_json:
        click.echo(bytes(path))


def _warn(finished: Finished, progress: Progress) -> None:
    """Warn of a picture that failed, whose prompt was truncated, or that has a single colour."""
    from sdrt.runtime.images import is_degenerate

    where = f"line {finished.slot.line}, seed {finished.slot.picture.seed}"
    if finished.error is not None:
        progress.note(f"{where}: {finished.error.message}")
    if finished.truncated:
        progress.note(f"warning: {where}: the prompt was truncated; cut off: {finished.truncated!r}")
    if finished.image is not None and is_degenerate(finished.image):
        progress.note(f"warning: degenerate_image: {where}: the picture has a single colour")


def _facts(
    pipeline: Pipeline,
    done: Sequence[Finished],
    paths: dict[tuple[int, int], Path],
    timings: Timings,
    *,
    with_encoder: bool,
) -> dict[str, Any]:
    """Return the document that --json prints: pictures and failures in the order of the file."""
    manifest = pipeline.engines.manifest
    ordered = sorted(done, key=lambda finished: (finished.slot.line, finished.slot.index))
    made = [finished for finished in ordered if finished.error is None]
    running_s = timings.total - timings.load
    return {
        "images": [
            {
                "line": finished.slot.line,
                "path": str(_path(paths, finished.slot)),
                "seed": finished.slot.picture.seed,
                "truncated": finished.truncated,
            }
            for finished in made
        ],
        "failed": [
            {"line": finished.slot.line, "seed": finished.slot.picture.seed, "error": finished.error.message}
            for finished in ordered
            if finished.error is not None
        ],
        "checkpoint": pipeline.engines.checkpoint.name,
        "backend": manifest.backend,
        "precision": manifest.precision,
        "scheduler": "LMS",
        "timings_s": stages(timings, with_encoder=with_encoder),
        "unet_s_per_step": round(timings.unet_s_per_step, 5),
        "pictures_per_minute": round(60 * len(made) / running_s, 3) if running_s > 0 else None,
        "device_bytes": pipeline.device_bytes,
    }


def _check_all_made(done: Sequence[Finished]) -> None:
    """Raise NumericError if pictures failed.

    Raises:
        NumericError: Some did; the message names their lines.
    """
    failed = sorted({finished.slot.line for finished in done if finished.error is not None})
    if failed:
        named = ", ".join(map(str, failed[:20])) + (", ..." if len(failed) > 20 else "")
        count = sum(finished.error is not None for finished in done)
        hint = "the other pictures were written; run these lines again with --precision fp32"
        raise NumericError(f"{count} of {len(done)} pictures failed, in lines {named}", hint=hint)
