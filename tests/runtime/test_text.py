"""Token ids against transformers' CLIPTokenizer, and notes and errors for text that does not fit."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from sdrt.checkpoint.clip_vocabulary import write_clip_tokenizer
from sdrt.checkpoint.tokenizer import build_tokenizer_json
from sdrt.errors import ArtefactError, UsageError
from sdrt.limits import PROMPT_LIMIT_CHARACTERS
from sdrt.runtime.text import Tokenizer

START, END = 49406, 49407
ASTRONAUT = [START, 320, 1125, 539, 550, 18376, 6765, 320, 4558, END]
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466"
PIECES = [
    "a photo of", "an astronaut", "riding a horse", "Mona Lisa's", "they're", "don't", "I'd've", "4k", "8K UHD",
    "1234567890", "trending on ArtStation", "(masterpiece:1.2)", "[low quality]", "<lora:x:0.8>", "BREAK", "AND",
    "semi-realistic", "&amp;", "&lt;b&gt;", "&#39;", "&nbsp;", "https://example.com/?q=1&r=2", "user@example.com",
    "C:\\path", "#tag", "$5.00", "caf\u00e9", "cafe\u0301", "\u00c5ngstr\u00f6m", "A\u030angstro\u0308m",
    "stra\u00dfe", "STRASSE", "\u0130stanbul", "\u01c5", "\u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2", "\ufb01ne",
    "\u2167", "x\u00b2", "\u00bd", "\u0663\u0664", "na\u00efve", "\u4e00\u53ea\u732b\u5750\u5728\u57ab\u5b50\u4e0a",
    "\u732b\u304c\u597d\u304d", "\uac00\ub098\ub2e4", "\u1100\u1161",
    "\u0642\u0637\u0629 \u062c\u0645\u064a\u0644\u0629", "\u05d7\u05ea\u05d5\u05dc", "\u202eevil\u202c",
    "\u0939\u093f\u0928\u094d\u0926\u0940", "\u0e41\u0e21\u0e27", "\U0001f680", "\u2764\ufe0f", FAMILY,
    "\U0001f1e9\U0001f1ea", "\U0001f44d\U0001f3fd", "\U0001d538\U0001d539", "\u200b", "\ufeff", "\u00ad",
    "Z\u0351\u036b\u0343a\u0302\u0300l\u0308g\u0304o\u030a", "\t", "\n", "\r\n", "  ", "\u00a0", "\u3000", "\u2028",
    "\x00", "\x07", "\x1b[0m", "\x7f", "\x85", "!!!!", "...", "\u2026", "---", "\u2014", "\u201cquoted\u201d",
    "\u2018it\u2019s\u2019", "a" * 60, "\ufffd", "\U0010ffff", "\ue000", "<|endoftext|>", "<|startoftext|>",
    "<|ENDOFTEXT|>", "</w>", "\u0120", "pneumonoultramicroscopicsilicovolcanoconiosis",
]  # fmt: skip


def corpus() -> list[str]:
    """Draw a thousand strings: the pieces alone, joined with and without spaces, and random code points."""
    rng = random.Random(2026)
    strings = ["", " ", "   \t\n ", *PIECES, *(piece.upper() for piece in PIECES), "a cat " * 200, FAMILY * 40]
    while len(strings) < 800:
        strings.append(rng.choice(["", " ", ", "]).join(rng.choices(PIECES, k=rng.randint(1, 40))))
    while len(strings) < 1000:
        points = (rng.choice([rng.randrange(0x250), rng.randrange(0x3000), rng.randrange(0x110000)]) for _ in range(60))
        strings.append("".join(chr(point) for point in points if not 0xD800 <= point < 0xE000))
    return strings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write CLIP's tokenizer as in a checkpoint, and beside it the tokenizer.json of a bundle."""
    folder = tmp_path_factory.mktemp("clip") / "tokenizer"
    write_clip_tokenizer(folder)
    folder.with_name("tokenizer.json").write_bytes(build_tokenizer_json(folder, 77, 49408))
    return folder


