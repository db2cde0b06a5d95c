"""Records and parameter texts: hostile prompts come back unchanged, hostile files are refused."""

from __future__ import annotations

import struct
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from sdrt import __version__
from sdrt.errors import ArtefactError
from sdrt.limits import MAX_SEED
from sdrt.runtime.images import write_png
from sdrt.runtime.picture_record import parameters_text, parse_parameters, read_record, record_json
from tests.helpers.records import picture_record

PICTURE = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
HOSTILE = [
    "a cat\nSteps: 1, Seed: 2",
    "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 64x64, Model: evil, Version: 9",
    "Negative prompt: nothing",
    "a cat\nNegative prompt: a dog\nNegative prompt: a mouse\nSteps: 1, Sampler: x, Seed: 2",
    '"quoted", \\"half, \\',
    ', Prompt: "stolen", Negative prompt: "stolen"',
    "  spaces, around  \n\n  and within ",
    "\r\n\t\x0b\x1c\x85\u2028\u2029",
    "NUL \0 within",
    "\U0001f468\u200d\U0001f469 \u0642\u0637\u0629 \u732b caf\u00e9",
    "",
    "\n",
]
FRAGMENTS = [*HOSTILE, "\n", " ", ",", ":", '"', "\\", "Seed: 3", "Negative prompt:", "\0", "{", "<lora:x:1>", "\ufffd"]
hostile_text = st.one_of(
    st.sampled_from(HOSTILE),
    st.lists(st.sampled_from(FRAGMENTS), max_size=6).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
)


def test_the_text_is_what_other_programs_expect() -> None:
    text = parameters_text(picture_record("a cat\non a mat", "a dog, blurry"), (512, 256))
    assert text == (
        "a cat\non a mat\n"
        "Negative prompt: a dog, blurry\n"
        f"Steps: 25, Sampler: LMS, CFG scale: 7.5, Seed: 7, Size: 512x256, Model: demo, Version: sdrt {__version__}"
    )


def test_without_a_negative_prompt_there_is_no_line_for_it() -> None:
    assert parameters_text(picture_record("a cat"), (512, 512)).startswith("a cat\nSteps: 25, ")


def test_a_text_of_another_program_is_read() -> None:
    text = (
        "portrait, (sharp:1.2)\nNegative prompt: blurry,\n  lowres\n"
        'Steps: 20, Sampler: DPM++ 2M, CFG scale: 7, Lora hashes: "a: 1, b: 2", Size: 512x768, Empty: , Version: v1.9.4'
    )
    assert parse_parameters(text) == {
        "Prompt": "portrait, (sharp:1.2)",
        "Negative prompt": "blurry,\nlowres",
        "Steps": "20",
        "Sampler": "DPM++ 2M",
        "CFG scale": "7",
        "Lora hashes": "a: 1, b: 2",
        "Size": "512x768",
        "Empty": "",
        "Version": "v1.9.4",
    }


def test_a_text_without_settings_is_all_prompt() -> None:
    assert parse_parameters("a cat\nSteps: 1, Seed: 2") == {"Prompt": "a cat\nSteps: 1, Seed: 2", "Negative prompt": ""}


@settings(deadline=None, max_examples=200, derandomize=True)
@given(prompt=hostile_text, negative_prompt=hostile_text, name=hostile_text)
@example(prompt=HOSTILE[0], negative_prompt=HOSTILE[2], name=HOSTILE[1])
def test_any_prompt_comes_back_from_the_text(prompt: str, negative_prompt: str, name: str) -> None:
    checkpoint = {"name": name, "digest": "ab" * 32, "revision": None}
    text = parameters_text(picture_record(prompt, negative_prompt, checkpoint=checkpoint), (512, 512))
    read = parse_parameters(text)
    assert "\0" not in text
    assert (read.pop("Prompt"), read.pop("Negative prompt")) == (prompt, negative_prompt)
    assert read == {
        "Steps": "25",
        "Sampler": "LMS",
        "CFG scale": "7.5",
        "Seed": "7",
        "Size": "512x512",
        "Model": name,
        "Version": f"sdrt {__version__}",
    }


@pytest.mark.parametrize("prompt", HOSTILE)
def test_any_prompt_comes_back_from_the_file(prompt: str, tmp_path: Path) -> None:
    path, record = tmp_path / "picture.png", picture_record(prompt, prompt, extra={"note": prompt})
    write_png(PICTURE, path, record)
    assert read_record(path) == record
    with Image.open(path) as opened:
        read = parse_parameters(opened.info["parameters"])
    assert (read["Prompt"], read["Negative prompt"]) == (prompt, prompt)


def test_the_longest_prompts_come_back(tmp_path: Path) -> None:
    path, record = tmp_path / "picture.png", picture_record("\0" * 100_000, "\U0001f680" * 100_000)
    write_png(PICTURE, path, record)
    assert read_record(path) == record


@pytest.mark.parametrize("text", ["a" * 300_000, "a: " * 100_000, 'a: "' * 100_000, 'a: "\\' * 80_000, " -/" * 100_000])
def test_reading_takes_time_in_proportion(text: str) -> None:
    start = time.perf_counter()
    parse_parameters(text)
    # Some 0.1 s; a search that backtracks over the whole line takes minutes.
    assert time.perf_counter() - start < 10


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


