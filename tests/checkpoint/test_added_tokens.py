"""Added and special tokens: ids equal to transformers' and diffusers', whichever version wrote the files."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers.loaders import TextualInversionLoaderMixin
from tokenizers import AddedToken
from transformers import CLIPTokenizer

from sdrt.checkpoint.clip_vocabulary import SD_V1, clip_merges, vocabulary
from sdrt.checkpoint.tokenizer import build_tokenizer_json, prompt_length, tokenizer_identity
from sdrt.errors import CheckpointError
from sdrt.runtime.text import Tokenizer

ROWS = 2000  # of an embedding that every token here fits
POSITIONS = 77
MERGES = clip_merges()[:300]  # a vocabulary that loads in milliseconds
TAUGHT = [
    "<tok>",
    "<tok>_1",
    "<tok>_2",
    "<toker>",
    "New York",
    "Ünï",
    "e\u0301x",
    "日本",
    "🚀",
    "cat",
    "<Big>",
    "<Big>_1",
]
FLAGGED = [
    AddedToken("<strip>", lstrip=True, rstrip=True, normalized=False),
    AddedToken("word", single_word=True),
    AddedToken("<EXACT>", normalized=False),
]
PIECES = [
    *TAUGHT, *(token.content for token in FLAGGED), "<pad>", "<mask>", "<|endoftext|>", "<|STARTOFTEXT|>", "<TOK>",
    "new york", "<big>", "ünï", "<exact>", "wordy", "a photo of the cat", "AND then,", "don't", "9", "_1", "  ", "\n",
    "!", "the",
]  # fmt: skip

Values = dict[str, Any]


def prompts(seed: int) -> list[str]:
    """Build prompts with tokens next to words, punctuation and each other, some longer than the limit."""
    draw = random.Random(seed)
    glue = ["", "", " ", " ", ", ", "."]
    lengths = [draw.randint(1, 14) for _ in range(60)] + [60]
    return ["".join(draw.choice(PIECES) + draw.choice(glue) for _ in range(length)) for length in lengths]


def read(path: Path) -> Values:
    value: Values = json.loads(path.read_text())
    return value


def write(path: Path, value: Values) -> None:
    path.write_text(json.dumps(value))


def change(path: Path, **values: object) -> None:
    """Change values of a JSON file."""
    write(path, {**read(path), **values})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a tokenizer in the files of v1.4, with few merges."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(SD_V1 / "tokenizer" / name, folder / name)
    write_model(folder, MERGES)
    return folder


def write_model(folder: Path, merges: list[str]) -> None:
    """Write vocab.json and merges.txt."""
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    write(folder / "vocab.json", vocabulary(merges))


def taught(folder: Path) -> CLIPTokenizer:
    """Load the folder's tokenizer with added tokens and a padding token of its own."""
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.add_tokens([*TAUGHT, *FLAGGED])
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    return tokenizer


def as_fields(token: AddedToken) -> Values:
    """Return an added token in the fields that files hold."""
    names = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {name: getattr(token, name) for name in names}


def saved_today(folder: Path) -> None:
    """Write the files of transformers 5: tokenizer.json and tokenizer_config.json, no other file."""
    tokenizer = taught(folder)
    for path in folder.iterdir():
        path.unlink()
    tokenizer.save_pretrained(folder)


def beside_the_two_files(folder: Path) -> None:
    """Write transformers 5's tokenizer.json beside the vocab.json and merges.txt that it replaces."""
    taught(folder).save_pretrained(folder)


def beside_another_model(folder: Path) -> None:
    """Write tokenizer.json beside a vocab.json and merges.txt of another vocabulary."""
    beside_the_two_files(folder)
    write_model(folder, MERGES[:100])


def merges_as_strings(folder: Path) -> None:
    """Write tokenizer.json as older versions of tokenizers wrote it, without a prompt length."""
    saved_today(folder)
    document = read(folder / "tokenizer.json")
    document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]
    change(folder / "tokenizer.json", model=document["model"])
    change(folder / "tokenizer_config.json", model_max_length=10**30)


