"""Checkpoints from the Hub: fault-matrix row 27, offline, with a hand-made cache and listing."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import HfApi, constants

from sdrt.checkpoint import hub, open_checkpoint
from sdrt.checkpoint.hub import wanted_files
from sdrt.errors import BackendUnavailableError, CheckpointError, TrustError

REPO = "org/tiny-sd"
COMMITS = ("1" * 40, "2" * 40)


def snapshot(home: Path, tiny: Path, commit: str) -> Path:
    """Write a snapshot into the Hub's cache: links to blobs."""
    root = home / "models--org--tiny-sd"
    folder = root / "snapshots" / commit
    for path in tiny.rglob("*.*"):
        blob = root / "blobs" / f"{commit[0]}-{path.parent.name}-{path.name}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blob)
        link = folder / path.relative_to(tiny)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return folder


def point(home: Path, branch: str, commit: str) -> None:
    """Point a branch of the cache at a commit."""
    ref = home / "models--org--tiny-sd" / "refs" / branch
    ref.parent.mkdir(parents=True, exist_ok=True)
    ref.write_text(commit)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create an empty Hub cache, online. The library reads its variables on import, so its constants are changed."""
    path = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(path))
    return path


@pytest.fixture
def offline(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create the same with HF_HUB_OFFLINE=1."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return home


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test on any request to the Hub."""

    def called(*_: Any, **__: Any) -> None:
        pytest.fail("the Hub was contacted")

    monkeypatch.setattr(HfApi, "model_info", called)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", called)


@pytest.mark.parametrize("revision", [None, "main", "5" * 40])
def test_row_27_offline_and_not_cached_fails_at_once(offline: Path, cache: Path, revision: str | None) -> None:
    start = time.monotonic()
    with pytest.raises(CheckpointError, match="is not in the Hub's cache") as caught:
        open_checkpoint(REPO, revision=revision, cache=cache)
    assert time.monotonic() - start < 1
    assert "HF_HUB_OFFLINE" in caught.value.hint
    assert REPO in caught.value.message


