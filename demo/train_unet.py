"""Train the demo's UNet: its inner levels on 32x32 latents first, then all of it on 64x64.

The text encoder is not trained: its states already describe the picture, and the UNet learns to read them. So that its
inner levels learn that first, and not only through the prediction of the noise, convolutions predict the clean latents
from the inner levels' outputs; they are discarded.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from diffusers import AutoencoderKL, LMSDiscreteScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextModel, CLIPTokenizer

from demo.scenes import caption, draw, held_out, random_scene
from demo.train_text_encoder import HIDDEN, token_ids
from demo.training import Run, object_weights, pixels_of
from sdrt.compare.scene_grammar import Scene

#: Share of prompts replaced by the empty one, for classifier-free guidance (arXiv 2207.12598).
DROPOUT = 0.1
#: Guidance scale that the checkpoint is trained for. Trained without guidance, a network this small and certain draws
#: best at guidance 1 to 3 and overshoots at 7.5. With the last stages' loss on the prediction at guidance 2.5 and then
#: 4.5, 7.5 behaves as 1.7 did. A loss at 7.5 from the start multiplies the network's errors, and bfloat16's, by 7.5.
GUIDANCE_SCALE = 7.5
#: Low-frequency noise, as shares of the noise's standard deviation: constant over the picture, and over a grid of 4x4.
#: Without it the local means of noisy latents reveal the colours in training, so that the network ignores colour words
#: and never corrects errors of the first sampling steps.
OFFSET_NOISE, GRID_NOISE = 0.5, 0.4
#: Share of samples with two objects, and the difference of scaled latents from the background that marks an object.
PAIRS, OBJECT_DIFFERENCE = 0.5, 0.3
#: Weight of the inner levels' prediction of the clean latents relative to the noise's error.
READS_WEIGHT = 0.3
#: Sides of the latents: the inner levels see 64x64 latents averaged over 2x2.
INNER, FULL = 32, 64
#: Channels of the levels. The first two are equal, so that the inner levels fit into the whole UNet unchanged.
CHANNELS = (32, 32, 64, 128, 128)


@dataclass(frozen=True)
class Stage:
    """One stage of the training.

    Args:
        side: Side of the latents.
        guidance_scale: Guidance scale of the predictions in the loss; 1 is the prediction for the prompt alone.
        batch: Samples a step. Small, since the number of steps matters more than that of samples.
        learning_rate: Highest learning rate of AdamW.
        muon_rate: Highest learning rate of Muon.
        before: Stage whose averaged weights it starts from.
        rise: Steps over which guidance rises from that of the stage before.
        outer_alone: Steps in which only the outer level is trained.
        teacher: Whether the target is the prediction of the stage before, not the noise: the same function without the
            noise's variance, which guidance would amplify.
    """

    side: int
    guidance_scale: float
    batch: int
    learning_rate: float
    muon_rate: float
    before: str = ""
    rise: int = 0
    outer_alone: int = 0
    teacher: bool = False

    def guidance_at(self, step: int) -> float:
        """Return the guidance scale of the loss at a step."""
        low = STAGES[self.before].guidance_scale if self.before else 1.0
        return low + (self.guidance_scale - low) * (min(1.0, step / self.rise) if self.rise else 1.0)


#: With guidance from the start, the inner levels learn more slowly, and each sample costs a third more.
STAGES = {
    "inner": Stage(INNER, 1.0, 16, 1e-3, 2e-3),
    "guided": Stage(INNER, 2.5, 16, 5e-4, 1e-3, before="inner", rise=200, teacher=True),
    "full": Stage(FULL, 4.5, 8, 8e-4, 1.5e-3, before="guided", rise=1500, outer_alone=300),
}


def state_file(out: Path, stage: str) -> Path:
    """Return the path of a stage's state."""
    return out / f"unet_{stage}.pt"


