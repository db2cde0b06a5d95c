"""The tiny checkpoint in PyTorch, denoised once."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdrt.checkpoint import open_checkpoint
from sdrt.compare.inputs import Inputs
from sdrt.compare.reference import Reference, ReferenceTrajectory
from sdrt.runtime.request import make_request

PROMPTS = ["a red circle above a blue square"]
#: Few steps, whose timesteps are fractional: 999, 799.2, 599.4, ...
STEPS = 6


@pytest.fixture(scope="session")
def tiny_reference(tiny_path: Path) -> Reference:
    """Return the tiny checkpoint as a reference."""
    return Reference(open_checkpoint(str(tiny_path)))


@pytest.fixture(scope="session")
def tiny_trajectory(tiny_reference: Reference) -> ReferenceTrajectory:
    """Return its trajectory for one prompt."""
    return tiny_reference.denoise(make_request(PROMPTS, seed=5, num_inference_steps=STEPS))


@pytest.fixture(scope="session")
def tiny_inputs(tiny_reference: Reference, tiny_trajectory: ReferenceTrajectory) -> Inputs:
    """Return its components' inputs, at batches 1 and 2."""
    return Inputs(tiny_reference, tiny_trajectory, (1, 2))