@pytest.mark.parametrize("revision", [None, "main", "v2", "refs/pr/3", "5" * 40])
def test_offline_the_commits_that_are_cached_are_named(
    offline: Path, tiny: Path, cache: Path, revision: str | None
) -> None:
    for commit in COMMITS:
        snapshot(offline, tiny, commit)
    # Left by an interrupted download.
    (snapshot(offline, tiny, "3" * 40) / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    if revision == "v2":
        point(offline, "main", COMMITS[0])
    with pytest.raises(CheckpointError, match="the Hub is off-line; the cache holds") as caught:
        open_checkpoint(REPO, revision=revision, cache=cache)
    assert all(commit in caught.value.message for commit in COMMITS)
    assert "3" * 40 not in caught.value.message
    assert ("which commit" in caught.value.message) == (revision != "5" * 40)
    assert f"--revision {COMMITS[0]}" in caught.value.hint
    assert open_checkpoint(REPO, revision=COMMITS[0], cache=cache).revision == COMMITS[0]


def test_of_many_commits_a_few_are_named(offline: Path, tiny: Path, cache: Path) -> None:
    first = snapshot(offline, tiny, "0" * 40)
    for number in range(1, 7):
        (first.parent / (str(number) * 40)).symlink_to(first)
    with pytest.raises(CheckpointError, match=r"4{40}, \.\.\.$"):
        open_checkpoint(REPO, cache=cache)


def test_row_27_a_branch_that_moved_shows_in_the_commit(offline: Path, tiny: Path, cache: Path) -> None:
    for commit in COMMITS:
        snapshot(offline, tiny, commit)
        point(offline, "main", commit)
        checkpoint = open_checkpoint(REPO, cache=cache)
        assert (checkpoint.name, checkpoint.revision) == (REPO, commit)
    pinned = open_checkpoint(REPO, revision=COMMITS[0], cache=cache)
    assert pinned.revision == COMMITS[0]
    assert pinned.digest == open_checkpoint(str(tiny), cache=cache).digest


@pytest.mark.usefixtures("no_network")
def test_row_27_a_whole_pinned_commit_never_asks_the_hub(home: Path, tiny: Path, cache: Path) -> None:
    snapshot(home, tiny, COMMITS[0])
    assert open_checkpoint(REPO, revision=COMMITS[0], cache=cache).revision == COMMITS[0]


def test_a_pinned_commit_that_is_not_whole_is_fetched(
    home: Path, tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (snapshot(home, tiny, COMMITS[0]) / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    asked = []

    def fetched(repo: str, revision: str | None, variant: str | None) -> tuple[Path, str]:
        asked.append((repo, revision, variant))
        return tiny, COMMITS[0]

    monkeypatch.setattr(hub, "_fetched", fetched)
    open_checkpoint(REPO, revision=COMMITS[0], cache=cache)
    assert asked == [(REPO, COMMITS[0], None)]


@pytest.mark.usefixtures("home")
def test_only_what_is_needed_is_fetched(tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [path.relative_to(tiny).as_posix() for path in tiny.rglob("*.*")]
    unwanted = [
        *("unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin", "v1-4.safetensors"),
        *("safety_checker/model.safetensors", "README.md", "unet/diffusion_pytorch_model.safetensors.index.json"),
    ]
    listing = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in [*names, *unwanted]])
    calls: list[dict[str, Any]] = []

    def snapshot_download(repo: str, **options: Any) -> str:
        calls.append({"repo": repo, **options})
        return str(tiny)

    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: listing)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    open_checkpoint(REPO, revision="v1", cache=cache)
    assert (calls[0]["repo"], calls[0]["revision"]) == (REPO, "v1")
    assert sorted(calls[0]["allow_patterns"]) == sorted(names)


def test_fp16_weights_are_taken_when_there_are_no_others() -> None:
    names = ["model_index.json", "unet/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.bin"]
    names += ["text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"]
    assert set(names) - set(wanted_files(REPO, names)) == {"vae/diffusion_pytorch_model.bin"}


def test_what_a_checkpoint_recommends_is_fetched_with_it() -> None:
    names = ["model_index.json", "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"]
    names += ["vae/diffusion_pytorch_model.safetensors", "README.md", "generation_config.json"]
    assert set(names) - set(wanted_files(REPO, names)) == {"README.md"}


def test_a_repository_of_pickles_is_refused_before_anything_is_fetched() -> None:
    names = ["model_index.json", "text_encoder/pytorch_model.bin", "unet/diffusion_pytorch_model.bin"]
    with pytest.raises(TrustError, match="holds only pickled weights of text_encoder"):
        wanted_files(REPO, names)


@pytest.mark.parametrize(
    ("names", "reason"),
    [(["v1-5-pruned.safetensors"], "has no model_index.json"), (["model_index.json"], "has no weights of")],
)
def test_repositories_that_hold_no_checkpoint(names: list[str], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        wanted_files(REPO, names)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("RepositoryNotFoundError", "the Hub has no org/tiny-sd, or does not show it to you"),
        ("GatedRepoError", "the Hub has no org/tiny-sd, or does not show it to you"),
        ("RevisionNotFoundError", "the Hub has no org/tiny-sd at v9"),
        ("HfHubHTTPError", "the Hub cannot be reached"),
        ("HTTPError", "the Hub cannot be reached"),
        ("HFValidationError", "is not a Hub id"),
    ],
)
def test_what_the_hub_refuses_is_told_apart(
    home: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    kind = getattr(huggingface_hub.errors, name)
    error = kind.__new__(kind)

    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(HfApi, "model_info", refuse)
    with pytest.raises(CheckpointError, match=reason) as caught:
        open_checkpoint(REPO, revision="v9", cache=cache)
    assert caught.value.__cause__ is error
    assert not home.exists()


def test_without_huggingface_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(BackendUnavailableError, match="huggingface_hub is not installed"):
        open_checkpoint(REPO, cache=cache)
