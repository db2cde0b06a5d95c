"""The reference: a checkpoint's own networks in PyTorch, fp32, with diffusers' LMS scheduler around them.

It uses neither the bundle and engines nor the runtime's tokenizer and arithmetic, so that a fault in any of them shows.
Only the noise is the runtime's, because both sides must start from the same.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import numpy.typing as npt
import torch
from diffusers import LMSDiscreteScheduler
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import TextualInversionLoaderMixin
from transformers import CLIPTokenizer

from sdrt.artefacts.manifest import ComponentName, Precision
from sdrt.checkpoint import Checkpoint
from sdrt.errors import BackendUnavailableError
from sdrt.export.components import TorchComponent, load_component, model_record
from sdrt.install_lines import extra_line
from sdrt.progress import Progress, silent
from sdrt.runtime.request import Request
from sdrt.sampling.latents import unit_noise

if TYPE_CHECKING:
    from PIL import Image

Array = npt.NDArray[Any]
Latents = npt.NDArray[np.float32]
Feeds = Mapping[str, Array]

#: Number of pictures that are denoised together.
PICTURES_AT_ONCE = 4
#: Order of LMS: the number of derivatives that a step uses.
ORDER = 4
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16}


@dataclass(frozen=True, eq=False)
class ReferenceTrajectory:
    """The reference's denoising of the n pictures of a request.

    Attributes:
        request: The request.
        input_ids: int64 [n, tokens], or [2n, tokens] with the negative prompts first if guidance is on.
        states: float32 [n or 2n, tokens, hidden], the text encoder's hidden states.
        timesteps: float32 [steps].
        sigmas: float32 [steps + 1].
        coefficients: float64 [steps, 4], LMS weights of the derivatives, the newest first.
        latents: steps + 1 arrays float32 [n, 4, 64, 64]: the first noise, then the latents after each step.
        derivatives: steps arrays float32 [n, 4, 64, 64].
    """

    request: Request
    input_ids: npt.NDArray[np.int64]
    states: npt.NDArray[np.float32]
    timesteps: npt.NDArray[np.float32]
    sigmas: npt.NDArray[np.float32]
    coefficients: npt.NDArray[np.float64]
    latents: tuple[Latents, ...]
    derivatives: tuple[Latents, ...]

    def history(self, step: int) -> Latents:
        """Return the derivatives before a step, newest first, zero if there are fewer: float32 [n, 4, 4, 64, 64]."""
        known = [self.derivatives[index] for index in range(step - 1, max(step - 1 - ORDER, -1), -1)]
        missing = [np.zeros_like(self.latents[0])] * (ORDER - len(known))
        return np.stack([*known, *missing], axis=1)


class Reference:
    """A checkpoint's components as functions of NumPy arrays. One network is in memory at a time.

    Args:
        checkpoint: The opened checkpoint.
        token_merging: Share of tokens that its UNet merges, equal to the subject's; None merges none.

    Attributes:
        model: Model record, as in a bundle's manifest.
    """

    def __init__(self, checkpoint: Checkpoint, token_merging: float | None = None) -> None:
        self.checkpoint = checkpoint
        self._token_merging = token_merging
        self.model = model_record(checkpoint)
        self._source: tuple[ComponentName, Precision, TorchComponent] | None = None
        self._outputs: dict[str, dict[str, Array]] = {}

    def source(self, component: ComponentName, precision: Precision = "fp32") -> TorchComponent:
        """Load a component's module in eval mode, for denoise_step the UNet's; the previous module is released.

        Raises:
            CheckpointError: The weights are malformed.
            BackendUnavailableError: The reference does not compute in this precision.
        """
        if precision not in DTYPES:
            hint = f"choose {' or '.join(DTYPES)}"
            raise BackendUnavailableError(f"the PyTorch reference does not compute in {precision}", hint=hint)
        name: ComponentName = "unet" if component == "denoise_step" else component
        if self._source is None or self._source[:2] != (name, precision):
            self.release()
            source = load_component(self.checkpoint, name, self._token_merging)
            source.module.to(DTYPES[precision])
            self._source = (name, precision, source)
        return self._source[2]

    def release(self) -> None:
        """Release the network in memory."""
        if self._source is not None:
            self._source = None
            gc.collect()

    def run(self, component: ComponentName, feeds: Feeds, precision: Precision = "fp32") -> dict[str, Array]:
        """Run a component of the bundle's contract; outputs are cached by their inputs.

        Args:
            component: Name of the component.
            feeds: Arrays by input name; float32 or int64, batch first.
            precision: fp32 for the reference, fp16 to show the error of half precision.

        Returns:
            Float32 arrays by output name.
        """
        key = _digest(component, precision, feeds)
        if key not in self._outputs:
            source = self.source(component, precision)
            if component == "denoise_step":
                made = guided_step(self._unet(source, precision), feeds, self.checkpoint.scheduler)
                self._outputs[key] = {name: made[name] for name in ("next_latents", "next_history")}
            else:
                self._outputs[key] = {source.output[0]: _run(source, feeds, DTYPES[precision])}
        return self._outputs[key]

    def denoise(self, request: Request, progress: Progress = silent) -> ReferenceTrajectory:
        """Denoise every picture of a request, keeping the latents after each step.

        Raises:
            CheckpointError: A network's weights are malformed.
        """
        texts = [picture.prompt for picture in request.pictures]
        if request.guided:
            texts = [picture.negative_prompt for picture in request.pictures] + texts
        input_ids = self.tokenize(texts)
        # Encode each text alone, as the runtime does: other rows of a batch change the last bit.
        rows = {row.tobytes(): row[np.newaxis] for row in input_ids}
        known = {key: self.run("text_encoder", {"input_ids": row})["last_hidden_state"] for key, row in rows.items()}
        states = np.concatenate([known[row.tobytes()] for row in input_ids])
        shape = (self.model.latent_channels, self.model.latent_size, self.model.latent_size)
        noise = unit_noise([picture.seed for picture in request.pictures], shape)
        parts = []
        with progress.stage("reference", request.num_inference_steps * len(noise)) as advance:
            for first in range(0, len(noise), PICTURES_AT_ONCE):
                chosen = slice(first, first + PICTURES_AT_ONCE)
                halves = states.reshape(-1, len(noise), *states.shape[1:])[:, chosen]
                parts.append(self._denoise(noise[chosen], halves, request, advance))
        scheduler = parts[0].scheduler
        return ReferenceTrajectory(
            request,
            input_ids,
            states,
            scheduler.timesteps.numpy().astype(np.float32),
            scheduler.sigmas.numpy().astype(np.float32),
            _coefficients(scheduler, request.num_inference_steps),
            tuple(np.concatenate(rows) for rows in zip(*(part.latents for part in parts), strict=True)),
            tuple(np.concatenate(rows) for rows in zip(*(part.derivatives for part in parts), strict=True)),
        )

    def tokenize(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """Tokenize with transformers after diffusers' expansion of textual inversions; returns int64 [n, tokens]."""
        with _quiet():
            tokenizer = CLIPTokenizer.from_pretrained(self.checkpoint.path / "tokenizer", local_files_only=True)
            length = self.model.max_tokens
            expanded = TextualInversionLoaderMixin().maybe_convert_prompt(list(texts), tokenizer)
            found = tokenizer(expanded, padding="max_length", truncation=True, max_length=length)
        return np.asarray(found["input_ids"], np.int64)

    def decode(self, latents: Latents) -> list[Image.Image]:
        """Decode final latents [n, 4, 64, 64] one at a time to pictures, rounded as diffusers does."""
        factor = np.float32(self.model.scaling_factor)
        pictures = []
        for row in latents:
            sample = self.run("vae_decoder", {"latent_sample": row[np.newaxis] / factor})["sample"]
            pictures += VaeImageProcessor().postprocess(torch.from_numpy(sample), output_type="pil")
        return pictures

    def scheduler(self, num_inference_steps: int) -> LMSDiscreteScheduler:
        """Return diffusers' LMS scheduler with the checkpoint's betas and linspace timesteps.

        Raises:
            BackendUnavailableError: scipy is not installed.
        """
        with _quiet():
            try:
                scheduler = LMSDiscreteScheduler.from_config(self.checkpoint.scheduler, timestep_spacing="linspace")
            except ImportError as error:
                hint = extra_line("compare")
                message = "scipy, which diffusers needs for LMS, is not installed"
                raise BackendUnavailableError(message, hint=hint) from error
            scheduler.set_timesteps(num_inference_steps)
        return scheduler

    def _unet(self, source: TorchComponent, precision: Precision) -> Callable[[Feeds], Array]:
        return lambda feeds: _run(source, feeds, DTYPES[precision])

    def _denoise(
        self, noise: Latents, halves: npt.NDArray[np.float32], request: Request, advance: Callable[[int], None]
    ) -> _Denoised:
        """Run the loop of diffusers' StableDiffusionPipeline; ``halves`` is [1 or 2, n, tokens, hidden]."""
        scheduler, source = self.scheduler(request.num_inference_steps), self.source("unet")
        states = torch.from_numpy(halves.reshape(-1, *halves.shape[2:]))
        latents = torch.from_numpy(noise) * scheduler.init_noise_sigma
        kept, slopes = [latents.numpy().astype(np.float32)], []
        with torch.no_grad(), _quiet():
            for timestep in scheduler.timesteps:
                sample = scheduler.scale_model_input(latents, timestep).repeat(len(halves), 1, 1, 1)
                output = source.module(sample.float(), timestep.float().repeat(len(sample)), states)
                if len(halves) == 2:
                    uncond, cond = output.chunk(2)
                    output = uncond + request.guidance_scale * (cond - uncond)
                latents = scheduler.step(output, timestep, latents).prev_sample.float()
                kept.append(latents.numpy())
                slopes.append(scheduler.derivatives[-1].float().numpy())
                advance(len(noise))
        return _Denoised(scheduler, kept, slopes)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence diffusers and transformers in the block; users cannot act on their deprecation warnings."""
    before = diffusers.logging.get_verbosity()
    diffusers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        diffusers.logging.set_verbosity(before)


@dataclass(frozen=True)
class _Denoised:
    """Results of the loop for pictures denoised together."""

    scheduler: LMSDiscreteScheduler
    latents: list[Latents]
    derivatives: list[Latents]


def guided_step(unet: Callable[[Feeds], Array], feeds: Feeds, scheduler: Mapping[str, Any]) -> dict[str, Array]:
    """Compute one guided LMS step of denoise_step's contract by the formulas of diffusers' LMSDiscreteScheduler.

    Args:
        unet: The UNet, from its feeds to out_sample.
        feeds: Inputs of denoise_step, by name.
        scheduler: The checkpoint's scheduler config, for its prediction type.

    Returns:
        next_latents, next_history, and the intermediate tensors by their names in the composed graph, all float32.
    """
    latents, n = feeds["latents"], len(feeds["latents"])
    sigma = feeds["sigma"].reshape(n, 1, 1, 1).astype(np.float64)
    deviation = np.sqrt(sigma**2 + 1)
    scaled = (latents / deviation).astype(np.float32)
    inputs = {
        "sample": np.concatenate([scaled, scaled]),
        "timestep": np.concatenate([feeds["timestep"]] * 2),
        "encoder_hidden_states": np.concatenate([feeds["uncond_states"], feeds["cond_states"]]),
    }
    output = unet(inputs).astype(np.float64)
    uncond, cond = output[:n], output[n:]
    guided = uncond + feeds["guidance_scale"].reshape(n, 1, 1, 1) * (cond - uncond)
    slope = guided
    if scheduler.get("prediction_type", "epsilon") == "v_prediction":
        original = guided * (-sigma / deviation) + latents / (sigma**2 + 1)
        slope = (latents - original) / sigma
    history = np.concatenate([slope[:, np.newaxis], feeds["history"][:, : ORDER - 1]], axis=1)
    change = np.sum(history * feeds["lms_coefficients"].reshape(n, ORDER, 1, 1, 1), axis=1)
    made = {
        "step.scaled": scaled,
        "unet.sample": inputs["sample"],
        "unet.timestep": inputs["timestep"],
        "unet.encoder_hidden_states": inputs["encoder_hidden_states"],
        "unet.out_sample": output,
        "step.uncond": uncond,
        "step.cond": cond,
        "step.guided": guided,
        "step.derivative": slope,
        "next_history": history,
        "step.change": change,
        "next_latents": latents + change,
    }
    return {name: value.astype(np.float32) for name, value in made.items()}


def _coefficients(scheduler: LMSDiscreteScheduler, steps: int) -> npt.NDArray[np.float64]:
    """Compute diffusers' LMS coefficients, float64 [steps, 4], zero if a step has fewer derivatives."""
    rows = np.zeros((steps, ORDER))
    with _quiet():
        for step in range(steps):
            order = min(step + 1, ORDER)
            rows[step, :order] = [scheduler.get_lms_coefficient(order, step, index) for index in range(order)]
    return rows


def _run(source: TorchComponent, feeds: Feeds, dtype: torch.dtype) -> Array:
    """Run a module and return its output as float32; inputs are cast to the module's dtypes."""
    inputs = {
        name: torch.from_numpy(np.ascontiguousarray(feeds[name])).to(fixed or dtype)
        for name, (fixed, _) in source.inputs.items()
    }
    with torch.no_grad():
        output: Array = source.module(**inputs).float().numpy()
    return output


def _digest(component: str, precision: str, feeds: Feeds) -> str:
    """Return the cache key of a component's run on these inputs."""
    digest = hashlib.sha256(f"{component} {precision}".encode())
    for name in sorted(feeds):
        digest.update(f"{name} {feeds[name].dtype} {feeds[name].shape}".encode())
        digest.update(np.ascontiguousarray(feeds[name]).data)
    return digest.hexdigest()
