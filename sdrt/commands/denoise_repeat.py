"""``sdrt denoise --from``: repeat a picture from its record."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sdrt.artefacts.manifest import CheckpointRecord
from sdrt.errors import ArtefactError, CheckpointError, UsageError

if TYPE_CHECKING:
    from PIL import Image

    from sdrt.commands.denoise_options import DenoiseOptions
    from sdrt.pipeline import Pipeline
    from sdrt.progress import Progress

#: Options that --from takes from the record.
FROM_RECORD = (
    "prompt",
    "negative_prompt",
    "steps",
    "guidance_scale",
    "guidance_interval",
    "deepcache",
    "token_merging",
    "seed",
    "num_images",
    "strength",
    "start_step",
    "lms_start",
)


def record_of(options: DenoiseOptions) -> dict[str, Any] | None:
    """Read the record of the picture of --from; None without --from.

    Raises:
        UsageError: An option contradicts --from, or a file that the picture was made from is not given.
        ArtefactError: The file has no record of sdrt.
    """
    if options.repeat is None:
        return None
    from sdrt.runtime.picture_record import read_record

    for name in (name for name in FROM_RECORD if getattr(options, name) is not None):
        raise UsageError(f"--{name.replace('_', '-')} and --from exclude each other", hint="--from sets it")
    if not options.repeat.is_file():
        raise UsageError(f"--from: there is no file {options.repeat}", hint="give a PNG that sdrt wrote")
    record = read_record(options.repeat)
    if record["latents_given"] and options.latents is None:
        hint = "give the same file again with --latents"
        raise UsageError(f"{options.repeat} was made from latents that it does not contain", hint=hint)
    if record["init_image"] and options.init_image is None:
        hint = "give the same file again with --init-image"
        raise UsageError(f"{options.repeat} was started from a picture that it does not contain", hint=hint)
    if options.init_image and not record["init_image"]:
        hint = "leave --init-image out"
        raise UsageError(f"{options.repeat} was not started from a picture", hint=hint)
    if record["stopped_after"]:
        steps = f"{record['stopped_after']} of {record['num_inference_steps']} steps"
        hint = "only the program that stopped it can repeat it"
        raise UsageError(f"{options.repeat} was stopped after {steps}", hint=hint)
    return record


def with_record(options: DenoiseOptions, record: dict[str, Any] | None) -> DenoiseOptions:
    """Return the options with the record's checkpoint, backend, precision, threads and way of running the steps.

    Raises:
        CheckpointError: The recorded checkpoint cannot be found, and no other is given.
    """
    if record is None:
        return options
    options = replace(options, deepcache=record["deepcache"])
    if record["loop"] == "plain":
        # The fused loop runs by default if the engines contain it.
        options = replace(options, loop="plain")
    checkpoint, revision = options.checkpoint, options.revision
    if not (checkpoint or options.bundle or options.engines):
        checkpoint, recorded = _recorded(CheckpointRecord.model_validate(record["checkpoint"]))
        revision = revision or recorded
        options = replace(options, variant=record["checkpoint"].get("variant"))
    if options.engines:
        return replace(options, threads=options.threads or _threads(record))
    backend = record["backend"] if options.backend in (None, "auto") else options.backend
    options = replace(
        options,
        checkpoint=checkpoint,
        revision=revision,
        backend=backend,
        precision=options.precision or record["precision"],
        token_merging=None if options.bundle else record["token_merging"],
    )
    if backend != record["backend"]:
        return options
    graphs = record["cuda_graphs"] if options.cuda_graphs is None else options.cuda_graphs
    return replace(
        options,
        provider=options.provider or record["provider"],
        cuda_graphs=graphs,
        threads=options.threads or _threads(record),
    )


def _recorded(record: CheckpointRecord) -> tuple[str, str | None]:
    """Return the name and the revision that open the checkpoint of a picture.

    Raises:
        CheckpointError: It cannot be found on this machine.
    """
    from sdrt.checkpoint.places import find_recorded

    found = find_recorded(record)
    if found is None:
        raise CheckpointError(f"the checkpoint {record.name!r} is not here", hint="give its path with --checkpoint")
    return found


def _threads(record: dict[str, Any]) -> int | None:
    """Return the record's number of threads, at most the usable CPUs; None if it has none."""
    from sdrt.machine.cpu import usable_cpus

    return min(record["threads"], usable_cpus()) if record["threads"] else None


def check_repeats(
    record: dict[str, Any] | None, pipeline: Pipeline, image: Image.Image | None, progress: Progress
) -> None:
    """Check that a picture can be repeated; note if its last bits may differ because of other engines or threads.

    Raises:
        ArtefactError: It was made with other weights or another token merging, or started from another picture.
    """
    if record is None:
        return
    manifest = pipeline.engines.manifest
    if record["checkpoint"]["digest"] != manifest.checkpoint.digest:
        hint = "give the checkpoint it was made with by --checkpoint"
        raise ArtefactError("the picture of --from was made with other weights", hint=hint)
    if record["token_merging"] != manifest.token_merging:
        made, held = (ratio or "none" for ratio in (record["token_merging"], manifest.token_merging))
        hint = "leave out --bundle or --engines"
        raise ArtefactError(f"the picture of --from was made with token merging {made}, not {held}", hint=hint)
    if image is not None:
        from sdrt.runtime.init_image import InitImage

        if InitImage.of(image, pipeline.model.image_size).digest != record["init_image"]:
            hint = "give the file that it was started from with --init-image"
            raise ArtefactError("the picture of --from was started from another picture", hint=hint)
    if record["engines"] != pipeline.engines.digest:
        progress.note(
            f"the picture was made with other {record['backend']} engines; this one may differ in its last bits"
        )
    elif record["threads"] not in (None, pipeline.threads):
        progress.note(
            f"the picture was made with {record['threads']} threads, this one with {pipeline.threads}; "
            "it may differ in its last bits"
        )
