"""Components of a checkpoint as torch modules, with example inputs and the bundle's names of inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sdrt.artefacts.manifest import ComponentName, ModelRecord
from sdrt.checkpoint import Checkpoint
from sdrt.checkpoint.modules import load_text_encoder, load_unet, load_vae
from sdrt.errors import CheckpointError
from sdrt.export.token_merging import merge_tokens

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

#: Batch size of the example inputs. Not 1: torch.export would make that a constant.
EXAMPLE_BATCH = 2


class TextEncoder(torch.nn.Module):
    """input_ids int64 [batch,tokens] -> last_hidden_state [batch,tokens,hidden]."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Encode token ids."""
        hidden: torch.Tensor = self.text_encoder(input_ids).last_hidden_state
        return hidden


class UNet(torch.nn.Module):
    """sample [batch,4,64,64], timestep fp32 [batch], encoder_hidden_states [batch,tokens,hidden] -> out_sample."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        """Predict the noise (or v) in the sample."""
        out: torch.Tensor = self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]
        return out


class VaeDecoder(torch.nn.Module):
    """latent_sample [batch,4,64,64], unscaled -> sample [batch,3,512,512] in about -1..1."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
        """Decode latents."""
        latents = latent_sample if self.post_quant_conv is None else self.post_quant_conv(latent_sample)
        sample: torch.Tensor = self.decoder(latents)
        return sample


class VaeEncoder(torch.nn.Module):
    """sample [batch,3,512,512] in -1..1 -> latent_parameters [batch,8,64,64]: mean, then log-variance, unscaled."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        """Encode pictures."""
        moments: torch.Tensor = self.encoder(sample)
        return moments if self.quant_conv is None else self.quant_conv(moments)


@dataclass(frozen=True)
class TorchComponent:
    """One component before export. Shapes leave out the batch.

    Attributes:
        name: The component's name.
        module: Its module, loaded in fp32.
        inputs: Name -> (dtype, or None for that of the precision; shape).
        output: Name and shape of the output.
    """

    name: ComponentName
    module: torch.nn.Module
    inputs: dict[str, tuple[torch.dtype | None, tuple[int, ...]]]
    output: tuple[str, tuple[int, ...]]

    def example(self, batch: int, dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
        """Return random inputs: normal latents, pictures and hidden states, fractional timesteps, token ids.

        Args:
            batch: Number of rows.
            dtype: Type of the inputs whose type depends on the precision.
            seed: Seed of the random numbers.
        """
        generator = torch.Generator().manual_seed(seed)
        values: dict[str, torch.Tensor] = {}
        for name, (fixed, shape) in self.inputs.items():
            if fixed is torch.int64:
                values[name] = torch.randint(0, 1000, (batch, *shape), generator=generator)
            elif name == "timestep":
                values[name] = 999 * torch.rand((batch, *shape), generator=generator)
            else:
                values[name] = torch.randn((batch, *shape), generator=generator).to(dtype)
        return values


def model_record(checkpoint: Checkpoint) -> ModelRecord:
    """Return the numbers that the runtime needs, from the checkpoint's configs."""
    vae, unet = checkpoint.vae, checkpoint.unet
    size = unet["sample_size"]
    if not isinstance(size, int):
        size = size[0]
    return ModelRecord(
        latent_channels=unet["in_channels"],
        latent_size=size,
        image_size=size * 2 ** (len(vae["block_out_channels"]) - 1),
        scaling_factor=vae.get("scaling_factor", 0.18215),
        max_tokens=checkpoint.max_tokens,
        hidden_size=checkpoint.text_encoder["hidden_size"],
        guidance_scale=checkpoint.guidance_scale,
    )


def load_component(checkpoint: Checkpoint, name: ComponentName, token_merging: float | None = None) -> TorchComponent:
    """Load one component of the checkpoint, in fp32 and eval mode.

    Args:
        checkpoint: The checkpoint.
        name: The component's name.
        token_merging: Share of tokens that the UNet merges; None merges none. Other components ignore it.

    Raises:
        CheckpointError: The name is unknown, the weights are malformed, or the UNet cannot merge tokens.
    """
    model = model_record(checkpoint)
    latents = (model.latent_channels, model.latent_size, model.latent_size)
    pictures = (3, model.image_size, model.image_size)
    hidden = (model.max_tokens, model.hidden_size)
    loaders: dict[ComponentName, Callable[[], TorchComponent]] = {
        "text_encoder": lambda: TorchComponent(
            "text_encoder",
            TextEncoder(load_text_encoder(checkpoint)),
            {"input_ids": (torch.int64, (model.max_tokens,))},
            ("last_hidden_state", hidden),
        ),
        "unet": lambda: TorchComponent(
            "unet",
            UNet(load_unet(checkpoint)),
            {"sample": (None, latents), "timestep": (torch.float32, ()), "encoder_hidden_states": (None, hidden)},
            ("out_sample", latents),
        ),
        "vae_encoder": lambda: TorchComponent(
            "vae_encoder",
            VaeEncoder(load_vae(checkpoint)),
            {"sample": (None, pictures)},
            ("latent_parameters", (2 * latents[0], *latents[1:])),
        ),
        "vae_decoder": lambda: TorchComponent(
            "vae_decoder", VaeDecoder(load_vae(checkpoint)), {"latent_sample": (None, latents)}, ("sample", pictures)
        ),
    }
    if name not in loaders:
        raise CheckpointError(f"{name} is not a component of a checkpoint", hint=f"choose among {', '.join(loaders)}")
    component = loaders[name]()
    if name == "unet" and token_merging is not None:
        merge_tokens(component.module.get_submodule("unet"), token_merging)
    component.module.eval().requires_grad_(False)
    return component
