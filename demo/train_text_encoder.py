"""Train the demo's text encoder on the meaning of captions, before the UNet.

Linear heads predict every attribute of the scene (background, colours, shapes, sizes, textures, layout) from the hidden
states, and one cross-attention, which is how the UNet reads the prompt, predicts a small picture of the scene: so the
text encoder learns to arrange the picture over its 77 tokens. Both are discarded. A UNet that has to learn what a star
looks like from noisy latents needs hours for what the text encoder learns in minutes here, since it is small and its
pictures are exact.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import cast

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from demo.scenes import caption, draw, held_out, random_scene
from demo.training import Run, object_weights, pixels_of
from sdrt.compare.scene_grammar import PALETTE, SHAPES, SIZES, TEXTURES, Scene, Thing

HIDDEN = 128
#: Number of classes of each head: layout, background colour and texture, then shape, colour, size and texture of both
#: places.
CLASSES = (3, 9, 3) + (7, 9, 3, 3) * 2
#: Side of the picture that is predicted from the hidden states, and side of the patch of one of the 8x8 places.
PICTURE, PATCH = 32, 4
#: Weight of the heads' cross-entropy relative to the picture's squared error.
HEADS_WEIGHT = 0.02
BATCH = 64


def new_text_encoder() -> CLIPTextModel:
    """Return the untrained text encoder: CLIP's vocabulary and 77 tokens, width 128, heads of 32, four layers."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=HIDDEN,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            projection_dim=HIDDEN,
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=49407,
        )
    )


def _thing_targets(thing: Thing | None, words: str) -> list[int]:
    if thing is None:
        return [6, 8, 0, 0]
    colour = list(PALETTE).index(thing.colour) if thing.colour in words else 8
    return [SHAPES.index(thing.shape), colour, ("", *SIZES).index(thing.size), ("", *TEXTURES).index(thing.texture)]


def targets(scene: Scene, words: str) -> list[int]:
    """Return the class of each head; objects are in the order of their places, so that "below" equals "above"."""
    things: list[Thing | None] = [*scene.things, None][:2]
    if scene.relation in ("right of", "below"):
        things.reverse()
    layout = 0 if not scene.relation else 1 if scene.relation in ("left of", "right of") else 2
    background = list(PALETTE).index(scene.background) if " on " in words else 8
    texture = ("", *TEXTURES).index(scene.background_texture)
    return [layout, background, texture, *(t for thing in things for t in _thing_targets(thing, words))]


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Return token ids [n,77] int64, padded to the full length as in Stable Diffusion."""
    encoded = tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    ids: torch.Tensor = encoded.input_ids
    return ids


class Heads(torch.nn.Module):
    """One linear classifier of the hidden states for each attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.read = torch.nn.ModuleList([torch.nn.Linear(HIDDEN, count) for count in CLASSES])

    def loss(self, hidden: torch.Tensor, ids: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cross-entropy summed over the heads, and each head's share of right answers.

        The hidden states [n,77,128] are averaged from the end token on: those positions attend to the whole caption.
        """
        after = (ids == 49407).to(hidden.dtype).unsqueeze(-1)
        pooled = (hidden * after).sum(1) / after.sum(1)
        scores = [head(pooled) for head in self.read]
        losses = [torch.nn.functional.cross_entropy(score, wanted[:, k]) for k, score in enumerate(scores)]
        right = torch.stack([(score.argmax(1) == wanted[:, k]).float().mean() for k, score in enumerate(scores)])
        return torch.stack(losses).sum(), right


class Painter(torch.nn.Module):
    """Predicts a picture in -1..1 from the hidden states by one cross-attention, with 8x8 learned queries."""

    def __init__(self) -> None:
        super().__init__()
        self.query = torch.nn.Parameter(torch.randn(64, HIDDEN))
        self.attention = torch.nn.MultiheadAttention(HIDDEN, num_heads=4, batch_first=True)
        self.out = torch.nn.Linear(HIDDEN, 3 * PATCH**2)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return pictures [n,3,32,32] for hidden states [n,77,128]."""
        places, _ = self.attention(self.query.expand(len(hidden), -1, -1), hidden, hidden, need_weights=False)
        patches = self.out(places).view(-1, 8, 8, 3, PATCH, PATCH)
        picture: torch.Tensor = patches.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, PICTURE, PICTURE)
        return picture

    def loss(self, hidden: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
        """Return the squared error of the pictures predicted from the hidden states, with more weight on objects."""
        error: torch.Tensor = (self(hidden).float() - pictures).square() * object_weights(pictures)
        return error.mean()


def sample_batch(
    tokenizer: CLIPTokenizer, rng: random.Random, count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return new scenes that are not held out: token ids [count,77], targets [count,11], pictures [count,3,32,32]."""
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = random_scene(rng)
        if not held_out(scene):
            scenes.append(scene)
    words = [caption(rng, scene) for scene in scenes]
    wanted = torch.tensor([targets(s, w) for s, w in zip(scenes, words, strict=True)])
    return token_ids(tokenizer, words), wanted, pixels_of([draw(scene, PICTURE, rng) for scene in scenes])


def main(out: Path, budget_s: float, threads: int) -> None:
    """Train for the budget and save the averaged text encoder."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    model, heads, painter = new_text_encoder(), Heads(), Painter()
    parts = {"text_encoder": model, "heads": heads, "painter": painter}
    run = Run(out / "text_encoder.pt", budget_s, parts, learning_rate=1e-3, decay=0.998)
    right = torch.zeros(len(CLASSES))
    for spent in run.steps():
        ids, wanted, pictures = sample_batch(tokenizer, run.rng, BATCH)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model(ids).last_hidden_state
            picture_loss = painter.loss(hidden, pictures)
        head_loss, correct = heads.loss(hidden.float(), ids, wanted)
        run.descend(picture_loss + HEADS_WEIGHT * head_loss, spent)
        right.lerp_(correct, 0.02)
        if run.step % 50 == 0:
            print(f"heads right: least {right.min():.3f}; picture loss {picture_loss.item():.4f}", flush=True)
    cast("CLIPTextModel", run.average["text_encoder"]).save_pretrained(out / "text_encoder")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget-s", type=float, default=1500)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    main(arguments.out, arguments.budget_s, arguments.threads)