def saved_by_4_57(folder: Path) -> None:
    """Write a slow tokenizer of transformers 4.34 to 4.57: added_tokens_decoder beside the older files."""
    decoder = taught(folder).added_tokens_decoder
    size = len(read(folder / "vocab.json"))
    tokens = {str(number): as_fields(token) for number, token in decoder.items()}
    named = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    config = {**named, "pad_token": "<pad>", "model_max_length": 77, "clean_up_tokenization_spaces": True}
    write(folder / "tokenizer_config.json", {**config, "added_tokens_decoder": tokens})
    write(folder / "added_tokens.json", {token.content: n for n, token in decoder.items() if n >= size})
    change(folder / "special_tokens_map.json", pad_token="<pad>")


def saved_by_4_20(folder: Path) -> None:
    """Write a slow tokenizer before 4.34: added_tokens.json, without flags, and special_tokens_map.json."""
    decoder = taught(folder).added_tokens_decoder
    size = len(read(folder / "vocab.json"))
    write(folder / "added_tokens.json", {token.content: n for n, token in decoder.items() if n >= size})
    change(folder / "special_tokens_map.json", pad_token="<pad>", additional_special_tokens=["<mask>"])


def numbered_with_gaps(folder: Path) -> None:
    """Write ids that transformers ignores: it numbers the tokens after the vocabulary, in their order."""
    write(folder / "added_tokens.json", {"<tok>_1": 905, "<tok>": 910, "<|endoftext|>": 811, "cat": 900})


def saved_fast_by_4_57(folder: Path) -> None:
    """Write a fast tokenizer of 4.34 to 4.57: all files, which differ only in the flags of two tokens."""
    tokenizer = taught(folder)
    saved_by_4_57(folder)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    decoder = read(folder / "tokenizer_config.json")["added_tokens_decoder"]
    for token in decoder.values():
        if token["content"] in ("New York", "<EXACT>"):
            token["normalized"] = not token["normalized"]
    change(folder / "tokenizer_config.json", added_tokens_decoder=decoder)


def own_roles(folder: Path) -> None:
    """Write tokens that are added because a config gives them a role or lists them."""
    saved_today(folder)
    typed = {"__type": "AddedToken", "content": "new york", "lstrip": True}
    values = {"mask_token": "<mask>", "image_token": typed, "additional_special_tokens": ["!", "the"]}
    change(folder / "tokenizer_config.json", **values)


def named_extra(folder: Path) -> None:
    """Write extra_special_tokens as an object, and an older file that contradicts it."""
    change(folder / "tokenizer_config.json", extra_special_tokens={"boi_token": "<mask>"}, bos_token="!")
    plain = {"content": "cat", "single_word": True}
    change(folder / "special_tokens_map.json", extra_special_tokens=["the", plain], unk_token="<unk>", z_token="9")


def padded_on_the_left(folder: Path) -> None:
    """Pad on the left, and limit prompts below the text encoder's length."""
    taught(folder).save_pretrained(folder)
    change(folder / "tokenizer_config.json", padding_side="left", model_max_length=20)


def padded_by_tokenizer_json(folder: Path) -> None:
    """Write the padding side in tokenizer.json, and the length under its older name."""
    tokenizer = taught(folder)
    tokenizer.backend_tokenizer.enable_padding(direction="left", pad_id=0, pad_token="!")
    tokenizer.save_pretrained(folder)
    config = {key: value for key, value in read(folder / "tokenizer_config.json").items() if key != "model_max_length"}
    write(folder / "tokenizer_config.json", {**config, "max_len": 50})


LAYOUTS: list[Callable[[Path], None]] = [
    saved_today, beside_the_two_files, beside_another_model, merges_as_strings, saved_by_4_57, saved_by_4_20,
    numbered_with_gaps, saved_fast_by_4_57, own_roles, named_extra, padded_on_the_left, padded_by_tokenizer_json,
]  # fmt: skip


def built(folder: Path) -> Tokenizer:
    """Open the folder's tokenizer as a bundle holds it."""
    length = prompt_length(folder, POSITIONS)
    path = folder.with_name("built.json")
    path.write_bytes(build_tokenizer_json(folder, length, ROWS))
    return Tokenizer.open(path, length)


