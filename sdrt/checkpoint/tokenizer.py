"""Conversion of a checkpoint's CLIP tokenizer to one tokenizer.json for the tokenizers library.

The settings are those of transformers' CLIPTokenizer (transformers/models/clip/tokenization_clip.py, 5.x);
tests/checkpoint/test_tokenizer.py checks that the ids are equal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from sdrt.checkpoint.added_tokens import (
    FLAGS,
    HINT,
    SIDES,
    DeclaredTokens,
    check_side,
    read_declared_tokens,
)
from sdrt.checkpoint.clip_vocabulary import WORD_END, byte_symbols, read_merges
from sdrt.checkpoint.configs import read_json, shorten
from sdrt.errors import CheckpointError
from sdrt.families.clip_pieces import NORMALIZER, PRE_TOKENIZER
from sdrt.files import sha256_file, unreadable

VOCABULARY_LIMIT_BYTES = 64 << 20
DECODER = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
SAVED = "tokenizer.json"
RESIZE_HINT = (
    "tokenizer and text_encoder must come from one checkpoint; after adding tokens, call the text encoder's "
    "resize_token_embeddings and save both"
)


@dataclass(frozen=True)
class _Source:
    """A byte-pair model and the other settings of a tokenizer.json.

    Attributes:
        path: The file of the vocabulary.
        vocabulary: Id by token.
        merges: Pairs of symbols, in order of rank.
        added: ``added_tokens`` of a tokenizer.json.
        padding_side: Side of its padding; None if not given.
    """

    path: Path
    vocabulary: dict[str, int]
    merges: list[list[str]]
    added: list[dict[str, Any]]
    padding_side: str | None


def build_tokenizer_json(folder: Path, max_tokens: int, vocab_size: int) -> bytes:
    """Build one file from a checkpoint's ``tokenizer`` folder; equal input gives equal bytes.

    The result pads to ``max_tokens`` and does not truncate: the caller truncates and reports the lost words.

    Args:
        folder: Folder of tokenizer.json, or vocab.json and merges.txt, and optionally tokenizer_config.json,
            special_tokens_map.json and added_tokens.json.
        max_tokens: Length of the text encoder's input.
        vocab_size: Rows of the text encoder's token embedding, which no id may reach.

    Raises:
        CheckpointError: A file is missing or malformed, or the vocabulary does not fit the text encoder.
    """
    source = _read_source(folder)
    declared = read_declared_tokens(folder, source.added)
    _check_ids(folder, source.vocabulary, vocab_size)
    model = _model(source, declared)
    added = _add_tokens(folder, model, declared.in_order())
    ids = {**source.vocabulary, **{token["content"]: token["id"] for token in added}}
    _check_ids(folder, ids, vocab_size)
    start, end, pad = (_named_id(folder, declared, role, ids) for role in ("bos_token", "eos_token", "pad_token"))
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": _padding(pad, max_tokens, declared.padding_side or source.padding_side or SIDES[0]),
        "added_tokens": added,
        "normalizer": NORMALIZER,
        "pre_tokenizer": PRE_TOKENIZER,
        "post_processor": _post_processor(start, end),
        "decoder": DECODER,
        "model": model,
    }
    return (json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")) + "\n").encode()


def tokenizer_identity(folder: Path, max_tokens: int) -> dict[str, Any]:
    """Return everything that decides a tokenizer's ids, for a digest: SHA-256 of files, tokens and settings.

    Args:
        folder: The checkpoint's ``tokenizer``.
        max_tokens: Tokens that prompts are padded and truncated to.

    Raises:
        CheckpointError: A file is missing or malformed; the contents of the vocabulary are not checked.
    """
    declared = read_declared_tokens(folder)
    return {
        "files": {path.name: sha256_file(path) for path in _model_files(folder)},
        "named": list(declared.named.items()),
        "extra": declared.extra,
        "added": sorted(declared.added.items()),
        "padding_side": declared.padding_side,
        "max_tokens": max_tokens,
    }


def prompt_length(folder: Path, max_position_embeddings: int) -> int:
    """Return the length that prompts are padded and truncated to: model_max_length, or the text encoder's if less.

    Raises:
        CheckpointError: A file is malformed.
    """
    declared = read_declared_tokens(folder).max_length
    return max_position_embeddings if declared is None else min(declared, max_position_embeddings)


def _add_tokens(folder: Path, model: dict[str, Any], tokens: list[tokenizers.AddedToken]) -> list[dict[str, Any]]:
    """Return the added tokens with the ids that the library assigns, as in a tokenizer.json.

    Raises:
        CheckpointError: The vocabulary has gaps, so that an added token would get the id of another.
    """
    library = tokenizers.Tokenizer.from_str(json.dumps({"version": "1.0", "normalizer": NORMALIZER, "model": model}))
    library.add_tokens(tokens)
    taken = {number: content for content, number in model["vocab"].items()}
    for token in tokens:
        number = library.token_to_id(token.content)
        if number is not None and taken.setdefault(number, token.content) != token.content:
            message = f"{folder}: {shorten(token.content)} and {shorten(taken[number])} would have one id, {number}"
            raise CheckpointError(
                message, hint="number the vocabulary without gaps; added tokens take ids from its size"
            )
    return [_serialized(number, token) for number, token in sorted(library.get_added_tokens_decoder().items())]


def _check_ids(folder: Path, ids: Mapping[str, int], vocab_size: int) -> None:
    token = max(ids, key=lambda each: ids[each])
    if ids[token] >= vocab_size:
        message = (
            f"{folder}: token id {ids[token]} ({shorten(token)}) is beyond the text encoder's vocab_size {vocab_size}"
        )
        raise CheckpointError(message, hint=RESIZE_HINT)


def _serialized(number: int, token: tokenizers.AddedToken) -> dict[str, Any]:
    return {"id": number, "content": token.content, **{flag: getattr(token, flag) for flag in FLAGS}}


def _named_id(folder: Path, declared: DeclaredTokens, role: str, ids: Mapping[str, int]) -> tuple[str, int]:
    content = declared.content(role)
    if content not in ids:
        raise CheckpointError(f"{folder}: {role} is {shorten(content)}; expected a token", hint=HINT)
    return content, ids[content]


def _padding(pad: tuple[str, int], max_tokens: int, side: str) -> dict[str, Any]:
    return {
        "strategy": {"Fixed": max_tokens},
        "direction": side.capitalize(),
        "pad_to_multiple_of": None,
        "pad_id": pad[1],
        "pad_type_id": 0,
        "pad_token": pad[0],
    }


def _post_processor(start: tuple[str, int], end: tuple[str, int]) -> dict[str, Any]:
    return {
        "type": "RobertaProcessing",
        "sep": list(end),
        "cls": list(start),
        "trim_offsets": False,
        "add_prefix_space": False,
    }


def _model(source: _Source, declared: DeclaredTokens) -> dict[str, Any]:
    """Return CLIP's byte-pair model of a vocabulary; the model settings of a tokenizer.json are ignored."""
    unknown = declared.content("unk_token")
    symbols = {symbol + end for symbol in byte_symbols() for end in ("", WORD_END)}
    if unknown not in source.vocabulary and not symbols <= source.vocabulary.keys():
        message = f"{source.path} lacks tokens of single bytes, and the unk_token {shorten(unknown)} to replace them"
        raise CheckpointError(message, hint=HINT)
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": WORD_END,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": dict(sorted(source.vocabulary.items(), key=lambda item: item[1])),
        "merges": source.merges,
    }


