"""Put the trained parts together: StableDiffusionPipeline for sample sheets, and the fp16 checkpoint that ships."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, LMSDiscreteScheduler, StableDiffusionPipeline
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from demo.train_unet import new_scheduler, new_unet
from sdrt.checkpoint.clip_vocabulary import write_clip_tokenizer
from sdrt.files import folder_published_as

MODEL_CARD = "README.md"


def averaged(out: Path, side: int) -> StableDiffusionPipeline:
    """The pipeline of a stage's averaged weights, fp32."""
    average = torch.load(out / f"unet{side}.pt", weights_only=False)["average"]
    unet, text_encoder = new_unet(), CLIPTextModel.from_pretrained(out / "text_encoder", dtype=torch.float32)
    unet.load_state_dict(average["unet"])
    text_encoder.load_state_dict(average["text_encoder"])
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


def sample(
    pipeline: StableDiffusionPipeline,
    captions: list[str],
    side: int,
    seed: int,
    guidance_scale: float = 7.5,
    steps: int = 25,
) -> list[Image.Image]:
    """One picture a caption, at latents of side x side, by diffusers' LMS scheduler."""
    pipeline.scheduler = LMSDiscreteScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed + k) for k in range(len(captions))]
    pictures: list[Image.Image] = pipeline(
        captions,
        height=8 * side,
        width=8 * side,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        generator=generators,
    ).images
    return pictures


def sheet(pictures: list[Image.Image], columns: int, pixels: int) -> Image.Image:
    """The pictures in rows of ``columns``, each ``pixels`` wide."""
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
        if (folder / MODEL_CARD).exists():
            shutil.copyfile(folder / MODEL_CARD, part / MODEL_CARD)
        for config in part.glob("*/config.json"):
            _mend_config(config)
        for weights in part.glob("*/*.safetensors"):
            weights.chmod(0o644)


def _mend_config(config: Path) -> None:
    """Take out the folder from which a part was loaded, and have transformers compute in fp32 as diffusers does."""
    fields = json.loads(config.read_text())
    fields.pop("_name_or_path", None)
    if "dtype" in fields:
        fields["dtype"] = "float32"
    config.write_text(json.dumps(fields, indent=2) + "\n")
