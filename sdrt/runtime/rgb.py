"""Conversion of any picture to RGB: decoded, transparency over white, turned upright."""

from __future__ import annotations

import contextlib
import struct
import warnings
import zlib
from collections.abc import Iterator
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

#: Exceptions that Pillow's decoders raise for files that are damaged, in one format or another.
DECODER_ERRORS: tuple[type[Exception], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

Pixels = npt.NDArray[np.uint8]

_WHITE = 255
#: White of 16-bit modes, by Pillow's raw mode.
_WHITES = {"I;12": 4095}
#: Factor by which Pillow scales the levels of a grey PNG of 2 or 4 bits, but not its transparent level.
_SCALES = {"L;2": 85, "L;4": 17}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UndrawableError(Exception):
    """A picture cannot be converted to RGB.

    Args:
        reason: The predicate of a sentence about the picture, such as "has no pixels".
        hint: Remedy, if this reason has one of its own.
    """

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.hint = hint


def to_rgb(picture: Image.Image) -> Image.Image:
    """Return a picture's current frame in RGB, upright, transparency over white.

    The orientation is applied if it can be read; other metadata is ignored.

    Raises:
        UndrawableError: It is truncated, damaged, closed or empty, or its mode has no defined white.
    """
    with pillow_errors():
        stored = _stored_as(picture)
        clear = _clear_16_bit(picture) if stored == "RGB;16B" else None
        _load(picture)
        if 0 in picture.size:
            raise UndrawableError("has no pixels")
        turn = _TURNS.get(_orientation(picture))
        drawn = _drawn(picture, stored, clear)
        return drawn if turn is None else drawn.transpose(turn)


@contextlib.contextmanager
def pillow_errors() -> Iterator[None]:
    """Convert all exceptions of Pillow in the block to UndrawableError, and suppress its warnings."""
    try:
        with warnings.catch_warnings():
            # Pillow's warnings about a file are harmless, or followed by an error.
            warnings.simplefilter("ignore")
            yield
    except (UndrawableError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise UndrawableError("is not a picture that can be read") from error
    except Image.DecompressionBombError as error:
        raise UndrawableError("has too many pixels") from error
    except DECODER_ERRORS as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UndrawableError(f"is damaged, cut off or closed: {reason}") from error


def _stored_as(picture: Image.Image) -> str:
    """Return Pillow's raw mode of a file's pixels; "" if they are decoded already."""
    tiles = getattr(picture, "tile", None) or []
    arguments = tiles[0][3] if tiles else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _load(picture: Image.Image) -> None:
    """Decode a picture, even if the metadata that Pillow reads after the pixels is malformed."""
    end = getattr(picture, "load_end", None)
    if end is None:
        picture.load()
        return

    def lenient_end() -> None:
        with contextlib.suppress(*DECODER_ERRORS):
            end()

    attributes = vars(picture)
    attributes["load_end"] = lenient_end
    try:
        picture.load()
    finally:
        del attributes["load_end"]


def _orientation(picture: Image.Image) -> int:
    """Return a decoded picture's EXIF orientation, or else XMP's; 1 (upright) if neither can be read."""
    only_xmp = Image.Image()
    only_xmp.info = {name: picture.info.get(name) for name in ("XML:com.adobe.xmp", "xmp")}
    for source in (picture, only_xmp):
        with contextlib.suppress(*DECODER_ERRORS):
            orientation = source.getexif().get(ExifTags.Base.Orientation)
            if orientation in _TURNS:
                return int(orientation)
    return 1


def _drawn(picture: Image.Image, stored: str, clear: npt.NDArray[np.bool_] | None) -> Image.Image:
    """Return a decoded picture in RGB over white.

    Args:
        picture: A picture of any mode.
        stored: Raw mode of its file; "" if not known.
        clear: [h,w] mask of transparent pixels, if it cannot be found in the decoded picture.
    """
    mode, transparent = picture.mode, _transparent(picture)
    if mode in ("I", "F"):
        reason = f"has pixels of mode {mode}, in which no value is defined as white"
        raise UndrawableError(reason, "save it with 8 or 16 bits a channel")
    if mode.startswith("I;16"):
        levels = np.asarray(picture, np.float64)
        white = _WHITES.get(stored, 65535)
        # Pillow's own conversion clips at 255.
        grey = np.rint(np.minimum(levels, white) * (_WHITE / white)).astype(np.uint8)
        return _over_white(grey, levels == transparent if isinstance(transparent, int) else None)
    if mode in ("1", "L") and isinstance(transparent, int):
        grey = np.asarray(picture.convert("L"))
        return _over_white(grey, grey == transparent * _SCALES.get(stored, 1))
    if mode == "RGB" and isinstance(transparent, tuple):
        colours = np.asarray(picture)
        if clear is None:
            eight = [value >> 8 for value in transparent] if max(transparent) > _WHITE else transparent
            clear = (colours == eight).all(axis=2)
        return _over_white(colours, clear)
    if mode in ("La", "RGBa"):
        # Colours are multiplied by alpha already: only white's share is to be added.
        bands = np.asarray(picture).astype(np.uint16)
        return _over_white(np.minimum(bands[..., :-1] + (_WHITE - bands[..., -1:]), _WHITE).astype(np.uint8))
    if mode == "P" or "transparency" in picture.info:
        # A copy, since the conversion writes into the palette.
        picture = picture.copy()
        picture.info = {} if mode != "P" or transparent is None else {"transparency": transparent}
    if mode not in ("P", "PA", "LA", "RGBA"):
        return _converted(picture, "RGB")
    over = _converted(picture, "RGBA")
    return Image.alpha_composite(Image.new("RGBA", over.size, (_WHITE,) * 4), over).convert("RGB")


def _converted(picture: Image.Image, mode: str) -> Image.Image:
    try:
        return picture.convert(mode)
    except ValueError as error:
        reason = f"has pixels of mode {picture.mode}, which cannot be converted"
        raise UndrawableError(reason, "save it as RGB or RGBA") from error


def _transparent(picture: Image.Image) -> int | bytes | tuple[int, ...] | None:
    """Return the transparent level, palette entry or colour, or a palette's alpha; None if none fits the mode.

    A PNG text may have the key "transparency", too.
    """
    found = picture.info.get("transparency")
    if picture.mode == "P" and isinstance(found, bytes):
        return found[: _WHITE + 1]
    if picture.mode == "RGB":
        fits = isinstance(found, tuple) and len(found) == 3 and all(isinstance(value, int) for value in found)
        return found if fits else None
    if not isinstance(found, int):
        return None
    return found if picture.mode != "P" or 0 <= found <= _WHITE else None


def _over_white(pixels: Pixels, clear: npt.NDArray[np.bool_] | None = None) -> Image.Image:
    """Return grey [h,w] or [h,w,1], or RGB [h,w,3], as RGB; pixels of the mask ``clear`` are white."""
    colours = pixels if pixels.ndim == 3 else pixels[..., np.newaxis]
    drawn = np.repeat(colours, 3, axis=2) if colours.shape[2] == 1 else colours.copy()
    if clear is not None:
        drawn[clear] = _WHITE
    return Image.fromarray(drawn)


def _clear_16_bit(picture: Image.Image) -> npt.NDArray[np.bool_] | None:
    """Return the mask [h,w] of transparent pixels of an undecoded 16-bit RGB PNG; None if it has no transparent colour.

    Pillow keeps only the high byte of each value, so the file is decoded twice more: for the high and the low bytes.
    """
    transparent, file = _transparent(picture), getattr(picture, "fp", None)
    if not isinstance(transparent, tuple) or file is None or getattr(picture, "is_animated", False):
        return None
    position = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(position)
    numbers = np.zeros((picture.height, picture.width, 3), np.uint16)
    for stored, factor in (("RGB;16B", 256), ("RGB;16L", 1)):
        with Image.open(BytesIO(data), formats=("PNG",)) as again:
            again.tile = [tile._replace(args=stored) for tile in again.tile]
            again.load()
            numbers += np.asarray(again).astype(np.uint16) * np.uint16(factor)
    clear: npt.NDArray[np.bool_] = (numbers == transparent).all(axis=2)
    return clear
