"""Sharpen the demo's decoder on full-size scenes. The encoder stays, so that cached latents and the UNet stay valid."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import cast

import torch
from diffusers import AutoencoderKL

from demo.train_autoencoder import Pool
from demo.training import Run

#: Noise on the latents, as a share of their standard deviation: what the UNet hands over is not exact either.
LATENT_NOISE = 0.05


def main(out: Path, budget_s: float, threads: int) -> None:
    """Train for the budget and put the averaged decoder into ``out``/vae."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = AutoencoderKL.from_pretrained(out / "vae")
    model.to(memory_format=torch.channels_last).train()
    for part in (model.encoder, model.quant_conv):
        part.requires_grad_(False)
    run = Run(out / "decoder.pt", budget_s, {"vae": model}, learning_rate=5e-4, decay=0.98)
    pool = Pool(run, 512, 30)
    for spent in run.steps():
        pictures = pool.batch(1).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                latents = model.encode(pictures).latent_dist.mean
            noise = LATENT_NOISE / model.config.scaling_factor * torch.randn_like(latents)
            decoded = model.decode(latents + noise).sample
        error = decoded.float() - pictures
        run.descend(error.abs().mean() + error.square().mean(), spent)
    cast("AutoencoderKL", run.average["vae"]).save_pretrained(out / "vae")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget-s", type=float, default=300)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    main(arguments.out, arguments.budget_s, arguments.threads)
