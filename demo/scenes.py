"""The demo checkpoint's world: scenes, their captions and how they are drawn.

The grammar (docs/demo-checkpoint.md shows it with examples)::

    caption    := "" | [lead] objects [place]
    lead       := "a picture of" | "a drawing of" | "an image of"
    objects    := object | object relation object
    object     := [article] [size] [texture] [colour] shape
    relation   := ["to the"] "left of" | ["to the"] "right of" | "above" | "below"
    place      := "on" [article] [texture] colour ["background"]

What a caption leaves open (a size, a colour, the background) is drawn at random, so that seeds differ there.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

RGB = tuple[int, int, int]

#: Colour word -> (its colour, the second shade that stripes and dots of it are drawn in).
PALETTE: dict[str, tuple[RGB, RGB]] = {
    "red": ((220, 40, 40), (160, 15, 20)),
    "green": ((40, 160, 60), (15, 105, 35)),
    "blue": ((45, 85, 215), (20, 45, 140)),
    "yellow": ((245, 210, 40), (255, 242, 160)),
    "orange": ((245, 130, 30), (255, 188, 118)),
    "purple": ((130, 60, 170), (82, 30, 115)),
    "white": ((245, 245, 245), (198, 198, 203)),
    "black": ((25, 25, 25), (85, 85, 85)),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
SIZES = ("small", "large")
TEXTURES = ("striped", "dotted")
RELATIONS = ("left of", "right of", "above", "below")

#: Radius as a share of the picture's width, by number of objects and size word.
RADII: dict[tuple[int, str], float] = {
    (1, "small"): 0.13, (1, ""): 0.23, (1, "large"): 0.34,
    (2, "small"): 0.105, (2, ""): 0.15, (2, "large"): 0.20,
}  # fmt: skip
#: Centres of the first object of a pair, as shares of the picture's width; the second is mirrored.
OFFSETS = {"left of": (0.27, 0.5), "right of": (0.73, 0.5), "above": (0.5, 0.27), "below": (0.5, 0.73)}
JITTER = 0.02
STRIPE_PERIOD = 1 / 8
HELD_OUT_SHARE = 16


@dataclass(frozen=True)
class Thing:
    """One object: what it is, and the words that were said of it ("" where the caption is silent)."""

    shape: str
    colour: str
    size: str = ""
    texture: str = ""


@dataclass(frozen=True)
class Scene:
    """What a picture shows. ``relation`` places the first object against the second; "" for one object."""

    things: tuple[Thing, ...]
    background: str
    background_texture: str = ""
    relation: str = ""

    @property
    def held_out(self) -> bool:
        """Whether training never sees this combination (one in ``HELD_OUT_SHARE``, by a hash of its words)."""
        return hashlib.sha256(repr(self).encode()).digest()[0] % HELD_OUT_SHARE == 0


def random_scene(rng: random.Random, pairs: float = 0.55) -> Scene:
    """Draw a scene; ``pairs`` is the share of scenes with two objects."""
    background = rng.choice(list(PALETTE))
    colours = [colour for colour in PALETTE if colour != background]
    count = 2 if rng.random() < pairs else 1
    things = tuple(
        Thing(
            rng.choice(SHAPES),
            rng.choice(colours),
            rng.choice(("", "", *SIZES) if count == 2 else ("", *SIZES)),
            rng.choice(TEXTURES) if rng.random() < 0.2 else "",
        )
        for _ in range(count)
    )
    texture = rng.choice(TEXTURES) if rng.random() < 0.2 else ""
    return Scene(things, background, texture, rng.choice(RELATIONS) if count == 2 else "")


def _article(rng: random.Random, words: str) -> str:
    """Put "a" or "an" before the words, or nothing one time in five."""
    return words if rng.random() < 0.2 else f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _thing_words(rng: random.Random, thing: Thing, colour: bool) -> str:
    return _article(rng, " ".join(filter(None, (thing.size, thing.texture, thing.colour if colour else "", thing.shape))))


def caption(rng: random.Random, scene: Scene, complete: bool = False) -> str:
    """Say what the scene shows, in one of many wordings.

    Args:
        complete: Name every colour and the background; else some captions leave them open.
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


def outline(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Corners of a polygonal shape (square, triangle, star, cross) around (x, y)."""
    if shape == "square":
        half = 0.85 * radius
        return [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
    if shape == "cross":
        arm = 0.33 * radius
        corners = [(arm, radius), (arm, arm), (radius, arm)]
        corners += [(b, -a) for a, b in corners] + [(-a, -b) for a, b in corners] + [(-b, a) for a, b in corners]
        return [(x + dx, y + dy) for dx, dy in _around(corners)]
    points, inner = (3, 1.0) if shape == "triangle" else (10, 0.45)
    angles = [-math.pi / 2 + 2 * math.pi * k / points for k in range(points)]
    radii = [radius * (inner if k % 2 and shape == "star" else 1.0) for k in range(points)]
    return [(x + r * math.cos(a), y + r * math.sin(a)) for a, r in zip(angles, radii, strict=True)]


def _around(corners: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Sort a star-shaped outline's corners by angle."""
    return sorted(corners, key=lambda p: math.atan2(p[1], p[0]))


def draw_mask(shape: str, x: float, y: float, radius: float, pixels: int) -> Image.Image:
    """Draw the shape white on black, coordinates in pixels of a square picture.

    Returns:
        An "L" image of pixels x pixels, 255 inside the shape.
    """
    mask = Image.new("L", (pixels, pixels), 0)
    draw = ImageDraw.Draw(mask)
    if shape in ("circle", "ring"):
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=255)
        if shape == "ring":
            hole = 0.58 * radius
            draw.ellipse([x - hole, y - hole, x + hole, y + hole], fill=0)
    else:
        draw.polygon(outline(shape, x, y, radius), fill=255)
    return mask


def _fill(colour: str, texture: str, pixels: int, period: float) -> Image.Image:
    """A picture full of one colour, or of its two shades in stripes or dots."""
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
        scene: What to draw.
        pixels: Side of the square picture.
        rng: Moves each object by up to ``JITTER`` of the width and varies its radius by 5%.

    Returns:
        An RGB picture of pixels x pixels, drawn at twice the size and reduced.
    """
    side = 2 * pixels
    picture = _fill(scene.background, scene.background_texture, side, STRIPE_PERIOD)
    first = OFFSETS.get(scene.relation, (0.5, 0.5))
    for thing, (x, y) in zip(scene.things, (first, (1 - first[0], 1 - first[1])), strict=False):
        x, y = (side * (c + rng.uniform(-JITTER, JITTER)) for c in (x, y))
        radius = side * RADII[len(scene.things), thing.size] * rng.uniform(0.95, 1.05)
        mask = draw_mask(thing.shape, x, y, radius, side)
        picture.paste(_fill(thing.colour, thing.texture, side, 1 / 12), (0, 0), mask)
    return picture.resize((pixels, pixels), Image.Resampling.LANCZOS)
