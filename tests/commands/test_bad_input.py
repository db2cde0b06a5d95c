"""Bad input to the commands: its exit code, one line that names the field, and nothing written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from sdrt.commands import denoise
from sdrt.limits import MAX_SEED
from tests.command_line import CommandLine, Ended
from tests.models.tiny_bundle import tiny_bundle as hand_made_bundle

STEPS, SCALE, SEED, COUNT = "1 to 1000", "-1000.0 to 1000.0", f"0 to {MAX_SEED}", "1 to 256"


pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if the command opens engines."""

    def reached(*_: object) -> None:
        raise AssertionError("engines were about to be opened")

    monkeypatch.setattr(denoise, "load", reached)


def refused(ended: Ended, code: int, here: Path, *named: str) -> None:
    assert ended.code == code, ended.err
    assert ended.out == ""
    for text in named:
        assert text in ended.complaint
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "valid", "values"),
    [
        ("--steps", STEPS, ["0", "-1", "1001", "1000000000", "abc", "", "1.5", "9" * 5000, "nan"]),
        ("--guidance-scale", SCALE, ["nan", "inf", "-inf", "1e9", "abc", "", "1e400"]),
        ("--seed", SEED, ["-1", str(MAX_SEED + 1), str(2**100), "abc", "", "0x10"]),
        ("--num-images", COUNT, ["0", "-1", "257", "1000000", "abc"]),
    ],
)
@pytest.mark.usefixtures("unloaded")
def test_numbers_out_of_range(option: str, valid: str, values: list[str], here: Path, sdrt: CommandLine) -> None:
    for value in values:
        refused(sdrt("denoise", "--prompt", "a cat", f"{option}={value}"), 2, here, option, valid)


@pytest.mark.parametrize(
    ("prompt", "named"),
    [("half a pair: \ud83d", "U+D83D"), ("\udcff", "U+DCFF"), ("a" * 100_001, "the limit is 100000")],
    ids=["surrogate", "not-utf-8", "too-long"],
)
@pytest.mark.usefixtures("unloaded")
def test_prompts_that_are_no_text(prompt: str, named: str, here: Path, sdrt: CommandLine) -> None:
    refused(sdrt("denoise", "--prompt", prompt), 2, here, "prompt", named)
    refused(sdrt("denoise", "--prompt", "a", "--negative-prompt", prompt), 2, here, "negative_prompt", named)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((), "--prompt"),
        (("--prompt", "a", "--seed", str(MAX_SEED), "--num-images", "2"), "seed"),
        (("--prompt", "a", "--backend", "tensorflow"), "onnxruntime"),
        (("--prompt", "a", "--precision", "fp64"), "bf16"),
        (("--prompt", "a", "--threads", "0"), "--threads"),
        (("--prompt", "a", "--from", "picture.png"), "--prompt and --from exclude"),
        (("--num-images", "2", "--from", "picture.png"), "--num-images and --from exclude"),
        (("--from", "picture.png"), "there is no file picture.png"),
        (("--prompt", "a", "--out", "picture.jpg"), ".png"),
        (("--prompt", "a", "--out", ""), "--out"),
        (("--prompt", "a", "--out", "missing/picture.png"), "there is no folder missing"),
        (("--prompt", "a", "--out", "n" * 300 + ".png"), "too long"),
        (("--prompt", "a", "--out", "n" * 250 + ".png", "--num-images", "2"), "too long"),
        (("--prompt", "a", "--save-latents", "missing/latents.npy"), "--save-latents"),
        (("--prompt", "a", "--save-latents", "."), "--save-latents"),
    ],
    ids=lambda value: "",
)
@pytest.mark.usefixtures("unloaded")
def test_options_of_denoise(words: tuple[str, ...], named: str, here: Path, sdrt: CommandLine) -> None:
    refused(sdrt("denoise", *words), 2, here, named)


@pytest.mark.usefixtures("unloaded")
def test_out_may_not_be_a_folder(here: Path, sdrt: CommandLine) -> None:
    (here / "folder.png").mkdir()
    (here / "several-0002.png").mkdir()
    assert "is a folder" in sdrt("denoise", "--prompt", "a", "--out", "folder.png").complaint
    ended = sdrt("denoise", "--prompt", "a", "--out", "several.png", "--num-images", 2)
    assert (ended.code, "several-0002.png is a folder" in ended.complaint) == (2, True)


