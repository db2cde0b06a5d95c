"""A UNet that computes its deep layers in some steps only, and reuses their features in the others (DeepCache).

Ma, Fang and Wang 2023, arXiv:2312.00858, section 3.3, at a uniform interval. ``sdrt.export.deepcache`` exports the two
passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sdrt.arrays import Array
from sdrt.runtime.backends.base import Engine

if TYPE_CHECKING:
    from sdrt.artefacts.engine_set import EngineComponent


class CachedUnet:
    """Stands in for the UNet in one denoising loop: one call a step, in order. A new loop needs a new object.

    Steps 0, N, 2N, ... run the whole pass, whose deep features the steps between reuse. Features are kept row by row,
    so each half of guidance has its own. If guidance begins later (with a guidance interval), the negative half has
    none yet, and that step runs the whole pass too; if it ends, the prompts' rows keep theirs.

    Args:
        whole: An engine of deepcache_whole.
        shallow: An engine of deepcache_shallow.
        interval: N, at least 1; at 1 every step is whole.

    Attributes:
        seconds: Seconds of each step.
        whole_steps: Steps that ran the whole pass, counted from 0.
    """

    def __init__(self, whole: Engine, shallow: Engine, interval: int) -> None:
        self.seconds: list[float] = []
        self.whole_steps: list[int] = []
        self._whole, self._shallow, self._interval = whole, shallow, interval
        self._features: Array = np.empty(0)

    @property
    def spec(self) -> EngineComponent:
        """The spec of the whole pass; its inputs are the UNet's."""
        return self._whole.spec

    def run(self, **feeds: Array) -> dict[str, Array]:
        """Run the next step.

        Args:
            feeds: sample, timestep and encoder_hidden_states, of n rows; or of 2n, the negative prompts' first.

        Returns:
            out_sample, of as many rows.

        Raises:
            SdrtError: As the engines' own ``run`` raises.
        """
        step, rows = len(self.seconds), len(feeds["sample"])
        if step % self._interval == 0 or rows > len(self._features):
            outputs = self._whole.run(**feeds)
            self._features = outputs.pop("deep_features")
            self.whole_steps.append(step)
            self.seconds.append(self._whole.last_s)
        else:
            outputs = self._shallow.run(**feeds, deep_features=self._features[-rows:])
            self.seconds.append(self._shallow.last_s)
        return outputs
