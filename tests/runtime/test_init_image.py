"""Initial pictures: of any size, mode and orientation; damaged and huge ones are refused."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdrt.errors import ArtefactError, UsageError
from sdrt.runtime import init_image
from sdrt.runtime.init_image import MAX_PIXELS, InitImage, draw_latents, open_picture
from tests.runtime.picture_files import SIGNATURE, chunk

SIZE = 16
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
#: EXIF's tag of the orientation, and its value for "turn by 90 degrees clockwise to see it upright".
ORIENTATION, TURN_CLOCKWISE = 0x0112, 6


def noisy(width: int = SIZE, height: int = SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def saved(folder: Path, picture: Image.Image, name: str = "picture.png", **options: Any) -> Path:
    picture.save(folder / name, **options)
    return folder / name


def png_that_says(width: int, height: int) -> bytes:
    """Build a PNG of a few bytes whose header states the given size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 4096)) + chunk(b"IEND", b"")


def colours(picture: Image.Image, size: int = SIZE) -> set[tuple[int, ...]]:
    pixels = InitImage.of(picture, size).pixels
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8
    return {tuple(pixel) for pixel in pixels.reshape(-1, 3).tolist()}


def farthest(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    """Return the largest distance of the picture from one colour."""
    return int(np.abs(np.asarray(picture, np.int16) - colour).max())


def test_a_picture_of_the_right_size_stays_as_it_is(tmp_path: Path) -> None:
    picture = noisy()
    opened = open_picture(saved(tmp_path, picture))
    init = InitImage.of(opened, SIZE)
    assert (init.pixels == np.asarray(picture)).all()
    assert init.digest == InitImage.of(picture, SIZE).digest
    assert init.digest != InitImage.of(picture.rotate(180), SIZE).digest


def test_the_sample_is_what_the_encoder_takes() -> None:
    sample = InitImage.of(Image.new("RGB", (SIZE, SIZE), (0, 255, 51)), SIZE).sample()
    assert sample.shape == (1, 3, SIZE, SIZE)
    assert sample.dtype == np.float32
    np.testing.assert_allclose(sample[0, :, 0, 0], [-1, 1, -0.6], atol=1e-6)


@pytest.mark.parametrize("turned", [False, True], ids=["wide", "high"])
def test_the_largest_square_around_the_centre_is_taken(turned: bool) -> None:
    # Bands of a third each: the square around the centre holds the middle one only.
    pixels = np.repeat([[RED, GREEN, BLUE]], 30, axis=0).repeat(30, axis=1).astype(np.uint8)
    picture = Image.fromarray(pixels.transpose(1, 0, 2).copy() if turned else pixels)
    assert colours(picture) == {GREEN}


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (7, 3), (2000, 1001)])
def test_any_size_is_brought_to_the_models(size: tuple[int, int]) -> None:
    assert colours(Image.new("RGB", size, (10, 20, 30))) == {(10, 20, 30)}


@pytest.mark.parametrize("name", ["picture.jpg", "picture.png", "picture.webp", "picture.tiff"])
def test_orientation_is_respected(name: str, tmp_path: Path) -> None:
    # Red at the left as stored; to be turned clockwise, so that red stands on top.
    stored = Image.new("RGB", (64, 64), BLUE)
    stored.paste(RED, (0, 0, 32, 64))
    exif = Image.Exif()
    exif[ORIENTATION] = TURN_CLOCKWISE
    path = saved(tmp_path, stored, name, exif=exif, **({"quality": 95} if name.endswith("jpg") else {}))
    pixels = np.asarray(open_picture(path), np.int16)
    # JPEG and lossy WebP move a colour by a few levels.
    assert np.abs(pixels[8, 8] - RED).max() < 12
    assert np.abs(pixels[8, 56] - RED).max() < 12
    assert np.abs(pixels[56, 8] - BLUE).max() < 12


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.new("L", (4, 4), 100), (100, 100, 100)),
        (Image.new("1", (4, 4), 1), WHITE),
        (Image.new("RGB", (4, 4), RED).quantize(), RED),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), RED),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), WHITE),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 128)), (255, 127, 127)),
        (Image.new("LA", (4, 4), (0, 128)), (127, 127, 127)),
        (Image.fromarray(np.full((4, 4), 32768, np.uint16)), (128, 128, 128)),
        (Image.fromarray(np.full((4, 4), 65535, np.uint16)), WHITE),
    ],
    ids=["grey", "1-bit", "palette", "cmyk", "clear", "half-clear", "grey-half-clear", "16-bit", "16-bit-white"],
)
def test_every_mode_becomes_rgb(picture: Image.Image, expected: tuple[int, int, int]) -> None:
    assert colours(picture) == {expected}


