"""Special and added tokens of a tokenizer's folder, as written by transformers 4 and 5.

The precedence of files and the order of adding are those of transformers 5 (PreTrainedTokenizerBase's _from_pretrained,
then __init__ of it and of TokenizersBackend). The order decides ids: a token that is not in the vocabulary gets the
next free id, whatever id a file gives it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from sdrt.checkpoint.clip_vocabulary import END, START
from sdrt.checkpoint.configs import read_json, shorten
from sdrt.errors import CheckpointError

#: A token as in the files: its content, or an object with content and flags.
Token = str | dict[str, Any]
#: SPECIAL_TOKENS_ATTRIBUTES of transformers, in the order in which they are added.
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
DEFAULTS: dict[str, Token] = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
SIDES = ("right", "left")
SHORTEST_LENGTH = 2  # start and end
LONGEST_ID = 9  # digits
HINT = "download or save the checkpoint's tokenizer again"
#: "__type" of an object: the first marks tokens in tokenizer_config.json, the second those of special_tokens_map.json.
TYPE, SPECIAL_TYPE = "AddedToken", "AddedToken, special"


@dataclass(frozen=True)
class DeclaredTokens:
    """Tokens and settings that a tokenizer's files declare beside its vocabulary, as JSON values.

    Attributes:
        named: Token by role ("bos_token", ..., and the checkpoint's own roles), in the order of adding.
        extra: Further special tokens.
        added: Token by its id in the files.
        padding_side: "right" or "left"; None if no file gives it.
        max_length: Tokens that prompts are padded and truncated to; None if no file gives it.
    """

    named: dict[str, Token]
    extra: list[Token]
    added: dict[int, Token]
    padding_side: str | None
    max_length: int | None

    def content(self, role: str) -> str:
        """Return the text of a role's token."""
        return _content(self.named[role])

    def in_order(self) -> list[tokenizers.AddedToken]:
        """Return the tokens in the order in which transformers adds them to the vocabulary."""
        tokens: list[str | tokenizers.AddedToken] = [_built(self.added[number]) for number in sorted(self.added)]
        known = {_content(token) for token in self.added.values()}
        # A string never equals an AddedToken, so "<|endoftext|>" is added again, and its later flags count.
        for token in map(_built, self.named.values()):
            if _text(token) not in known and token not in tokens:
                tokens.append(token)
        for token in map(_built, self.extra):
            if _text(token) not in known and token not in tokens:
                tokens.append(token)
        names = {_content(token) for token in self.named.values()}
        return [_special(token, names) for token in tokens]


def read_declared_tokens(folder: Path, serialized: Sequence[Mapping[str, Any]] = ()) -> DeclaredTokens:
    """Read tokenizer_config.json and, if it has no added_tokens_decoder, the files of older versions.

    Args:
        folder: The checkpoint's ``tokenizer``.
        serialized: The ``added_tokens`` of its tokenizer.json.

    Raises:
        CheckpointError: A file is malformed, or requests a setting that is not supported.
    """
    path = folder / "tokenizer_config.json"
    values = _read(path)
    _check_settings(path, values)
    if not values.get("extra_special_tokens") and "additional_special_tokens" in values:
        values["extra_special_tokens"] = values.pop("additional_special_tokens")
    own = {key: values.pop(key) for key in list(values) if _is_own_role(key) and isinstance(values[key], str)}
    own |= _take_named_extra(values)
    if values.get("added_tokens_decoder") is not None:
        tokens = list(_numbered(path, _object(path, "added_tokens_decoder", values["added_tokens_decoder"]).items()))
    else:
        _merge_special_tokens_map(folder / "special_tokens_map.json", values)
        own |= _take_named_extra(values)
        tokens = list(_older_added_tokens(folder, values))
        tokens += _numbered(folder / "tokenizer.json", ((token.get("id"), token) for token in serialized))
    return DeclaredTokens(
        named=_named(folder, values, own, [token for _, token in tokens]),
        extra=_extra(folder, values),
        added=dict(tokens),
        padding_side=values.get("padding_side"),
        max_length=_max_length(path, values),
    )


def check_side(path: Path, field: str, value: Any, allowed: Sequence[str]) -> None:
    """Raise CheckpointError unless a padding or truncation side is None or allowed."""
    if value is not None and value not in allowed:
        message = f"{path}: {field} is {shorten(value)}; expected {' or '.join(allowed)}"
        raise CheckpointError(message, hint=f"set it to {allowed[0]}, as in the tokenizers of Stable Diffusion v1")


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _check_settings(path: Path, config: Mapping[str, Any]) -> None:
    for field in ("extra_special_tokens", "additional_special_tokens"):
        if not isinstance(config.get(field) or [], list | dict):
            message = f"{path}: {field} is {shorten(config[field])}; expected a list of tokens"
            raise CheckpointError(message, hint=HINT)
    check_side(path, "padding_side", config.get("padding_side"), SIDES)
    check_side(path, "truncation_side", config.get("truncation_side"), SIDES[:1])
    if config.get("split_special_tokens"):
        message = f"{path}: split_special_tokens is set; sdrt takes special tokens in a prompt as one token each"
        raise CheckpointError(message, hint="set it to false")
    if config.get("fast_tokenizer_files"):
        message = (
            f"{path}: fast_tokenizer_files names one file for each version of transformers, which is not supported"
        )
        raise CheckpointError(message, hint="load the tokenizer with transformers and save it again")


def _max_length(path: Path, config: Mapping[str, Any]) -> int | None:
    field = "model_max_length" if "model_max_length" in config else "max_len"
    value = config.get(field)
    if value is None:
        return None
    whole = type(value) is int or (isinstance(value, float) and value.is_integer())
    if not whole or value < SHORTEST_LENGTH:
        message = f"{path}: {field} is {shorten(value)}; expected a whole number from {SHORTEST_LENGTH}"
        raise CheckpointError(message, hint="set it to the text encoder's max_position_embeddings")
    return int(value)


def _is_own_role(key: str) -> bool:
    return key.endswith("_token") and key not in ROLES


def _take_named_extra(values: dict[str, Any]) -> dict[str, Any]:
    """Remove and return extra_special_tokens if it is an object of tokens by role; else return {}."""
    named = isinstance(values.get("extra_special_tokens"), dict)
    return values.pop("extra_special_tokens") if named else {}


def _merge_special_tokens_map(path: Path, values: dict[str, Any]) -> None:
    for key, value in _read(path).items():
        if key == "extra_special_tokens" and isinstance(value, list):
            known = values.get(key) or []
            values[key] = known + [_as_special(token) for token in value if token not in known]
        else:
            values[key] = value if key == "extra_special_tokens" else _as_special(value)


def _as_special(value: Any) -> Any:
    return {**value, "special": True, "__type": SPECIAL_TYPE} if isinstance(value, dict) else value


def _older_added_tokens(folder: Path, values: Mapping[str, Any]) -> Iterator[tuple[int, Token]]:
    """Yield the tokens of added_tokens.json by id.

    Tokens with a role, or listed as extra, are special, unless tokenizer_config.json gives them as an object, which
    transformers compares by its Python string.
    """
    path = folder / "added_tokens.json"
    extra = values.get("extra_special_tokens") or []
    named = [*(values.get(role) for role in ROLES), *(extra if isinstance(extra, list) else [])]
    special = {token for token in named if isinstance(token, str)}
    special |= {str(t.get("content")) for t in named if isinstance(t, dict) and t.get("__type") == SPECIAL_TYPE}
    flags = {True: {"normalized": False, "special": True}, False: {"normalized": True, "special": False}}
    tokens = _read(path).items()
    return _numbered(path, ((number, {"content": text, **flags[text in special]}) for text, number in tokens))


def _roles(folder: Path, values: Mapping[str, Any]) -> dict[str, Token]:
    return {role: _token(folder, role, values[role]) for role in ROLES if values.get(role) is not None}


def _extra(folder: Path, values: Mapping[str, Any]) -> list[Token]:
    extra = values.get("extra_special_tokens", values.get("additional_special_tokens")) or []
    if not isinstance(extra, list):
        raise CheckpointError(f"{folder}: extra_special_tokens is {shorten(extra)}; expected a list", hint=HINT)
    return [_token(folder, "extra_special_tokens", token) for token in extra]


def _named(folder: Path, values: Mapping[str, Any], own: Mapping[str, Any], added: Iterable[Token]) -> dict[str, Token]:
    """Return tokens by role; an added token of the same content replaces a role's token."""
    by_content = {_content(token): token for token in added}
    given = {role: by_content.get(_content(token), token) for role, token in _roles(folder, values).items()}
    found = {**DEFAULTS, **given}
    named = {role: found[role] for role in ROLES if role in found}
    typed = {key: value for key, value in values.items() if _is_own_role(key) and _is_token(value)}
    return named | {role: _token(folder, role, token) for role, token in {**typed, **own}.items()}


def _is_token(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and value.get("__type") in (TYPE, SPECIAL_TYPE))


def _numbered(path: Path, tokens: Iterable[tuple[Any, Any]]) -> Iterator[tuple[int, Token]]:
    for number, token in tokens:
        if isinstance(number, bool) or not str(number).isdecimal() or len(str(number)) > LONGEST_ID:
            raise CheckpointError(f"{path}: {shorten(number)} is not a token id", hint=HINT)
        yield int(number), _token(path, f"added token {number}", token)


def _object(path: Path, field: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: {field} is {shorten(value)}; expected an object", hint=HINT)
    return value


def _token(path: Path, name: str, value: Any) -> Token:
    """Validate a token and drop fields that do not decide ids."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        message = f"{path}: {name} is {shorten(value)}; expected a string, or an object with content"
        raise CheckpointError(message, hint=HINT)
    content = value.get("content")
    if not isinstance(content, str):
        raise CheckpointError(f"{path}: {name}: content is {shorten(content)}; expected a string", hint=HINT)
    flags = {flag: value[flag] for flag in FLAGS if value.get(flag) is not None}
    for flag, chosen in flags.items():
        if not isinstance(chosen, bool):
            raise CheckpointError(f"{path}: {name}: {flag} is {shorten(chosen)}; expected true or false", hint=HINT)
    return {"content": content, **flags}


def _content(token: Token) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _built(token: Token) -> str | tokenizers.AddedToken:
    return token if isinstance(token, str) else tokenizers.AddedToken(**token)


def _text(token: str | tokenizers.AddedToken) -> str:
    return token if isinstance(token, str) else token.content


def _special(token: str | tokenizers.AddedToken, names: set[str]) -> tokenizers.AddedToken:
    if isinstance(token, str):
        return tokenizers.AddedToken(token, special=True)
    if not token.special and token.content in names:
        token.special = True
    return token
