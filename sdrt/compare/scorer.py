"""Scorer of the demo checkpoint's pictures: compares a picture with its caption, without a neural network.

Every pixel is assigned the nearest palette colour (either shade, or a blend of the two). The border gives the
background; connected regions of other colours are the objects. An object's colour is that of most of its pixels, its
shape the template with the largest intersection over union once both are centred and scaled to the same area, its size
the radius at which that template has the object's area.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdrt.compare.scene_grammar import PALETTE, RADII, SHAPES, Scene, Thing, draw_mask, parse_caption
from sdrt.errors import UsageError

Mask = NDArray[np.bool_]

#: Pictures are scored at this size: 4x4 pixels of a 512x512 picture are averaged, which smooths ragged edges.
SIDE = 128
#: Smaller regions, as a share of the picture, are ignored: a third of the smallest object, the cross of a pair.
SPECK_SHARE = 0.003
#: Least overlap with its best template for a region to be a shape of the grammar.
LEAST_OVERLAP = 0.6
#: Side of the canvas for comparing a region with the templates, and the square root of the region's scaled area.
CANVAS, CANVAS_SCALE = 64, 24


@dataclass(frozen=True)
class Found:
    """One object of a picture; radius and position are shares of the picture's width."""

    shape: str
    colour: str
    radius: float
    x: float
    y: float
    overlap: float


@dataclass(frozen=True)
class Verdict:
    """Aspects of a caption that the picture shows. An aspect that the caption does not name counts as right.

    If the number of objects differs from the caption's, ``count`` is False and so is every aspect of the objects.
    """

    background: bool
    count: bool
    colour: bool
    shape: bool
    size: bool
    relation: bool

    @property
    def right(self) -> bool:
        """True if every aspect is right."""
        return self.background and self.count and self.colour and self.shape and self.size and self.relation


def score(picture: Image.Image | NDArray[np.uint8], caption: str) -> Verdict:
    """Score a picture against its caption.

    Args:
        picture: A square RGB picture, at least 128 pixels wide.
        caption: A caption of the demo's grammar. The empty one asks for any scene: a background and one or two shapes.

    Raises:
        UsageError: The caption is not of the grammar, or the picture is not square or too small.

    Example:
        >>> from PIL import Image
        >>> score(Image.new("RGB", (512, 512), (220, 40, 40)), "a red circle on red").count
        False
    """
    wanted = parse_caption(caption)
    background, objects = find_objects(picture)
    if not wanted.things:
        valid = 1 <= len(objects) <= 2
        return Verdict(True, valid, valid, all(found.shape for found in objects), valid, valid)
    background_right = wanted.background in ("", background)
    if len(objects) != len(wanted.things):
        return Verdict(background_right, False, False, False, False, False)
    orders = (objects, objects[::-1]) if len(objects) == 2 else (objects,)
    return max((_judge(wanted, order, background_right) for order in orders), key=_rank)


def find_objects(picture: Image.Image | NDArray[np.uint8]) -> tuple[str, list[Found]]:
    """Find the background's colour and the objects, the largest first."""
    names = _nearest_colours(_reduced(picture))
    border = np.concatenate([names[:3].ravel(), names[-3:].ravel(), names[:, :3].ravel(), names[:, -3:].ravel()])
    background = int(np.bincount(border).argmax())
    regions = _regions(names != background)
    return list(PALETTE)[background], [_describe(region, names) for region in regions]


def _reduced(picture: Image.Image | NDArray[np.uint8]) -> NDArray[np.float32]:
    """Average a picture down to float32 [SIDE, SIDE, 3] in [0, 255]."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    if image.width != image.height or image.width < SIDE:
        raise UsageError(
            f"a picture of {image.width}x{image.height} pixels cannot be scored",
            hint=f"give a square picture at least {SIDE} pixels wide",
        )
    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)


def _nearest_colours(pixels: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return each pixel's palette index: the nearest in RGB of the lines between each colour's two shades."""
    base, shade = np.array(list(PALETTE.values()), np.float32).swapaxes(0, 1)
    line = shade - base
    offset = pixels[:, :, None] - base
    along = np.clip((offset * line).sum(-1) / np.square(line).sum(-1), 0, 1)
    nearest: NDArray[np.intp] = np.square(offset - along[..., None] * line).sum(-1).argmin(-1)
    return nearest