def test_modes_survive_their_files(tmp_path: Path) -> None:
    sixteen = saved(tmp_path, Image.fromarray(np.full((4, 4), 32768, np.uint16)), "sixteen.png")
    assert open_picture(sixteen).getpixel((0, 0)) == (128, 128, 128)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([*RED, *GREEN])
    clear = saved(tmp_path, palette, "clear.png", transparency=1)
    assert open_picture(clear).getpixel((0, 0)) == WHITE
    cmyk = saved(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "cmyk.jpg", quality=95)
    assert farthest(open_picture(cmyk), RED) < 12


@pytest.mark.parametrize("name", ["animated.gif", "animated.webp", "animated.png"])
def test_of_an_animation_the_first_frame_is_taken(name: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    path = saved(tmp_path, frames[0], name, save_all=True, append_images=frames[1:])
    assert farthest(open_picture(path), RED) < 12


@pytest.mark.parametrize("size", [(50_000, 50_000), (2**31 - 1, 2**31 - 1), (9_000, 9_000), (MAX_PIXELS + 1, 1)])
def test_decompression_bombs_are_refused_before_they_are_decoded(size: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_that_says(*size))
    tracemalloc.start()
    try:
        with pytest.raises(ArtefactError, match=r"bomb\.png"):
            open_picture(tmp_path / "bomb.png")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 << 20


def test_the_largest_that_is_taken_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init_image, "MAX_PIXELS", 100)
    assert open_picture(saved(tmp_path, noisy(10, 10), "large.png")).size == (10, 10)
    with pytest.raises(ArtefactError, match="has 101x1 pixels: too many"):
        open_picture(saved(tmp_path, noisy(101, 1), "larger.png"))


@pytest.mark.parametrize("image", ["sketch.jpg", Path("sketch.jpg"), np.zeros((4, 4, 3), np.uint8)])
def test_what_pillow_has_not_opened_is_refused(image: Any) -> None:
    with pytest.raises(UsageError, match=r"must be a PIL\.Image\.Image"):
        InitImage.of(image, SIZE)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    # Pillow hands PostScript to Ghostscript.
    (tmp_path / "program.png").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n"
    )
    (tmp_path / "empty.png").touch()
    for name in ("text.png", "program.png", "empty.png"):
        with pytest.raises(ArtefactError, match="is not a picture that can be read"):
            open_picture(tmp_path / name)
    for path in (tmp_path, tmp_path / "absent.png", tmp_path / ("n" * 300)):
        with pytest.raises(ArtefactError, match=r"is not a file|cannot read"):
            open_picture(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.bmp", "a.tiff"])
def test_truncated_files_are_refused(name: str, tmp_path: Path) -> None:
    whole = saved(tmp_path, noisy(40, 40), name).read_bytes()
    for cut in np.linspace(1, len(whole) * 0.9, 10).astype(int).tolist():
        (tmp_path / "cut").write_bytes(whole[:cut])
        with pytest.raises(ArtefactError) as caught:
            open_picture(tmp_path / "cut")
        assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.bmp", "a.tiff"])
def test_damaged_files_are_pictures_or_refused(name: str, tmp_path: Path) -> None:
    stream = BytesIO()
    exif = Image.Exif()
    exif[ORIENTATION] = TURN_CLOCKWISE
    noisy(24, 20).save(stream, {"a.jpg": "JPEG", "a.tiff": "TIFF"}.get(name, name[2:]), exif=exif)
    whole = np.frombuffer(stream.getvalue(), np.uint8)
    rng = np.random.default_rng(1)
    path, refused = tmp_path / name, 0
    for _ in range(120):
        damaged = whole.copy()
        places = rng.integers(0, len(whole), rng.integers(1, 6))
        damaged[places] = rng.integers(0, 256, len(places))
        path.write_bytes(damaged.tobytes())
        try:
            assert open_picture(path).mode == "RGB"
        except ArtefactError:
            refused += 1
    # Control: some of the damage is visible.
    assert refused or name == "a.bmp"


def test_latents_are_drawn_from_mean_and_log_variance() -> None:
    rng = np.random.default_rng(0)
    mean = rng.standard_normal((1, 4, 8, 8), np.float32)
    noise = rng.standard_normal((3, 4, 8, 8), np.float32)
    for log_variance, deviation in ((0.0, 1.0), (np.log(4.0), 2.0), (-100.0, np.exp(-15.0)), (100.0, np.exp(10.0))):
        parameters = np.concatenate([mean, np.full_like(mean, log_variance)], axis=1)
        drawn = draw_latents(parameters, noise)
        assert drawn.shape == (3, 4, 8, 8)
        assert drawn.dtype == np.float32
        # Single precision of three operations.
        np.testing.assert_allclose(drawn, mean + np.float32(deviation) * noise, rtol=1e-5, atol=1e-5)
