"""--deepcache from the command line to pictures and back, over hand-written graphs; and options that exclude it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import EngineSet
from sdrt.artefacts.manifest import COMPONENTS, DEEPCACHE, ComponentName
from sdrt.runtime.picture_record import read_record
from tests.command_line import CommandLine, Ended
from tests.doubles.cuda_double.plans import SD_V1, word_tokenizer
from tests.helpers.compiling import compile_here
from tests.models.tiny_bundle import tiny_bundle as write_bundle

HELD: tuple[ComponentName, ...] = ("text_encoder", "vae_encoder", "vae_decoder", *DEEPCACHE)
DRAW = ("--prompt", "a red circle", "--steps", 6, "--seed", 3)


@pytest.fixture
def cached(sdrt: CommandLine, hand_sets: Callable[..., EngineSet], here: Path, tmp_path: Path) -> Callable[..., Ended]:
    """Return a function that runs ``sdrt denoise`` on engines with DeepCache's passes."""
    engines = hand_sets(components=HELD)

    def run(*words: str | Path | int) -> Ended:
        given = ("--engines", engines.path, "--trust", engines.digest, "--store", tmp_path / "store")
        return sdrt("denoise", *given, *words)

    return run


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Write a bundle whose UNet has a depth, without the passes."""
    return write_bundle(tmp_path / "bundle", deep=True, tokenizer=word_tokenizer(), scheduler=json.dumps(SD_V1))


def test_it_is_recorded_and_repeated(cached: Callable[..., Ended], here: Path) -> None:
    facts = cached(*DRAW, "--deepcache", 3, "--json").json
    assert (facts["deepcache"], facts["loop"]) == (3, "plain")
    assert read_record(Path("picture.png"))["deepcache"] == 3
    assert cached("--from", "picture.png", "--out", "again.png").code == 0
    assert cached(*DRAW, "--out", "plain.png", "--json").json["deepcache"] is None
    picture, again, plain = (Path(f"{name}.png").read_bytes() for name in ("picture", "again", "plain"))
    assert picture == again != plain
    assert "--deepcache and --from exclude" in cached("--from", "picture.png", "--deepcache", 2).complaint


def test_queues_starts_and_previews(cached: Callable[..., Ended], here: Path) -> None:
    Path("p.jsonl").write_text('{"prompt": "a red circle", "seed": 3}\n{"prompt": "b", "num_inference_steps": 4}\n')
    assert cached("--prompts", "p.jsonl", "--steps", 6, "--deepcache", 3).code == 0
    assert [read_record(path)["deepcache"] for path in sorted(here.glob("*.png"))] == [3, 3]
    Image.new("RGB", (20, 20), (9, 99, 199)).save("start.png")
    ended = cached(
        *DRAW, "--deepcache", 2, "--init-image", "start.png", "--out", "started.png", "--preview-dir", "seen"
    )
    assert ended.code == 0, ended.err
    assert list((here / "seen").iterdir())
    line = '{"prompt": "a", "deepcache": 3}'
    Path("q.jsonl").write_text(line)
    assert "there is no field 'deepcache'" in cached("--prompts", "q.jsonl").complaint


def test_a_bundle_without_passes_is_cut_once(
    sdrt: CommandLine, bundle: Bundle, here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = compile_here(monkeypatch)
    store = tmp_path / "store"
    words = (*DRAW, "--bundle", bundle.path, "--backend", "onnxruntime", "--store", store)
    refused = sdrt("denoise", *words, "--deepcache", 3, "--no-build")
    assert refused.code == 3
    assert f"sdrt build {bundle.path} --deepcache --store {store}" in refused.complaint
    for _ in range(2):
        ended = sdrt("denoise", *words, "--deepcache", 3)
        assert ended.code == 0, ended.err
    # The second time nothing was cut or built.
    assert "cut the UNet" not in ended.err
    assert sorted(compiled) == sorted(HELD)
    (cut,) = (store / "bundles").iterdir()
    assert set(Bundle.open(cut).manifest.components) == {*COMPONENTS, *DEEPCACHE}
    (engines,) = (store / "engines" / "onnxruntime").iterdir()
    assert {path.name for path in engines.iterdir() if path.is_dir()} == {*HELD, "tokenizer", "scheduler"}
    # Without it the bundle is used unchanged, and its own engines are built.
    assert sdrt("denoise", *words, "--out", "plain.png").code == 0
    assert len(list((store / "bundles").iterdir())) == 1
    assert len(list((store / "engines" / "onnxruntime").iterdir())) == 2
    # A bundle that holds them is not cut again.
    built = sdrt("build", cut, "--backend", "onnxruntime", "--deepcache", "--store", store, "--json")
    assert built.code == 0, built.err
    assert built.json["path"] == str(engines)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--backend", "tensorrt"), "--deepcache runs on the CPU only; the backend is tensorrt"),
        (("--backend", "tensorrt-rtx"), "--deepcache runs on the CPU only; the backend is tensorrt-rtx"),
        (("--backend", "onnxruntime", "--provider", "cuda"), "runs on the CPU only; the provider is cuda"),
        (("--backend", "openvino", "--precision", "int8"), "--deepcache and --precision int8 exclude each other"),
    ],
)
@pytest.mark.parametrize("command", ["denoise", "build"])
def test_what_it_does_not_go_with(
    sdrt: CommandLine, here: Path, tmp_path: Path, command: str, words: tuple[str, ...], said: str
) -> None:
    drawn = DRAW if command == "denoise" else ()
    value = (3,) if command == "denoise" else ()
    ended = sdrt(command, *drawn, *words, "--deepcache", *value, "--store", tmp_path / "store")
    assert ended.code == 2
    assert said in ended.complaint
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("value", ["1", "0", "x", "2.5", "1001"])
def test_what_is_no_interval(sdrt: CommandLine, here: Path, value: str) -> None:
    ended = sdrt("denoise", *DRAW, "--deepcache", value)
    assert ended.code == 2
    assert f"{value!r} is not a whole number from 2 to 1000" in ended.err


@pytest.mark.parametrize("words", [("--precision", "int8"), ("--components", "vae_decoder")])
def test_export_refuses_what_it_cannot_cut(sdrt: CommandLine, here: Path, words: tuple[str, str]) -> None:
    ended = sdrt("export", "--out", "bundle", "--deepcache", *words)
    assert ended.code == 2
    assert "--deepcache and --" in ended.complaint
    assert list(here.iterdir()) == []


def test_engines_without_passes_are_named(sdrt: CommandLine, hand_sets: Callable[..., EngineSet], here: Path) -> None:
    engines = hand_sets()
    ended = sdrt("denoise", *DRAW, "--engines", engines.path, "--trust", engines.digest, "--deepcache", 3)
    assert ended.code == 3
    assert "holds no deepcache_whole" in ended.complaint
    assert "sdrt build --deepcache" in ended.complaint
