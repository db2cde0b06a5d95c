"""Names that are not UTF-8: what is read, built and written below them is what it is elsewhere."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from sdrt.bundle import Bundle
from tests.command_line import CommandLine

#: "modèle" in Latin-1.
ODD = os.fsdecode(b"mod\xe8le")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_bundle_a_store_and_a_picture(
    backend: str, sdrt: CommandLine, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundle.path, tmp_path / ODD)
    words = ("denoise", "--prompt", "a", "--seed", 1, "--steps", 2, "--backend", backend, "--threads", 1)
    ended = sdrt(*words, "--bundle", ODD, "--store", f"{ODD}-store", "--out", f"{ODD}.png", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["images"][0]["path"] == f"{ODD}.png"


def test_tour(sdrt: CommandLine, tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_path, tmp_path / ODD)
    S = ("--store", ODD + "-s")
    for words in (
        ("inspect", ODD, "--html", ODD + ".html", "--drawing", ODD + ".svg"),
        ("export", "--checkpoint", ODD, "--out", ODD + "-b"),
        ("export", "--checkpoint", ODD, "--out", ODD + "-d", "--deepcache"),
        ("inspect", ODD + "-b", "--measure", 1, "--json"),
        ("build", ODD + "-b", "--out", ODD + "-e", "--backend", "onnxruntime", *S),
        ("denoise", "--checkpoint", ODD, "--prompt", "a", "--steps", 1, *S, "--out", ODD + ".png"),
        ("info", ODD + ".png"),
        ("denoise", "--from", ODD + ".png", *S, "--out", ODD + "2.png"),
        ("denoise", "--from", ODD + ".png", "--checkpoint", ODD, *S, "--out", ODD + "2.png"),
        ("plot", "sigmas", "--checkpoint", ODD, "--out", ODD + "-p.svg"),
        (
            "plot",
            "noising",
            "--image",
            ODD + ".png",
            "--checkpoint",
            ODD,
            *S,
            "--out",
            ODD + "-n.svg",
            "--steps",
            5,
            "--every",
            5,
        ),
        (
            "plot",
            "trajectory",
            "--prompt",
            "a",
            "--checkpoint",
            ODD,
            *S,
            "--out",
            ODD + "-n.png",
            "--steps",
            2,
            "--every",
            1,
            "--animation",
            ODD + ".gif",
        ),
        ("plot", "attention", "--prompt", "a", "--checkpoint", ODD, *S, "--out", ODD + "-n.png", "--steps", 1),
        ("store", "list", *S),
        ("store", "verify", *S),
        ("doctor", *S),
        (
            "compare",
            ODD + "-b",
            "--checkpoint",
            ODD,
            "--report",
            ODD + "-r",
            "--steps",
            1,
            "--save-tensors",
            *S,
            "--backend",
            "onnxruntime",
        ),
        ("export", "--checkpoint", ODD, "--out", ODD + "-8", "--precision", "int8"),
        (
            "bench",
            "--bundle",
            ODD + "-b",
            "--rounds",
            1,
            "--cold-rounds",
            1,
            "--steps",
            1,
            "--backend",
            "onnxruntime",
            "--report",
            ODD + "-bench",
            *S,
            "--json",
        ),
        ("tune", ODD + "-b", "--rounds", 1, "--steps", 1, "--backend", "onnxruntime", "--precision", "fp32", *S),
        ("store", "gc", "--unused-days", 0, *S),
    ):
        import traceback

        try:
            ended = sdrt(*words)
            print(ended.code, ascii(words), ascii(ended.err[-300:]) if ended.code else "")
        except BaseException:
            print("TRACE", ascii(words), ascii(traceback.format_exc()[-1500:]))
