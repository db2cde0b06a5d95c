"""Assemble the trained parts: a StableDiffusionPipeline for sample sheets, and the fp16 checkpoint that is released."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from demo.train_text_encoder import token_ids
from demo.train_unet import FULL, GUIDANCE_SCALE, INNER, STAGES, new_inner_unet, new_scheduler, new_unet, state_file
from sdrt.checkpoint.clip_vocabulary import write_clip_tokenizer
from sdrt.checkpoint.configs import GENERATION_CONFIG
from sdrt.files import folder_published_as
from sdrt.runtime.images import to_pictures
from sdrt.sampling.latents import unit_noise
from sdrt.sampling.lms import Latents, Schedule, scale_model_input, step

MODEL_CARD = "README.md"
#: Guidance scale that the checkpoint recommends. At 7.5, which it was trained for, there are red smears beside green
#: objects on purple; below 6 fewer pairs are right (docs/decisions/0084).
RECOMMENDED_GUIDANCE_SCALE = 6.0


def averaged(out: Path, stage: str = "full") -> StableDiffusionPipeline:
    """Return the fp32 pipeline of a stage's averaged weights; that of an inner stage is for ``sample`` only."""
    average = torch.load(state_file(out, stage), weights_only=False)["average"]
    if STAGES[stage].side == INNER:
        unet = new_inner_unet()
    else:
        # a warm start keeps the layout of its checkpoint
        warm = out / "unet"
        unet = UNet2DConditionModel.from_pretrained(warm) if warm.exists() else new_unet()
    text_encoder = CLIPTextModel.from_pretrained(out / "text_encoder", dtype=torch.float32)
    unet.load_state_dict(average["unet"])
    return StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(out / "vae"),
        text_encoder=text_encoder.train(False),
        tokenizer=CLIPTokenizer.from_pretrained(out / "tokenizer"),
        unet=unet.eval(),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@torch.no_grad()
def sample(
    pipeline: StableDiffusionPipeline,
    captions: list[str],
    seed: int,
    guidance_scale: float = GUIDANCE_SCALE,
    steps: int = 25,
) -> list[Image.Image]:
    """Draw a picture for each caption with LMS, 256 pixels wide at an inner stage and 512 at the last."""
    unet, side = pipeline.unet, pipeline.unet.config.sample_size
    ids = token_ids(pipeline.tokenizer, [""] * len(captions) + captions)
    states = pipeline.text_encoder(ids).last_hidden_state
    schedule = Schedule.from_config(pipeline.scheduler.config, steps)
    # averaged over 2x2, white noise has half the deviation; the inner stage predicts it at unit deviation
    deviation = np.float32(side / FULL)
    latents = unit_noise(range(seed, seed + len(captions)), (4, side, side)) * deviation
    latents *= np.float32(schedule.init_noise_sigma)
    history: list[Latents] = []
    for timestep, sigma, row in zip(schedule.timesteps, schedule.sigmas[:-1], schedule.coefficients, strict=True):
        doubled = torch.from_numpy(scale_model_input(latents, sigma)).repeat(2, 1, 1, 1)
        unprompted, prompted = unet(doubled, float(timestep), states).sample.numpy().reshape(2, *latents.shape)
        noise = unprompted + np.float32(guidance_scale) * (prompted - unprompted)
        history = [noise * deviation, *history[:3]]
        latents = step(latents, history, row)
    decoded = pipeline.vae.decode(torch.from_numpy(latents) / pipeline.vae.config.scaling_factor).sample
    return to_pictures(decoded.numpy())


def sheet(pictures: list[Image.Image], columns: int, pixels: int) -> Image.Image:
    """Return the pictures in one, in rows of ``columns``, each ``pixels`` wide."""
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * pixels, rows * pixels), "white")
    for k, picture in enumerate(pictures):
        small = picture.resize((pixels, pixels), Image.Resampling.LANCZOS)
        page.paste(small, (k % columns * pixels, k // columns * pixels))
    return page


def write_checkpoint(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Write the pipeline in fp16, in the layout that diffusers and sdrt read."""
    with folder_published_as(folder) as part:
        pipeline.to(torch.float16).save_pretrained(part)
        shutil.rmtree(part / "tokenizer")
        write_clip_tokenizer(part / "tokenizer")
        recommended = {"guidance_scale": RECOMMENDED_GUIDANCE_SCALE}
        (part / GENERATION_CONFIG).write_text(json.dumps(recommended, indent=2) + "\n")
        if (folder / MODEL_CARD).exists():
            shutil.copyfile(folder / MODEL_CARD, part / MODEL_CARD)
        for config in part.glob("*/config.json"):
            _mend_config(config)
        for weights in part.glob("*/*.safetensors"):
            weights.chmod(0o644)


def _mend_config(config: Path) -> None:
    """Remove the path that a part was loaded from, and set transformers' dtype to fp32, as in diffusers."""
    fields = json.loads(config.read_text())
    fields.pop("_name_or_path", None)
    if "dtype" in fields:
        fields["dtype"] = "float32"
    config.write_text(json.dumps(fields, indent=2) + "\n")