def _model_files(folder: Path) -> tuple[Path, ...]:
    """Return the files of the byte-pair model: tokenizer.json if it exists, as transformers 5 chooses.

    Raises:
        CheckpointError: One is missing.
    """
    if (folder / SAVED).is_file():
        return (folder / SAVED,)
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not vocabulary.is_file() and not merges.is_file():
        raise CheckpointError(f"{folder} has no tokenizer.json, and no vocab.json and merges.txt", hint=HINT)
    for path in (vocabulary, merges):
        if not path.is_file():
            raise CheckpointError(f"{path} is missing", hint=HINT)
    return vocabulary, merges


def _read_source(folder: Path) -> _Source:
    path, *others = _model_files(folder)
    document = _read_large_json(path)
    if others:
        return _source(path, document, _read_merges(others[0]), [], None)
    model = document.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise CheckpointError(f"{path} holds no byte-pair model", hint=HINT)
    added = document.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise CheckpointError(f"{path}: added_tokens is no list of tokens", hint=HINT)
    check_side(path, "truncation's direction", _direction(document, "truncation"), SIDES[:1])
    side = _direction(document, "padding")
    check_side(path, "padding's direction", side, SIDES)
    return _source(path, model.get("vocab"), model.get("merges"), added, side)


def _direction(document: dict[str, Any], field: str) -> str | None:
    setting = document.get(field)
    direction = setting.get("direction") if isinstance(setting, dict) else None
    return None if direction is None else str(direction).lower()


def _source(path: Path, vocabulary: Any, merges: Any, added: list[dict[str, Any]], side: str | None) -> _Source:
    """Validate a vocabulary and its merges."""
    if not isinstance(vocabulary, dict) or not vocabulary or not all(type(i) is int for i in vocabulary.values()):
        raise CheckpointError(f"{path} holds no map from tokens to ids", hint=HINT)
    if len(set(vocabulary.values())) != len(vocabulary) or min(vocabulary.values()) < 0:
        raise CheckpointError(f"{path} gives two tokens one id, or a negative one", hint=HINT)
    return _Source(path, vocabulary, _pairs(path, merges, vocabulary), added, side)


def _read_large_json(path: Path) -> dict[str, Any]:
    return read_json(path, limit_bytes=VOCABULARY_LIMIT_BYTES)


def _read_merges(path: Path) -> list[str]:
    try:
        return read_merges(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing", hint=HINT) from error
    except OSError as error:
        raise unreadable(path, error, CheckpointError, hint=HINT) from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text", hint=HINT) from error


def _pairs(path: Path, merges: Any, vocabulary: dict[str, int]) -> list[list[str]]:
    """Return the merges as pairs of symbols, after checking that the vocabulary holds them."""
    if not isinstance(merges, list):
        raise CheckpointError(f"{path} holds no list of merges", hint=HINT)
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    for rank, pair in enumerate(pairs):
        known = isinstance(pair, list) and len(pair) == 2 and all(isinstance(symbol, str) for symbol in pair)
        if not known or not {*pair, "".join(pair)} <= vocabulary.keys():
            raise CheckpointError(f"{path.parent}: merge {rank} is not a pair of tokens of the vocabulary", hint=HINT)
    return pairs
