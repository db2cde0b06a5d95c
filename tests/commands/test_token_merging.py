"""Token merging in sdrt's commands: exported, recorded, repeated, and refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import sdrt.export
from sdrt.arrays import relative_l2
from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import EngineSet
from sdrt.artefacts.manifest import seal
from sdrt.artefacts.store import Store
from sdrt.engines import build_processes
from sdrt.engines.build import build_to
from sdrt.engines.builders import builder
from sdrt.engines.request import BuildRequest
from sdrt.errors import ArtefactError, UsageError
from sdrt.files import sha256_file
from sdrt.prepare.bundles import open_bundle
from sdrt.prepare.source import Source
from sdrt.progress import silent
from sdrt.runtime.picture_record import parameters_text, parse_parameters, read_record
from tests.command_line import CommandLine, Ended
from tests.helpers.records import picture_record
from tests.models.tiny_bundle import tiny_bundle as write_bundle

Denoise = Callable[..., Ended]


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """List the requested exports; they return hand-written graphs."""
    asked: list[float | None] = []

    def export(_checkpoint: object, out: Path, *, token_merging: float | None = None, **_: object) -> None:
        asked.append(token_merging)
        made = write_bundle(out)
        seal(out, made.manifest.model_copy(update={"token_merging": token_merging}))

    monkeypatch.setattr(sdrt.export, "export_bundle", export, raising=False)
    return asked


def test_a_checkpoint_has_a_bundle_for_each_ratio(exports: list[float | None], tiny_path: Path, tmp_path: Path) -> None:
    store, opened = Store(tmp_path / "store"), []
    for ratio in (None, 0.5, 0.25, 0.5, None):
        opened.append(open_bundle(Source(checkpoint=str(tiny_path), token_merging=ratio), store))
    assert [bundle.manifest.token_merging for bundle in opened] == [None, 0.5, 0.25, 0.5, None]
    assert exports == [None, 0.5, 0.25]
    with pytest.raises(ArtefactError, match=r"no bundle of .* is stored") as missing:
        open_bundle(Source(checkpoint=str(tiny_path), token_merging=0.75), store, build=False)
    assert "--token-merging 0.75" in missing.value.hint


def test_a_folder_that_merges_otherwise_is_refused(tmp_path: Path) -> None:
    plain = write_bundle(tmp_path / "bundle")
    store = Store(tmp_path / "store")
    with pytest.raises(UsageError, match=r"--token-merging is 0\.5; .*bundle merges none"):
        open_bundle(Source(bundle=plain.path, token_merging=0.5), store)
    seal(plain.path, plain.manifest.model_copy(update={"token_merging": 0.25}))
    with pytest.raises(UsageError, match=r"bundle merges 0\.25"):
        open_bundle(Source(bundle=plain.path, token_merging=0.5), store)
    for asked in (None, 0.25):
        assert open_bundle(Source(bundle=plain.path, token_merging=asked), store).manifest.token_merging == 0.25


@pytest.mark.parametrize(
    ("ratio", "complaint"),
    [
        ("0", "token_merging is 0.0; it must be above 0 and up to 0.75"),
        ("0.76", "is not a number from 0 to 0.75"),
        ("half", "is not a number"),
    ],
)
@pytest.mark.parametrize("words", [("denoise", "--prompt", "a cat"), ("build",), ("export", "--out", "bundle")])
def test_ratios_have_bounds(
    words: tuple[str, ...],
    ratio: str,
    complaint: str,
    sdrt: CommandLine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = sdrt(*words, "--token-merging", ratio)
    assert ended.code == 2
    assert complaint in ended.complaint
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def merging(hand_sets: Callable[..., EngineSet], tmp_path: Path) -> tuple[str | Path, ...]:
    """Return options that name engines whose manifest states half of the tokens merged."""
    engines, folder = hand_sets(), tmp_path / "merging"
    shutil.copytree(engines.path, folder)
    seal(folder, engines.manifest.model_copy(update={"token_merging": 0.5}))
    return ("--engines", folder, "--trust", sha256_file(folder / "manifest.json"))


def test_a_picture_says_it_and_is_repeated_with_it(
    merging: tuple[str | Path, ...], denoise: Denoise, sdrt: CommandLine, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"--prompt": "a cat", "--seed": 1, "--steps": 2, "--store": tmp_path / "store"}
    words = [word for pair in asked.items() for word in pair]
    made = sdrt("denoise", *merging, *words, "--out", tmp_path / "a.png", "--json")
    assert made.code == 0, made.err
    assert made.json["token_merging"] == 0.5
    assert read_record(tmp_path / "a.png")["token_merging"] == 0.5
    again = sdrt("denoise", *merging, "--from", tmp_path / "a.png", "--out", tmp_path / "b.png")
    assert again.code == 0, again.err
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    # Engines without merging would draw another picture.
    plain = denoise("--from", tmp_path / "a.png", "--out", tmp_path / "c.png")
    assert (plain.code, "was made with token merging 0.5, not none" in plain.complaint) == (3, True)
    excluded = sdrt("denoise", *merging, "--from", tmp_path / "a.png", "--token-merging", "0.5")
    assert "--token-merging and --from exclude each other" in excluded.complaint
    other = sdrt("denoise", *merging, *words, "--token-merging", "0.25", "--out", tmp_path / "d.png")
    assert (other.code, "merges 0.5" in other.complaint) == (2, True)


def test_other_programs_read_it() -> None:
    text = parameters_text(picture_record(token_merging=0.5), (512, 512))
    assert parse_parameters(text)["Token merging ratio"] == "0.5"
    assert "Token merging" not in parameters_text(picture_record(), (512, 512))


@pytest.mark.parametrize("ratio", [None, 0.5])
def test_engines_say_what_their_bundle_says(
    ratio: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check also that without merging the manifest has no field, as in earlier versions."""
    monkeypatch.setattr(
        build_processes, "build_all", lambda jobs, *_: {j.component: builder(j.backend).build(j) for j in jobs}
    )
    bundle = write_bundle(tmp_path / "bundle")
    seal(bundle.path, bundle.manifest.model_copy(update={"token_merging": ratio}))
    request = BuildRequest("onnxruntime", "fp32", ("vae_decoder",))
    engines = build_to(Bundle.open(bundle.path), request, tmp_path / "engines", silent)
    assert engines.manifest.token_merging == ratio
    assert (b"token_merging" in (engines.path / "manifest.json").read_bytes()) == (ratio is not None)


