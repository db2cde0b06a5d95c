"""Text from files of strangers on the user's terminal: shown, never obeyed."""

from __future__ import annotations

import re

#: Line breaks, what a terminal takes for commands, and halves of UTF-16 pairs, which cannot be written.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The text as one line that does nothing to a terminal: its control characters are spelled out.

    Example:
        >>> printable("a cat\n\x1b[2J")
        'a cat\\x0a\\x1b[2J'
    """
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