@pytest.mark.usefixtures("unloaded")
def test_out_must_be_writable(here: Path, sdrt: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tests may run as root, who may write anywhere, so the system's answer is simulated.
    monkeypatch.setattr(os, "access", lambda *_: False)
    refused(sdrt("denoise", "--prompt", "a"), 2, here, "--out", "no permission")


@pytest.mark.usefixtures("unloaded")
def test_latents_that_are_none(here: Path, tmp_path: Path, sdrt: CommandLine) -> None:
    path = tmp_path / "latents.npy"
    words = ("denoise", "--prompt", "a", "--latents", path)
    refused(sdrt(*words), 3, here, "latents.npy is not a file")
    path.write_bytes(b"noise")
    refused(sdrt(*words), 3, here, "is not an .npy file")
    np.save(path, np.zeros((1, 64, 64), np.int64))
    refused(sdrt(*words), 3, here, "latents are int64")
    np.save(path, np.zeros((2, 4, 64, 64), np.float32))
    refused(sdrt(*words), 3, here, "have shape (2, 4, 64, 64); it must be (1, channels, height, width)")
    np.save(path, np.full((1, 4, 64, 64), np.nan, np.float32))
    refused(sdrt(*words), 3, here, "NaN")


def test_a_picture_that_says_nothing_cannot_be_repeated(here: Path, tmp_path: Path, sdrt: CommandLine) -> None:
    (tmp_path / "text.png").write_text("no picture")
    refused(sdrt("denoise", "--from", tmp_path / "text.png"), 3, here, "is not a PNG")


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (("--checkpoint", "absent"), 2, "'absent' does not exist"),
        (("--bundle", "absent"), 3, "cannot read absent/manifest.json"),
        (("--engines", "absent"), 3, "absent"),
        (("--checkpoint", "absent", "--bundle", "absent"), 2, "--checkpoint and --bundle exclude each other"),
        (("--bundle", "absent", "--engines", "absent"), 2, "--bundle and --engines exclude each other"),
        (("--bundle", "absent", "--trust", "ab" * 32), 2, "--trust"),
        (("--bundle", "absent", "--revision", "main"), 2, "--revision"),
        (("--checkpoint", "demo", "--revision", "main"), 2, "--revision"),
    ],
    ids=lambda value: "",
)
def test_sources_that_are_none(
    words: tuple[str, ...], code: int, named: str, here: Path, tmp_path: Path, sdrt: CommandLine
) -> None:
    refused(sdrt("denoise", "--prompt", "a", "--store", tmp_path / "store", *words), code, here, named)


def test_no_build_names_the_command_that_builds(here: Path, tmp_path: Path, sdrt: CommandLine) -> None:
    bundle = hand_made_bundle(tmp_path / "a bundle").path
    words = ("--backend", "onnxruntime", "--store", tmp_path / "store")
    ended = sdrt("denoise", "--prompt", "a", "--bundle", bundle, "--no-build", *words)
    refused(ended, 3, here, f"run: sdrt build '{bundle}' --backend onnxruntime --store {tmp_path / 'store'}")
    assert not (tmp_path / "store").exists()


def test_no_build_names_the_command_that_exports(
    tiny_path: Path, here: Path, tmp_path: Path, sdrt: CommandLine
) -> None:
    words = ("--checkpoint", tiny_path, "--store", tmp_path / "store")
    ended = sdrt("denoise", "--prompt", "a", "--no-build", *words)
    refused(ended, 3, here, f"run: sdrt build --checkpoint {tiny_path} --store {tmp_path / 'store'}")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("command", ["export", "build"])
def test_folders_that_cannot_be_written(command: str, here: Path, tmp_path: Path, sdrt: CommandLine) -> None:
    full, file = tmp_path / "full", tmp_path / "file"
    full.mkdir()
    (full / "precious").touch()
    file.touch()
    for out, named in (
        (full, "is not empty"),
        (file, "file"),
        (Path("n" * 300), "not a usable path"),
        (Path(), "contains the current folder"),
    ):
        refused(sdrt(command, "--checkpoint", "absent", "--out", out), 2, here, "--out", named)
    for out in (Path(), here, tmp_path, Path("/")):
        ended = sdrt(command, "--checkpoint", "absent", "--out", out, "--force")
        refused(ended, 2, here, "contains the current folder")
    assert (full / "precious").exists()


LONG, TOO_LONG = "-".join(["folder"] * 16), "-".join(["folder"] * 64)


@pytest.mark.parametrize(
    "words",
    [
        ("denoise", "--prompt", "a", "--out", f"{LONG}.jpg"),
        ("denoise", "--prompt", "a", "--out", f"{TOO_LONG}/a.png"),
        ("plot", "sigmas", "--out", f"{LONG}.jpg"),
        ("plot", "trajectory", "--prompt", "a", "--out", "a.png", "--animation", f"{LONG}.jpg"),
        ("export", "--out", TOO_LONG),
        ("compare", "absent", "--report", TOO_LONG),
    ],
    ids=lambda words: words[0],
)
def test_a_path_is_named_whole(words: tuple[str, ...], here: Path, sdrt: CommandLine) -> None:
    refused(sdrt(*words), 2, here, words[-1])


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("export",), "--out is missing"),
        (("export", "--out", "bundle", "--precision", "bf16"), "--precision"),
        (("export", "--out", "bundle", "--opset", "19"), "20<=x<=24"),
        (("export", "--out", "bundle", "--components", "safety_checker"), "--components"),
        (("export", "--out", "bundle", "--checkpoint", "absent"), "'absent' does not exist"),
        (("build", "absent", "--checkpoint", "absent"), "--checkpoint and --bundle exclude each other"),
        (("build", "absent", "--batch", "0"), "1 to 16"),
        (("build", "absent", "--batch", "17"), "1 to 16"),
        (("build", "absent", "--batch", "4:2:8"), "1 to 16"),
        (("build", "absent", "--batch", "1:2"), "1 to 16"),
        (("build", "absent", "--batch", "-1"), "1 to 16"),
        (("build", "absent", "--batch", "two"), "1 to 16"),
        (("store", "gc", "--unused-days", "-1"), "--unused-days"),
        (("store", "import", "absent", "--trust", "ab" * 32), "absent"),
    ],
    ids=lambda value: "",
)
def test_options_of_the_other_commands(words: tuple[str, ...], named: str, here: Path, sdrt: CommandLine) -> None:
    refused(sdrt(*words), 2, here, named)


def test_an_absent_bundle_is_no_bundle(here: Path, sdrt: CommandLine) -> None:
    refused(sdrt("build", "absent"), 3, here, "cannot read absent/manifest.json")
