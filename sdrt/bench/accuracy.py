"""Accuracy check of an engine set against its checkpoint: `sdrt.compare` without the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sdrt.errors import BackendUnavailableError
from sdrt.install_lines import extra_line
from sdrt.progress import Progress

if TYPE_CHECKING:
    from sdrt.artefacts.engine_set import EngineSet
    from sdrt.checkpoint import Checkpoint
    from sdrt.compare.prompts import PromptSeed

GUIDANCE_SCALE = 7.5
#: Number of prompts to draw, from the start of the checkpoint's set.
PICTURES = 2
#: Number of steps at which the tolerances were measured.
STEPS = 25


class Judge:
    """Compares engine sets with a PyTorch reference that is drawn once.

    Args:
        checkpoint: Checkpoint of the reference and of the engine sets.
        progress: Progress callback for the reference's steps.
        token_merging: Share of tokens that the reference's UNet merges; the same as in the engine sets.

    Raises:
        BackendUnavailableError: A package that the comparison needs is not installed.
    """

    def __init__(self, checkpoint: Checkpoint, progress: Progress, token_merging: float | None = None) -> None:
        try:
            from sdrt.compare.reference import Reference
        except ModuleNotFoundError as error:
            hint = extra_line("cpu", "export", "compare")
            message = f"{error.name} is needed to check the accuracy of tuned engines and is not installed"
            raise BackendUnavailableError(message, hint=hint) from error
        from sdrt.compare.prompts import default_prompts
        from sdrt.compare.tolerances import load
        from sdrt.runtime.request import Picture, Request

        self._prompts: Sequence[PromptSeed] = default_prompts(checkpoint.name)[:PICTURES]
        self._scored = checkpoint.name == "demo"
        self._tolerances = load()
        rows = tuple(Picture(each.prompt, "", each.seed) for each in self._prompts)
        reference = Reference(checkpoint, token_merging)
        self._trajectory = reference.denoise(Request(rows, STEPS, GUIDANCE_SCALE), progress)
        self._pictures = reference.decode(self._trajectory.latents[-1])
        reference.release()

    def judge(self, engines: EngineSet, *, threads: int, loop: str, progress: Progress) -> tuple[bool, str]:
        """Draw with the engines and compare every latent and picture with the reference.

        Args:
            engines: Engine set to check.
            threads: Number of CPU threads.
            loop: Loop of the guided step: auto or plain.
            progress: Progress callback for the steps.

        Returns:
            Whether everything is within its tolerance, and the reason in words. Without a tolerance nothing can be
            verified, and the engine set counts as inaccurate.
        """
        from sdrt.compare.pictures import Pair, compare_pictures
        from sdrt.compare.trajectories import compare_trajectories, draw

        drawn = draw(engines, self._trajectory.request, progress, threads=threads, loop=loop)
        trajectories = compare_trajectories(self._trajectory, drawn, engines, self._tolerances)
        pairs = [
            Pair(prompt, expected, each.picture, each.error)
            for prompt, expected, each in zip(self._prompts, self._pictures, drawn, strict=True)
        ]
        manifest = engines.manifest
        tolerance = self._tolerances.of("", manifest.backend, manifest.precision, "picture")
        pictures = compare_pictures(pairs, tolerance, scored=self._scored, lpips=None)
        outcomes = [(each.outcome, each.reason) for each in trajectories]
        outcomes += [(each.outcome, each.reason) for each in pictures]
        for outcome, reason in outcomes:
            if outcome != "passed":
                return False, f"{outcome}: {reason}"
        worst = max(error for each in trajectories for error in each.relative_l2)
        return True, f"latents within {worst:.2g} of PyTorch"
