"""Removal of metadata from picture files: texts, colour profiles, thumbnails, camera data.

Pillow parses metadata, and rejects a whole file for an error in it. Only data that determines pixels and orientation is
kept. Data that looks malformed here is left for Pillow to judge.
"""

from __future__ import annotations

import struct
import zlib

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
#: PNG texts in which Pillow looks for the orientation: ImageMagick's EXIF, and XMP.
_ORIENTING_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
_TEXT_LIMIT_BYTES = 1 << 20
#: JPEG application segments that are kept, as (marker, prefix, minimum length): those by which libjpeg decides how
#: colours are stored, and those in which Pillow looks for the orientation.
_JPEG_SEGMENTS = (
    (0xE0, b"JFIF\0", 14),
    (0xEE, b"Adobe", 12),
    (0xE1, b"Exif\0\0", 6),
    (0xE1, b"http://ns.adobe.com/xap/1.0/\0", 29),
)
#: TIFF tags that are kept: size, layout, compression, colours, XMP and JPEG's tables.
_TIFF_TAGS = frozenset({
    254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 321, 322, 323, 324, 325, 332,
    338, 339, 347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532, 700,
})  # fmt: skip


def without_metadata(data: bytes) -> bytes:
    """Return the bytes of a PNG, JPEG or TIFF file without its metadata; those of other formats unchanged."""
    if data.startswith(_PNG):
        return _png(data)
    if data.startswith(_JPEG):
        return _jpeg(data)
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0"):
        return _tiff(data)
    return data


def _png(data: bytes) -> bytes:
    """Keep critical chunks, transparency and whatever may hold the orientation."""
    view, start, drawn = memoryview(data), len(_PNG), False
    kept = [view[:start]]
    while start + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if drawn and (end > len(data) or not kind.isalpha()):
            # Damage after the pixels loses none of them.
            break
        drawn = drawn or kind == b"IDAT"
        # A small first letter says that a decoder may skip the chunk.
        if not kind[:1].islower() or kind == b"tRNS" or _may_orient(kind, view[start:end]):
            kept.append(view[start:end])
        start = end
    return b"".join(kept)


def _may_orient(kind: bytes, chunk: memoryview) -> bool:
    """Return whether an undamaged chunk of a PNG is EXIF, or a short text in which Pillow looks for the orientation."""
    if kind not in (b"eXIf", b"tEXt", b"zTXt", b"iTXt") or not 12 <= len(chunk) <= _TEXT_LIMIT_BYTES:
        return False
    if chunk[-4:] != struct.pack(">I", zlib.crc32(chunk[4:-4])):
        return False
    if kind == b"eXIf":
        return True
    content = bytes(chunk[8:-4])
    if not content.startswith(_ORIENTING_TEXTS):
        return False
    value = content.partition(b"\0")[2]
    if kind == b"tEXt" or (kind == b"iTXt" and value[:1] == b"\0"):
        return True
    # The byte before compressed data is 0: deflate, the only method.
    method, packed = (value[:1], value[1:]) if kind == b"zTXt" else (value[1:2], value[2:].split(b"\0", 2)[-1])
    return method == b"\0" and _is_short(packed)


def _is_short(packed: bytes) -> bool:
    """Return whether a compressed text unpacks to at most `_TEXT_LIMIT_BYTES`."""
    unpacking = zlib.decompressobj()
    try:
        unpacking.decompress(packed, _TEXT_LIMIT_BYTES)
    except zlib.error:
        return False
    return not unpacking.unconsumed_tail


def _jpeg(data: bytes) -> bytes:
    """Drop comments and the application segments that no pixel depends on, up to the first scan."""
    kept, start = [data[:2]], 2
    while data[start : start + 1] == b"\xff" and start + 4 <= len(data):
        marker = data[start + 1]
        if marker == 0xFF:
            # Any number of fill bytes may precede a marker.
            start += 1
            continue
        if marker == 0xDA or marker < 0xC0 or 0xD0 <= marker <= 0xD9:
            break
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        content = data[start + 4 : end]
        is_metadata = marker == 0xFE or 0xE0 <= marker <= 0xEF
        if not is_metadata or any(
            marker == number and content.startswith(head) and len(content) >= least
            for number, head, least in _JPEG_SEGMENTS
        ):
            kept.append(data[start:end])
        start = end
    return b"".join([*kept, data[start:]])


def _tiff(data: bytes) -> bytes:
    """Keep the tags of `_TIFF_TAGS` in the first directory, and no other directory."""
    order, big = ("<" if data[:1] == b"I" else ">"), data[2:3] == b"+"
    first_at, first, number, size = (8, "Q", "Q", 20) if big else (4, "I", "H", 12)
    try:
        (start,) = struct.unpack_from(order + first, data, first_at)
        (count,) = struct.unpack_from(order + number, data, start)
    except (struct.error, OverflowError):
        return data
    entries_at = start + struct.calcsize(number)
    end = entries_at + count * size
    if end > len(data):
        return data
    entries = [data[at : at + size] for at in range(entries_at, end, size)]
    kept = [entry for entry in entries if struct.unpack_from(order + "H", entry)[0] in _TIFF_TAGS]
    # The offset of the next directory follows: 0 says that there is none.
    directory = struct.pack(order + number, len(kept)) + b"".join(kept) + bytes(struct.calcsize(first))
    return data[:start] + directory + data[start + len(directory) :]
