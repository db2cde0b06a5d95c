"""A checkpoint's CLIP tokenizer as one tokenizer.json for the tokenizers library.

The pieces are those of transformers' CLIPTokenizer (transformers/models/clip/tokenization_clip.py, 5.x): the ids are
the same, which tests/checkpoint/test_tokenizer.py holds it to.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sdrt.checkpoint.clip_vocabulary import END, START, WORD_END, read_merges
from sdrt.checkpoint.configs import read_json
from sdrt.errors import CheckpointError
from sdrt.files import sha256_file, unreadable

VOCABULARY_LIMIT_BYTES = 64 << 20
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
SPECIAL_TOKENS = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
NORMALIZER = {
    "type": "Sequence",
    "normalizers": [
        {"type": "NFC"},
        {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
        {"type": "Lowercase"},
    ],
}
PRE_TOKENIZER = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Removed", "invert": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}
DECODER = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
HINT = "download or save the checkpoint's tokenizer again"


def build_tokenizer_json(folder: Path, max_tokens: int, vocab_size: int) -> bytes:
    """The tokenizer of a checkpoint's ``tokenizer`` folder as one file; equal input gives equal bytes.

    It pads to ``max_tokens`` and does not truncate: who uses it reports what is cut off.

    Args:
        folder: Holds vocab.json and merges.txt, or a tokenizer.json; and optionally tokenizer_config.json,
            special_tokens_map.json and added_tokens.json.
        max_tokens: Length of the text encoder's input.
        vocab_size: Rows of the text encoder's token embedding, which no id may reach.

    Raises:
        CheckpointError: A file is missing or malformed, or the vocabulary does not fit the text encoder.
    """
    vocabulary, merges = _read_model(folder)
    specials = _special_tokens(folder)
    added = _added_tokens(folder, specials, vocabulary)
    ids = {**vocabulary, **{token["content"]: token["id"] for token in added}}
    for role, token in specials.items():
        if token["content"] not in ids:
            raise CheckpointError(f"{folder}: {role} {token['content']!r} is not in the vocabulary", hint=HINT)
    largest = max(ids.values())
    if largest >= vocab_size:
        message = f"{folder}: token id {largest} is beyond the text encoder's vocab_size {vocab_size}"
        raise CheckpointError(message, hint="tokenizer and text_encoder must come from one checkpoint")
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": _padding(specials["pad_token"]["content"], ids, max_tokens),
        "added_tokens": added,
        "normalizer": NORMALIZER,
        "pre_tokenizer": PRE_TOKENIZER,
        "post_processor": _post_processor(specials["bos_token"]["content"], specials["eos_token"]["content"], ids),
        "decoder": DECODER,
        "model": _model(vocabulary, merges, specials["unk_token"]["content"]),
    }
    return (json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")) + "\n").encode()


def tokenizer_identity(folder: Path) -> dict[str, Any]:
    """What decides a tokenizer's ids, for a checkpoint's digest: files by SHA-256, special and added tokens.

    Raises:
        CheckpointError: A file is missing or malformed; of the vocabulary only that it is there is checked.
    """
    names = ("vocab.json", "merges.txt") if (folder / "vocab.json").exists() else ("tokenizer.json",)
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing", hint=HINT)
    files = {name: sha256_file(folder / name) for name in names}
    return {"files": files, "special": _special_tokens(folder), "added": _added_files(folder)}


def _padding(token: str, ids: dict[str, int], max_tokens: int) -> dict[str, Any]:
    return {
        "strategy": {"Fixed": max_tokens},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": ids[token],
        "pad_type_id": 0,
        "pad_token": token,
    }


def _post_processor(start: str, end: str, ids: dict[str, int]) -> dict[str, Any]:
    return {
        "type": "RobertaProcessing",
        "sep": [end, ids[end]],
        "cls": [start, ids[start]],
        "trim_offsets": False,
        "add_prefix_space": False,
    }


def _model(vocabulary: dict[str, int], merges: list[list[str]], unknown: str) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": WORD_END,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1])),
        "merges": merges,
    }


def _read_model(folder: Path) -> tuple[dict[str, int], list[list[str]]]:
    """Vocabulary and merges, from the two files of v1 or else out of a tokenizer.json."""
    if (folder / "vocab.json").exists():
        path = folder / "vocab.json"
        vocabulary: Any = _read_large_json(path)
        merges: Any = _read_merges(folder / "merges.txt")
    else:
        path = folder / "tokenizer.json"
        if not path.exists():
            raise CheckpointError(f"{folder / 'vocab.json'} is missing", hint=HINT)
        model = _read_large_json(path).get("model")
        if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
            raise CheckpointError(f"{path} holds no byte-pair model", hint=HINT)
        vocabulary, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocabulary, dict) or not vocabulary or not all(type(i) is int for i in vocabulary.values()):
        raise CheckpointError(f"{path} holds no map from tokens to ids", hint=HINT)
    if len(set(vocabulary.values())) != len(vocabulary) or min(vocabulary.values()) < 0:
        raise CheckpointError(f"{path} gives two tokens one id, or a negative one", hint=HINT)
    return vocabulary, _pairs(path, merges, vocabulary)


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
    """Merges as pairs of symbols, all of which the vocabulary holds."""
    if not isinstance(merges, list):
        raise CheckpointError(f"{path} holds no list of merges", hint=HINT)
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    for rank, pair in enumerate(pairs):
        known = isinstance(pair, list) and len(pair) == 2 and all(isinstance(symbol, str) for symbol in pair)
        if not known or not {*pair, "".join(pair)} <= vocabulary.keys():
            raise CheckpointError(f"{path.parent}: merge {rank} is not a pair of tokens of the vocabulary", hint=HINT)
    return pairs


def _special_tokens(folder: Path) -> dict[str, dict[str, Any]]:
    """Role -> token; special_tokens_map.json has the last word, as in transformers."""
    tokens: dict[str, Any] = dict(SPECIAL_TOKENS)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            config = read_json(folder / name)
            tokens |= {role: config[role] for role in SPECIAL_TOKENS if config.get(role) is not None}
    return {role: _token(folder, token) for role, token in tokens.items()}


def _token(folder: Path, value: Any) -> dict[str, Any]:
    """One added token's fields; a plain string is matched before normalisation."""
    fields = {"content": value} if isinstance(value, str) else value
    if not isinstance(fields, dict) or not isinstance(fields.get("content"), str):
        raise CheckpointError(f"{folder}: a special token is neither a string nor a token with content", hint=HINT)
    flags = {flag: bool(fields.get(flag, False)) for flag in ("single_word", "lstrip", "rstrip", "normalized")}
    return {"content": fields["content"], **flags, "special": bool(fields.get("special", False))}


