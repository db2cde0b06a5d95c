"""CLIP's byte-pair vocabulary, rebuilt from its merges."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

SD_V1 = Path(__file__).parents[1] / "assets" / "sd-v1"

START = "<|startoftext|>"
END = "<|endoftext|>"
WORD_END = "</w>"


def byte_symbols() -> list[str]:
    """Return the printable character of each byte in a byte-level vocabulary, in vocabulary order.

    Printable bytes are their own characters; the others start at U+0100 (GPT-2's ``bytes_to_unicode``,
    https://github.com/openai/gpt-2/blob/master/src/encoder.py).
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    moved = len(set(range(256)) - set(printable))
    return [chr(code) for code in printable] + [chr(256 + offset) for offset in range(moved)]


def vocabulary(merges: list[str]) -> dict[str, int]:
    """Return ids by token: bytes, bytes that end a word, one token for each merge, start and end of text.

    Args:
        merges: Lines of a ``merges.txt`` without its first line: two symbols with a space between.
    """
    symbols = byte_symbols()
    tokens = symbols + [symbol + WORD_END for symbol in symbols]
    tokens += [merge.replace(" ", "", 1) for merge in merges] + [START, END]
    return {token: number for number, token in enumerate(tokens)}


def read_merges(path: Path) -> list[str]:
    """Read the merges of a ``merges.txt``, in order of rank, without its first line."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [line for line in lines if line.strip() and not line.startswith("#version")]


@cache
def clip_merges() -> list[str]:
    """Return CLIP's 48,894 merges, which this package contains."""
    return read_merges(SD_V1 / "tokenizer" / "merges.txt")


def write_clip_tokenizer(folder: Path) -> None:
    """Write CLIP's tokenizer in the layout of a checkpoint's ``tokenizer/``: merges, vocabulary and its config."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in (SD_V1 / "tokenizer").iterdir():
        shutil.copyfile(source, folder / source.name)
    vocabulary_json = json.dumps(vocabulary(clip_merges()), ensure_ascii=False)
    (folder / "vocab.json").write_text(vocabulary_json, encoding="utf-8")
