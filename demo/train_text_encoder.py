"""Teach the demo's text encoder what captions mean, before it meets the UNet.

Linear heads read every attribute of the scene (background, colours, shapes, sizes, textures, layout) off the hidden
states; the heads are thrown away. Trained from nothing together, UNet and text encoder ignore the prompt for hours.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import cast

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from demo.scenes import caption, held_out, random_scene
from demo.training import Run
from sdrt.compare.scene_grammar import PALETTE, SHAPES, SIZES, TEXTURES, Scene, Thing

HIDDEN = 128
#: Classes of each head: layout, background colour and texture, then shape, colour, size, texture of both places.
CLASSES = (3, 9, 3) + (7, 9, 3, 3) * 2


def new_text_encoder() -> CLIPTextModel:
    """The untrained text encoder: CLIP's vocabulary and 77 tokens, 128 wide, heads of 32."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=HIDDEN,
            intermediate_size=512,
            num_hidden_layers=3,
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
    """Class of each head. Objects count by place (left or top first), so that "below" and "above" agree."""
    things: list[Thing | None] = [*scene.things, None][:2]
    if scene.relation in ("right of", "below"):
        things.reverse()
    layout = 0 if not scene.relation else 1 if scene.relation in ("left of", "right of") else 2
    background = list(PALETTE).index(scene.background) if " on " in words else 8
    texture = ("", *TEXTURES).index(scene.background_texture)
    return [layout, background, texture, *(t for thing in things for t in _thing_targets(thing, words))]


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids [n,77] int64, padded to the full length as Stable Diffusion does."""
    encoded = tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    ids: torch.Tensor = encoded.input_ids
    return ids


class Heads(torch.nn.Module):
    """One linear reading of the hidden states for each attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.read = torch.nn.ModuleList([torch.nn.Linear(HIDDEN, count) for count in CLASSES])

    def loss(self, hidden: torch.Tensor, ids: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy summed over the heads, and each head's share of right answers.

        The hidden states [n,77,128] are averaged from the end token on: those positions have seen the whole caption.
        """
        after = (ids == 49407).to(hidden.dtype).unsqueeze(-1)
        pooled = (hidden * after).sum(1) / after.sum(1)
        scores = [head(pooled) for head in self.read]
        losses = [torch.nn.functional.cross_entropy(score, wanted[:, k]) for k, score in enumerate(scores)]
        right = torch.stack([(score.argmax(1) == wanted[:, k]).float().mean() for k, score in enumerate(scores)])
        return torch.stack(losses).sum(), right


def sample_batch(tokenizer: CLIPTokenizer, rng: random.Random, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Captions of fresh scenes that are not held out: token ids [count,77] and head targets [count,11]."""
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = random_scene(rng)
        if not held_out(scene):
            scenes.append(scene)
    words = [caption(rng, scene) for scene in scenes]
    return token_ids(tokenizer, words), torch.tensor([targets(s, w) for s, w in zip(scenes, words, strict=True)])


def main(out: Path, budget_s: float, threads: int) -> None:
    """Train for the budget, or until every head is right, and save the state."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    model, heads = new_text_encoder(), Heads()
    parts = {"text_encoder": model, "heads": heads}
    run = Run(out / "text_encoder.pt", budget_s, parts, learning_rate=1e-3, decay=0.99)
    least = 0.0
    for spent in run.steps():
        ids, wanted = sample_batch(tokenizer, run.rng, 64)
        hidden = model(ids).last_hidden_state
        loss, right = heads.loss(hidden, ids, wanted)
        run.descend(loss, spent)
        least = 0.98 * least + 0.02 * right.min().item()
        if run.step % 50 == 0:
            print("least head right", round(least, 3), [round(r, 2) for r in right.tolist()], flush=True)
        if least > 0.998 and run.loss < 0.05:
            run.finish()
    cast("CLIPTextModel", run.average["text_encoder"]).save_pretrained(out / "text_encoder")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget-s", type=float, default=400)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    main(arguments.out, arguments.budget_s, arguments.threads)
