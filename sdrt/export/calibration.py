"""Calibrate int8: measure the ranges of the inputs of the UNet's products during whole guided denoisings.

ONNX Runtime runs the bundle's own fp32 graphs of text encoder and UNet. The minimum and the maximum of a tensor at each
step are averaged over the prompts, and its range spans the averages of all steps. Values beyond the average of the
prompts are clipped, since a wider range would make the grid coarser for all; no whole step is (docs/decisions/0057).
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

#: Calibration prompts, short and long, of scenes and of things; the index of each is its seed.
PROMPTS: tuple[str, ...] = (
    "a photo of an astronaut riding a horse on mars",
    "a large green star on a purple background",
    "a red circle above a blue square, on a white background, two small yellow triangles",
    "portrait of an old fisherman, oil on canvas, dramatic light, highly detailed",
)
#: Prompt on which the quantised graph is tested; it is not part of the calibration.
HELD_OUT = "a small orange triangle left of a black circle on a green background"
STEPS = 8
#: Side in latents of the areas whose means are compared.
AREA = 8
GUIDANCE_SCALE = 7.5


@dataclass(frozen=True)
class Pass:
    """One run of the UNet on both guidance halves.

    Attributes:
        feeds: Inputs by name, two rows each.
        output: Output in fp32 [2,channels,height,width].
        width: Decrease of sigma over the step.
    """

    feeds: dict[str, Floats]
    output: Floats
    width: float

    def error(self, output: Floats) -> float:
        """Return the error of another output of this run: L2 norm of the change of the latents' means over areas.

        Noise that cancels within an area does not count, since later steps remove it: OpenVINO's bf16 alone has an
        error of 0.27 of the latents' norm, of which all but 0.04 is such noise (docs/decisions/0057).
        """
        difference = _guided(output) - _guided(self.output)
        _, channels, height, width = difference.shape
        means = difference.reshape(channels, height // AREA, AREA, width // AREA, AREA).mean(axis=(2, 4))
        return self.width * AREA * float(np.linalg.norm(means))


@dataclass(frozen=True)
class Calibration:
    """Result of a calibration.

    Attributes:
        ranges: Minimum and maximum by tensor.
        held_out: Passes of the denoising of `HELD_OUT`, which is not part of the ranges.
        latents: Final latents of that denoising.
    """

    ranges: dict[str, tuple[float, float]]
    held_out: tuple[Pass, ...]
    latents: Floats

    def errors(self, session: Any) -> list[float]:
        """Return a graph's error in each held-out pass, relative to the norm of the final latents.

        Each step's guided output is compared on the fp32 trajectory, so that errors do not accumulate, and is weighted
        by the step's width in sigma. Errors of different steps are independent, so `math.hypot` of them estimates the
        error of the picture.

        Args:
            session: ONNX Runtime session of a graph with the UNet's inputs and output.
        """
        length = float(np.linalg.norm(self.latents))
        return [made.error(session.run(None, made.feeds)[0]) / length for made in self.held_out]


def calibrate(bundle: Bundle, tensors: Sequence[str], progress: Progress) -> Calibration:
    """Denoise `PROMPTS` in fp32 and record the ranges of tensors of the UNet; then denoise `HELD_OUT`.

    Args:
        bundle: Bundle in fp32, with text encoder and UNet.
        tensors: Names of tensors in the UNet's graph.
        progress: Progress callback; advances once per run of the UNet.

    Raises:
        BackendUnavailableError: onnxruntime is not installed.
    """
    import onnx

    states = _encode(bundle)
    schedule = Schedule.from_config(json.loads((bundle.path / "scheduler/scheduler_config.json").read_bytes()), STEPS)
    graph = bundle.graph("unet")
    model = onnx.load(str(graph), load_external_data=False)
    _output_extremes(model, tensors)
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
    # [prompts, steps, tensors, 2]: minimum and maximum
    by_step = np.asarray(extremes, np.float64).reshape(len(PROMPTS), STEPS, -1, 2).mean(axis=0)
    least, largest = by_step[..., 0].min(axis=0), by_step[..., 1].max(axis=0)
    ranges = {name: (float(low), float(high)) for name, low, high in zip(tensors, least, largest, strict=True)}
    return Calibration(ranges, tuple(held_out), trajectory.latents)


def _encode(bundle: Bundle) -> Floats:
    """Return the hidden states of the empty prompt, `PROMPTS` and `HELD_OUT` [prompts,tokens,hidden], float32."""
    tokenizer = Tokenizer.open(bundle.path / "tokenizer/tokenizer.json", bundle.manifest.model.max_tokens)
    session = open_cpu_session(bundle.graph("text_encoder"))
    tokens = tokenizer.encode(["", *PROMPTS, HELD_OUT]).input_ids
    states: Floats = session.run(None, {"input_ids": tokens})[0]
    return states


def _output_extremes(model: onnx.ModelProto, tensors: Sequence[str]) -> None:
    """Append the minimum and the maximum of each tensor to the graph's outputs, in place."""
    import onnx

    for name in tensors:
        for operator in ("ReduceMin", "ReduceMax"):
            extreme = f"calibration.{operator}.{name}"
            model.graph.node.append(onnx.helper.make_node(operator, [name], [extreme], keepdims=0))
            model.graph.output.append(onnx.helper.make_tensor_value_info(extreme, onnx.TensorProto.FLOAT, []))


class _Trajectory:
    """One guided denoising by the UNet's graph.

    Attributes:
        latents: Current latents, float32 [1,channels,height,width]; the final ones after `run`.
    """

    def __init__(self, session: Any, bundle: Bundle, schedule: Schedule, states: Floats, seed: int) -> None:
        model = bundle.manifest.model
        noise = unit_noise([seed], (model.latent_channels, model.latent_size, model.latent_size))
        self.latents: Floats = noise * np.float32(schedule.init_noise_sigma)
        self._session, self._schedule, self._states = session, schedule, states

    def run(self) -> Iterator[tuple[list[Any], Pass]]:
        """Yield the session's outputs of each step, and the step as a `Pass`."""
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
    """Combine an output [2,...], unconditional half first, by classifier-free guidance to [1,...]."""
    guided: Floats = output[:1] + np.float32(GUIDANCE_SCALE) * (output[1:] - output[:1])
    return guided