SIGNATURE, END = b"\x89PNG\r\n\x1a\n", chunk(b"IEND", b"")
HEAD = b"sdrt\0\0\0\0\0"


def png_with(*chunks: bytes) -> bytes:
    return SIGNATURE + chunk(b"IHDR", bytes(13)) + b"".join(chunks) + END


def carrying(record: dict[str, Any]) -> bytes:
    return png_with(chunk(b"iTXt", HEAD + record_json(record).encode()))


def test_a_record_is_found_among_other_chunks(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    others = [
        chunk(b"tEXt", b"sdrt\0{}"),
        chunk(b"iTXt", b"x\0\0\0\0\0{}"),
        chunk(b"iTXt", b""),
        chunk(b"IDAT", bytes(9999)),
    ]
    path.write_bytes(png_with(*others, chunk(b"iTXt", HEAD + record_json(picture_record()).encode())))
    assert read_record(path) == picture_record()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a PNG file"),
        (b"\xff\xd8\xff\xe0 JPEG", "is not a PNG file"),
        (SIGNATURE, "ends before its last chunk"),
        (SIGNATURE + b"\0\0\0\x0dIH", "ends before its last chunk"),
        (SIGNATURE + struct.pack(">I", 2**31 - 1) + b"IDAT", "ends before its last chunk"),
        (png_with(), "carries no sdrt record"),
        (png_with(chunk(b"tEXt", b"parameters\0a cat")), "carries no sdrt record"),
        (png_with(chunk(b"iTXt", b"sdrt\0\1\0\0\0" + zlib.compress(bytes(10**7)))), "carries no sdrt record"),
        (SIGNATURE + struct.pack(">I", 2**32 - 1) + b"iTXt" + HEAD, "over 64 MiB"),
        (SIGNATURE + struct.pack(">I", 60 << 20) + b"iTXt" + HEAD + b"{}", "checksum"),
        (carrying(picture_record()).replace(b"a cat", b"a dog", 1), "checksum"),
        (SIGNATURE + chunk(b"tEXt", b"") * 100_001, "over 100000 chunks"),
    ],
)
def test_files_without_a_sound_record_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match=message) as caught:
        read_record(path)
    assert str(path) in caught.value.message


def test_a_chunk_that_claims_much_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    with path.open("wb") as file:
        file.write(SIGNATURE + struct.pack(">I", 2**31 - 1) + b"IDAT")
        file.truncate(3 << 30)
    tracemalloc.start()
    with pytest.raises(ArtefactError):
        read_record(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1 << 20


def without(field: str) -> dict[str, Any]:
    return {name: value for name, value in picture_record().items() if name != field}


@pytest.mark.parametrize(
    ("record", "field"),
    [
        *((without(field), field) for field in ("prompt", "batch", "checkpoint", "latents_given", "precision")),
        (picture_record(seed=-1), "seed"),
        (picture_record(seed=MAX_SEED + 1), "seed"),
        (picture_record(seed=True), "seed"),
        (picture_record(num_inference_steps=0), "num_inference_steps"),
        (picture_record(guidance_scale="7.5"), "guidance_scale"),
        (picture_record(precision="fp64"), "precision"),
        (picture_record(checkpoint={"name": "demo", "digest": "short"}), "checkpoint.digest"),
        (picture_record(loop="fast"), "loop"),
        (picture_record(provider="gpu"), "provider"),
        (picture_record(cuda_graphs="yes"), "cuda_graphs"),
        (picture_record(threads=0), "threads"),
        (picture_record(deepcache=1), "deepcache"),
        (picture_record(batch=[]), "batch"),
        (picture_record(batch=[["a", "b"]]), "batch.0"),
        (picture_record(batch=[["a", "b", 1]] * 1000), "batch"),
        (picture_record(batch_index=1), "batch_index"),
    ],
)
def test_a_record_with_a_wrong_field_is_refused_by_name(record: dict[str, Any], field: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(carrying(record))
    with pytest.raises(ArtefactError, match=rf"record is malformed: .*{field}"):
        read_record(path)


def test_what_an_older_sdrt_did_not_say_is_none(tmp_path: Path) -> None:
    said_since = ("loop", "provider", "cuda_graphs", "threads", "deepcache")
    path = tmp_path / "picture.png"
    path.write_bytes(carrying({name: value for name, value in picture_record().items() if name not in said_since}))
    assert read_record(path) == {**picture_record(), **dict.fromkeys(said_since)}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"guidance_scale": NaN}',
        b'"\\ud800"',
    ],
)
def test_a_record_that_is_no_json_object_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(png_with(chunk(b"iTXt", HEAD + content)))
    with pytest.raises(ArtefactError, match="record is malformed") as caught:
        read_record(path)
    assert "\n" not in caught.value.message


@settings(deadline=None, max_examples=100, derandomize=True)
@given(data=st.data())
def test_damaged_files_never_raise_anything_else(data: st.DataObject, damaged: Path) -> None:
    content = bytearray(carrying(picture_record()))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    try:
        record = read_record(damaged)
    except ArtefactError:
        return
    assert record == picture_record()


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "picture.png"


def test_absent_files_and_folders_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.png"):
        with pytest.raises(ArtefactError, match="cannot read"):
            read_record(path)


def test_the_head_is_what_pillow_writes() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("sdrt", "{}")
    assert info.chunks[0][:2] == (b"iTXt", HEAD + b"{}")
