"""Whether an engine set still draws what the checkpoint draws: `sdrt.compare` without its report."""

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
#: Of the set that suits a checkpoint, so many of its first are drawn.
PICTURES = 2
#: The tolerances were measured at so many steps.
STEPS = 25


class Judge:
    """Draws by PyTorch once; then holds one engine set after another against it.

    Args:
        checkpoint: What is drawn from.
        progress: Told of the reference's steps.
        token_merging: Share of tokens that the reference's UNet merges, as what is judged does.

    Raises:
        BackendUnavailableError: What a comparison needs is not installed.
    """

    def __init__(self, checkpoint: Checkpoint, progress: Progress, token_merging: float | None = None) -> None:
        try:
            from sdrt.compare.reference import Reference
        except ModuleNotFoundError as error:
            hint = extra_line("cpu", "export", "compare")
            message = f"{error.name} is needed to check what is tuned and is not installed"
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
        """Draw with the engines; whether every latent and picture is within its tolerance, and why not.

        What has no tolerance cannot be verified, and is not accurate.
        """
        from sdrt.compare.pictures import Pair, compare_pictures
        from sdrt.compare.trajectories import compare_trajectories, draw

        drawn = draw(engines, self._trajectory.request, progress, threads=threads, loop=loop)
        trajectories = compare_trajectories(self._trajectory, drawn, engines, self._tolerances)
        pairs = [
            Pair(asked, expected, each.picture, each.error)
            for asked, expected, each in zip(self._prompts, self._pictures, drawn, strict=True)
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