def ids_of_diffusers(folder: Path, texts: list[str]) -> list[list[int]]:
    """Return ids as StableDiffusionPipeline.encode_prompt computes them."""
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    length = min(tokenizer.model_max_length, POSITIONS)
    expanded = TextualInversionLoaderMixin().maybe_convert_prompt(texts, tokenizer)
    found: list[list[int]] = tokenizer(expanded, padding="max_length", truncation=True, max_length=length).input_ids
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ids_equal_diffusers(folder: Path, layout: Callable[[Path], None]) -> None:
    layout(folder)
    texts = prompts(LAYOUTS.index(layout))
    assert built(folder).encode(texts).input_ids.tolist() == ids_of_diffusers(folder, texts)


def test_the_check_finds_a_file_that_was_not_read(folder: Path) -> None:
    saved_by_4_20(folder)
    expected = ids_of_diffusers(folder, prompts(0))
    (folder / "added_tokens.json").unlink()
    assert built(folder).encode(prompts(0)).input_ids.tolist() != expected


@pytest.mark.parametrize("layout", [saved_today, saved_by_4_57, saved_by_4_20])
def test_each_vector_has_the_id_that_the_embedding_was_resized_for(
    folder: Path, layout: Callable[[Path], None]
) -> None:
    size = len(read(folder / "vocab.json"))
    layout(folder)
    row = built(folder).encode(["<tok>"]).input_ids[0].tolist()
    assert row[:6] == [size - 2, size, size + 1, size + 2, size - 1, size + len(TAUGHT) + len(FLAGGED)]


@pytest.mark.parametrize(
    ("layout", "name", "decides"),
    [
        (saved_today, "tokenizer.json", True),
        (saved_today, "tokenizer_config.json", True),
        (beside_the_two_files, "vocab.json", False),
        (beside_the_two_files, "merges.txt", False),
        (beside_the_two_files, "special_tokens_map.json", True),
        (saved_by_4_20, "vocab.json", True),
        (saved_by_4_20, "merges.txt", True),
        (saved_by_4_20, "added_tokens.json", True),
        (saved_by_4_20, "special_tokens_map.json", True),
        (saved_by_4_57, "tokenizer_config.json", True),
        (saved_by_4_57, "added_tokens.json", False),
        (saved_by_4_57, "special_tokens_map.json", False),
        (saved_fast_by_4_57, "tokenizer.json", True),
        (saved_fast_by_4_57, "vocab.json", False),
    ],
)
def test_the_identity_changes_with_a_file_that_decides_ids(
    folder: Path, layout: Callable[[Path], None], name: str, decides: bool
) -> None:
    layout(folder)
    before = tokenizer_identity(folder, POSITIONS)
    (folder / "README.md").write_text("a file that decides nothing")
    change(folder / "tokenizer_config.json", name_or_path="elsewhere", clean_up_tokenization_spaces=False)
    assert tokenizer_identity(folder, POSITIONS) == before
    path = folder / name
    if name == "merges.txt":
        path.write_text(path.read_text().rsplit("\n", 2)[0] + "\n")
    elif name == "tokenizer_config.json":
        change(path, mask_token="<mask>")
    elif name == "vocab.json":
        write(path, {**read(path), "zebra": 950})
    elif name == "tokenizer.json":
        change(path, added_tokens=read(path)["added_tokens"][:-1])
    else:
        change(path, **({"zebra": 950} if name == "added_tokens.json" else {"pad_token": "!"}))
    assert (tokenizer_identity(folder, POSITIONS) != before) == decides