def _unet(channels: tuple[int, ...], side: int) -> UNet2DConditionModel:
    """Return an untrained UNet: attention in three innermost levels, heads of 32 and 64, 8 or more channels a group."""
    plain = len(channels) - 3
    return UNet2DConditionModel(
        sample_size=side,
        block_out_channels=channels,
        layers_per_block=1,
        cross_attention_dim=HIDDEN,
        attention_head_dim=2,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",) * plain,
    )


def new_unet() -> UNet2DConditionModel:
    """Return the untrained UNet for latents of 64x64."""
    return _unet(CHANNELS, FULL)


def new_inner_unet() -> UNet2DConditionModel:
    """Return the untrained UNet without its outer level, for 64x64 latents averaged over 2x2.

    Only the centre of its first convolution's kernel is not 0, so that the outer level's downsampler can include it.
    """
    unet = _unet(CHANNELS[1:], INNER)
    centre = torch.zeros(1, 1, 3, 3)
    centre[..., 1, 1] = 1
    unet.conv_in.weight.data *= 3 * centre
    unet.conv_in.weight.register_hook(lambda gradient: gradient * centre)
    return unet


def grown(inner: UNet2DConditionModel) -> UNet2DConditionModel:
    """Return the whole UNet around trained inner levels, whose inputs are at first exactly those of their training.

    The outer level passes the latents on in its first four channels, its resnet adds nothing, and its downsampler is
    the mean over 2x2 followed by the first convolution of the inner UNet.
    """
    unet = new_unet()
    state = unet.state_dict()
    for name, value in inner.state_dict().items():
        first, _, rest = name.partition(".")
        if first == "down_blocks":
            level, _, rest = rest.partition(".")
            state[f"down_blocks.{int(level) + 1}.{rest}"] = value
        elif not first.startswith("conv_"):
            state[name] = value
    state["conv_in.weight"][:4] = 0
    state["conv_in.weight"][range(4), range(4), 1, 1] = 1
    state["conv_in.bias"][:4] = 0
    outer = "down_blocks.0.resnets.0.conv2"
    state[f"{outer}.weight"].zero_()
    state[f"{outer}.bias"].zero_()
    down = "down_blocks.0.downsamplers.0.conv"
    state[f"{down}.weight"].zero_()
    state[f"{down}.weight"][:, :4, 1:, 1:] = inner.conv_in.weight.detach()[:, :, 1:2, 1:2] / 4
    state[f"{down}.bias"] = inner.conv_in.bias.detach()
    unet.load_state_dict(state)
    return unet


def new_scheduler() -> LMSDiscreteScheduler:
    """Return a scheduler with Stable Diffusion v1's noise schedule."""
    return LMSDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )


@dataclass
class Latents:
    """Encoded scenes: unscaled latents [n,4,side,side] in bfloat16, and their scenes."""

    values: torch.Tensor
    scenes: list[Scene]


def training_scenes(count: int, rng: random.Random) -> list[Scene]:
    """Return ``count`` random scenes that are not held out."""
    return [scene for scene in (random_scene(rng) for _ in range(2 * count)) if not held_out(scene)][:count]


