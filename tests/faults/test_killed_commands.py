"""SIGKILL of whole commands: at file operations, at stage boundaries, at random times; the next run is right and clean.

A few kills run by default; ``make test-long`` runs fifty random points of each command, and every stage boundary from
a checkpoint to a picture.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.store import Store
from tests.faults.killer import Ended, Killer, no_children, tree
from tests.models.tiny_bundle import tiny_bundle as hand_made_bundle

POINTS = 50
#: The number of these at file operations; the rest are after random times.
AT_OPERATIONS = 25


@dataclass(frozen=True)
class Scene:
    """A command, the state before it, and what must hold at any moment and at the end.

    ``start`` fills a folder; ``words`` are relative to it; ``visible`` checks it after a kill, ``right`` after the next
    run.
    """

    words: tuple[str | Path | int, ...]
    start: Callable[[Path], None]
    visible: Callable[[Path], None]
    right: Callable[[Path], None]


def kill_and_run(killer: Killer, scene: Scene, place: Path, whole: Ended, expected: list[str], **kill: Any) -> bool:
    """Kill the command and run it again; return whether the kill came before its end."""
    folder = place / "killed"
    folder.mkdir()
    scene.start(folder)
    ended = killer.sdrt(*scene.words, folder=folder, **kill)
    assert ended.killed or ended.code == 0, (kill, ended.err)
    assert no_children(folder), kill
    scene.visible(folder)
    again = killer.sdrt(*scene.words, folder=folder)
    assert again.code == 0, (kill, again.err)
    scene.visible(folder)
    scene.right(folder)
    assert tree(folder) == expected, kill
    shutil.rmtree(folder)
    return ended.killed


def kill_at(
    killer: Killer, scene: Scene, place: Path, operations: int, times: int, notes: int | None = 0, seed: int = 0
) -> tuple[int, Ended]:
    """Kill a command at random operations, after random times, and at its notes.

    Args:
        killer: The server.
        scene: The command.
        place: A folder.
        operations: Number of kills at file operations.
        times: Number of kills after random times.
        notes: Number of kills at notes; None is at all of them.
        seed: Seed of the random choices.

    Returns:
        The number of kills before the end, and the command's undisturbed end.
    """
    undisturbed = place / "undisturbed"
    undisturbed.mkdir()
    scene.start(undisturbed)
    whole = killer.sdrt(*scene.words, folder=undisturbed)
    assert whole.code == 0, whole.err
    scene.right(undisturbed)
    expected = tree(undisturbed)
    chosen = random.Random(seed)
    count = len(whole.operations)
    kills: list[dict[str, Any]] = [{"operation": n} for n in chosen.sample(range(count), min(operations, count))]
    kills += [{"seconds": chosen.uniform(0, whole.seconds)} for _ in range(times)]
    said = range(len(whole.notes))
    kills += [{"note": n} for n in (said if notes is None else chosen.sample(said, notes))]
    early = sum(kill_and_run(killer, scene, place, whole, expected, **kill) for kill in kills)
    return early, whole


def all_sound(store: Store) -> None:
    """Assert that everything the store shows is complete."""
    assert set(store.verify().values()) <= {None}
    assert "quarantine" not in {entry.kind for entry in store.entries()}


@pytest.fixture(scope="module")
def building(bundle: Bundle) -> Scene:
    """Return a build of one component on an empty store."""

    def right(folder: Path) -> None:
        (entry,) = Store(folder / "store").entries()
        assert entry.kind == "engines"

    return Scene(
        words=("build", bundle.path, "--backend", "onnxruntime", "--components", "vae_decoder", "--store", "store"),
        start=lambda _: None,
        visible=lambda folder: all_sound(Store(folder / "store")),
        right=right,
    )


def pixels(path: Path) -> bytes:
    with Image.open(path) as picture:
        return picture.tobytes()


@pytest.fixture(scope="module")
def denoising(bundle: Bundle, ready: Path, killer: Killer, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Return a run of two pictures and their latents over a store with the engines; one picture exists already."""
    place = tmp_path_factory.mktemp("denoising")
    shutil.copytree(ready, place / "store")
    words: tuple[str | Path | int, ...] = ("denoise", "--bundle", bundle.path, "--backend", "onnxruntime", "--json")
    words += ("--prompt", "a red circle", "--steps", 8, "--out", "p.png", "--save-latents", "p.npy", "--num-images", 2)
    words += ("--store", place / "store")
    assert killer.sdrt(*words, "--seed", 1, folder=place).code == 0
    made = {name: (place / name).read_bytes() for name in ("p-0001.png", "p-0002.png", "p.npy")}

    def start(folder: Path) -> None:
        (folder / "p-0001.png").write_bytes(b"old")

    def visible(folder: Path) -> None:
        assert (folder / "p-0001.png").read_bytes() in (b"old", made["p-0001.png"])
        for name in ("p-0002.png", "p.npy"):
            assert not (folder / name).exists() or (folder / name).read_bytes() == made[name]
        all_sound(Store(place / "store"))

    def right(folder: Path) -> None:
        assert {name: (folder / name).read_bytes() for name in made} == made
        assert not list((place / "store" / "staging").iterdir())

    return Scene((*words, "--seed", 1), start, visible, right)


