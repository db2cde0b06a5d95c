"""Pixels of every mode and depth over white, by values computed by hand; any decoding failure is one error."""

from __future__ import annotations

import copy
import pickle
import struct
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFile

from sdrt.errors import ArtefactError, UsageError
from sdrt.runtime.init_image import InitImage, open_picture
from sdrt.runtime.rgb import UndrawableError, to_rgb
from tests.runtime.picture_files import GREY, GREY_ALPHA, PALETTE, RGB, RGBA, chunk, exif, png, tiff

WHITE = (255, 255, 255)


def over(colour: tuple[int, ...], alpha: int) -> tuple[int, ...]:
    """Return a colour with alpha over white."""
    return tuple(round((level * alpha + 255 * (255 - alpha)) / 255) for level in colour)


def shorts(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


def rows(picture: Image.Image) -> list[tuple[int, ...]]:
    assert picture.mode == "RGB"
    return [tuple(pixel) for pixel in np.asarray(picture).reshape(-1, 3).tolist()]


def grey(*levels: int) -> list[tuple[int, ...]]:
    return [(level,) * 3 for level in levels]


def row(*values: Any) -> npt.NDArray[Any]:
    """Return a picture one pixel high."""
    return np.array([values])


def trns(*values: int) -> bytes:
    return chunk(b"tRNS", shorts(*values))


COLOURS = chunk(b"PLTE", bytes([255, 0, 0, 0, 255, 0, 10, 20, 30, 0, 0, 0]))

PNGS: dict[str, tuple[bytes, list[tuple[int, ...]]]] = {
    "1-bit": (png(row(0, 1), 1, GREY), grey(0, 255)),
    "1-bit, black clear": (png(row(0, 1), 1, GREY, [trns(0)]), grey(255, 255)),
    "1-bit, white clear": (png(row(0, 1), 1, GREY, [trns(1)]), grey(0, 255)),
    "2-bit": (png(row(0, 1, 2, 3), 2, GREY), grey(0, 85, 170, 255)),
    "2-bit, clear": (png(row(0, 1, 2, 3), 2, GREY, [trns(1)]), grey(0, 255, 170, 255)),
    "4-bit, clear": (png(row(0, 1, 2, 3), 4, GREY, [trns(2)]), grey(0, 17, 255, 51)),
    "8-bit, clear": (png(row(7, 8, 9), 8, GREY, [trns(8)]), grey(7, 255, 9)),
    "16-bit": (png(row(0, 128, 257, 32768, 65535), 16, GREY), grey(0, 0, 1, 128, 255)),
    # The two share their high byte.
    "16-bit, clear": (png(row(4660, 4661, 65535), 16, GREY, [trns(4660)]), grey(255, 18, 255)),
    "16-bit, black clear": (png(row(0, 1000), 16, GREY, [trns(0)]), grey(255, 4)),
    "RGB, clear": (png(row((1, 2, 3), (1, 2, 4)), 8, RGB, [trns(1, 2, 3)]), [WHITE, (1, 2, 4)]),
    "16-bit RGB": (png(row((65535, 0, 32768), (256, 512, 768)), 16, RGB), [(255, 0, 128), (1, 2, 3)]),
    "16-bit RGB, clear": (
        png(row((4660, 0, 65535), (4661, 0, 65535), (52, 0, 255)), 16, RGB, [trns(4660, 0, 65535)]),
        [WHITE, (18, 0, 255), (0, 0, 0)],
    ),
    "16-bit RGB, dark clear": (png(row((1, 2, 3), (256, 512, 768)), 16, RGB, [trns(1, 2, 3)]), [WHITE, (1, 2, 3)]),
    "palette": (png(row(0, 1, 2), 8, PALETTE, [COLOURS]), [(255, 0, 0), (0, 255, 0), (10, 20, 30)]),
    "palette, one clear": (
        png(row(0, 1, 2), 2, PALETTE, [COLOURS, chunk(b"tRNS", bytes([255, 0]))]),
        [(255, 0, 0), WHITE, (10, 20, 30)],
    ),
    "palette with alpha": (
        png(row(0, 1, 2, 3), 4, PALETTE, [COLOURS, chunk(b"tRNS", bytes([0, 128, 51]))]),
        [WHITE, over((0, 255, 0), 128), over((10, 20, 30), 51), (0, 0, 0)],
    ),
    "palette, more alpha than colours": (
        png(row(0, 1), 8, PALETTE, [COLOURS, chunk(b"tRNS", bytes([51]) * 400)]),
        [over((255, 0, 0), 51), over((0, 255, 0), 51)],
    ),
    "grey with alpha": (png(row((100, 51), (100, 0), (9, 255)), 8, GREY_ALPHA), grey(over((100,), 51)[0], 255, 9)),
    "16-bit grey with alpha": (
        png(row((100 * 257, 51 * 257), (100, 0), (9 * 257, 65535)), 16, GREY_ALPHA),
        grey(over((100,), 51)[0], 255, 9),
    ),
    "RGBA": (png(row((10, 20, 30, 51), (10, 20, 30, 0)), 8, RGBA), [over((10, 20, 30), 51), WHITE]),
    "16-bit RGBA": (
        png(row((10 * 257, 20 * 257, 30 * 257, 51 * 257), (1, 2, 3, 0)), 16, RGBA),
        [over((10, 20, 30), 51), WHITE],
    ),
}


@pytest.mark.parametrize("name", PNGS)
def test_every_kind_of_png_over_white(name: str, tmp_path: Path) -> None:
    data, expected = PNGS[name]
    (tmp_path / "a.png").write_bytes(data)
    assert rows(open_picture(tmp_path / "a.png")) == expected
    assert rows(to_rgb(Image.open(BytesIO(data)))) == expected


TIFFS: dict[str, tuple[bytes, list[tuple[int, ...]]]] = {
    "grey": (tiff(row(0, 9).astype(np.uint8)), grey(0, 9)),
    "white is zero": (tiff(row(0, 9).astype(np.uint8), photometric=0), grey(255, 246)),
    "16-bit": (tiff(row(0, 32768, 65535).astype(np.uint16)), grey(0, 128, 255)),
    "grey with alpha": (tiff(row((100, 51)).astype(np.uint8), extra=2), grey(over((100,), 51)[0])),
    "grey times alpha": (tiff(row((20, 51), (0, 0), (9, 255)).astype(np.uint8), extra=1), grey(224, 255, 9)),
    "RGBA": (tiff(row((10, 20, 30, 51)).astype(np.uint8), photometric=2, extra=2), [over((10, 20, 30), 51)]),
    "RGB times alpha": (tiff(row((2, 4, 6, 51)).astype(np.uint8), photometric=2, extra=1), [(206, 208, 210)]),
    "16-bit RGBA": (
        tiff((row((10, 20, 30, 51)) * 257).astype(np.uint16), photometric=2, extra=2),
        [over((10, 20, 30), 51)],
    ),
    "CMYK": (tiff(row((0, 255, 255, 0), (0, 0, 0, 255)).astype(np.uint8), photometric=5), [(255, 0, 0), (0, 0, 0)]),
}


@pytest.mark.parametrize("name", TIFFS)
def test_every_kind_of_tiff_over_white(name: str, tmp_path: Path) -> None:
    data, expected = TIFFS[name]
    (tmp_path / "a.tiff").write_bytes(data)
    assert rows(open_picture(tmp_path / "a.tiff")) == expected
    assert rows(to_rgb(Image.open(BytesIO(data)))) == expected


def alpha_palette() -> Image.Image:
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 51, 0, 255, 0, 0], "RGBA")
    picture.putpixel((1, 0), 1)
    return picture