def encode(vae: AutoencoderKL, scenes: list[Scene], pixels: int, rng: random.Random) -> torch.Tensor:
    """Draw and encode scenes as latents [n,4,pixels/8,pixels/8] in bfloat16."""
    size = max(1, 32 * 128**2 // pixels**2)
    parts = []
    for k in range(0, len(scenes), size):
        pictures = pixels_of([draw(scene, pixels, rng) for scene in scenes[k : k + size]])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            parts.append(vae.encode(pictures.contiguous(memory_format=torch.channels_last)).latent_dist.mean.bfloat16())
    return torch.cat(parts)


def cached(path: Path, vae: AutoencoderKL, count: int, pixels: int, seed: int) -> Latents:
    """Return encoded scenes, read from the file if it exists."""
    rng = random.Random(seed)
    scenes = training_scenes(count, rng)
    if not path.exists():
        torch.save(encode(vae, scenes, pixels, rng), path)
    return Latents(torch.load(path, weights_only=True), scenes)


def _noise(like: torch.Tensor) -> torch.Tensor:
    """Return white noise with a random share of the low-frequency noise.

    At the inner stage white noise has half the deviation, as if averaged over 2x2.
    """
    count, channels, side, _ = like.shape
    offset = OFFSET_NOISE * torch.randn(count, channels, 1, 1)
    grid = GRID_NOISE * torch.randn(count, channels, 4, 4)
    grid = torch.nn.functional.interpolate(grid, size=(side, side), mode="bilinear")
    return torch.randn_like(like) * (side / FULL) + torch.rand(count, 1, 1, 1) * (offset + grid)


class Reads(torch.nn.Module):
    """Predicts clean latents of 32x32 from the outputs of the three innermost up blocks, at 8x8, 16x16 and 32x32."""

    def __init__(self) -> None:
        super().__init__()
        self.read = torch.nn.ModuleList(
            torch.nn.Conv2d(channels, 4 * (INNER // side) ** 2, 1) for channels, side in ((128, 8), (128, 16), (64, 32))
        )

    def loss(self, handed_on: list[torch.Tensor], clean: torch.Tensor) -> torch.Tensor:
        """Return the squared error of the predictions, with more weight on objects, summed over the levels."""
        target = torch.nn.functional.adaptive_avg_pool2d(clean, INNER)
        weight = object_weights(target, OBJECT_DIFFERENCE)
        losses = []
        for read, hidden in zip(self.read, handed_on, strict=True):
            seen = torch.nn.functional.pixel_shuffle(read(hidden), INNER // hidden.shape[-1])
            losses.append(((seen.float() - target).square() * weight).mean())
        return torch.stack(losses).sum()


@dataclass
class Batch:
    """Clean and noisy scaled latents [n,4,side,side], timesteps [n], noise, token ids [n,77], and loss weights."""

    clean: torch.Tensor
    noisy: torch.Tensor
    timesteps: torch.Tensor
    noise: torch.Tensor
    ids: torch.Tensor
    weight: torch.Tensor


class Batches:
    """Draws training batches from encoded scenes."""

    def __init__(self, latents: Latents, scale: float, tokenizer: CLIPTokenizer, rng: random.Random) -> None:
        self.latents, self.scale, self.tokenizer, self.rng = latents, scale, tokenizer, rng
        self.alphas = new_scheduler().alphas_cumprod.float()
        self.of_count = {n: [k for k, s in enumerate(latents.scenes) if len(s.things) == n] for n in (1, 2)}

    def draw(self, count: int) -> Batch:
        """Return a random batch.

        The loss weight (1 + sigma^2)^0.75 lies between equal weights of the noise (exponent 0) and of v (exponent 1,
        arXiv 2202.00512 D.1), since a flat colour is decided at the highest noise, where its share in the noise's error
        is smallest.
        """
        chosen = [self.rng.choice(self.of_count[2 if self.rng.random() < PAIRS else 1]) for _ in range(count)]
        words = [caption(self.rng, self.latents.scenes[k]) if self.rng.random() >= DROPOUT else "" for k in chosen]
        clean = self.latents.values[chosen].float() * self.scale
        # most timesteps from the upper two thirds, where composition is decided
        u = torch.rand(count)
        timesteps = torch.where(torch.rand(count) < 0.7, 300 + 700 * u, 1000 * u).long()
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1)
        noise = _noise(clean)
        noisy = (alpha.sqrt() * clean + (1 - alpha).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        weight = alpha**-0.75 * object_weights(clean, OBJECT_DIFFERENCE)
        return Batch(clean, noisy, timesteps, noise, token_ids(self.tokenizer, words), weight)


def outer_level(unet: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the parameters that the inner stage has not trained: last upsampler, outer up block and output."""
    names = ("up_blocks.3.upsamplers", "up_blocks.4", "conv_norm_out", "conv_out")
    return [parameter for name, parameter in unet.named_parameters() if name.startswith(names)]


def train(
    run: Run, text_encoder: CLIPTextModel, batches: Batches, stage: Stage, teacher: torch.nn.Module | None = None
) -> None:
    """Train until the run's budget is spent, with the teacher's prediction as the target if given, else the noise."""
    unet, reads = run.modules["unet"], cast("Reads", run.modules["reads"])
    handed_on: list[torch.Tensor] = []
    for block in cast("torch.nn.ModuleList", unet.up_blocks)[:3]:
        block.register_forward_hook(lambda module, inputs, output: handed_on.append(output))
    outer = {id(parameter) for parameter in outer_level(unet)}
    empty = token_ids(batches.tokenizer, [""])
    for spent in run.steps():
        for parameter in run.optimized:
            parameter.requires_grad_(run.step >= stage.outer_alone or id(parameter) in outer)
        batch = batches.draw(stage.batch)
        guidance_scale = stage.guidance_at(run.step)
        handed_on.clear()
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                states = text_encoder(batch.ids).last_hidden_state
            predicted = unet(batch.noisy, batch.timesteps, states).sample.float()
            read_loss = reads.loss(handed_on, batch.clean)
            # the inner levels predict their noise at unit deviation
            wanted = batch.noise * (FULL / stage.side)
            if teacher is not None:
                with torch.no_grad():
                    wanted = teacher(batch.noisy, batch.timesteps, states).sample.float()
            if guidance_scale != 1:
                with torch.no_grad():
                    states = text_encoder(empty).last_hidden_state.expand(stage.batch, -1, -1)
                    unprompted = unet(batch.noisy, batch.timesteps, states).sample.float()
                predicted = unprompted + guidance_scale * (predicted - unprompted)
        loss = ((predicted - wanted).square() * batch.weight).mean() / guidance_scale
        run.descend(loss + READS_WEIGHT * read_loss, spent)


def start(out: Path, stage: Stage) -> dict[str, torch.nn.Module]:
    """Return the modules that a stage starts with: averages of the stage before, a warm start, or untrained ones."""
    unet, reads = new_inner_unet(), Reads()
    if stage.before and (before := state_file(out, stage.before)).exists():
        average = torch.load(before, weights_only=False)["average"]
        unet.load_state_dict(average["unet"])
        reads.load_state_dict(average["reads"])
        unet = grown(unet) if stage.side == FULL else unet
    elif stage.before:
        unet = UNet2DConditionModel.from_pretrained(out / "unet")
    # the backward pass of torch's fused attention is slow on a CPU
    unet.set_attn_processor(AttnProcessor())
    return {"unet": unet.to(memory_format=torch.channels_last).train(), "reads": reads}


def main(out: Path, budget_s: float, name: str, count: int, threads: int) -> None:
    """Train one stage for the budget."""
    torch.set_num_threads(threads)
    stage = STAGES[name]
    torch.manual_seed(list(STAGES).index(name))
    vae = AutoencoderKL.from_pretrained(out / "vae").eval().to(memory_format=torch.channels_last)
    latents = cached(out / "latents.pt", vae, count, 8 * FULL, seed=FULL)
    if stage.side == INNER:
        latents.values = torch.nn.functional.avg_pool2d(latents.values.float(), 2).bfloat16()
    text_encoder = CLIPTextModel.from_pretrained(out / "text_encoder", dtype=torch.float32).train(False)
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    run = Run(state_file(out, name), budget_s, start(out, stage), stage.learning_rate, stage.muon_rate)
    if not (stage.before and state_file(out, stage.before).exists()):
        # after a warm start no part is untrained, so the outer level needs no steps alone
        stage = replace(stage, outer_alone=0)
    teacher = start(out, stage)["unet"].requires_grad_(False) if stage.teacher else None
    train(run, text_encoder, Batches(latents, vae.config.scaling_factor, tokenizer, run.rng), stage, teacher)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget-s", type=float, required=True)
    parser.add_argument("--stage", choices=tuple(STAGES), required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    main(arguments.out, arguments.budget_s, arguments.stage, arguments.count, arguments.threads)