def test_inspecting_says_it(merging: tuple[str | Path, ...], sdrt: CommandLine, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    assert "merged" not in sdrt("inspect", bundle.path).out
    seal(bundle.path, bundle.manifest.model_copy(update={"token_merging": 0.5}))
    for folder in (bundle.path, merging[1]):
        assert "fp32, 0.5 of the tokens merged" in sdrt("inspect", folder).out
        assert sdrt("inspect", folder, "--json").json["token_merging"] == 0.5


@pytest.mark.long
def test_a_checkpoint_is_drawn_with_its_tokens_merged(
    sdrt: CommandLine, store: Store, tiny_path: Path, tmp_path: Path
) -> None:
    latents: dict[str, npt.NDArray[np.float32]] = {}
    for name, words in (
        ("onnxruntime", ("--backend", "onnxruntime", "--token-merging", 0.5)),
        ("openvino", ("--backend", "openvino", "--token-merging", 0.5)),
        ("plain", ("--backend", "onnxruntime")),
    ):
        files = ("--out", tmp_path / f"{name}.png", "--save-latents", tmp_path / f"{name}.npy", "--store", store.root)
        asked = ("--checkpoint", tiny_path, "--precision", "fp32", "--prompt", "a cat", "--seed", 1, "--steps", 3)
        ended = sdrt("denoise", *asked, *words, *files)
        assert ended.code == 0, ended.err
        latents[name] = np.load(tmp_path / f"{name}.npy")
    # Guidance and three steps amplify rounding, and with it which of two almost equal tokens is merged.
    assert relative_l2(latents["openvino"], latents["onnxruntime"]) < 1e-3
    assert relative_l2(latents["onnxruntime"], latents["plain"]) > 1e-2
