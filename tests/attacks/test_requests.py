"""Fault-matrix rows 42 to 55: requests that are out of range, huge, not text, or malicious, by command and by call."""

from __future__ import annotations

import copy
import json
import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdrt.arrays import Array
from sdrt.artefacts.engine_set import BatchRange
from sdrt.checkpoint.clip_vocabulary import write_clip_tokenizer
from sdrt.checkpoint.tokenizer import build_tokenizer_json
from sdrt.limits import MAX_PICTURES, MAX_SEED
from sdrt.runtime.backends.base import Engine
from sdrt.runtime.images import write_png
from sdrt.runtime.init_image import InitImage, open_picture
from sdrt.runtime.picture_record import parse_parameters, read_record
from sdrt.runtime.prompt_file import read_prompt_file
from sdrt.runtime.request import make_request
from sdrt.runtime.text import Tokenizer
from tests.attacks.material import refusal
from tests.command_line import CommandLine, Ended
from tests.doubles.engines import engine_component, tensor
from tests.helpers.records import picture_record

RECORD = picture_record()


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in an empty folder where opening engines fails the test."""

    def reached(*_: object, **__: object) -> None:
        raise AssertionError("engines were about to be opened")

    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("open_engines", "prepare"):
        monkeypatch.setattr(f"sdrt.prepare.engines.{name}", reached)
    return folder


def refused(ended: Ended, here: Path, *named: str, code: int = 2) -> None:
    assert ended.code == code, ended.err
    for text in named:
        assert text in ended.complaint
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("size", ["0", "-8", "513", "8", "100000", "NaN", "512px"])
@pytest.mark.parametrize("option", ["--height", "--width"])
def test_row_42_pictures_have_one_size(option: str, size: str, here: Path, sdrt: CommandLine) -> None:
    # Latents are 64x64 in every engine: there is no option for another size.
    refused(sdrt("denoise", "--prompt", "a", option, size), here, option)


class OfTwoToFour(Engine):
    """An engine built for two to four pictures."""

    def execute(self, feeds: dict[str, Array]) -> dict[str, Array]:
        raise AssertionError("the backend was reached")

    def release(self) -> None:
        pass


def test_row_43_more_or_less_than_the_engines_profile() -> None:
    spec = tensor("sample", 4)
    engine = OfTwoToFour("unet", engine_component([spec], [spec], batch=BatchRange(min=2, opt=2, max=4)))
    for shape in ((1, 4), (5, 4), (2, 5)):
        refusal(partial(engine.run, sample=np.zeros(shape, np.float32)), 2, "2 to 4" if shape[1] == 4 else "shape")


@pytest.mark.parametrize("steps", ["0", "-1", "1001", str(10**9), "1.5", "nan", "", "9" * 5000])
def test_row_44_steps(steps: str, here: Path, sdrt: CommandLine) -> None:
    refused(sdrt("denoise", "--prompt", "a", f"--steps={steps}"), here, "--steps", "1 to 1000")


def test_row_44_one_step_and_a_thousand_are_fine() -> None:
    for steps in (1, 1000):
        assert make_request("a", num_inference_steps=steps).num_inference_steps == steps


@pytest.mark.parametrize("scale", ["1e9", "nan", "inf", "-inf", "1e400", "a"])
def test_row_45_guidance(scale: str, here: Path, sdrt: CommandLine) -> None:
    refused(sdrt("denoise", "--prompt", "a", f"--guidance-scale={scale}"), here, "--guidance-scale", "1000")
    if scale != "a":
        refusal(partial(make_request, "a", guidance_scale=float(scale)), 2, "guidance_scale")


def test_row_45_one_and_below_turn_guidance_off() -> None:
    # That it then equals the single batch bitwise: tests/test_pipeline.py, test_guidance_off_*.
    assert [make_request("a", guidance_scale=scale).guided for scale in (-1, 0, 1, 1.01)] == [False] * 3 + [True]


@pytest.mark.parametrize("seed", ["-1", str(2**64), "abc", "1.5", ""])
def test_row_46_seeds(seed: str, here: Path, sdrt: CommandLine) -> None:
    refused(sdrt("denoise", "--prompt", "a", f"--seed={seed}"), here, "--seed", f"0 to {MAX_SEED}")


def test_row_46_every_64_bit_seed_is_one_and_none_is_drawn() -> None:
    for seed in (0, 2**32, 2**63, MAX_SEED):
        assert make_request("a", seed=seed).pictures[0].seed == seed
    assert make_request("a").pictures[0].seed != make_request("a").pictures[0].seed


ODD_TEXTS = [
    "",
    " ",
    "\n\t ",
    "👩‍👩‍👧‍👦" * 30,
    "مرحبا بالعالم",
    "a\0b",
    "e" + "\u0301" * 3000,
    "<|endoftext|>" * 100,
    "\u202e\ufeff",
]


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Write the tokenizer.json of a bundle with CLIP's vocabulary; read-only."""
    folder = tmp_path_factory.mktemp("clip")
    write_clip_tokenizer(folder)
    made: dict[str, Any] = json.loads(build_tokenizer_json(folder, 77, 49408))
    return made


