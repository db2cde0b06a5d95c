"""Text from files of strangers on the user's terminal: shown, never obeyed."""

from __future__ import annotations

import re

#: Line breaks, what a terminal takes for commands, and halves of UTF-16 pairs, which cannot be written.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

#: What Python adds to a byte of a file's name that is not UTF-8.
ESCAPED_BYTES = 0xDC00


def printable(text: str) -> str:
    r"""Return the text as one line that does nothing to a terminal: its control characters are spelled out.

    So are the bytes of a file's name that are not UTF-8.

    Example:
        >>> printable("a cat\n\x1b[2J")
        'a cat\\x0a\\x1b[2J'
    """
    return CONTROL.sub(lambda found: f"\\x{_code(found[0]):02x}", text)


def _code(character: str) -> int:
    """Return the byte that Python keeps as half of a UTF-16 pair (surrogateescape), or else the character's number."""
    code = ord(character)
    return code - ESCAPED_BYTES if 0x80 <= code - ESCAPED_BYTES <= 0xFF else code


def size_text(size_bytes: int) -> str:
    """Bytes as people read them: 12.3 MB."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
