"""Train the demo's AutoencoderKL on whole scenes, small pictures first."""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import cast

import torch
from diffusers import AutoencoderKL
from PIL import Image

from demo.scenes import draw, random_scene
from demo.training import Run, pixels_of


def new_autoencoder() -> AutoencoderKL:
    """Return the untrained autoencoder.

    Each GroupNorm has one group: more would remove each group's absolute level, which is all that a flat colour is.
    """
    return AutoencoderKL(
        block_out_channels=(24, 48, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=1,
        latent_channels=4,
        sample_size=512,
    )


#: Share of textured objects and backgrounds. With a fifth, as in the other stages, rare second shades were not learned:
#: the grey stripes of black became blue.
TEXTURE_SHARE = 0.6
#: Share of the budget after which only the decoder is trained, from latents without noise, as in use.
DECODER_ALONE = 0.85


class Pool:
    """Pictures of one size, a few of which are replaced at each step."""

    def __init__(self, run: Run, pixels: int, size: int) -> None:
        self.run, self.pixels = run, pixels
        self.pictures = [self.fresh() for _ in range(size)]

    def fresh(self) -> Image.Image:
        """Draw one scene."""
        return draw(random_scene(self.run.rng, textures=TEXTURE_SHARE), self.pixels, self.run.rng)

    def batch(self, count: int) -> torch.Tensor:
        """Draw ``count`` pictures as [count,3,pixels,pixels] in -1..1."""
        for _ in range(2):
            self.pictures[self.run.rng.randrange(len(self.pictures))] = self.fresh()
        return pixels_of(self.run.rng.sample(self.pictures, count))


def scaling_factor(model: AutoencoderKL) -> float:
    """Return the factor that scales the latents of 64 fixed scenes to a standard deviation of 1."""
    rng = random.Random(0)
    pictures = pixels_of([draw(random_scene(rng), 256, rng) for _ in range(64)])
    with torch.no_grad():
        return 1 / float(model.encode(pictures).latent_dist.mean.std())


def main(out: Path, budget_s: float, threads: int) -> None:
    """Train for the budget and write the averaged weights to ``out``/vae."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    warm = (out / "vae").exists()
    model = AutoencoderKL.from_pretrained(out / "vae", torch_dtype=torch.float32) if warm else new_autoencoder()
    model.to(memory_format=torch.channels_last).train()
    run = Run(out / "autoencoder.pt", budget_s, {"vae": model}, 1e-3 if warm else 2e-3, decay=0.998)
    pools = {size: Pool(run, size, count) for size, count in ((64, 400), (128, 300), (256, 60), (512, 20))}
    for spent in run.steps():
        phase = 0.5 + spent / 2 if warm else spent
        if phase < 0.4 and run.step % 2:
            pictures = pools[64].batch(16)
        elif phase < 0.7 and run.step % 3:
            pictures = pools[128].batch(6)
        elif phase < 0.7 or run.step % 3:
            pictures = pools[256].batch(2)
        else:
            pictures = pools[512].batch(1)
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        alone = spent > DECODER_ALONE
        with torch.autocast("cpu", torch.bfloat16):
            with torch.set_grad_enabled(not alone):
                posterior = model.encode(pictures).latent_dist
            decoded = model.decode(posterior.mode() if alone else posterior.sample()).sample
        error = decoded.float() - pictures
        reconstruction = error.abs().mean() + error.square().mean()
        run.descend(reconstruction + 2e-4 * posterior.kl().mean() / posterior.mean[0].numel(), spent)
    average = cast("AutoencoderKL", run.average["vae"])
    average.register_to_config(scaling_factor=scaling_factor(average))
    average.save_pretrained(out / "vae")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget-s", type=float, default=900)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    main(arguments.out, arguments.budget_s, arguments.threads)