def palette_and_alpha() -> Image.Image:
    picture = Image.new("PA", (2, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.putpixel((0, 0), (1, 51))
    picture.putpixel((1, 0), (0, 0))
    return picture


def sixteen_bits_decoded() -> Image.Image:
    return with_info(Image.new("RGB", (1, 1), (18, 0, 255)), transparency=(4660, 0, 65535))


def with_info(picture: Image.Image, **info: Any) -> Image.Image:
    picture.info.update(info)
    return picture


MODES: dict[str, tuple[Callable[[], Image.Image], list[tuple[int, ...]]]] = {
    "P with an alpha palette": (alpha_palette, [over((255, 0, 0), 51), WHITE]),
    "PA": (palette_and_alpha, [over((0, 255, 0), 51), WHITE]),
    "La": (lambda: Image.frombytes("La", (2, 1), bytes([20, 51, 0, 0])), grey(224, 255)),
    "RGBa": (lambda: Image.frombytes("RGBa", (2, 1), bytes([2, 4, 6, 51, 0, 0, 0, 0])), [(206, 208, 210), WHITE]),
    "RGBX": (lambda: Image.frombytes("RGBX", (1, 1), bytes([1, 2, 3, 0])), [(1, 2, 3)]),
    "YCbCr": (lambda: Image.new("YCbCr", (1, 1), (76, 85, 255)), [(254, 0, 0)]),
    "HSV": (lambda: Image.new("HSV", (1, 1), (0, 255, 255)), [(255, 0, 0)]),
    "I;16B": (lambda: Image.frombytes("I;16B", (2, 1), shorts(32768, 65535)), grey(128, 255)),
    "a level that is no number": (lambda: with_info(Image.new("L", (1, 1), 9), transparency="none"), grey(9)),
    "a colour that is none": (lambda: with_info(Image.new("RGB", (1, 1), (1, 2, 3)), transparency=b"\0"), [(1, 2, 3)]),
    "a palette's that is none": (lambda: with_info(Image.new("P", (1, 1), 0), transparency="x"), [(0, 0, 0)]),
    "a palette's out of range": (lambda: with_info(Image.new("P", (1, 1), 0), transparency=999), [(0, 0, 0)]),
    "a text for CMYK": (lambda: with_info(Image.new("CMYK", (1, 1)), transparency="x"), [WHITE]),
    "16 bits, decoded": (
        lambda: with_info(Image.new("RGB", (1, 1), (18, 0, 255)), transparency=(4660, 0, 65535)),
        [WHITE],
    ),
}


def state(picture: Image.Image) -> tuple[Any, ...]:
    palette = picture.getpalette("RGBA") if picture.palette else None
    return picture.mode, picture.tobytes(), dict(picture.info), palette


@pytest.mark.parametrize("name", MODES)
def test_every_mode_of_pillow_over_white(name: str) -> None:
    picture = MODES[name][0]()
    before = state(picture)
    assert rows(to_rgb(picture)) == MODES[name][1]
    assert rows(to_rgb(picture)) == MODES[name][1]
    assert state(picture) == before


def test_cie_lab() -> None:
    # L* 54.1, a* 81, b* 70 is sRGB's red; Pillow keeps a* and b* with their sign.
    (red,) = rows(to_rgb(Image.frombytes("LAB", (1, 1), bytes([138, 81, 70]))))
    # Eight bits of L*, a* and b* are some levels of RGB.
    assert max(abs(level - wanted) for level, wanted in zip(red, (255, 0, 0), strict=True)) <= 5


def gif(transparent: int | None, width: int = 3, frame_width: int = 2) -> bytes:
    """Build a GIF of one frame, red and green, on a wider screen."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, 1, 0x80, 0, 0) + bytes([255, 0, 0, 0, 255, 0])
    control = b"" if transparent is None else b"!\xf9\x04\x01\0\0" + bytes([transparent]) + b"\0"
    # Codes of three bits each, from the lowest: clear (4), 0, 1, end (5).
    codes = (4 | 0 << 3 | 1 << 6 | 5 << 9).to_bytes(2, "little")
    return head + control + b"," + struct.pack("<HHHHB", 0, 0, frame_width, 1, 0) + b"\x02\x02" + codes + b"\0;"


def test_gifs_over_white() -> None:
    assert rows(to_rgb(Image.open(BytesIO(gif(1, 2))))) == [(255, 0, 0), WHITE]
    assert rows(to_rgb(Image.open(BytesIO(gif(None, 2))))) == [(255, 0, 0), (0, 255, 0)]
    # The screen outside the frame is transparent.
    assert rows(to_rgb(Image.open(BytesIO(gif(1))))) == [(255, 0, 0), WHITE, WHITE]


def test_the_frame_that_a_user_has_chosen() -> None:
    stream = BytesIO()
    frames = [Image.new("RGBA", (4, 4), colour) for colour in ((255, 0, 0, 255), (0, 0, 255, 51))]
    frames[0].save(stream, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    picture = Image.open(stream)
    assert rows(to_rgb(picture))[0] == (255, 0, 0)
    picture.seek(1)
    assert rows(to_rgb(picture))[0] != (255, 0, 0)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_without_a_white_are_refused(mode: str, tmp_path: Path) -> None:
    picture = Image.new(mode, (4, 4))
    with pytest.raises(UndrawableError, match=f"mode {mode}, in which no value is defined as white"):
        to_rgb(picture)
    with pytest.raises(UsageError, match=f"^image has pixels of mode {mode}"):
        InitImage.of(picture, 8)
    picture.save(tmp_path / "a.tiff")
    with pytest.raises(ArtefactError, match=rf"a\.tiff has pixels of mode {mode}"):
        open_picture(tmp_path / "a.tiff")


def opened(data: bytes) -> Image.Image:
    """Open a picture as a user does, with warnings silenced."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Image.open(BytesIO(data))


def turned() -> Image.Image:
    """Return a picture to be turned clockwise: red at the left as stored, on top when it is upright."""
    stored = Image.new("RGB", (64, 64), (0, 0, 255))
    stored.paste((255, 0, 0), (0, 0, 32, 64))
    return stored


def is_upright(picture: Image.Image) -> bool:
    pixels = np.asarray(picture, np.int16)
    return bool(pixels[8, 8, 0] > 200 and pixels[8, 56, 0] > 200 and pixels[56, 8, 0] < 50)


BROKEN = [b"garbage", b"", b"Exif\0\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"\xff" * 40]


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize("garbage", BROKEN)
def test_exif_that_cannot_be_read_turns_nothing(kind: str, garbage: bytes, tmp_path: Path) -> None:
    stream = BytesIO()
    if kind == "PNG":
        stream.write(png(np.full((8, 8, 3), 9), 8, RGB, [chunk(b"eXIf", garbage)]))
    else:
        Image.new("RGB", (8, 8), (9, 9, 9)).save(stream, kind, exif=b"Exif\0\0" + garbage)
    (tmp_path / "a").write_bytes(stream.getvalue())
    for _ in range(2):
        assert rows(open_picture(tmp_path / "a"))[0] == (9, 9, 9)
    lazy = opened(stream.getvalue())
    for _ in range(2):
        assert InitImage.of(lazy, 8).pixels[0, 0].tolist() == [9, 9, 9]


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_the_orientation_is_applied_beside_exif_that_is_garbage(kind: str) -> None:
    xmp = b'<x tiff:Orientation="6"/>'
    stream = BytesIO()
    if kind == "PNG":
        texts = [chunk(b"eXIf", b"garbage"), chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)]
        stream.write(png(np.asarray(turned()), 8, RGB, texts))
    else:
        turned().save(stream, kind, exif=b"Exif\0\0garbage", xmp=xmp)
    picture = Image.open(stream)
    for _ in range(2):
        assert is_upright(to_rgb(picture))


@pytest.mark.parametrize("orientation", range(0, 10))
def test_every_orientation_is_what_exif_says(orientation: int) -> None:
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3)
    upright = {
        2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.T,
        6: np.rot90(stored, -1), 7: np.rot90(stored, 2).T, 8: np.rot90(stored),
    }.get(orientation, stored)  # fmt: skip
    for data in (
        png(stored, 8, GREY, [chunk(b"eXIf", exif(orientation))]),
        png(stored, 8, GREY, after=[chunk(b"eXIf", exif(orientation))]),
        tiff(stored, {274: (3, 1, struct.pack("<I", orientation))}),
        tiff(stored, {274: (3, 1, struct.pack("<I", orientation))}, compressed=True),
    ):
        picture = to_rgb(Image.open(BytesIO(data)))
        assert (np.asarray(picture)[..., 0] == upright).all()


def test_a_tiff_is_turned_once_beside_metadata_that_is_garbage() -> None:
    # Offsets of EXIF and GPS beyond the file, and XMP that is a number.
    tags = {274: (3, 1, struct.pack("<I", 6)), 34665: (4, 1, b"\xff" * 4), 34853: (9, 1, b"\xff" * 4)}
    for more in (tags, tags | {700: (3, 1, b"abcd")}):
        for compressed in (False, True):
            picture = Image.open(BytesIO(tiff(np.asarray(turned()), more, photometric=2, compressed=compressed)))
            for _ in range(2):
                assert is_upright(to_rgb(picture))


def noisy() -> bytes:
    stream = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def saved(kind: str) -> bytes:
    stream = BytesIO()
    Image.open(BytesIO(noisy())).save(stream, kind)
    return stream.getvalue()


def refused(picture: Image.Image) -> str:
    with pytest.raises(UsageError) as caught:
        InitImage.of(picture, 16)
    assert caught.value.message.startswith("image ")
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value.message


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "TGA", "ICO", "PCX", "SGI"])
def test_a_picture_that_is_cut_off_is_refused(kind: str) -> None:
    whole = saved(kind)
    lazy = Image.open(BytesIO(whole))
    assert InitImage.of(lazy, 16).pixels.shape == (16, 16, 3)
    opened = 0
    for cut in np.linspace(20, len(whole) * 0.9, 8).astype(int).tolist():
        try:
            picture = Image.open(BytesIO(whole[:cut]))
        except Exception:
            continue
        opened += 1
        assert "is damaged, cut off or closed" in refused(picture)
        refused(picture)
    assert opened or kind in ("TIFF", "ICO")


