"""Picture files written chunk by chunk, with content that no library writes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    samples: npt.ArrayLike, depth: int, colour: int, before: Sequence[bytes] = (), after: Sequence[bytes] = ()
) -> bytes:
    """Build a PNG of samples [h,w] or [h,w,channels], with chunks before and after its pixels."""
    rows = np.asarray(samples)
    height, width = rows.shape[:2]
    rows = rows.reshape(height, -1)
    packed = []
    for row in rows:
        if depth == 16:
            packed.append(row.astype(">u2").tobytes())
        else:
            bits = "".join(f"{int(value):0{depth}b}" for value in row)
            bits += "0" * (-len(bits) % 8)
            packed.append(int(bits, 2).to_bytes(len(bits) // 8, "big"))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in packed)))
    return b"".join([SIGNATURE, head, *before, pixels, *after, chunk(b"IEND", b"")])


def exif(orientation: int) -> bytes:
    """Build EXIF as a TIFF of one entry, without a format's prefix."""
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def jpeg_with(jpeg: bytes, *segments: tuple[int, bytes]) -> bytes:
    """Build a JPEG with more segments at its beginning, each a marker's number and its content."""
    inserted = b"".join(
        bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content for marker, content in segments
    )
    return jpeg[:2] + inserted + jpeg[2:]


def tiff(
    samples: npt.ArrayLike,
    tags: Mapping[int, tuple[int, int, bytes]] | None = None,
    *,
    photometric: int = 1,
    extra: int | None = None,
    compressed: bool = False,
) -> bytes:
    """Build a little-endian TIFF of one strip of samples [h,w] or [h,w,channels] of 8 or 16 bits.

    Args:
        samples: uint8 or uint16.
        tags: Entries to add or replace: type, count, and the four bytes of the value or its offset.
        photometric: 0 white is zero, 1 black is zero, 2 RGB, 5 CMYK, 6 YCbCr, 8 CIE L*a*b*.
        extra: Meaning of the last channel: 1 premultiplied alpha, 2 straight alpha.
        compressed: Whether to compress by Deflate.
    """
    array = np.asarray(samples)
    height, width = array.shape[:2]
    channels = array.shape[2] if array.ndim == 3 else 1
    pixels = array.astype(array.dtype.newbyteorder("<")).tobytes()
    if compressed:
        pixels = zlib.compress(pixels)
    bits = struct.pack(f"<{channels}H", *[array.dtype.itemsize * 8] * channels)
    entries: dict[int, tuple[int, int, bytes]] = {
        256: (3, 1, struct.pack("<I", width)),
        257: (3, 1, struct.pack("<I", height)),
        258: (3, channels, bits),
        259: (3, 1, struct.pack("<I", 8 if compressed else 1)),
        262: (3, 1, struct.pack("<I", photometric)),
        273: (4, 1, b""),
        277: (3, 1, struct.pack("<I", channels)),
        278: (3, 1, struct.pack("<I", height)),
        279: (4, 1, struct.pack("<I", len(pixels))),
    }
    if extra is not None:
        entries[338] = (3, 1, struct.pack("<I", extra))
    entries |= tags or {}
    end = 8 + 2 + 12 * len(entries) + 4
    entries[273] = (4, 1, struct.pack("<I", end + len(bits)))
    directory = b""
    for tag, (kind, count, value) in sorted(entries.items()):
        stored = struct.pack("<I", end) if value is bits and len(bits) > 4 else value.ljust(4, b"\0")
        directory += struct.pack("<HHI", tag, kind, count) + stored
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4) + bits + pixels
