"""Preparation of a peer before its process starts: conversion of files, and a check that it can run the model."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sdrt.bench.contender import Job
from sdrt.errors import BackendUnavailableError
from sdrt.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

#: Channels of v1's UNet, the only one that stable-diffusion.cpp supports.
V1_CHANNELS = [320, 640, 1280, 1280]


def prepare_peer(job: Job, folder: Path, progress: Progress) -> tuple[Job, float | None]:
    """Convert the files that the peer needs, if any.

    Returns:
        The job with the folder of the converted files, and the seconds of the conversion; None if there was none.

    Raises:
        BackendUnavailableError: The peer cannot run this checkpoint.
    """
    steps: dict[str, Callable[[Job, Path], None]] = {"openvino-genai": _convert_for_genai}
    if job.kind == "stable-diffusion-cpp":
        _check_v1(Path(job.checkpoint))
    if job.kind not in steps:
        return job, None
    target = folder / job.kind
    target.mkdir(exist_ok=True)
    start = time.perf_counter()
    with progress.stage(f"convert for {job.kind}"):
        steps[job.kind](job, target)
    return replace(job, prepared=str(target)), time.perf_counter() - start


def _convert_for_genai(job: Job, target: Path) -> None:
    from sdrt.bench.peers.genai_model import convert

    convert(Path(job.checkpoint), Path(job.bundle), target)


def _check_v1(checkpoint: Path) -> None:
    channels = json.loads((checkpoint / "unet/config.json").read_bytes()).get("block_out_channels")
    if channels != V1_CHANNELS:
        message = f"it supports only v1's UNet, of {V1_CHANNELS} channels; this one has {channels}"
        raise BackendUnavailableError(message, hint="measure it on a full-size checkpoint")