def test_row_32_a_killed_build(killer: Killer, building: Scene, tmp_path: Path) -> None:
    early, whole = kill_at(killer, building, tmp_path, operations=1, times=1, notes=1)
    assert early >= 2
    # Compiled in another process: a kill between these lines does not end the process that writes.
    assert "onnxruntime vae_decoder fp32 ..." in whole.notes


def test_row_32_a_killed_denoise(killer: Killer, denoising: Scene, tmp_path: Path) -> None:
    early, whole = kill_at(killer, denoising, tmp_path, operations=4, times=2, notes=2)
    assert early >= 6
    assert "denoise ..." in whole.notes


@pytest.mark.long
def test_row_32_fifty_kills_of_a_build(killer: Killer, building: Scene, tmp_path: Path) -> None:
    early, whole = kill_at(killer, building, tmp_path, AT_OPERATIONS, POINTS - AT_OPERATIONS, notes=None, seed=1)
    assert early >= AT_OPERATIONS + len(whole.notes)


@pytest.mark.long
def test_row_32_fifty_kills_of_a_denoise(killer: Killer, denoising: Scene, tmp_path: Path) -> None:
    operations = 18
    early, whole = kill_at(killer, denoising, tmp_path, operations, POINTS - operations, notes=None, seed=2)
    assert early >= min(operations, len(whole.operations)) + len(whole.notes)


@pytest.fixture(scope="module")
def exporting(tiny_path: Path, exporter: Killer, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Return an export of one component to a folder that holds a bundle."""
    place = tmp_path_factory.mktemp("exporting")
    words = ("export", "--checkpoint", tiny_path, "--components", "vae_encoder", "--out", "out", "--force")
    assert exporter.sdrt(*words, folder=place).code == 0
    made = Bundle.open(place / "out", verify=True).digest
    old = hand_made_bundle(place / "old", components=("vae_decoder",)).digest

    def start(folder: Path) -> None:
        shutil.copytree(place / "old", folder / "out")

    def visible(folder: Path) -> None:
        assert Bundle.open(folder / "out", verify=True).digest in (old, made)

    def right(folder: Path) -> None:
        assert Bundle.open(folder / "out", verify=True).digest == made

    return Scene(words, start, visible, right)


@pytest.mark.long
def test_row_32_fifty_kills_of_an_export(exporter: Killer, exporting: Scene, tmp_path: Path) -> None:
    early, whole = kill_at(exporter, exporting, tmp_path, AT_OPERATIONS, POINTS - AT_OPERATIONS, notes=None, seed=3)
    assert early >= min(AT_OPERATIONS, len(whole.operations)) + len(whole.notes)


@pytest.mark.long
def test_row_32_kills_at_every_stage_from_checkpoint_to_picture(
    exporter: Killer, tiny_path: Path, tmp_path: Path
) -> None:
    """Kill runs over one store, each one stage further, with the leftovers of all runs before."""
    words: tuple[str | Path | int, ...] = (
        "denoise",
        "--checkpoint",
        tiny_path,
        "--backend",
        "onnxruntime",
        "--store",
        "store",
        "--out",
        "p.png",
    )
    words += ("--prompt", "a red circle", "--steps", 2, "--seed", 1)
    for name in ("undisturbed", "killed"):
        (tmp_path / name).mkdir()
    whole = exporter.sdrt(*words, folder=tmp_path / "undisturbed")
    assert whole.code == 0, whole.err
    stages = [note.removesuffix(" ...") for note in whole.notes if note.endswith(" ...")]
    expected = {"export unet", "compose denoise_step", "checking the bundle", "onnxruntime unet fp32", "denoise"}
    assert expected < {*stages}
    store = Store(tmp_path / "killed" / "store")
    for stage in stages:
        for boundary in (f"{stage} ...", f"{stage}: "):
            ended = exporter.sdrt(*words, folder=tmp_path / "killed", note=boundary)
            assert ended.killed, (boundary, ended.err)
            assert no_children(tmp_path / "killed")
            all_sound(store)
            assert not (tmp_path / "killed" / "p.png").exists()
    assert exporter.sdrt(*words, folder=tmp_path / "killed").code == 0
    assert tree(tmp_path / "killed") == tree(tmp_path / "undisturbed")
    assert pixels(tmp_path / "killed" / "p.png") == pixels(tmp_path / "undisturbed" / "p.png")
    all_sound(store)


def test_a_kill_that_leaves_debris_is_found(killer: Killer, denoising: Scene, tmp_path: Path) -> None:
    """Leave a file that is never removed as a negative control: the comparison must fail."""
    folder = tmp_path / "undisturbed"
    folder.mkdir()
    denoising.start(folder)
    whole = killer.sdrt(*denoising.words, folder=folder)
    expected = tree(folder)

    def littered(place: Path) -> None:
        denoising.start(place)
        (place / "litter").touch()

    scene = Scene(denoising.words, littered, denoising.visible, denoising.right)
    with pytest.raises(AssertionError, match="litter"):
        kill_and_run(killer, scene, tmp_path, whole, expected, note=0)