@pytest.fixture(scope="module")
def tokenizer(tokenizer_json: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("clip") / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_json))
    return Tokenizer.open(path, 77)


@pytest.mark.parametrize("prompt", ODD_TEXTS, ids=lambda text: text[:8].encode("unicode_escape").decode())
def test_row_47_odd_prompts_are_prompts(prompt: str, tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode([make_request(prompt, seed=0).pictures[0].prompt])
    assert tokens.input_ids.shape == (1, 77)
    assert tokens.input_ids[0, 0] == 49406
    assert tokens.input_ids.max() < 49408


def test_row_47_what_does_not_fit_is_told(tokenizer: Tokenizer) -> None:
    fits, over = "cat " * 75, "cat " * 74 + "dog bird"
    assert tokenizer.encode([fits, over]).truncated == ("", "bird")


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex="(a+)+$"),
        lambda t: t["normalizer"]["normalizers"][1]["pattern"].update(Regex="(a+)+$"),
        lambda t: t["normalizer"]["normalizers"].append(
            {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"Regex": "x*"}, "content": ""}]}
        ),
        lambda t: t["model"].update(dropout=0.5),
    ],
    ids=["pre-tokenizer", "normalizer", "nested", "dropout"],
)
def test_row_47_a_tokenizer_that_hangs_or_gambles(
    change: Callable[[dict[str, Any]], object], tokenizer_json: dict[str, Any], tmp_path: Path
) -> None:
    # The first made the tokenizers library panic on 24 letters, with a trace that no error handler sees.
    changed = copy.deepcopy(tokenizer_json)
    change(changed)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(changed))
    refusal(partial(Tokenizer.open, path, 77), 3, "tokenizer.json")
    path.write_text(json.dumps(tokenizer_json))
    Tokenizer.open(path, 77)


def test_row_47_what_is_no_text(here: Path, sdrt: CommandLine) -> None:
    for prompt, named in (("\ud83d", "U+D83D"), ("a" * (10 << 20), "the limit is 100000")):
        refusal(partial(make_request, prompt), 2, named)
    refused(sdrt("denoise", "--prompt", "\udcff"), here, "U+DCFF")


def test_row_48_as_many_negative_prompts_as_prompts() -> None:
    refusal(partial(make_request, ["a", "b"], ["c"] * 3), 2, "3 negative prompts do not fit 2 prompts")
    refusal(partial(make_request, [], None), 2, "0 pictures")
    refusal(partial(make_request, ["a", 7]), 2, "prompt holds a int")  # type: ignore[list-item]


@pytest.mark.parametrize("count", ["0", "-1", str(MAX_PICTURES + 1), str(10**6), "many"])
def test_row_49_numbers_of_pictures(count: str, here: Path, sdrt: CommandLine) -> None:
    refused(sdrt("denoise", "--prompt", "a", f"--num-images={count}"), here, "--num-images", f"1 to {MAX_PICTURES}")
    refusal(partial(make_request, ["a"] * (MAX_PICTURES + 1)), 2, f"it must have 1 to {MAX_PICTURES}")


def test_row_50_what_there_is_not(here: Path, sdrt: CommandLine) -> None:
    # There is one scheduler, LMS, and hence no option for it.
    for words, named in (
        (("--scheduler", "ddim"), "--scheduler"),
        (("--backend", "tensorflow"), "onnxruntime"),
        (("--precision", "fp64"), "bf16"),
    ):
        refused(sdrt("denoise", "--prompt", "a", *words), here, named)
    assert "Did you mean" in sdrt("denoise", "--promt", "a").complaint


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (b'{"prompt": 7}', "prompt is 7; it must be text"),
        (b'{"prompt": "a", "seed": "1"}', "seed is"),
        (b'{"prompt": "a", "seed": true}', "seed is true"),
        (b'{"prompt": "a", "sed": 1}', "there is no field 'sed'"),
        (b'{"prompt": "a", "prompt": "b"}', "'prompt' is given twice"),
        (b'{"seed": 1}', "prompt is missing"),
        (b"[" * 100_000, "line 1"),
        (b'{"a":' * 100_000, "line 1"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "line 1"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (b'{"prompt": "\\ud800"}', "U+D800"),
        (b'{"prompt": "a", "guidance_scale": NaN}', "guidance_scale"),
        (b'{"prompt": "a", "num_images_per_prompt": 1000000}', "num_images_per_prompt"),
        (b"\x1f\x8b\x08\x00" + bytes(20), "line 1"),
        (b"null", "line 1"),
        (b"", "prompts.jsonl"),
    ],
    ids=lambda value: value[:30].decode(errors="replace") if isinstance(value, bytes) else "",
)
def test_row_51_files_of_prompts(row: bytes, named: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(row)
    refusal(partial(read_prompt_file, path, {"seed": 0}), 2, named)


def test_row_51_an_enormous_file_of_prompts_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    with path.open("wb") as file:
        file.truncate(100 << 20)
    tracemalloc.start()
    refusal(partial(read_prompt_file, path, {"seed": 0}), 2, "is larger than 64 MiB")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("out", "named"),
    [
        ("folder.png", "is a folder"),
        ("missing/a.png", "there is no folder"),
        ("n" * 300 + ".png", "too long"),
        ("", "--out"),
    ],
)
def test_row_52_places_where_no_picture_can_be(out: str, named: str, tmp_path: Path, sdrt: CommandLine) -> None:
    (tmp_path / "here" / "folder.png").mkdir()
    ended = sdrt("denoise", "--prompt", "a", "--out", out)
    assert (ended.code, named in ended.complaint) == (2, True)


