"""Inputs and outputs of each component, by the numbers of the checkpoint: the table of docs/bundle.md."""

from __future__ import annotations

from sdrt.artefacts.manifest import Component, ComponentName, ModelRecord, TensorSpec
from sdrt.graphs.structure import Spec
from sdrt.sampling.lms import MAX_ORDER

Specs = tuple[Spec, ...]


def specs(tensors: tuple[TensorSpec, ...]) -> Specs:
    """Return the inputs or outputs of a manifest as name, dtype and shape."""
    return tuple((tensor.name, tensor.dtype, tensor.shape) for tensor in tensors)


def contract(name: ComponentName, component: Component, model: ModelRecord) -> tuple[Specs, Specs]:
    """Return the inputs and outputs that a component must have.

    Hidden states and the networks' tensors have the component's own precision; timesteps, and all arithmetic of the
    denoising step, are float32 in every precision.
    """
    own = "float16" if component.precision == "fp16" else "float32"
    channels, size, pixels = model.latent_channels, model.latent_size, model.image_size
    latents: tuple[int | str, ...] = ("batch", channels, size, size)
    picture: tuple[int | str, ...] = ("batch", 3, pixels, pixels)
    states: tuple[int | str, ...] = ("batch", model.max_tokens, model.hidden_size)
    history: tuple[int | str, ...] = ("batch", MAX_ORDER, channels, size, size)
    unet_inputs: Specs = (
        ("sample", own, latents),
        ("timestep", "float32", ("batch",)),
        ("encoder_hidden_states", own, states),
    )
    features: Spec = ("deep_features", own, ("batch", _width(component), size, size))
    contracts: dict[ComponentName, tuple[Specs, Specs]] = {
        "text_encoder": (
            (("input_ids", "int64", ("batch", model.max_tokens)),),
            (("last_hidden_state", own, states),),
        ),
        "unet": (unet_inputs, (("out_sample", own, latents),)),
        "deepcache_whole": (unet_inputs, (("out_sample", own, latents), features)),
        "deepcache_shallow": ((*unet_inputs, features), (("out_sample", own, latents),)),
        "denoise_step": (
            (
                ("latents", "float32", latents),
                ("uncond_states", own, states),
                ("cond_states", own, states),
                *((number, "float32", ("batch",)) for number in ("timestep", "sigma", "guidance_scale")),
                ("lms_coefficients", "float32", ("batch", MAX_ORDER)),
                ("history", "float32", history),
            ),
            (("next_latents", "float32", latents), ("next_history", "float32", history)),
        ),
        "vae_encoder": (
            (("sample", own, picture),),
            (("latent_parameters", own, ("batch", 2 * channels, size, size)),),
        ),
        "vae_decoder": ((("latent_sample", own, latents),), (("sample", own, picture),)),
    }
    return contracts[name]


def _width(component: Component) -> int:
    """Return the channels of a component's deep features, which the contract leaves to the UNet; 0 if there are none.

    A symbolic axis does not count.
    """
    shapes = [tensor.shape for tensor in (*component.inputs, *component.outputs) if tensor.name == "deep_features"]
    widths = [shape[1] for shape in shapes if len(shape) > 1]
    return next((width for width in widths if isinstance(width, int)), 0)
