"""Callbacks after each step, with diffusers' signature."""

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

#: (pipeline, step, timestep, {"latents": ...}) -> mapping whose "latents" replace those, or None.
Callback = Callable[[Any, int, float, dict[str, Any]], "Mapping[str, Any] | None"]


def check_callback(callback: object) -> None:
    """Raise UsageError unless ``callback_on_step_end`` is None or callable."""
    if callback is not None and not callable(callback):
        message = f"callback_on_step_end is {shown(callback)}; it must be a function"
        raise UsageError(message, hint="give a function of pipeline, step, timestep and a mapping with the latents")


class RunningPipeline(Protocol):
    """The part of a pipeline that its callback may use."""

    #: The schedule of the current run.
    schedule: Schedule | None

    @property
    def stopping(self) -> bool:
        """True if the run ends after this step."""

    def stop(self) -> None:
        """End the run after this step."""

    def decode(self, latents: Latents) -> list[Image.Image]:
        """Decode final latents [n,channels,height,width]."""

    def unload(self, name: ComponentName) -> None:
        """Release a component's memory, unless engines are kept loaded."""


class Watch:
    """Adapter from a user's callback to `OnStep`; counts the steps done."""

    def __init__(self, pipeline: RunningPipeline, callback: Callback | None) -> None:
        self.callback = callback
        self.steps = 0
        self._pipeline = pipeline

    def __call__(self, step: int, timestep: float, latents: Latents) -> Latents | None:
        """Call the callback, and return the latents to continue with; None if it has stopped the run.

        Raises:
            UsageError: The callback returned neither a mapping nor None, or latents of another shape or not finite.
        """
        self.steps = step + 1
        if self.callback is None:
            return latents
        given = self.callback(self._pipeline, step, timestep, {"latents": latents})
        if given is not None and not isinstance(given, Mapping):
            message = f"callback_on_step_end returned {shown(given)}; it must be a mapping, or None"
            raise UsageError(message, hint='return {"latents": ...} to change the latents, or else None')
        following = check_latents((given or {}).get("latents", latents), len(latents), latents.shape[1:])
        if not self._pipeline.stopping:
            return following
        # A stopped loop returns its own latents: those must be what the callback returned.
        latents[...] = following
        return None
