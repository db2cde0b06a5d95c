"""tokenizer.json: ids equal to transformers' CLIPTokenizer, and refusals."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import CLIPTokenizer

from sdrt.checkpoint import open_checkpoint, tokenizer_json
from sdrt.checkpoint.clip_vocabulary import clip_merges, vocabulary
from sdrt.errors import CheckpointError, SdrtError
from tests.checkpoint.changes import Edit

PIECES = [
    *("a photo of an astronaut riding a horse", "(best quality:1.2), [detailed]", "don't we'll I'd", "12345", "!!! ?"),
    *("<|endoftext|>", "<|startoftext|>", "<|ENDOFTEXT|>", "!", "x" * 200, "\t\n\u00a0\u3000", "\x00\x07", "\ufeff"),
    *("Łódź", "naïve café", "e\u0301", "日本語", "مرحبا", "क्षि", "🧑‍🚀", "\u200d", "ǅ İ ß \u017f", "\U0001d54f"),
]  # fmt: skip


def prompts() -> list[str]:
    """Draw prompts from known hard pieces, from words, and from all of Unicode."""
    draw = random.Random(0)
    mixed = [" ".join(draw.choices(PIECES, k=draw.randint(1, 6))) for _ in range(100)]
    strange = ["".join(chr(draw.randrange(1, 0xD7FF)) for _ in range(draw.randint(1, 40))) for _ in range(100)]
    return ["", " ", *PIECES, *mixed, *strange]


def same_ids(folder: Path, cache: Path) -> None:
    """Assert that the ids of every prompt, before truncation, equal transformers'."""
    ours = Tokenizer.from_str(tokenizer_json(open_checkpoint(str(folder), cache=cache)).decode())
    reference = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    texts = prompts()
    expected = reference(texts, padding="max_length", max_length=77, truncation=False, verbose=False).input_ids
    assert [encoding.ids for encoding in ours.encode_batch(texts)] == expected


def test_ids_equal_transformers(tiny: Path, cache: Path) -> None:
    same_ids(tiny, cache)


def test_reference_ids(tiny: Path, cache: Path) -> None:
    tokenizer = Tokenizer.from_str(tokenizer_json(open_checkpoint(str(tiny), cache=cache)).decode())
    ids = tokenizer.encode("a photo of an astronaut riding a horse").ids
    assert ids[:11] == [49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 49407, 49407]
    assert len(ids) == 77


def test_another_padding_token(copy: Path, cache: Path, edit: Edit) -> None:
    edit("tokenizer/special_tokens_map.json", {"pad_token": "!"})
    same_ids(copy, cache)
    document = json.loads(tokenizer_json(open_checkpoint(str(copy), cache=cache)))
    assert (document["padding"]["pad_id"], document["padding"]["pad_token"]) == (0, "!")


def test_tokens_that_newer_files_describe(copy: Path, cache: Path, edit: Edit) -> None:
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "special": True}
    decoder = {
        "49406": {"content": "<|startoftext|>", "normalized": True, **flags},
        "49407": {"content": "<|endoftext|>", "normalized": True, **flags},
    }
    edit("tokenizer/tokenizer_config.json", {"added_tokens_decoder": decoder})
    same_ids(copy, cache)


def test_tokens_learned_by_textual_inversion(copy: Path, cache: Path, edit: Edit) -> None:
    (copy / "tokenizer" / "added_tokens.json").write_text(json.dumps({"<my-cat>": 49408}))
    with pytest.raises(CheckpointError, match="is beyond the text encoder's vocab_size 49408"):
        tokenizer_json(open_checkpoint(str(copy), cache=cache))
    edit("text_encoder/config.json", {"vocab_size": 49409})
    tokenizer = Tokenizer.from_str(tokenizer_json(open_checkpoint(str(copy), cache=cache)).decode())
    assert tokenizer.encode("a <my-cat> here").ids[:5] == [49406, 320, 49408, 763, 49407]


