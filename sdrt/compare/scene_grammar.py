"""Grammar of the demo checkpoint's captions, and the colours and outlines of its shapes.

The grammar (docs/demo-checkpoint.md shows it with examples)::

    caption    := "" | [lead] objects [place]
    lead       := "a picture of" | "a drawing of" | "an image of"
    objects    := object | object relation object
    object     := [article] [size] [texture] [colour] shape
    relation   := ["to the"] "left of" | ["to the"] "right of" | "above" | "below"
    place      := "on" [article] [texture] colour ["background"]

An object without a size word is of medium size, one without a texture word is plain. Colours that a caption does not
name may be any.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from PIL import Image, ImageDraw

from sdrt.errors import UsageError

RGB = tuple[int, int, int]

#: Colour word to (its colour, the second shade of its stripes and dots).
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


@dataclass(frozen=True)
class Thing:
    """One object of a caption: its shape and the words for it; "" for words that the caption omits."""

    shape: str
    colour: str
    size: str = ""
    texture: str = ""


@dataclass(frozen=True)
class Scene:
    """Content of a picture. ``relation`` is where the first object lies from the second; "" for one object."""

    things: tuple[Thing, ...]
    background: str
    background_texture: str = ""
    relation: str = ""


_CAPTION = re.compile(
    r"(?:an? (?:picture|drawing|image) of )?(?P<first>.+?)"
    r"(?: (?:to the )?(?P<relation>left of|right of|above|below) (?P<second>.+?))?"
    r"(?: on (?:an? |the )?(?:(?P<texture>striped|dotted) )?(?P<background>\w+)(?: background)?)?"
)
_OBJECT = re.compile(
    r"(?:an? |the )?(?:(?P<size>small|large) )?(?:(?P<texture>striped|dotted) )?(?:(?P<colour>\w+) )?(?P<shape>\w+)"
)


def parse_caption(caption: str) -> Scene:
    """Parse a caption. Omitted words are "", and the empty prompt has no things.

    Raises:
        UsageError: The caption is not of the grammar.
    """
    words = " ".join(caption.lower().replace(",", " ").strip(" .").split())
    if not words:
        return Scene((), "")
    match = _CAPTION.fullmatch(words)
    if match is None:
        raise _outside(caption, words)
    things = tuple(_parse_thing(caption, match[name]) for name in ("first", "second") if match[name])
    background = match["background"] or ""
    if background and background not in PALETTE:
        raise _outside(caption, background)
    return Scene(things, background, match["texture"] or "", match["relation"] or "")


def _parse_thing(caption: str, words: str) -> Thing:
    match = _OBJECT.fullmatch(words)
    if match is None or match["shape"] not in SHAPES or (match["colour"] or "red") not in PALETTE:
        raise _outside(caption, words)
    return Thing(match["shape"], match["colour"] or "", match["size"] or "", match["texture"] or "")


def _outside(caption: str, words: str) -> UsageError:
    return UsageError(
        f"the caption {caption!r} is not of the demo's grammar: {words!r}",
        hint=f"use the shapes {', '.join(SHAPES)} and the colours {', '.join(PALETTE)}, as in 'a red circle on white'",
    )


def outline(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Return the corners of a polygonal shape (square, triangle, star, cross) around (x, y)."""
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
    """Draw the shape in white on black, with coordinates in pixels of a square picture.

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
