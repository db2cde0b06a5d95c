"""Inputs of the components from real runs: token ids of real prompts, and latents captured along a trajectory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sdrt.artefacts.manifest import ComponentName

if TYPE_CHECKING:
    from sdrt.artefacts.engine_set import BatchRange
    from sdrt.compare.reference import Reference, ReferenceTrajectory

Array = npt.NDArray[Any]

#: Batch sizes that every component is run at if its engine takes them; its largest one is added.
BATCHES = (1, 2, 3)
#: Prompts besides those that are drawn: empty, longer than the tokenizer's limit, and not ASCII.
PROMPTS = ("", "a red circle above a blue square, " * 20, "Ein grüner Stern, 绿色的星星 ⭐")


@dataclass(frozen=True, eq=False)
class Case:
    """One set of inputs. ``label`` describes it, including the batch; ``feeds`` are float32 or int64, batch first."""

    label: str
    batch: int
    feeds: dict[str, Array]


class Inputs:
    """Cases of every component, made from a reference trajectory.

    Args:
        reference: The checkpoint in PyTorch; it decodes the pictures that the VAE's encoder gets.
        trajectory: Its trajectory on some prompts.
        batches: Batch sizes to run at.
    """

    def __init__(self, reference: Reference, trajectory: ReferenceTrajectory, batches: Sequence[int] = BATCHES) -> None:
        self.reference = reference
        self.trajectory = trajectory
        self.batches = tuple(batches)
        self._made: dict[tuple[ComponentName, tuple[int, ...]], tuple[Case, ...]] = {}

    def cases(self, component: ComponentName, limits: BatchRange | None) -> tuple[Case, ...]:
        """Return a component's cases at the batch sizes that an engine takes, including its largest.

        Args:
            component: Name of the component.
            limits: Batch range of the engine; None if it takes any batch.

        Returns:
            At least one case; none for denoise_step if the trajectory has no guidance, which never runs it.
        """
        batches = allowed(self.batches, limits)
        key = (component, batches)
        if key not in self._made:
            self._made[key] = self._make(component, batches)
        return self._made[key]

    def _make(self, component: ComponentName, batches: Sequence[int]) -> tuple[Case, ...]:
        if component == "denoise_step":
            return self._at_steps(batches, self._step) if self.trajectory.request.guided else ()
        if component == "unet":
            return self._at_steps(batches, self._unet)
        rows = {"text_encoder": self._tokens, "vae_decoder": self._final, "vae_encoder": self._pictures}[component]
        return rows(batches)

    def _at_steps(self, batches: Sequence[int], feeds: Callable[[Sequence[int]], dict[str, Array]]) -> tuple[Case, ...]:
        """Make cases at positions of the trajectory, cycling through the batch sizes; the last one mixes the steps."""
        places = positions(self.trajectory)
        count = len(self.trajectory.timesteps)
        cases = []
        for index in range(max(len(places), len(batches))):
            name, step = list(places.items())[index % len(places)]
            batch = batches[index % len(batches)]
            label = f"{name}, step {step + 1} of {count}, batch {batch}"
            cases.append(Case(label, batch, feeds([step] * batch)))
        # The timestep is a vector, so one batch may have pictures at different steps.
        steps = [list(places.values())[index % len(places)] for index in range(batches[-1])]
        if batches[-1] > 1:
            cases.append(Case(f"mixed steps, batch {batches[-1]}", batches[-1], feeds(steps)))
        return tuple(cases)

    def _unet(self, steps: Sequence[int]) -> dict[str, Array]:
        """Build one UNet row per step: both guidance halves of the first picture, then of the next."""
        track = self.trajectory
        halves = 2 if track.request.guided else 1
        pictures = len(track.latents[0])
        rows = [(step, index // halves % pictures, index % halves) for index, step in enumerate(steps)]
        samples = [
            track.latents[step][picture] / np.sqrt(np.float32(1) + track.sigmas[step] ** 2) for step, picture, _ in rows
        ]
        return {
            "sample": np.stack(samples).astype(np.float32),
            "timestep": track.timesteps[list(steps)],
            "encoder_hidden_states": np.stack([track.states[half * pictures + i] for _, i, half in rows]),
        }

    def _step(self, steps: Sequence[int]) -> dict[str, Array]:
        """Build one denoise_step row per step, with the reference's derivatives before that step as history."""
        track = self.trajectory
        pictures = len(track.latents[0])
        chosen = [index % pictures for index in range(len(steps))]
        rows = list(zip(steps, chosen, strict=True))
        return {
            "latents": np.stack([track.latents[step][i] for step, i in rows]),
            "uncond_states": track.states[chosen],
            "cond_states": track.states[[pictures + i for i in chosen]],
            "timestep": track.timesteps[list(steps)],
            "sigma": track.sigmas[list(steps)],
            "guidance_scale": np.full(len(steps), track.request.guidance_scale, np.float32),
            "lms_coefficients": track.coefficients[list(steps)].astype(np.float32),
            "history": np.stack([track.history(step)[i] for step, i in rows]),
        }

    def _tokens(self, batches: Sequence[int]) -> tuple[Case, ...]:
        """Make cases of the token ids of every distinct prompt."""
        ids = np.unique(np.concatenate([self.trajectory.input_ids, self.reference.tokenize(PROMPTS)]), axis=0)
        return _round("prompts", "input_ids", ids, batches)

    def _final(self, batches: Sequence[int]) -> tuple[Case, ...]:
        """Make cases of the final latents, divided by the scaling factor as for the decoder."""
        latents = self.trajectory.latents[-1] / np.float32(self.reference.model.scaling_factor)
        return _round("final latents", "latent_sample", latents, batches)

    def _pictures(self, batches: Sequence[int]) -> tuple[Case, ...]:
        """Make cases of the reference's pictures, clipped to [-1, 1]."""
        latents = self.trajectory.latents[-1] / np.float32(self.reference.model.scaling_factor)
        rows = latents[: max(batches)]
        pictures = [self.reference.run("vae_decoder", {"latent_sample": row[np.newaxis]})["sample"] for row in rows]
        return _round("pictures", "sample", np.clip(np.concatenate(pictures), -1, 1), batches)


