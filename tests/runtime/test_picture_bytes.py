"""Pictures are read whatever their metadata: it is removed from PNG, JPEG and TIFF before Pillow reads them."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from sdrt.errors import ArtefactError
from sdrt.runtime.init_image import open_picture
from sdrt.runtime.picture_bytes import without_metadata
from tests.runtime.picture_files import GREY, RGB, SIGNATURE, chunk, exif, jpeg_with, png, tiff

LEVELS = np.random.default_rng(0).integers(0, 256, (16, 12, 3), np.uint8)
#: Unpacks to more than Pillow takes, a MiB.
BOMB = zlib.compress(bytes(80 << 20), 9)


def wrong_checksum(data: bytes) -> bytes:
    return data[:-4] + b"\0\0\0\0"


CHUNKS: dict[str, bytes] = {
    "a text that unpacks to more than it is": chunk(b"zTXt", b"bomb\0\0" + BOMB),
    "an international one": chunk(b"iTXt", b"bomb\0\1\0\0\0" + BOMB),
    "XMP that does": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB),
    "EXIF as a text that does": chunk(b"zTXt", b"Raw profile type exif\0\0" + BOMB),
    "a colour profile that does": chunk(b"iCCP", b"icc\0\0" + BOMB),
    "a long text": chunk(b"tEXt", b"long\0" + b"a" * (3 << 20)),
    "text of an unknown compression": chunk(b"zTXt", b"text\0\7abc"),
    "EXIF as a text of an unknown compression": chunk(b"zTXt", b"Raw profile type exif\0\7abc"),
    "EXIF as a text that is no number": chunk(b"tEXt", b"Raw profile type exif\0\n\n\n\nxyz"),
    "EXIF as a text that is damaged": chunk(b"zTXt", b"Raw profile type exif\0\0abc"),
    "a profile of an unknown compression": chunk(b"iCCP", b"icc\0\7abc"),
    "a profile that ends early": chunk(b"iCCP", b"icc\0"),
    "gamma that ends early": chunk(b"gAMA", b"\0"),
    "white points that end early": chunk(b"cHRM", b"\0"),
    "a size that ends early": chunk(b"pHYs", b"\0"),
    "no rendering intent": chunk(b"sRGB", b""),
    "no animation": chunk(b"acTL", b""),
    "a frame beyond the picture": chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 99, 99, 9, 9, 1, 1, 0, 0)),
    "a text named as Pillow's transparency": chunk(b"tEXt", b"transparency\0none"),
    "a text named as Pillow's frame": chunk(b"tEXt", b"bbox\0none"),
    "a text named as Pillow's order": chunk(b"tEXt", b"interlace\0none"),
    "a text named as Pillow's EXIF": chunk(b"tEXt", b"exif\0none"),
    "a wrong checksum": wrong_checksum(chunk(b"tEXt", b"a\0b")),
    "EXIF of a wrong checksum": wrong_checksum(chunk(b"eXIf", exif(6))),
    "an unknown chunk": chunk(b"abCd", b"x" * 9),
}


@pytest.mark.parametrize("name", CHUNKS)
@pytest.mark.parametrize("place", ["before", "after"])
def test_no_chunk_keeps_a_png_from_being_drawn(name: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(LEVELS, 8, RGB, **{place: [CHUNKS[name]]}))
    tracemalloc.start()
    try:
        picture = open_picture(tmp_path / "a.png")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (np.asarray(picture) == LEVELS).all()
    assert peak_bytes < 16 << 20


def test_what_stands_behind_the_pixels_does_not_matter(tmp_path: Path) -> None:
    whole = png(LEVELS, 8, RGB)
    end = len(chunk(b"IEND", b""))
    for data in (
        whole[:-end],
        whole[:-6],
        whole + b"more",
        whole[:-end] + b"\xff" * 40,
        whole[:-end] + b"\0\0\1\0tEXta",
    ):
        (tmp_path / "a.png").write_bytes(data)
        assert (np.asarray(open_picture(tmp_path / "a.png")) == LEVELS).all()


def test_what_pixels_depend_on_is_still_held(tmp_path: Path) -> None:
    whole = png(LEVELS, 8, RGB)
    for data in (
        png(np.zeros((2, 2), np.uint8), 8, GREY, [wrong_checksum(chunk(b"tRNS", b"\0\0"))]),
        whole[:20] + b"\xff" + whole[21:],
        whole.replace(b"IDAT", b"IDAU"),
        whole[: len(whole) // 2],
    ):
        (tmp_path / "a.png").write_bytes(data)
        with pytest.raises(ArtefactError, match=r"a\.png is"):
            open_picture(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt", "XMP", "XMP, compressed"])
def test_the_orientation_in_a_text_of_a_png_is_applied(kind: str, tmp_path: Path) -> None:
    block = b"Exif\0\0" + exif(6)
    text = f"\nexif\n{len(block):8}\n{block.hex()}\n".encode()
    xmp = b'<x tiff:Orientation="6"/>'
    written = {
        "tEXt": chunk(b"tEXt", b"Raw profile type exif\0" + text),
        "zTXt": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)),
        "iTXt": chunk(b"iTXt", b"Raw profile type exif\0\0\0\0\0" + text),
        "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        "XMP, compressed": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0en\0\0" + zlib.compress(xmp)),
    }
    for place in ("before", "after"):
        (tmp_path / "a.png").write_bytes(png(LEVELS, 8, RGB, **{place: [written[kind]]}))
        assert (np.asarray(open_picture(tmp_path / "a.png")) == np.rot90(LEVELS, -1)).all()


def jpeg(mode: str = "RGB", **options: Any) -> bytes:
    stream = BytesIO()
    Image.fromarray(LEVELS).convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


SEGMENTS: dict[str, tuple[int, bytes]] = {
    "JFIF that ends early": (0xE0, b"JFIF\0"),
    "Adobe that ends early": (0xEE, b"Adobe"),
    "a profile that ends early": (0xE2, b"ICC_PROFILE\0"),
    "a profile of a part that is missing": (0xE2, b"ICC_PROFILE\0\7\x09abc"),
    "Photoshop that ends early": (0xED, b"Photoshop 3.0\x008BIM\3\xed"),
    "pictures that are not there": (0xE2, b"MPF\0II*\0\x08\0\0\0\x01\0\x01\xb0\4\0\1\0\0\0\xff\xff\xff\xff\0\0\0\0"),
    "pictures that are garbage": (0xE2, b"MPF\0garbage"),
    "EXIF that is garbage": (0xE1, b"Exif\0\0garbage"),
    "EXIF that is empty": (0xE1, b"Exif\0\0"),
    "XMP that is garbage": (0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff\xfe"),
    "a comment": (0xFE, b"\xff" * 300),
    "no comment": (0xFE, b""),
}


@pytest.mark.parametrize("name", SEGMENTS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_no_segment_keeps_a_jpeg_from_being_drawn(name: str, mode: str, tmp_path: Path) -> None:
    whole = jpeg(mode)
    with Image.open(BytesIO(whole)) as plain:
        expected = np.asarray(plain.convert("RGB"))
    (tmp_path / "a.jpg").write_bytes(jpeg_with(whole, SEGMENTS[name]))
    assert (np.asarray(open_picture(tmp_path / "a.jpg")) == expected).all()


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"subsampling": 2}, {"keep_rgb": True}, {"comment": b"x", "dpi": (9, 9)}]
)
def test_jpegs_are_decoded_as_before(options: dict[str, Any]) -> None:
    # Fill bytes may stand before any marker.
    for whole in (jpeg(**options), jpeg(**options).replace(b"\xff\xdb", b"\xff\xff\xff\xdb", 1)):
        with Image.open(BytesIO(whole)) as plain, Image.open(BytesIO(without_metadata(whole))) as bare:
            assert (np.asarray(plain) == np.asarray(bare)).all()


TAGS: dict[str, tuple[int, tuple[int, int, bytes]]] = {
    "a description beyond the file": (270, (2, 2**31, b"\xff" * 4)),
    "a description that the file cuts off": (270, (2, 400, struct.pack("<I", 500))),
    "a maker of an unknown type": (271, (77, 9, b"\xff" * 4)),
    "a resolution that is text": (282, (2, 4, b"abc\0")),
    "a unit that is text": (296, (2, 4, b"abc\0")),
    "a date beyond the file": (306, (2, 2**31, b"\xff" * 4)),
    "EXIF beyond the file": (34665, (4, 1, b"\xff" * 4)),
    "GPS at a negative place": (34853, (9, 1, b"\xff" * 4)),
    "XMP that is a number": (700, (3, 1, b"abcd")),
    "XMP that is text": (700, (2, 4, b"abc\0")),
    "a profile beyond the file": (34675, (7, 2**31, b"\xff" * 4)),
}


@pytest.mark.parametrize("name", TAGS)
@pytest.mark.parametrize("compressed", [False, True])
def test_no_tag_keeps_a_tiff_from_being_drawn(name: str, compressed: bool, tmp_path: Path) -> None:
    tag, entry = TAGS[name]
    tags = {tag: entry, 274: (3, 1, struct.pack("<I", 6))}
    (tmp_path / "a.tiff").write_bytes(tiff(LEVELS, tags, photometric=2, compressed=compressed))
    assert (np.asarray(open_picture(tmp_path / "a.tiff")) == np.rot90(LEVELS, -1)).all()


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "jpeg", "packbits"])
def test_tiffs_are_decoded_as_before(compression: str, big: bool) -> None:
    stream = BytesIO()
    picture = Image.fromarray(LEVELS)
    picture.save(stream, "TIFF", compression=compression, big_tiff=big, description="x" * 99, dpi=(72, 72))
    whole = stream.getvalue()
    with Image.open(BytesIO(whole)) as plain, Image.open(BytesIO(without_metadata(whole))) as bare:
        assert (np.asarray(plain) == np.asarray(bare)).all()
        assert 270 in plain.tag_v2  # type: ignore[attr-defined]
        assert 270 not in bare.tag_v2  # type: ignore[attr-defined]


def test_of_a_file_of_several_pictures_the_first_is_kept() -> None:
    stream = BytesIO()
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(stream, "TIFF", save_all=True, append_images=frames[1:])
    with Image.open(BytesIO(without_metadata(stream.getvalue()))) as bare:
        assert bare.n_frames == 1  # type: ignore[attr-defined]
        assert bare.getpixel((0, 0)) == (255, 0, 0)


def test_pictures_full_of_metadata_lose_it() -> None:
    text = PngInfo()
    text.add_text("parameters", "a red circle")
    text.add_itxt("sdrt", "{}")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for kind in ("PNG", "JPEG"):
        stream, bare = BytesIO(), BytesIO()
        options = {"pnginfo": text} if kind == "PNG" else {"comment": b"a red circle"}
        Image.fromarray(LEVELS).save(stream, kind, icc_profile=profile, **options)
        Image.fromarray(LEVELS).save(bare, kind)
        assert without_metadata(stream.getvalue()) == bare.getvalue()
        assert without_metadata(bare.getvalue()) == bare.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_any_bytes_stay_bytes(kind: str) -> None:
    stream = BytesIO()
    Image.fromarray(LEVELS[:4, :4]).save(stream, kind)
    whole, rng = stream.getvalue(), np.random.default_rng(1)
    for cut in range(0, len(whole), 7):
        without_metadata(whole[:cut])
    for _ in range(200):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[rng.integers(0, min(len(whole), 120), 4)] = rng.integers(0, 256, 4)
        assert len(without_metadata(damaged.tobytes())) <= len(whole)
    assert without_metadata(b"") == b""
    assert without_metadata(SIGNATURE) == SIGNATURE
