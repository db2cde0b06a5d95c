"""What the UNet's products are fed while pictures are made: the ranges that int8 has to hold.

ONNX Runtime runs the bundle's own fp32 graphs, text encoder and UNet, over whole guided denoisings. Of each step the
least and the largest value of a tensor is the mean over the prompts, and its range spans those of all steps: what few
prompts exceed is clipped, since a grid that held it would be coarser for all, but no step is (docs/decisions/0057).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sdrt.artefacts.bundle import Bundle
from sdrt.export.cpu_session import open_cpu_session
from sdrt.progress import Progress
from sdrt.runtime.text import Tokenizer
from sdrt.sampling import lms
from sdrt.sampling.latents import unit_noise
from sdrt.sampling.lms import Schedule

if TYPE_CHECKING:
    import onnx

Floats = npt.NDArray[np.float32]

#: What is drawn to calibrate, each with the noise of its number as seed. Short and long, of scenes and of things.
PROMPTS: tuple[str, ...] = (
    "a photo of an astronaut riding a horse on mars",
    "a large green star on a purple background",
    "a red circle above a blue square, on a white background, two small yellow triangles",
    "portrait of an old fisherman, oil on canvas, dramatic light, highly detailed",
)
#: What the quantised graph is tested on; no part of the calibration.
HELD_OUT = "a small orange triangle left of a black circle on a green background"
STEPS = 8
#: Side in latents of the areas whose means have to be right.
AREA = 8
GUIDANCE_SCALE = 7.5


@dataclass(frozen=True)
class Pass:
    """One run of the UNet on both halves: its feeds, its fp32 output, and how far the step goes, in sigma."""

    feeds: dict[str, Floats]
    output: Floats
    width: float

    def fault(self, output: Floats) -> float:
        """How far another output of the same run takes the latents' means over areas astray, as a length.

        Noise that cancels within an area is left out, for the steps that follow remove it: of the 0.27 of the latents'
        length by which OpenVINO's bf16 alone errs, all but 0.04 is such noise (docs/decisions/0057).
        """
        fault = _guided(output) - _guided(self.output)
        _, channels, height, width = fault.shape
        means = fault.reshape(channels, height // AREA, AREA, width // AREA, AREA).mean(axis=(2, 4))
        return self.width * AREA * float(np.linalg.norm(means))


@dataclass(frozen=True)
class Calibration:
    """Ranges (least, largest) by tensor, the passes of a trajectory that is no part of them, and its final latents."""

    ranges: dict[str, tuple[float, float]]
    held_out: tuple[Pass, ...]
    latents: Floats

    def faults(self, session: Any) -> list[float]:
        """What a graph's faults do to the held-out picture's latents in each pass: a length over theirs.

        Each step's guided output is compared on the fp32 trajectory, so that faults do not grow from step to step, and
        counts by what the step does: its width in sigma. `math.hypot` of them is the error of the picture, for the
        faults of steps are independent.

        Args:
            session: Of ONNX Runtime, over a graph with the UNet's inputs and output.
        """
        length = float(np.linalg.norm(self.latents))
        return [made.fault(session.run(None, made.feeds)[0]) / length for made in self.held_out]


def calibrate(bundle: Bundle, tensors: Sequence[str], progress: Progress) -> Calibration:
    """Denoise `PROMPTS` in fp32 and watch tensors of the UNet; then `HELD_OUT`.

    Args:
        bundle: In fp32, with text encoder and UNet.
        tensors: Names in the UNet's graph.
        progress: Told of every run.

    Raises:
        BackendUnavailableError: onnxruntime is not installed.
    """
    import onnx

    states = _encode(bundle)
    schedule = Schedule.from_config(json.loads((bundle.path / "scheduler/scheduler_config.json").read_bytes()), STEPS)
    graph = bundle.graph("unet")
    model = onnx.load(str(graph), load_external_data=False)
    _watch(model, tensors)
    session = open_cpu_session(model.SerializeToString(), weights_folder=graph.parent)
    extremes: list[list[Any]] = []
    with progress.stage("calibrate", STEPS * (len(PROMPTS) + 1)) as advance:
        for seed in range(len(PROMPTS)):
            trajectory = _Trajectory(session, bundle, schedule, states[[0, seed + 1]], seed)
            for found, _ in trajectory.run():
                extremes.append(found[1:])
                advance(1)
        trajectory = _Trajectory(session, bundle, schedule, states[[0, -1]], len(PROMPTS))
        held_out = []
        for _, made in trajectory.run():
            held_out.append(made)
            advance(1)
    # [prompts, steps, tensors, least and largest]
    by_step = np.asarray(extremes, np.float64).reshape(len(PROMPTS), STEPS, -1, 2).mean(axis=0)
    least, largest = by_step[..., 0].min(axis=0), by_step[..., 1].max(axis=0)
    ranges = {name: (float(low), float(high)) for name, low, high in zip(tensors, least, largest, strict=True)}
    return Calibration(ranges, tuple(held_out), trajectory.latents)


def _encode(bundle: Bundle) -> Floats:
    """Hidden states of the empty prompt, of `PROMPTS` and of `HELD_OUT`."""
    tokenizer = Tokenizer.open(bundle.path / "tokenizer/tokenizer.json", bundle.manifest.model.max_tokens)
    session = open_cpu_session(bundle.graph("text_encoder"))
    tokens = tokenizer.encode(["", *PROMPTS, HELD_OUT]).input_ids
    states: Floats = session.run(None, {"input_ids": tokens})[0]
    return states


def _watch(model: onnx.ModelProto, tensors: Sequence[str]) -> None:
    """Let the graph put out the least and the largest value of each tensor, after what it puts out anyway."""
    import onnx

    for name in tensors:
        for operator in ("ReduceMin", "ReduceMax"):
            extreme = f"calibration.{operator}.{name}"
            model.graph.node.append(onnx.helper.make_node(operator, [name], [extreme], keepdims=0))
            model.graph.output.append(onnx.helper.make_tensor_value_info(extreme, onnx.TensorProto.FLOAT, []))


class _Trajectory:
    """One guided denoising by the UNet's graph; ``latents`` are the final ones once it has run."""

    def __init__(self, session: Any, bundle: Bundle, schedule: Schedule, states: Floats, seed: int) -> None:
        model = bundle.manifest.model
        noise = unit_noise([seed], (model.latent_channels, model.latent_size, model.latent_size))
        self.latents: Floats = noise * np.float32(schedule.init_noise_sigma)
        self._session, self._schedule, self._states = session, schedule, states

    def run(self) -> Iterator[tuple[list[Any], Pass]]:
        """What the session puts out in each step, and the step as a pass."""
        schedule = self._schedule
        slopes: list[Floats] = []
        for index in range(schedule.num_inference_steps):
            sigma = float(schedule.sigmas[index])
            scaled = lms.scale_model_input(self.latents, sigma)
            feeds = {
                "sample": np.concatenate([scaled, scaled]),
                "timestep": np.full(2, schedule.timesteps[index], np.float32),
                "encoder_hidden_states": self._states,
            }
            found = self._session.run(None, feeds)
            slopes.insert(0, lms.derivative(self.latents, _guided(found[0]), sigma, schedule.prediction_type))
            self.latents = lms.step(self.latents, slopes[: lms.MAX_ORDER], schedule.coefficients[index])
            yield found, Pass(feeds, found[0], sigma - float(schedule.sigmas[index + 1]))


def _guided(output: Floats) -> Floats:
    """The guided output [1,...] of the unconditional and the conditional half."""
    guided: Floats = output[:1] + np.float32(GUIDANCE_SCALE) * (output[1:] - output[:1])
    return guided