def allowed(batches: Sequence[int], limits: BatchRange | None) -> tuple[int, ...]:
    """Return the batch sizes within an engine's range and its maximum, ascending; all of them if it has no range."""
    if limits is None:
        return tuple(sorted(set(batches)))
    inside = {batch for batch in batches if limits.min <= batch <= limits.max}
    return tuple(sorted({*inside, limits.max}))


def positions(trajectory: ReferenceTrajectory) -> dict[str, int]:
    """Return the steps to compare at, by name.

    The first has no history; early, middle and late are a tenth, a half and nine tenths of the way; "most fractional"
    is the step whose timestep is farthest from a whole number, where rounding it has the largest effect.
    """
    last = len(trajectory.timesteps) - 1
    fractions = np.abs(trajectory.timesteps - np.round(trajectory.timesteps))
    places = {
        "first": 0,
        "early": round(last * 0.1),
        "middle": round(last * 0.5),
        "late": round(last * 0.9),
        "most fractional": int(fractions.argmax()),
    }
    # With few steps, one may have several of these names.
    names: dict[int, list[str]] = {}
    for name, step in places.items():
        names.setdefault(step, []).append(name)
    return {" and ".join(joined): step for step, joined in names.items()}


def _round(what: str, name: str, rows: Array, batches: Sequence[int]) -> tuple[Case, ...]:
    """Make one case per batch size from consecutive rows of one input, wrapping around at the end."""
    cases, first = [], 0
    for batch in batches:
        taken = [(first + index) % len(rows) for index in range(batch)]
        numbers = ", ".join(str(row + 1) for row in dict.fromkeys(taken))
        cases.append(Case(f"{what} {numbers}, batch {batch}", batch, {name: rows[taken]}))
        first += batch
    return tuple(cases)
