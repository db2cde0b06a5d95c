"""Prompt files: every line is checked before anything runs, and errors name their line."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdrt.errors import UsageError
from sdrt.runtime import prompt_file
from sdrt.runtime.prompt_file import Line, read_prompt_file
from sdrt.runtime.request import make_request

DEFAULTS: dict[str, Any] = {"seed": 100, "num_inference_steps": 20, "negative_prompt": "dark"}


def read(folder: Path, text: str | bytes, **changes: Any) -> tuple[Line, ...]:
    path = folder / "prompts.jsonl"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_prompt_file(path, {**DEFAULTS, **changes})


def complaint(folder: Path, text: str | bytes, **changes: Any) -> str:
    with pytest.raises(UsageError) as caught:
        read(folder, text, **changes)
    assert len(caught.value.message) < 400
    assert caught.value.hint
    return caught.value.message.replace(str(folder), "")


def test_a_line_is_a_request(tmp_path: Path) -> None:
    full = {"prompt": "a", "negative_prompt": "b", "seed": 7, "num_images_per_prompt": 2}
    full |= {"num_inference_steps": 9, "guidance_scale": 3}
    lines = read(tmp_path, '{"prompt": "x"}\n\n' + json.dumps(full) + "\r\n  \n" + '{"prompt": ""}')
    assert [line.number for line in lines] == [1, 3, 5]
    assert lines[0].request == make_request("x", "dark", seed=100, num_inference_steps=20)
    assert lines[1].request == make_request(
        "a", "b", seed=7, num_images_per_prompt=2, num_inference_steps=9, guidance_scale=3
    )
    # The file's pictures are counted, those with seeds of their own too: taking one's seed away moves no other's.
    assert lines[2].request == make_request("", "dark", seed=103, num_inference_steps=20)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "not JSON: "),
        ("a red circle", "not JSON: Expecting value at character 1"),
        ('"a red circle"', "a str; it must be a JSON object"),
        ("[1]", "a list; it must be"),
        ("null", "a NoneType; it must be"),
        ("{}", "prompt is missing"),
        ('{"seed": 7}', "prompt is missing"),
        ('{"prompt": null}', "prompt is null; it must be text"),
        ('{"prompt": ["a"]}', 'prompt is ["a"]; it must be text'),
        ('{"prompt": "a", "prompt": "b"}', "'prompt' is given twice"),
        ('{"prompt": "a", "promt": "b"}', "there is no field 'promt'"),
        ('{"prompt": "a", "sampler": "euler"}', "there is no field 'sampler'"),
        ('{"prompt": "a", "seed": -1}', "seed is -1"),
        ('{"prompt": "a", "seed": 1.5}', "seed is 1.5; it must be a whole number"),
        ('{"prompt": "a", "seed": "7"}', 'seed is "7"; it must be a whole number'),
        ('{"prompt": "a", "seed": [7]}', "seed is [7]; it must be a whole number"),
        ('{"prompt": "a", "seed": true}', "seed is true; it must be a whole number"),
        ('{"prompt": "a", "seed": 18446744073709551616}', "seed is 18446744073709551616"),
        ('{"prompt": "a", "num_inference_steps": 0}', "num_inference_steps is 0"),
        ('{"prompt": "a", "num_images_per_prompt": 257}', "1 to 256"),
        ('{"prompt": "a", "guidance_scale": "7"}', "it must be a number"),
        ('{"prompt": "a", "guidance_interval": 7}', "it must be two numbers"),
        ('{"prompt": "a", "guidance_interval": [7]}', "it must be two sigmas"),
        ('{"prompt": "a", "guidance_scale": NaN}', "guidance_scale is nan"),
        ('{"prompt": "a", "guidance_scale": 1e400}', "guidance_scale is inf"),
        ('{"prompt": "\\ud83d"}', "lone surrogate"),
        ("[" * 100_000, "not JSON: too deep"),
        ('{"prompt": "a", "seed": ' + "9" * 5000 + "}", "not JSON that can be read"),
        (b'{"prompt": "\xff"}', "not UTF-8 at byte 12"),
    ],
    ids=lambda value: "",
)
def test_what_is_wrong_is_said_by_its_line(row: str | bytes, said: str, tmp_path: Path) -> None:
    wrong = row.encode() if isinstance(row, str) else row
    message = complaint(tmp_path, b'{"prompt": "a"}\n' + wrong + b"\n")
    assert message.startswith("/prompts.jsonl, line 2: ")
    assert said in message


BOM = "\ufeff"


@pytest.mark.parametrize(
    "text",
    [
        BOM + '{"prompt": "a", "seed": 1}\r\n\r\n{"prompt": "b", "seed": 2}\r\n',
        '{"prompt": "a", "seed": 1}\r\r{"prompt": "b", "seed": 2}',
        # Two files joined.
        BOM + '{"prompt": "a", "seed": 1.0}\n' + BOM + "\n" + BOM + '{"prompt": "b", "seed": 2.0}\n',
    ],
)
def test_marks_and_ends_of_lines_of_other_systems(text: str, tmp_path: Path) -> None:
    plain = read(tmp_path, '{"prompt": "a", "seed": 1}\n\n{"prompt": "b", "seed": 2}\n')
    assert repr(read(tmp_path, text)) == repr(plain)
    assert [line.number for line in plain] == [1, 3]


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-16", " is UTF-16 by its byte order mark"),
        ("utf-16-be", ", line 1: it holds NUL bytes, as UTF-16 text"),
        ("utf-16-le", ", line 1: it holds NUL bytes, as UTF-16 text"),
        ("utf-32", " is UTF-32 by its byte order mark"),
    ],
)
def test_other_encodings_are_refused_by_name(encoding: str, said: str, tmp_path: Path) -> None:
    assert complaint(tmp_path, '{"prompt": "a"}\r\n'.encode(encoding)).startswith(f"/prompts.jsonl{said}")
    marked = codecs.BOM_UTF16_BE + '{"prompt": "a"}'.encode("utf-16-be")
    assert "is UTF-16 by its byte order mark" in complaint(tmp_path, marked)


def test_a_mark_alone_is_an_empty_file(tmp_path: Path) -> None:
    assert "has 0 lines" in complaint(tmp_path, BOM + "\r\n")


def test_other_wrong_lines_are_named(tmp_path: Path) -> None:
    text = "\n".join(['{"prompt": "a"}', "x", '{"prompt": "a"}', "y", '{"prompt": 1}'])
    assert complaint(tmp_path, text).endswith("; 2 more are wrong: 4, 5")
    assert complaint(tmp_path, "x\n" * 20).endswith("; 19 more are wrong: 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ...")


def test_settings_that_hold_for_no_line_are_said_by_line(tmp_path: Path) -> None:
    text = '{"prompt": "a"}\n{"prompt": "b", "num_inference_steps": 5}'
    assert "line 2: start_step is 10" in complaint(tmp_path, text, start_step=10)
    assert [line.request.start_step for line in read(tmp_path, text, strength=0.6)] == [8, 2]


@pytest.mark.parametrize("text", ["", "\n\n", " \n\t\n"])
def test_an_empty_file_is_refused(text: str, tmp_path: Path) -> None:
    assert "has 0 lines" in complaint(tmp_path, text)


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_file, "MAX_QUEUED", 3)
    assert len(read(tmp_path, '{"prompt": "a"}\n' * 3)) == 3
    assert "has 4 lines; 1 to 3" in complaint(tmp_path, '{"prompt": "a"}\n' * 4)
    assert "asks for 4 pictures; 3 can" in complaint(tmp_path, '{"prompt": "a", "num_images_per_prompt": 2}\n' * 2)
    monkeypatch.setattr(prompt_file, "LIMIT_BYTES", 20)
    assert "is larger than" in complaint(tmp_path, '{"prompt": "a"}\n' * 2)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.jsonl", tmp_path / ("n" * 300), Path("a\0b")):
        with pytest.raises(UsageError, match="cannot read"):
            read_prompt_file(path, DEFAULTS)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8), st.lists, max_leaves=4
)


@given(st.dictionaries(st.sampled_from([*prompt_file.FIELDS, "other"]), values, max_size=4))
@settings(deadline=None, derandomize=True, max_examples=60)
def test_any_object_is_a_request_or_refused(value: dict[str, Any]) -> None:
    row = json.dumps(value).encode()
    try:
        request = prompt_file._request(row, DEFAULTS)
    except UsageError:
        return
    assert request.pictures[0].prompt == value["prompt"]


def test_settings_are_equal_where_pictures_may_be_denoised_together() -> None:
    one, other = make_request("a", seed=1), make_request(["b", "c"], "x", seed=5)
    assert one.batch_key() == other.batch_key()
    assert hash(one.batch_key()) == hash(other.batch_key())
    for changes in (
        {"num_inference_steps": 9},
        {"guidance_scale": 3.0},
        {"start_step": 2},
        {"guidance_interval": (0.3, 5.0)},
        {"deepcache": 3},
    ):
        assert make_request("a", seed=1, **changes).batch_key() != one.batch_key()
