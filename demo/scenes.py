"""Scenes of the demo checkpoint: random ones, their captions and their pictures.

The words and shapes are defined in ``sdrt.compare.scene_grammar``, which the scorer uses too. A colour or background
that a caption does not name is random, so that seeds differ there.
"""

from __future__ import annotations

import hashlib
import random

from PIL import Image, ImageDraw

from sdrt.compare.scene_grammar import (
    OFFSETS,
    PALETTE,
    RADII,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    Thing,
    draw_mask,
)

#: Largest distance of an object's centre from its place, as a share of the picture's width.
JITTER = 0.01
STRIPE_PERIOD = 1 / 8
#: One in this many combinations is never trained on.
HELD_OUT_SHARE = 16


def held_out(scene: Scene) -> bool:
    """Return whether training never sees this combination (one in ``HELD_OUT_SHARE``, by a hash of its words)."""
    return hashlib.sha256(repr(scene).encode()).digest()[0] % HELD_OUT_SHARE == 0


def random_scene(rng: random.Random, pairs: float = 0.55, textures: float = 0.2) -> Scene:
    """Return a random scene.

    Args:
        rng: Random number generator.
        pairs: Share of scenes with two objects.
        textures: Share of textured objects, and of textured backgrounds.
    """
    background = rng.choice(list(PALETTE))
    colours = [colour for colour in PALETTE if colour != background]
    count = 2 if rng.random() < pairs else 1
    things = tuple(
        Thing(
            rng.choice(SHAPES),
            rng.choice(colours),
            rng.choice(("", "", *SIZES) if count == 2 else ("", *SIZES)),
            rng.choice(TEXTURES) if rng.random() < textures else "",
        )
        for _ in range(count)
    )
    texture = rng.choice(TEXTURES) if rng.random() < textures else ""
    return Scene(things, background, texture, rng.choice(RELATIONS) if count == 2 else "")


def _article(rng: random.Random, words: str) -> str:
    """Put "a" or "an" before the words, or nothing one time in five."""
    return words if rng.random() < 0.2 else f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _thing_words(rng: random.Random, thing: Thing, colour: bool) -> str:
    words = (thing.size, thing.texture, thing.colour if colour else "", thing.shape)
    return _article(rng, " ".join(filter(None, words)))


def caption(rng: random.Random, scene: Scene, complete: bool = False) -> str:
    """Return a caption of the scene in a random wording.

    Args:
        rng: Random number generator.
        scene: Scene to describe.
        complete: Whether to name every colour and the background; otherwise some captions leave them open.
    """
    open_colour = not complete and rng.random() < 0.04
    words = [_thing_words(rng, thing, not open_colour) for thing in scene.things]
    text = words[0]
    if scene.relation:
        sideways = scene.relation in ("left of", "right of")
        relation = f"to the {scene.relation}" if sideways and rng.random() < 0.5 else scene.relation
        text = f"{words[0]} {relation} {words[1]}"
    if complete or scene.background_texture or rng.random() < 0.85:
        place = " ".join(filter(None, (scene.background_texture, scene.background)))
        text += f" on {place}" if rng.random() < 0.25 else f" on {_article(rng, place + ' background')}"
    if rng.random() < 0.08:
        text = f"{rng.choice(('a picture of', 'a drawing of', 'an image of'))} {text}"
    return text


def _fill(colour: str, texture: str, pixels: int, period: float) -> Image.Image:
    """Return a picture filled with one colour, or with its two shades in stripes or dots."""
    base, shade = PALETTE[colour]
    picture = Image.new("RGB", (pixels, pixels), base)
    draw = ImageDraw.Draw(picture)
    step = period * pixels
    for k in range(round(1 / period)):
        if texture == "striped":
            draw.rectangle([0, (k + 0.6) * step, pixels, (k + 1) * step], fill=shade)
        elif texture == "dotted":
            for j in range(round(1 / period)):
                x, y, r = (j + 0.5) * step, (k + 0.5) * step, 0.27 * step
                draw.ellipse([x - r, y - r, x + r, y + r], fill=shade)
    return picture


def draw(scene: Scene, pixels: int, rng: random.Random) -> Image.Image:
    """Draw the scene.

    Args:
        scene: Scene to draw.
        pixels: Side of the square picture.
        rng: Random number generator, to move each object by up to ``JITTER`` of the width and vary its radius by 3%.

    Returns:
        An RGB picture of pixels x pixels, drawn at twice the size and reduced.
    """
    side = 2 * pixels
    picture = _fill(scene.background, scene.background_texture, side, STRIPE_PERIOD)
    first = OFFSETS.get(scene.relation, (0.5, 0.5))
    for thing, (x, y) in zip(scene.things, (first, (1 - first[0], 1 - first[1])), strict=False):
        x, y = (side * (c + rng.uniform(-JITTER, JITTER)) for c in (x, y))
        radius = side * RADII[len(scene.things), thing.size] * rng.uniform(0.97, 1.03)
        mask = draw_mask(thing.shape, x, y, radius, side)
        picture.paste(_fill(thing.colour, thing.texture, side, 1 / 12), (0, 0), mask)
    return picture.resize((pixels, pixels), Image.Resampling.LANCZOS)