def test_row_52_no_permission(here: Path, sdrt: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tests may run as root, who may write anywhere, so the system's answer is simulated.
    monkeypatch.setattr(os, "access", lambda *_: False)
    refused(sdrt("denoise", "--prompt", "a"), here, "--out", "no permission")


def test_row_52_a_folder_that_is_not_empty_needs_force(here: Path, tmp_path: Path, sdrt: CommandLine) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    for command in ("export", "build"):
        refused(sdrt(command, "--checkpoint", "absent", "--out", tmp_path / "full"), here, "is not empty")
    assert (tmp_path / "full" / "precious").exists()


def test_row_52_a_picture_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    write_png(Image.new("RGB", (8, 8), "red"), path, RECORD)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        refusal(partial(write_png, Image.new("RGB", (8, 8), "blue"), path, RECORD), 6, "the disk is full")
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.png", "here"]


@pytest.mark.parametrize(
    "prompt",
    [
        "a cat\nSteps: 1, Seed: 2, CFG scale: 99",
        "a\nNegative prompt: b",
        "Steps: 1, Sampler: x, Seed: 2",
        'a", Seed: "3',
        "\0",
    ],
)
def test_row_53_prompts_that_look_like_settings(prompt: str, tmp_path: Path) -> None:
    record = {**RECORD, "prompt": prompt, "negative_prompt": prompt, "batch": [[prompt, prompt, RECORD["seed"]]]}
    write_png(Image.new("RGB", (8, 8)), tmp_path / "a.png", record)
    with Image.open(tmp_path / "a.png") as picture:
        read = parse_parameters(str(picture.info["parameters"]))
    assert (read["Prompt"], read["Negative prompt"]) == (prompt, prompt)
    assert read["Seed"] == str(RECORD["seed"])
    assert read_record(tmp_path / "a.png")["prompt"] == prompt


def test_row_53_a_record_of_a_stranger_says_nothing_but_text(tmp_path: Path, sdrt: CommandLine) -> None:
    """Check that a record from elsewhere can neither control the terminal nor open files."""
    path = tmp_path / "a.png"
    write_png(Image.new("RGB", (8, 8)), path, {**RECORD, "prompt": "\x1b]0;owned\x07\x1b[2J", "extra": "\x9b31m"})
    ended = sdrt("info", path)
    assert ended.code == 0
    assert "\x1b" not in ended.out
    assert "\x9b" not in ended.out


def bomb(width: int, height: int) -> bytes:
    """Build a PNG of a few hundred bytes whose header states the given size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(1 << 16, 1 << 16), ((1 << 31) - 1, 1 << 20), (1 << 27, 1)])
def test_row_54_decompression_bombs(size: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(bomb(*size))
    tracemalloc.start()
    refusal(partial(open_picture, tmp_path / "a.png"), 3, "a.png")
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


def test_row_54_a_text_that_unpacks_to_more_than_it_is(tmp_path: Path) -> None:
    text = PngInfo()
    text.add_text("bomb", "a" * (80 << 20), zip=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=text)
    tracemalloc.start()
    # The picture is read, and its text is not unpacked.
    assert open_picture(tmp_path / "a.png").size == (8, 8)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("mode", ["CMYK", "I;16", "P", "LA", "RGBA", "1"])
def test_row_54_pictures_of_other_modes_are_brought_to_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    Image.new(mode, (40, 20)).save(path)
    assert open_picture(path).mode == "RGB"
    assert InitImage.of(open_picture(path), 16).pixels.shape == (16, 16, 3)


def test_row_54_truncated_turned_and_moving_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.effect_noise((64, 64), 50).save(path)
    os.truncate(path, path.stat().st_size // 2)
    refusal(partial(open_picture, path), 3, "a.png", "damaged")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert open_picture(tmp_path / "a.jpg").size == (20, 40)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert np.asarray(open_picture(tmp_path / "a.gif"))[0, 0].tolist() == [255, 0, 0]


def test_row_54_a_file_that_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("%!PS\n(/etc/passwd) run")  # Pillow would run another program on PostScript
    refusal(partial(open_picture, tmp_path / "a.png"), 3, "not a picture")
    os.mkfifo(tmp_path / "pipe.png")
    refusal(partial(open_picture, tmp_path / "pipe.png"), 3, "is not a file")


def test_row_55_nothing_listens(here: Path, sdrt: CommandLine) -> None:
    # There is no server, and so no URL to fuzz: a command that listens must bring its own row.
    ended = sdrt("--help")
    assert "serve" not in ended.out
