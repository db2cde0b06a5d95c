"""Conversion of prompts to token ids by CLIP's byte-pair tokenizer; truncated text is reported."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from sdrt.errors import ArtefactError, ResourceError
from sdrt.families.clip_pieces import NORMALIZER, PRE_TOKENIZER
from sdrt.files import unreadable
from sdrt.runtime.request import check_text

TOKENIZER_LIMIT_BYTES = 64 << 20
#: Reading CLIP's vocabulary of 49,408 tokens needs two thirds of this.
MEMORY_BYTES = 64 << 20


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids of prompts.

    Attributes:
        input_ids: int64 [n, max_tokens]: start, the text's tokens, end, padding.
        truncated: The text of each prompt that did not fit; "" if all of it did.
    """

    input_ids: npt.NDArray[np.int64]
    truncated: tuple[str, ...]


@dataclass(frozen=True)
class Word:
    """A word of a prompt, and the positions of its tokens among the ids."""

    text: str
    positions: tuple[int, ...]


class Tokenizer:
    """A tokenizer.json, which encodes every prompt to ``max_tokens`` ids. Thread-safe."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._vectors = _vectors((token.content for token in tokenizer.get_added_tokens_decoder().values()), max_tokens)
        self.max_tokens = max_tokens

    @classmethod
    def open(cls, path: Path, max_tokens: int) -> Tokenizer:
        """Open a tokenizer.json; its padding token is used, its truncation and length are ignored.

        Args:
            path: The file.
            max_tokens: Length of the text encoder's input, start and end included.

        Raises:
            ArtefactError: The file cannot be read, is not a tokenizer, names no padding token, has regular expressions
                other than CLIP's, or uses dropout.
            ResourceError: There is not enough memory.
        """
        hint = "make the bundle or engine set again; its tokenizer/tokenizer.json is damaged"
        _check_memory()
        try:
            if path.stat().st_size > TOKENIZER_LIMIT_BYTES:
                raise ArtefactError(f"{path} is larger than {TOKENIZER_LIMIT_BYTES >> 20} MiB", hint=hint)
            tokenizer = tokenizers.Tokenizer.from_buffer(path.read_bytes())
        except OSError as error:
            raise unreadable(path, error, ArtefactError, hint=hint) from error
        except ValueError as error:
            raise ArtefactError(f"{path} is not a tokenizer: {error}", hint=hint) from error
        _check_pieces(path, tokenizer)
        if tokenizer.padding is None:
            raise ArtefactError(f"{path} names no padding token", hint=hint)
        padding = {name: tokenizer.padding[name] for name in ("pad_id", "pad_token", "direction")}
        tokenizer.enable_padding(length=max_tokens, **padding)
        tokenizer.no_truncation()
        return cls(tokenizer, max_tokens)

    def encode(self, prompts: Sequence[str]) -> Tokens:
        """Return the token ids of each prompt as transformers' CLIPTokenizer does, cut or padded to ``max_tokens``.

        A textual inversion's token with several vectors is first replaced by all of its tokens, as in diffusers.

        Raises:
            UsageError: A prompt is over 100,000 characters, or holds a lone UTF-16 surrogate.
        """
        texts = [self._with_every_vector(prompt) for prompt in prompts]
        encodings = self._tokenizer.encode_batch(texts)
        rows, truncated = [], []
        for text, encoding in zip(texts, encodings, strict=True):
            ids, lost = encoding.ids, ""
            if len(ids) > self.max_tokens:
                first_lost, _ = encoding.offsets[self.max_tokens - 1]
                ids, lost = [*ids[: self.max_tokens - 1], ids[-1]], text[first_lost:].strip()
            rows.append(ids)
            truncated.append(lost)
        return Tokens(np.array(rows, dtype=np.int64).reshape(len(rows), self.max_tokens), tuple(truncated))

    def words(self, prompt: str) -> tuple[Word, ...]:
        """Return the words of a prompt in order, punctuation as words of its own, without the truncated text.

        Raises:
            UsageError: The prompt is over 100,000 characters, or holds a lone UTF-16 surrogate.
        """
        text = self._with_every_vector(prompt)
        encoding = self._tokenizer.encode(text)
        positions: dict[int, list[int]] = {}
        for position, number in enumerate(encoding.word_ids[: self.max_tokens - 1]):
            if number is not None:
                positions.setdefault(number, []).append(position)
        return tuple(
            Word(text[encoding.offsets[places[0]][0] : encoding.offsets[places[-1]][1]], tuple(places))
            for places in positions.values()
        )

    def _with_every_vector(self, prompt: str) -> str:
        """Replace "<tok>" by "<tok> <tok>_1 <tok>_2", as diffusers' maybe_convert_prompt does.

        As there, every occurrence of the added token's text is replaced, within "<tok>_1" too.
        """
        check_text("prompt", prompt)
        if not self._vectors:
            return prompt
        text = prompt
        encoding = self._tokenizer.encode(prompt, add_special_tokens=False)
        unpadded = compress(encoding.tokens, encoding.attention_mask)
        for token in dict.fromkeys(unpadded):
            if token in self._vectors:
                text = text.replace(token, self._vectors[token])
                check_text(f"prompt, with all vectors of {token},", text)
        return text


def _vectors(added: Iterable[str], most: int) -> dict[str, str]:
    """Map each token of several vectors, <tok>, to the text of up to ``most`` of them: "<tok> <tok>_1 <tok>_2"."""
    tokens = set(added)
    found = {}
    for token in tokens:
        names = [token]
        while len(names) < most and f"{token}_{len(names)}" in tokens:
            names.append(f"{token}_{len(names)}")
        if len(names) > 1:
            found[token] = " ".join(names)
    return found


def _check_memory() -> None:
    """Raise ResourceError unless there is memory for a tokenizer; without, its library would end the process.

    Raises:
        ResourceError: `MEMORY_BYTES` cannot be allocated.
    """
    try:
        mmap.mmap(-1, MEMORY_BYTES).close()
    except OSError as error:
        raise ResourceError("there is not enough memory for the tokenizer", hint="free memory") from error


def _check_pieces(path: Path, tokenizer: tokenizers.Tokenizer) -> None:
    """Raise ArtefactError unless a tokenizer has CLIP's regular expressions only, and no dropout.

    Other regular expressions may never end, or crash the library.

    Raises:
        ArtefactError: It has another regular expression, or leaves out merges at random.
    """
    hint = "make the bundle or engine set again from a checkpoint"
    known = set(_regexes([NORMALIZER, PRE_TOKENIZER]))
    for piece in filter(None, (tokenizer.normalizer, tokenizer.pre_tokenizer)):
        for regex in _regexes(json.loads(piece.__getstate__())):
            if regex not in known:
                raise ArtefactError(f"{path} has the regular expression {regex[:60]!r}, which is not CLIP's", hint=hint)
    if getattr(tokenizer.model, "dropout", None):
        raise ArtefactError(f"{path} leaves out merges at random (dropout)", hint=hint)


def _regexes(value: Any) -> Iterator[str]:
    """Yield the regular expressions in a part of a tokenizer.json."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if isinstance(value, dict) and isinstance(value.get("Regex"), str):
        yield value["Regex"]
    for each in inner:
        yield from _regexes(each)
