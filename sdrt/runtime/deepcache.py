"""A UNet that computes its depth in some steps only, and in the others takes it as it was (DeepCache).

Ma, Fang and Wang 2023, arXiv:2312.00858, section 3.3, at a uniform interval. The two passes are cut by
``sdrt.export.deepcache``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sdrt.arrays import Array
from sdrt.runtime.backends.base import Engine

if TYPE_CHECKING:
    from sdrt.artefacts.engine_set import EngineComponent


class CachedUnet:
    """Runs as the UNet does, once a step of one loop, in order; not to be used for a second loop.

    Steps 0, N, 2N, ... run the whole pass, whose deep features the steps between take. Features are kept row by row, so
    each half of guidance has its own. Where guidance begins (with a guidance interval) the negative half has none yet,
    and that step runs the whole pass too; where it ends, the prompts' rows go on with theirs.

    Args:
        whole: An engine of deepcache_whole.
        shallow: An engine of deepcache_shallow.
        interval: N, 1 and up; at 1 every step is whole.

    Attributes:
        seconds: How long each step took, in order.
        whole_steps: Which ones ran the whole pass, counted from 0.
    """

    def __init__(self, whole: Engine, shallow: Engine, interval: int) -> None:
        self.seconds: list[float] = []
        self.whole_steps: list[int] = []
        self._whole, self._shallow, self._interval = whole, shallow, interval
        self._features: Array = np.empty(0)

    @property
    def spec(self) -> EngineComponent:
        """The whole pass's; its inputs are the UNet's."""
        return self._whole.spec

    def run(self, **feeds: Array) -> dict[str, Array]:
        """Run the next step.

        Args:
            feeds: sample, timestep and encoder_hidden_states, of n rows; or of 2n, the negative prompts' first.

        Returns:
            out_sample.

        Raises:
            SdrtError: As the engines' own ``run``.
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
