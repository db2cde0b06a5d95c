"""Inputs of components: real ids, the trajectory's own latents and timesteps, at the batches that engines take."""

from __future__ import annotations

import numpy as np
import pytest

from sdrt.artefacts.engine_set import BatchRange
from sdrt.compare.inputs import Inputs, allowed, positions
from sdrt.compare.reference import Reference, ReferenceTrajectory
from sdrt.runtime.request import make_request
from sdrt.sampling.lms import Schedule


@pytest.mark.parametrize(
    ("limits", "batches"),
    [
        (None, (1, 2, 3)),
        (BatchRange(min=1, opt=2, max=8), (1, 2, 3, 8)),
        (BatchRange(min=2, opt=2, max=2), (2,)),
        (BatchRange(min=4, opt=4, max=4), (4,)),
        (BatchRange(min=1, opt=1, max=3), (1, 2, 3)),
    ],
)
def test_batches_within_the_profile_and_its_maximum(limits: BatchRange | None, batches: tuple[int, ...]) -> None:
    assert allowed((3, 1, 2, 2), limits) == batches


def test_the_trajectory_is_lms_over_the_checkpoints_betas(
    tiny_reference: Reference, tiny_trajectory: ReferenceTrajectory
) -> None:
    schedule = Schedule.from_config(tiny_reference.checkpoint.scheduler, 6)
    np.testing.assert_allclose(tiny_trajectory.timesteps, schedule.timesteps, rtol=1e-6)
    # diffusers rounds its table to float32 before it interpolates, and integrates to 1e-4.
    np.testing.assert_allclose(tiny_trajectory.sigmas, schedule.sigmas, rtol=1e-5)
    np.testing.assert_allclose(tiny_trajectory.coefficients, schedule.coefficients, rtol=2e-4, atol=1e-6)
    assert len(tiny_trajectory.latents) == 7


def test_positions_of_a_trajectory(tiny_trajectory: ReferenceTrajectory) -> None:
    # 999, 799.2, 599.4, 399.6, 199.8, 0: steps 2 and 3 are as far from whole numbers, up to rounding.
    places = positions(tiny_trajectory)
    assert places["first and early"] == 0
    assert places["late"] == 4
    (most,) = (step for name, step in places.items() if "most fractional" in name)
    assert tiny_trajectory.timesteps[most] % 1 == pytest.approx(0.5, abs=0.11)


def test_unet_rows_are_both_halves_at_one_step(tiny_inputs: Inputs, tiny_trajectory: ReferenceTrajectory) -> None:
    cases = tiny_inputs.cases("unet", None)
    assert {case.batch for case in cases} == {1, 2}
    case = next(case for case in cases if "most fractional" in case.label)
    (step,) = (step for name, step in positions(tiny_trajectory).items() if "most fractional" in name)
    assert case.feeds["timestep"].dtype == np.float32
    assert case.feeds["timestep"][0] == tiny_trajectory.timesteps[step]
    scaled = tiny_trajectory.latents[step][0] / np.sqrt(tiny_trajectory.sigmas[step] ** 2 + 1)
    np.testing.assert_allclose(case.feeds["sample"][0], scaled, rtol=1e-6)
    pair = next(case for case in cases if case.batch == 2 and not case.label.startswith("mixed"))
    np.testing.assert_array_equal(pair.feeds["sample"][0], pair.feeds["sample"][1])
    np.testing.assert_array_equal(pair.feeds["encoder_hidden_states"], tiny_trajectory.states)
    assert np.unique(cases[-1].feeds["timestep"]).size == 2


def test_a_step_has_the_history_that_the_reference_had(
    tiny_inputs: Inputs, tiny_trajectory: ReferenceTrajectory
) -> None:
    case = next(case for case in tiny_inputs.cases("denoise_step", None) if case.label.startswith("late"))
    track = tiny_trajectory
    newest, *_, oldest = case.feeds["history"][0]
    np.testing.assert_array_equal(newest, track.derivatives[3][0])
    np.testing.assert_array_equal(oldest, track.derivatives[0][0])
    first = tiny_inputs.cases("denoise_step", None)[0]
    assert not first.feeds["history"].any()
    assert first.feeds["lms_coefficients"][0, 1:].any() == np.False_


def test_the_reference_step_is_the_trajectorys(tiny_reference: Reference, tiny_inputs: Inputs) -> None:
    track = tiny_inputs.trajectory
    for case in tiny_inputs.cases("denoise_step", None)[:2]:
        step = int(np.flatnonzero(track.timesteps == case.feeds["timestep"][0])[0])
        outputs = tiny_reference.run("denoise_step", case.feeds)
        # The batch size changes the order of fp32 sums; guidance amplifies that.
        np.testing.assert_allclose(outputs["next_latents"][0], track.latents[step + 1][0], rtol=1e-3, atol=1e-3)


def test_token_ids_are_of_real_prompts(tiny_inputs: Inputs) -> None:
    cases = tiny_inputs.cases("text_encoder", BatchRange(min=1, opt=1, max=5))
    rows = np.unique(np.concatenate([case.feeds["input_ids"] for case in cases]), axis=0)
    assert [case.batch for case in cases] == [1, 2, 5]
    assert rows.shape == (5 - 1, 77)  # the empty prompt is one of the fixed ones, and the negative prompt
    full = np.count_nonzero(rows != 49407, axis=1)
    assert full.min() == 1
    assert full.max() == 76


def test_without_guidance_the_step_is_not_met(tiny_reference: Reference, tiny_inputs: Inputs) -> None:
    plain = tiny_reference.denoise(make_request("a circle", seed=0, num_inference_steps=1, guidance_scale=1.0))
    inputs = Inputs(tiny_reference, plain, (1,))
    assert inputs.cases("denoise_step", None) == ()
    (case,) = inputs.cases("unet", None)
    assert case.label == "first and early and middle and late and most fractional, step 1 of 1, batch 1"
    assert plain.states.shape[0] == 1


def test_the_decoder_gets_final_latents_unscaled(tiny_inputs: Inputs, tiny_reference: Reference) -> None:
    (one, _) = tiny_inputs.cases("vae_decoder", None)
    final = tiny_inputs.trajectory.latents[-1]
    np.testing.assert_allclose(one.feeds["latent_sample"] * tiny_reference.model.scaling_factor, final, rtol=1e-6)