def test_a_closed_picture_is_refused(tmp_path: Path) -> None:
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        (tmp_path / "a").write_bytes(saved(kind))
        never_decoded = Image.open(tmp_path / "a")
        never_decoded.close()
        refused(never_decoded)
        with Image.open(tmp_path / "a") as left:
            pass
        if kind != "WEBP":
            refused(left)
        decoded = Image.open(tmp_path / "a")
        decoded.load()
        decoded.close()
        refused(decoded)
        with (tmp_path / "a").open("rb") as file:
            lazy = Image.open(file)
        if kind != "WEBP":
            refused(lazy)
    made = Image.new("RGB", (4, 4))
    made.close()
    refused(made)


def test_a_file_that_went_away_or_shrank_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(noisy())
    with (tmp_path / "a.png").open("r+b") as file:
        lazy = Image.open(tmp_path / "a.png")
        file.truncate(200)
    refused(lazy)
    lazy.close()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
def test_copies_are_pictures_like_any_other(kind: str) -> None:
    whole = saved(kind)
    expected = InitImage.of(Image.open(BytesIO(whole)), 16).digest
    for copied in (
        Image.open(BytesIO(whole)).copy(),
        copy.copy(Image.open(BytesIO(whole))),
        copy.deepcopy(Image.open(BytesIO(whole)).copy()),
        pickle.loads(pickle.dumps(Image.open(BytesIO(whole)))),
    ):
        assert InitImage.of(copied, 16).digest == expected


def test_a_picture_without_pixels_is_refused() -> None:
    assert "has no pixels" in refused(Image.new("RGB", (0, 5)))
    assert "has no pixels" in refused(Image.new("RGBA", (5, 0)))


def test_a_decoder_that_raises_anything_is_refused() -> None:
    class Odd(ImageFile.ImageFile):
        def _open(self) -> None:
            self._mode, self._size = "RGB", (4, 4)
            self.tile = [ImageFile._Tile("raw", (0, 0, 4, 4), 0, "RGB")]

        def load_prepare(self) -> None:
            raise AssertionError

    assert refused(Odd(BytesIO(b"x"))).endswith("closed: AssertionError")
