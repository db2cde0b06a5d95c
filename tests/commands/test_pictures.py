"""From the command line to pictures and back: files, --json, and repeating by --from."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import EngineSet
from sdrt.artefacts.store import Store
from tests.command_line import CommandLine, Ended

#: The fields that --json prints of pictures, in this order ...
KEYS = [
    "images",
    "checkpoint",
    "backend",
    "precision",
    "scheduler",
    "num_inference_steps",
    "guidance_scale",
    "timings_s",
    "unet_s_per_step",
]
#: ... and the fields added since.
ADDED = {"truncated", "guidance_interval", "device_bytes", "loop", "provider", "cuda_graphs", "pictures_at_once"}
ADDED |= {"start_step", "strength", "previews", "threads", "deepcache", "token_merging"}
TIMINGS = ["load", "text_encoder", "unet", "vae_decoder", "total"]

Denoise = Callable[..., Ended]


@pytest.fixture
def denoise(
    sdrt: CommandLine,
    tiny_path: Path,
    tiny_engines: Callable[..., EngineSet],
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Denoise:
    """Return a function that runs ``sdrt denoise`` on the tiny checkpoint in an empty folder, by default in 2 steps."""
    tiny_engines("onnxruntime", "fp32")
    monkeypatch.chdir(tmp_path)

    def run(*words: str | Path, prompt: str | None = "a red circle", steps: int | None = 2) -> Ended:
        given = ["--checkpoint", tiny_path, "--store", store.root, "--backend", "onnxruntime", "--no-build", *words]
        given += [] if prompt is None else ["--prompt", prompt]
        given += [] if steps is None else ["--steps", str(steps)]
        return sdrt("denoise", *given)

    return run


def made(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_picture_is_written_and_its_path_printed(denoise: Denoise, tmp_path: Path) -> None:
    ended = denoise("--seed", "0")
    assert (ended.code, ended.out) == (0, "picture.png\n")
    assert "seed 0" in ended.err
    assert made(tmp_path) == ["picture.png"]
    with Image.open(tmp_path / "picture.png") as picture:
        assert (picture.format, picture.size, picture.mode) == ("PNG", (512, 512), "RGB")


def test_json_has_the_keys_of_the_issue(denoise: Denoise, tmp_path: Path) -> None:
    long = " ".join(["circle"] * 76)
    facts: dict[str, Any] = denoise("--seed", "7", "--num-images", "2", "--json", prompt=long).json
    assert [key for key in facts if key not in ADDED] == KEYS
    assert facts["images"] == [{"path": "picture-0001.png", "seed": 7}, {"path": "picture-0002.png", "seed": 8}]
    assert made(tmp_path) == ["picture-0001.png", "picture-0002.png"]
    assert (facts["checkpoint"], facts["backend"], facts["precision"]) == ("tiny", "onnxruntime", "fp32")
    assert (facts["scheduler"], facts["num_inference_steps"], facts["guidance_scale"]) == ("LMS", 2, 7.5)
    assert facts["truncated"] == ["circle", "circle"]
    assert (facts["loop"], facts["provider"], facts["cuda_graphs"]) == ("plain", "cpu", None)
    assert facts["pictures_at_once"] == 4
    assert list(facts["timings_s"]) == TIMINGS
    assert all(seconds >= 0 for seconds in facts["timings_s"].values())
    assert facts["unet_s_per_step"] > 0


def test_words_cut_off_are_said_once(denoise: Denoise) -> None:
    ended = denoise("--seed", "0", "--num-images", "2", prompt=" ".join(["circle"] * 76), steps=1)
    assert ended.err.count("cut off: 'circle'") == 1


def test_from_repeats_bit_for_bit(denoise: Denoise, tmp_path: Path) -> None:
    prompt = 'a "red" circle\nSteps: 1, Seed: 2'
    assert denoise("--seed", "3", "--num-images", "3", "--guidance-scale", "4", prompt=prompt).code == 0
    for number in (1, 2, 3):
        name = f"picture-000{number}.png"
        ended = denoise("--from", name, "--out", "again.png", prompt=None, steps=None)
        assert ended.code == 0, ended.err
        assert (tmp_path / "again.png").read_bytes() == (tmp_path / name).read_bytes()
    assert (tmp_path / "picture-0001.png").read_bytes() != (tmp_path / "picture-0002.png").read_bytes()


def test_a_guidance_interval_is_recorded_and_repeated(denoise: Denoise) -> None:
    facts = denoise("--seed", "3", "--guidance-interval", "1", "5", "--json", steps=3).json
    assert facts["guidance_interval"] == [1, 5]
    denoise("--seed", "3", "--out", "plain.png", steps=3)
    again = denoise("--from", "picture.png", "--out", "again.png", prompt=None, steps=None)
    assert again.code == 0
    picture, repeated, plain = (Path(name).read_bytes() for name in ("picture.png", "again.png", "plain.png"))
    assert repeated == picture != plain
    refused = denoise("--seed", "3", "--guidance-interval", "5", "1")
    assert refused.code == 2
    assert "guidance_interval is 5, 1;" in refused.err


def test_from_refuses_other_weights(denoise: Denoise, tmp_path: Path, sdrt: CommandLine) -> None:
    from sdrt.runtime.images import write_png
    from sdrt.runtime.picture_record import read_record

    assert denoise("--seed", "3", steps=1).code == 0
    record = read_record(tmp_path / "picture.png")
    record["checkpoint"]["digest"] = "ab" * 32
    with Image.open(tmp_path / "picture.png") as picture:
        write_png(picture, tmp_path / "other.png", record)
    ended = denoise("--from", "other.png", "--out", "again.png", prompt=None, steps=None)
    assert (ended.code, "other weights" in ended.complaint) == (3, True)
    assert not (tmp_path / "again.png").exists()


def test_names_of_what_ran_are_the_options(denoise: Denoise, tmp_path: Path, sdrt: CommandLine) -> None:
    assert denoise("--seed", "3", "--loop", "plain", "--provider", "cpu", steps=1).code == 0
    record = sdrt("info", "picture.png", "--json").json
    assert (record["loop"], record["provider"], record["cuda_graphs"]) == ("plain", "cpu", None)
    again = denoise("--from", "picture.png", "--out", "again.png", "--json", prompt=None, steps=None).json
    assert [again[name] for name in ("loop", "provider", "cuda_graphs")] == ["plain", "cpu", None]
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "picture.png").read_bytes()


def test_from_takes_as_many_threads_as_made_the_picture_and_says_where_it_cannot(
    denoise: Denoise, tmp_path: Path, sdrt: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdrt.machine.cpu.usable_cpus", lambda: 3)
    assert denoise("--seed", "3", "--threads", "2", steps=1).code == 0
    assert sdrt("info", "picture.png", "--json").json["threads"] == 2
    again: dict[str, Any] = {}
    for name, words in {"equal": (), "asked": ("--threads", "1")}.items():
        again[name] = denoise(
            "--from", "picture.png", "--out", f"{name}.png", "--json", *words, prompt=None, steps=None
        )
    assert {name: ended.json["threads"] for name, ended in again.items()} == {"equal": 2, "asked": 1}
    assert "threads" not in again["equal"].err
    assert (tmp_path / "equal.png").read_bytes() == (tmp_path / "picture.png").read_bytes()
    said = "the picture was made with 2 threads, this one with 1; it may differ in its last bits"
    assert said in again["asked"].err
    monkeypatch.setattr("sdrt.machine.cpu.usable_cpus", lambda: 1)
    assert said in denoise("--from", "picture.png", "--out", "fewer.png", prompt=None, steps=None).err


@pytest.mark.parametrize("name", ["--cuda-graphs", "--no-cuda-graphs"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "auto"])
def test_cuda_graphs_are_for_gpus(sdrt: CommandLine, tmp_path: Path, name: str, backend: str) -> None:
    words = ("--prompt", "a", "--checkpoint", "demo", "--store", tmp_path / "store", "--out", tmp_path / "a.png")
    ended = sdrt("denoise", *words, "--backend", backend, name)
    assert ended.code == 2
    assert f"{name} is for tensorrt and tensorrt-rtx; the backend is " in ended.complaint
    # Nothing was exported or built before it was refused.
    assert not (tmp_path / "store").exists()


def test_info_shows_what_repeats_a_picture(denoise: Denoise, sdrt: CommandLine) -> None:
    assert denoise("--seed", "3", steps=1).code == 0
    record = sdrt("info", "picture.png", "--json").json
    assert (record["prompt"], record["seed"], record["backend"]) == ("a red circle", 3, "onnxruntime")
    shown = sdrt("info", "picture.png").out
    assert "a red circle" in shown
    assert "7.5" in shown


def test_latents_go_out_and_come_in(denoise: Denoise, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "noise.npy", rng.standard_normal((2, 4, 64, 64)))
    words = ("--latents", "noise.npy", "--num-images", "2", "--seed", "0")
    assert denoise(*words, "--save-latents", "final.npy").code == 0
    final = np.load(tmp_path / "final.npy")
    assert (final.shape, final.dtype) == ((2, 4, 64, 64), np.float32)
    refused = denoise("--from", "picture-0001.png", "--out", "again.png", prompt=None, steps=None)
    assert (refused.code, "--latents" in refused.complaint) == (2, True)
    again = denoise("--from", "picture-0001.png", "--latents", "noise.npy", "--out", "a.png", prompt=None, steps=None)
    assert again.code == 0, again.err
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "picture-0001.png").read_bytes()


def test_an_existing_picture_is_replaced(denoise: Denoise, tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"old")
    assert denoise("--seed", "0", steps=1).code == 0
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert made(tmp_path) == ["picture.png"]


def test_an_engine_set_is_carried_by_its_digest(
    denoise: Denoise, sdrt: CommandLine, tiny_path: Path, store: Store, tmp_path: Path
) -> None:
    assert denoise("--seed", "0").code == 0
    words = ("--checkpoint", tiny_path, "--store", store.root, "--backend", "onnxruntime")
    built = sdrt("build", *words, "--out", "portable", "--json").json
    draw = ("denoise", "--prompt", "a red circle", "--steps", "2", "--seed", "0", "--out", "carried.png")
    refused = sdrt(*draw, "--engines", "portable", "--store", tmp_path / "other")
    assert (refused.code, f"--trust {built['digest']}" in refused.complaint) == (8, True)
    carried = sdrt(*draw, "--engines", "portable", "--store", tmp_path / "other", "--trust", built["digest"])
    assert carried.code == 0, carried.err
    with Image.open(tmp_path / "picture.png") as here, Image.open(tmp_path / "carried.png") as there:
        assert here.tobytes() == there.tobytes()
    wrong = sdrt(*draw, "--engines", "portable", "--trust", built["digest"], "--backend", "openvino")
    assert (wrong.code, "--backend is openvino" in wrong.complaint) == (2, True)


def test_build_is_quick_when_nothing_changed(
    denoise: Denoise, sdrt: CommandLine, tiny_path: Path, store: Store
) -> None:
    words = ("--checkpoint", tiny_path, "--store", store.root, "--backend", "onnxruntime", "--json")
    ended = sdrt("build", *words)
    facts = ended.json
    assert list(facts) == ["path", "backend", "precision", "key", "digest", "components"]
    assert set(facts["components"]) >= {"text_encoder", "unet", "vae_decoder"}
    assert all(set(entry) >= {"precision", "seconds", "size_bytes"} for entry in facts["components"].values())
    # Nothing was exported or compiled: no stage was announced.
    assert "..." not in ended.err


def test_the_store_lists_and_verifies_what_it_holds(denoise: Denoise, sdrt: CommandLine, store: Store) -> None:
    assert denoise("--seed", "0", steps=1).code == 0
    kinds = {entry["kind"] for entry in sdrt("store", "list", "--store", store.root, "--json").json}
    assert kinds >= {"bundle", "engines"}
    verified = sdrt("store", "verify", "--store", store.root, "--json")
    assert verified.code == 0
    assert set(verified.json.values()) == {None}


def interrupt(words: list[str], at: str, number: signal.Signals, folder: Path) -> tuple[int, str]:
    """Run ``sdrt``, send a signal at the stderr line that starts with ``at``; return the exit code and later lines."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Background jobs of a shell without job control ignore it, and so would the child.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        [sys.executable, "-m", "sdrt", *words], cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(at):
                process.send_signal(number)
                break
        said = process.stderr.read()
        return process.wait(), said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_denoising_leaves_nothing(
    number: signal.Signals, tiny_engines: Callable[..., EngineSet], tiny_bundle: Bundle, store: Store, tmp_path: Path
) -> None:
    tiny_engines("onnxruntime", "fp32")
    words = ["denoise", "--bundle", str(tiny_bundle.path), "--store", str(store.root), "--backend", "onnxruntime"]
    words += ["--prompt", "a", "--steps", "1000", "--save-latents", "latents.npy"]
    code, said = interrupt(words, "denoise ...", number, tmp_path)
    assert (code, said.strip().splitlines()[-1]) == (130, "sdrt: interrupted")
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("at", ["export unet ...", "onnxruntime "])
def test_a_signal_while_exporting_or_building_leaves_nothing(
    number: signal.Signals, at: str, tiny_path: Path, tmp_path: Path
) -> None:
    root = tmp_path / "store"
    words = ["build", "--checkpoint", str(tiny_path), "--store", str(root), "--backend", "onnxruntime"]
    code, said = interrupt(words, at, number, tmp_path)
    assert (code, said.strip().splitlines()[-1]) == (130, "sdrt: interrupted")
    assert list((root / "staging").iterdir()) == []
    assert list(root.glob("engines/*/*")) == []
    assert len(list(root.glob("bundles/*"))) == (0 if at.startswith("export") else 1)
    assert [path.name for path in (root / "locks").iterdir() if path.suffix == ".holder"] == []
    again = subprocess.run(
        [sys.executable, "-m", "sdrt", *words, "--json"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert json.loads(again.stdout)["backend"] == "onnxruntime"