def _added_tokens(
    folder: Path, specials: dict[str, dict[str, Any]], vocabulary: dict[str, int]
) -> list[dict[str, Any]]:
    """Tokens that are matched whole, by id: the special ones, and any that were taught later (textual inversion)."""
    tokens = {token["content"]: {**token, "special": True} for token in specials.values()}
    ids = {content: vocabulary[content] for content in tokens if content in vocabulary}
    for token, number in _added_files(folder):
        content = token["content"]
        tokens[content] = {**token, "special": token["special"] or content in tokens}
        ids[content] = number
    return sorted(({"id": ids[content], **tokens[content]} for content in ids), key=lambda token: token["id"])


def _added_files(folder: Path) -> list[tuple[dict[str, Any], int]]:
    """Tokens that added_tokens.json (older) or tokenizer_config.json (newer) adds, with their ids."""
    found: list[tuple[Any, Any]] = []
    if (folder / "added_tokens.json").exists():
        older = read_json(folder / "added_tokens.json")
        found += [({"content": content, "normalized": True}, number) for content, number in older.items()]
    if (folder / "tokenizer_config.json").exists():
        newer = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
        found += [(token, number) for number, token in newer.items()] if isinstance(newer, dict) else []
    for _, number in found:
        if not str(number).isdecimal():
            raise CheckpointError(f"{folder}: {number!r} is not a token id", hint=HINT)
    return [(_token(folder, token), int(number)) for token, number in found]
