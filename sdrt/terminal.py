"""Text for the terminal: untrusted text without control characters, and sizes in units."""

from __future__ import annotations

import re

#: Line breaks, control characters, and lone surrogates, which cannot be written.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

#: Offset that Python adds to a byte of a file name that is not UTF-8 (surrogateescape).
ESCAPED_BYTES = 0xDC00


def printable(text: str) -> str:
    r"""Return the text as one line with its control characters escaped.

    Bytes of a file name that are not UTF-8 are escaped too.

    Example:
        >>> printable("a cat\n\x1b[2J")
        'a cat\\x0a\\x1b[2J'
    """
    return CONTROL.sub(lambda found: f"\\x{_code(found[0]):02x}", text)


def _code(character: str) -> int:
    """Return the byte that Python keeps as a lone surrogate (surrogateescape), or else the character's code point."""
    code = ord(character)
    return code - ESCAPED_BYTES if 0x80 <= code - ESCAPED_BYTES <= 0xFF else code


def size_text(size_bytes: int) -> str:
    """Return a size in decimal units, such as 12.3 MB."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