@pytest.fixture(scope="module")
def path(folder: Path) -> Path:
    return folder.with_name("tokenizer.json")


@pytest.fixture(scope="module")
def tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.open(path, 77)


@pytest.fixture(scope="module")
def reference(folder: Path) -> CLIPTokenizer:
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return tokenizer


def reference_ids(reference: CLIPTokenizer, prompts: list[str]) -> np.ndarray:
    return np.array(reference(prompts, padding="max_length", max_length=77, truncation=True).input_ids)


def test_ids_of_a_thousand_strings_equal_transformers(tokenizer: Tokenizer, reference: CLIPTokenizer) -> None:
    prompts = corpus()
    tokens = tokenizer.encode(prompts)
    assert tokens.input_ids.dtype == np.int64
    np.testing.assert_array_equal(tokens.input_ids, reference_ids(reference, prompts))
    # The corpus is varied: except for upper-case twins most ids differ, and many strings are too long.
    assert len(np.unique(tokens.input_ids, axis=0)) > 850
    assert 100 < sum(lost != "" for lost in tokens.truncated) < 900


@settings(deadline=None, max_examples=60, derandomize=True)
@given(prompt=st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_ids_of_any_text_equal_transformers(prompt: str, tokenizer: Tokenizer, reference: CLIPTokenizer) -> None:
    np.testing.assert_array_equal(tokenizer.encode([prompt]).input_ids, reference_ids(reference, [prompt]))


def test_reference_ids_of_the_original_model(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(["a photo of an astronaut riding a horse"]).input_ids
    assert ids.tolist() == [ASTRONAUT + [END] * (77 - len(ASTRONAUT))]


def test_empty_and_blank_prompts_are_start_and_end_only(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(["", "  \n"]).input_ids.tolist() == [[START] + [END] * 76] * 2
    assert tokenizer.encode([]).input_ids.shape == (0, 77)


def test_seventy_five_words_fit_and_the_next_is_reported(tokenizer: Tokenizer) -> None:
    words = ["cat"] * 75
    fits, over = tokenizer.encode([" ".join(words)]), tokenizer.encode([" ".join([*words, "and", " Dogs! "])])
    np.testing.assert_array_equal(fits.input_ids, over.input_ids)
    assert (fits.truncated, over.truncated) == (("",), ("and  Dogs!",))
    assert fits.input_ids[0, -1] == END


@pytest.mark.parametrize(
    ("prompt", "lost"),
    [
        ("cat " * 75 + "CAFE\u0301 \u00c5", "CAFE\u0301 \u00c5"),
        ("e\u0301" * 3 + " cat" * 75 + " \u732b", "cat cat cat \u732b"),
        ("&amp; \t\r\n  " * 25 + "\U0001f680 rocket", "\U0001f680 rocket"),
        # A character whose bytes are split over the end of the text counts as lost.
        ("cat " * 74 + "\U0001f9ff.", "\U0001f9ff."),
    ],
)
def test_lost_words_are_the_users_own_text(prompt: str, lost: str, tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(["short", prompt]).truncated == ("", lost)


def test_another_length_is_kept(path: Path) -> None:
    tokens = Tokenizer.open(path, 8).encode(["a photo of an astronaut riding a horse", "a cat"])
    assert tokens.input_ids.tolist() == [[*ASTRONAUT[:7], END], [START, 320, 2368, END, END, END, END, END]]
    assert tokens.truncated == ("a horse", "")


def test_the_files_padding_token_is_used_and_its_truncation_is_not(path: Path, tmp_path: Path) -> None:
    content = json.loads(path.read_bytes())
    content["padding"] |= {"pad_id": 0, "pad_token": "!", "strategy": {"Fixed": 5}}
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    changed = tmp_path / "tokenizer.json"
    changed.write_text(json.dumps(content))
    tokens = Tokenizer.open(changed, 77).encode(["a photo of an astronaut riding a horse"])
    assert tokens.input_ids.tolist() == [ASTRONAUT + [0] * (77 - len(ASTRONAUT))]
    assert tokens.truncated == ("",)


@pytest.mark.parametrize("code", [0xD800, 0xDCFF, 0xDFFF])
def test_a_lone_surrogate_is_refused_with_its_position(code: int, tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match=rf"U\+{code:04X}\) at position 5"):
        tokenizer.encode(["fine", f"a cat{chr(code)}"])


def test_a_prompt_over_the_limit_is_refused(tokenizer: Tokenizer) -> None:
    longest = "a" * PROMPT_LIMIT_CHARACTERS
    assert tokenizer.encode([longest]).truncated[0].endswith("aaa")
    with pytest.raises(UsageError, match="100001 characters; the limit is 100000"):
        tokenizer.encode([longest + "a"])


def test_a_combining_bomb_is_tokenised(tokenizer: Tokenizer, reference: CLIPTokenizer) -> None:
    bomb = "z" + "\u0351\u036b" * 40_000
    np.testing.assert_array_equal(tokenizer.encode([bomb]).input_ids, reference_ids(reference, [bomb]))


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe\x00", b"[" * 100_000, b'{"model": {"type": "BPE"}}'])
def test_a_malformed_tokenizer_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer.open(path, 77)


def test_a_missing_tokenizer_and_one_without_padding_are_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="cannot read"):
        Tokenizer.open(tmp_path / "tokenizer.json", 77)
    unpadded = tmp_path / "unpadded.json"
    unpadded.write_text(json.dumps(json.loads(path.read_bytes()) | {"padding": None}))
    with pytest.raises(ArtefactError, match="no padding token"):
        Tokenizer.open(unpadded, 77)


@pytest.fixture(scope="module")
def learned(folder: Path) -> Path:
    """Write the bundle's tokenizer.json with a token of three vectors, and one of a hundred."""
    document = json.loads(folder.with_name("tokenizer.json").read_bytes())
    names = ["<tok>", "<tok>_1", "<tok>_2", "<many>", *(f"<many>_{number}" for number in range(1, 100))]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    document["added_tokens"] += [{"id": 49408 + place, "content": name, **flags} for place, name in enumerate(names)]
    path = folder.with_name("learned.json")
    path.write_text(json.dumps(document))
    return path


def test_a_token_of_several_vectors_stands_for_all_of_them(learned: Path) -> None:
    tokenizer = Tokenizer.open(learned, 77)
    tokens = tokenizer.encode(["a <tok>, x", "<tok>_2", "<tok>_1 <tok>", "<TOK>"]).input_ids
    assert tokens[0, :8].tolist() == [START, 320, 49408, 49409, 49410, 267, 343, END]
    # As in diffusers: another vector alone, and the token in other letters, stay unchanged.
    assert tokens[1, :3].tolist() == [START, 49410, END]
    assert tokens[3, :3].tolist() == [START, 49408, END]
    # And the token within the name of another vector is replaced where the token itself is in the prompt.
    left = [number for number in tokenizer.encode(["_1"]).input_ids[0, 1:].tolist() if number != END]
    all_three = [49408, 49409, 49410]
    assert tokens[2, : 8 + len(left)].tolist() == [START, *all_three, *left, *all_three, END]
    assert [word.text for word in tokenizer.words("a <tok>")] == ["a", "<tok>", "<tok>_1", "<tok>_2"]


def test_more_vectors_than_a_prompt_holds(learned: Path) -> None:
    tokens = Tokenizer.open(learned, 77).encode(["<many>"])
    assert tokens.input_ids[0].tolist() == [START, *range(49411, 49411 + 75), END]
    assert tokens.truncated[0].startswith("<many>_75")


def test_a_prompt_that_grows_beyond_the_limit(learned: Path) -> None:
    with pytest.raises(UsageError, match=r"prompt, with all vectors of <many>, has \d+ characters; the limit is"):
        Tokenizer.open(learned, 77).encode(["<many>" * 1000])