@pytest.mark.parametrize(
    ("values", "length"),
    [({}, 77), ({"model_max_length": None}, 77), ({"model_max_length": 10**30}, 77), ({"model_max_length": 1e30}, 77),
     ({"model_max_length": 20}, 20), ({"model_max_length": 20.0}, 20), ({"max_len": 30}, 30),
     ({"model_max_length": 128}, 77), ({"model_max_length": 2}, 2)],
)  # fmt: skip
def test_length_of_prompts(folder: Path, values: Values, length: int) -> None:
    write(folder / "tokenizer_config.json", values)
    assert prompt_length(folder, POSITIONS) == length


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("tokenizer_config.json", {"model_max_length": 1}, "model_max_length is 1; expected a whole number from 2"),
        ("tokenizer_config.json", {"model_max_length": "77"}, "model_max_length is '77'; expected a whole number"),
        ("tokenizer_config.json", {"padding_side": "up"}, "padding_side is 'up'; expected right or left"),
        ("tokenizer_config.json", {"truncation_side": "left"}, "truncation_side is 'left'; expected right"),
        ("tokenizer_config.json", {"split_special_tokens": True}, "split_special_tokens is set"),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["tokenizer.4.0.json"]}, "fast_tokenizer_files names"),
        ("tokenizer_config.json", {"extra_special_tokens": 5}, "extra_special_tokens is 5; expected a list"),
        ("tokenizer_config.json", {"extra_special_tokens": [5]}, "extra_special_tokens is 5; expected a string"),
        ("tokenizer_config.json", {"added_tokens_decoder": []}, "added_tokens_decoder is []; expected an object"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": 5}}, "added token 1 is 5; expected a string, or"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": "y"}}, "'x' is not a token id"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9" * 5000: "y"}}, "is not a token id"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"1": {"content": "x", "lstrip": 1}}},
            "added token 1: lstrip is 1; expected true or false",
        ),
        ("special_tokens_map.json", {"pad_token": ""}, "pad_token is ''; expected a token"),
        (
            "special_tokens_map.json",
            {"bos_token": {"content": []}},
            "bos_token: content is []; expected a string",
        ),
        ("added_tokens.json", {"<tok>": True}, "True is not a token id"),
        ("added_tokens.json", {str(n): 812 + n for n in range(ROWS)}, "is beyond the text encoder's vocab_size 2000"),
        ("tokenizer.json", {"model": {"vocab": {"a": 0}, "merges": []}}, "lacks tokens of single bytes"),
        ("tokenizer.json", {"model": {}, "added_tokens": 5}, "added_tokens is no list of tokens"),
        ("tokenizer.json", {"model": {}, "truncation": {"direction": "Left"}}, "truncation's direction is 'left'"),
    ],
)
def test_what_cannot_be_done_is_refused(folder: Path, name: str, values: Values, reason: str) -> None:
    path = folder / name
    write(path, {**(read(path) if path.exists() else {}), **values})
    with pytest.raises(CheckpointError) as caught:
        built(folder)
    assert reason in caught.value.message
    assert "\n" not in caught.value.message


def test_two_tokens_with_one_id_are_refused(folder: Path) -> None:
    words = vocabulary(MERGES)
    write(folder / "vocab.json", {token: number + (number > 600) for token, number in words.items()})
    write(folder / "added_tokens.json", {"<tok>": 900})
    with pytest.raises(CheckpointError, match=r"'<tok>' and '<\|endoftext\|>' would have one id, 814"):
        built(folder)


@pytest.mark.parametrize(
    ("gone", "reason"),
    [
        (("merges.txt",), "merges.txt is missing"),
        (("vocab.json",), "vocab.json is missing"),
        (("vocab.json", "merges.txt"), "has no tokenizer.json, and no vocab.json and merges.txt"),
    ],
)
def test_a_file_of_the_pair_that_is_missing(folder: Path, gone: tuple[str, ...], reason: str) -> None:
    for name in gone:
        (folder / name).unlink()
    for read_it in (built, lambda path: tokenizer_identity(path, POSITIONS)):
        with pytest.raises(CheckpointError) as caught:
            read_it(folder)
        assert reason in caught.value.message


def test_a_bundles_tokenizer_json_can_be_a_checkpoints(folder: Path, tmp_path: Path) -> None:
    saved_by_4_57(folder)
    data = build_tokenizer_json(folder, POSITIONS, ROWS)
    again = tmp_path / "again"
    again.mkdir()
    shutil.copyfile(folder / "tokenizer_config.json", again / "tokenizer_config.json")
    (again / "tokenizer.json").write_bytes(data)
    assert build_tokenizer_json(again, POSITIONS, ROWS) == data
