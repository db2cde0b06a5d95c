"""Largest activations of each component in fp32, which decide whether fp16 can represent them.

They are measured on the torch modules, during a short guided denoising of a real prompt. The graphs would not do: ONNX
Runtime's CPU provider computes fp16 graphs in fp32, which hides an overflow (NVIDIA/TensorRT#4355).
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from sdrt.artefacts.manifest import ComponentName
from sdrt.checkpoint import Checkpoint
from sdrt.errors import NumericError
from sdrt.export.components import load_component, model_record
from sdrt.progress import Advance, Progress
from sdrt.runtime.text import Tokenizer
from sdrt.sampling import lms
from sdrt.sampling.latents import unit_noise
from sdrt.sampling.lms import Schedule

#: The largest finite number of fp16.
FP16_MAX = 65504.0
#: Prompt of the measured denoising; the empty prompt is its unconditional half.
PROMPT = "a photo of an astronaut riding a horse, a red circle above a blue square on a white background"
#: Denoising steps, from the largest sigma to 0. Few suffice: the early ones decide how large latents grow.
STEPS = 6
GUIDANCE_SCALE = 7.5


#: Components in the order in which they run: each needs the output of those before it.
CHAIN: tuple[ComponentName, ...] = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


def measure_activations(
    checkpoint: Checkpoint, tokenizer: Path, components: Collection[ComponentName], progress: Progress
) -> dict[ComponentName, float]:
    """Return the largest absolute output of any submodule of each component, in fp32.

    The text encoder encodes the empty prompt and a long one, the UNet denoises in 6 LMS steps at guidance scale 7.5,
    the VAE's decoder decodes the final latents, and its encoder encodes that picture. Components that come after the
    last requested one are not run.

    Args:
        checkpoint: The checkpoint; its modules are loaded one at a time.
        tokenizer: The checkpoint's tokenizer.json.
        components: Names of the components to measure, at least one.
        progress: Progress callback; advances once per forward pass.

    Raises:
        CheckpointError: The weights are malformed.
        NumericError: A component outputs NaN or Inf in fp32.
    """
    model, last = model_record(checkpoint), max(CHAIN.index(name) for name in components)
    peaks: dict[ComponentName, float] = {}
    with progress.stage("measure activations", STEPS + 3) as advance, torch.no_grad():
        tokens = Tokenizer.open(tokenizer, model.max_tokens).encode(["", PROMPT])
        with _watched(checkpoint, "text_encoder", peaks) as text_encoder:
            states = text_encoder(torch.from_numpy(tokens.input_ids))
            advance(1)
        if last >= CHAIN.index("unet"):
            noise = unit_noise([0], (model.latent_channels, model.latent_size, model.latent_size))
            with _watched(checkpoint, "unet", peaks) as unet:
                latents = _denoise(unet, Schedule.from_config(checkpoint.scheduler, STEPS), noise, states, advance)
        if last >= CHAIN.index("vae_decoder"):
            with _watched(checkpoint, "vae_decoder", peaks) as decoder:
                picture = decoder(torch.from_numpy(latents / np.float32(model.scaling_factor)))
                advance(1)
        if last >= CHAIN.index("vae_encoder"):
            with _watched(checkpoint, "vae_encoder", peaks) as encoder:
                encoder(picture.clamp(-1, 1))
                advance(1)
    return {name: peaks[name] for name in components}


def _denoise(
    unet: torch.nn.Module, schedule: Schedule, noise: lms.Latents, states: torch.Tensor, advance: Advance
) -> lms.Latents:
    """Denoise one picture and return its latents, float32 [1,channels,height,width].

    Args:
        unet: The UNet's module.
        schedule: The LMS schedule.
        noise: Unit noise, float32 [1,channels,height,width].
        states: Hidden states [2,tokens,hidden], the unconditional half first.
        advance: Called after each step.
    """
    latents = noise * np.float32(schedule.init_noise_sigma)
    slopes: list[lms.Latents] = []
    for index in range(schedule.num_inference_steps):
        sigma = float(schedule.sigmas[index])
        scaled = torch.from_numpy(lms.scale_model_input(latents, sigma))
        timesteps = torch.full((2,), float(schedule.timesteps[index]))
        uncond, cond = unet(torch.cat([scaled, scaled]), timesteps, states).numpy()
        guided = (uncond + np.float32(GUIDANCE_SCALE) * (cond - uncond))[np.newaxis]
        slopes.insert(0, lms.derivative(latents, guided, sigma, schedule.prediction_type))
        latents = lms.step(latents, slopes[: lms.MAX_ORDER], schedule.coefficients[index])
        advance(1)
    return latents


@contextlib.contextmanager
def _watched(
    checkpoint: Checkpoint, name: ComponentName, peaks: dict[ComponentName, float]
) -> Iterator[torch.nn.Module]:
    """Load a component's module, and record the largest output of its submodules in ``peaks`` within the block."""
    module = load_component(checkpoint, name).module
    peaks[name] = 0.0

    def watch(_module: torch.nn.Module, _inputs: object, output: object) -> None:
        for value in tree_leaves(output):
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
                least, most = (float(bound) for bound in torch.aminmax(value))
                if not (math.isfinite(least) and math.isfinite(most)):
                    hint = "check the checkpoint's weights; they give no picture in any precision"
                    raise NumericError(f"{name} gives NaN or Inf in fp32", hint=hint)
                peaks[name] = max(peaks[name], -least, most)

    for part in module.modules():
        part.register_forward_hook(watch)
    yield module
    del module
    gc.collect()