def test_tokenizer_json_in_place_of_the_two_files(tiny: Path, copy: Path, cache: Path) -> None:
    expected = tokenizer_json(open_checkpoint(str(tiny), cache=cache))
    for name in ("vocab.json", "merges.txt"):
        (copy / "tokenizer" / name).unlink()
    (copy / "tokenizer" / "tokenizer.json").write_bytes(expected)
    assert tokenizer_json(open_checkpoint(str(copy), cache=cache)) == expected


def test_equal_input_gives_equal_bytes(tiny: Path, copy: Path, cache: Path) -> None:
    path = copy / "tokenizer" / "vocab.json"
    shuffled = list(json.loads(path.read_bytes()).items())
    random.Random(1).shuffle(shuffled)
    path.write_text(json.dumps(dict(shuffled)))
    results = {tokenizer_json(open_checkpoint(str(folder), cache=cache)) for folder in (tiny, copy)}
    assert len(results) == 1


def test_vocabulary_that_ships_is_clips() -> None:
    words = vocabulary(clip_merges())
    assert len(clip_merges()) == 48_894
    assert len(words) == 49_408
    known = {"!": 0, "a</w>": 320, "photo</w>": 1125, "<|startoftext|>": 49406, "<|endoftext|>": 49407}
    assert {word: words[word] for word in known} == known


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("vocab.json", None, "vocab.json is missing"),
        ("merges.txt", None, "merges.txt is missing"),
        ("vocab.json", b"{", "vocab.json is not JSON"),
        ("vocab.json", b"[]", "vocab.json is not a JSON object"),
        ("vocab.json", b"{}", "holds no map from tokens to ids"),
        ("vocab.json", b'{"a": "b"}', "holds no map from tokens to ids"),
        ("vocab.json", b'{"a": 1, "b": 1}', "gives two tokens one id"),
        ("vocab.json", b'{"a": -1, "b": 1}', "gives two tokens one id, or a negative one"),
        ("merges.txt", b"\xff\xfe", "merges.txt is not UTF-8 text"),
        ("merges.txt", b"#version: 0.2\ni n extra\n", "merge 0 is not a pair of tokens of the vocabulary"),
        ("merges.txt", b"#version: 0.2\ni n\nqq zz\n", "merge 1 is not a pair of tokens of the vocabulary"),
        (
            "special_tokens_map.json",
            b'{"pad_token": 7}',
            "pad_token is 7; expected a string",
        ),
        (
            "special_tokens_map.json",
            b'{"pad_token": "[PAD]"}',
            "token id 49408 ('[PAD]') is beyond",
        ),
        ("added_tokens.json", b'{"<x>": "one"}', "'one' is not a token id"),
        ("added_tokens.json", b'{"\\ud800": 5}', "holds a lone surrogate, which UTF-8 cannot encode"),
        ("tokenizer_config.json", b"{", "tokenizer_config.json is not JSON"),
    ],
)
def test_malformed_files_are_refused(copy: Path, cache: Path, name: str, content: bytes | None, reason: str) -> None:
    path = copy / "tokenizer" / name
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)

    def build() -> bytes:
        return tokenizer_json(open_checkpoint(str(copy), cache=cache))

    refuses(build, reason)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"type": "WordPiece"}, "holds no byte-pair model"),
        ([], "holds no byte-pair model"),
        ({"type": "BPE", "vocab": {"a": 0}}, "holds no list of merges"),
        ({"type": "BPE", "vocab": {"a": 0}, "merges": [[1, 2]]}, "merge 0 is not a pair"),
    ],
)
def test_other_tokenizer_json_is_refused(copy: Path, cache: Path, model: Any, reason: str) -> None:
    (copy / "tokenizer" / "vocab.json").unlink()
    (copy / "tokenizer" / "tokenizer.json").write_text(json.dumps({"model": model}))
    refuses(lambda: tokenizer_json(open_checkpoint(str(copy), cache=cache)), reason)


def refuses(build: Callable[[], bytes], reason: str) -> None:
    """Assert that it is refused for the reason, in one line, with exit code 3."""
    with pytest.raises(SdrtError, match=re.escape(reason)) as caught:
        build()
    assert caught.value.exit_code == 3
    assert "\n" not in caught.value.message
