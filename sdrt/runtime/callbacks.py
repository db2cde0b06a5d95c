"""Callbacks after each step, in diffusers' signature."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from sdrt.arguments import shown
from sdrt.errors import UsageError
from sdrt.runtime.denoise import Latents
from sdrt.sampling.latents import check_latents

if TYPE_CHECKING:
    from PIL import Image

    from sdrt.artefacts.manifest import ComponentName
    from sdrt.sampling.lms import Schedule

#: (pipeline, step, timestep, {"latents": ...}) -> mapping, whose "latents" are gone on with, or None.
Callback = Callable[[Any, int, float, dict[str, Any]], "Mapping[str, Any] | None"]


def check_callback(callback: object) -> None:
    """Raise UsageError unless ``callback_on_step_end`` is None or can be called."""
    if callback is not None and not callable(callback):
        message = f"callback_on_step_end is {shown(callback)}; it must be a function"
        raise UsageError(message, hint="give a function of pipeline, step, timestep and a mapping with the latents")


class RunningPipeline(Protocol):
    """What a callback may use of the pipeline that calls it."""

    #: The schedule of the run under way.
    schedule: Schedule | None

    @property
    def stopping(self) -> bool:
        """Return whether the run ends after this step."""

    def stop(self) -> None:
        """End the run after this step."""

    def decode(self, latents: Latents) -> list[Image.Image]:
        """Decode final latents [n,channels,height,width]."""

    def unload(self, name: ComponentName) -> None:
        """Release a component's memory, unless engines are kept loaded."""


class Watch:
    """A user's callback as the denoising loops call it, and how many steps were done."""

    def __init__(self, pipeline: RunningPipeline, callback: Callback | None) -> None:
        self.callback = callback
        self.steps = 0
        self._pipeline = pipeline

    def __call__(self, step: int, timestep: float, latents: Latents) -> Latents | None:
        """Latents to go on with, or None where the callback has stopped the run.

        Raises:
            UsageError: The callback gave no mapping, or latents of another shape or that are no finite numbers.
        """
        self.steps = step + 1
        if self.callback is None:
            return latents
        given = self.callback(self._pipeline, step, timestep, {"latents": latents})
        if given is not None and not isinstance(given, Mapping):
            message = f"callback_on_step_end gave back {shown(given)}; it must be a mapping, or None"
            raise UsageError(message, hint='return {"latents": ...} to go on with other latents, else nothing')
        following = check_latents((given or {}).get("latents", latents), len(latents), latents.shape[1:])
        if not self._pipeline.stopping:
            return following
        # A loop that is stopped ends with the latents it has: those must be what the callback gave.
        latents[...] = following
        return None