def _regions(foreground: Mask) -> list[Mask]:
    """Return the connected regions (4 neighbours) larger than a speck, the largest first."""
    labels = np.arange(foreground.size).reshape(foreground.shape)
    joined = foreground[1:] & foreground[:-1], foreground[:, 1:] & foreground[:, :-1]
    while True:
        lowest = labels.copy()
        for link, before, after in ((joined[0], np.s_[:-1], np.s_[1:]), (joined[1], np.s_[:, :-1], np.s_[:, 1:])):
            least = np.minimum(labels[before], labels[after])
            for side in (before, after):
                lowest[side] = np.where(link, np.minimum(lowest[side], least), lowest[side])
        lowest = lowest.ravel()[lowest]  # each label takes its label's label: distances double at every pass
        if np.array_equal(lowest, labels):
            break
        labels = lowest
    sizes = np.bincount(labels[foreground], minlength=foreground.size)
    kept = [label for label in np.argsort(-sizes, kind="stable") if sizes[label] > SPECK_SHARE * foreground.size]
    return [(labels == label) & foreground for label in kept]


@functools.cache
def _templates() -> tuple[NDArray[np.float32], tuple[float, ...]]:
    """Draw each shape centred and scaled to one area [shapes, CANVAS, CANVAS]; also return its area at radius 1."""
    side = 512
    masks = [np.asarray(draw_mask(shape, side / 2, side / 2, 0.4 * side, side)) > 0 for shape in SHAPES]
    areas = tuple(float(mask.sum()) / (0.4 * side) ** 2 for mask in masks)
    return np.stack([_normalised(mask) for mask in masks]), areas


def _normalised(region: Mask) -> NDArray[np.float32]:
    """Centre a region on a canvas and scale it to an area of CANVAS_SCALE^2; returns coverage in [0, 1]."""
    rows, columns = np.nonzero(region)
    scale = np.sqrt(region.sum()) / CANVAS_SCALE
    left, top = columns.mean() + 0.5 - CANVAS / 2 * scale, rows.mean() + 0.5 - CANVAS / 2 * scale
    image = Image.fromarray(region.astype(np.float32))
    canvas = image.transform(
        (CANVAS, CANVAS), Image.Transform.AFFINE, (scale, 0, left, 0, scale, top), Image.Resampling.BILINEAR
    )
    return np.asarray(canvas, np.float32)


def _interior(region: Mask) -> Mask:
    """Remove a region's edge, where colours blend with the background; a region that is all edge is kept."""
    padded = np.pad(region, 1)
    inner = region & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inner if inner.any() else region


def _describe(region: Mask, names: NDArray[np.intp]) -> Found:
    """Describe a region as an object; its shape is "" if no template overlaps it enough."""
    templates, areas = _templates()
    canvas = _normalised(region)
    overlaps = np.minimum(templates, canvas).sum((1, 2)) / np.maximum(templates, canvas).sum((1, 2))
    best = int(overlaps.argmax())
    rows, columns = np.nonzero(region)
    side = len(region)
    return Found(
        shape=SHAPES[best] if overlaps[best] >= LEAST_OVERLAP else "",
        colour=list(PALETTE)[int(np.bincount(names[_interior(region)]).argmax())],
        radius=float(np.sqrt(len(rows) / areas[best])) / side,
        x=(float(columns.mean()) + 0.5) / side,
        y=(float(rows.mean()) + 0.5) / side,
        overlap=float(overlaps[best]),
    )


def _size_word(count: int, radius: float) -> str:
    """Return the size word whose radius is nearest."""
    return min(("small", "", "large"), key=lambda word: abs(RADII[count, word] - radius))


def _relation_holds(relation: str, first: Found, second: Found) -> bool:
    """Return whether the first object lies in the relation's direction, and further along it than across."""
    right, down = first.x - second.x, first.y - second.y
    along = {"left of": -right, "right of": right, "above": -down, "below": down}[relation]
    return along > min(abs(right), abs(down))


def _judge(wanted: Scene, objects: list[Found], background_right: bool) -> Verdict:
    """Score objects given in the order in which the caption names them."""
    pairs: list[tuple[Thing, Found]] = list(zip(wanted.things, objects, strict=True))
    return Verdict(
        background=background_right,
        count=True,
        colour=all(thing.colour in ("", found.colour) for thing, found in pairs),
        shape=all(thing.shape == found.shape for thing, found in pairs),
        size=all(thing.size in ("", _size_word(len(pairs), found.radius)) for thing, found in pairs),
        relation=not wanted.relation or _relation_holds(wanted.relation, *objects),
    )


def _rank(verdict: Verdict) -> tuple[bool, int, bool]:
    """Return the sort key of a verdict: all right first, then most aspects of the objects, then the relation."""
    return verdict.right, verdict.colour + verdict.shape + verdict.size, verdict.relation
