from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from sdrt.artefacts.engine_set import BatchRange, EngineSet
from sdrt.artefacts.locks import try_exclusive
from sdrt.artefacts.manifest import FileRecord
from sdrt.errors import EngineError, ResourceError, SdrtError, TrustError
from sdrt.files import read_with_sha256, sha256_file
from tests.doubles.engine_sets import make_set

BLOB = "unet/model.blob"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Create a private folder like a store's."""
    folder = tmp_path / "store"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def sound(root: Path) -> Path:
    """Write a sound set to the private folder."""
    make_set(root / "set")
    return root / "set"


def test_a_set_in_the_private_folder_opens(sound: Path, root: Path) -> None:
    opened = EngineSet.open(sound, private_root=root)
    assert opened.component("unet").precision == "fp32"
    assert opened.tokenizer.read_bytes() == b"{}"
    assert opened.scheduler.read_bytes() == b"{}"
    assert opened.size_bytes == 304


def test_a_set_from_elsewhere_opens_by_its_digest_only(tmp_path: Path, root: Path) -> None:
    digest = make_set(tmp_path / "carried")
    with pytest.raises(TrustError, match="neither in the store") as refused:
        EngineSet.open(tmp_path / "carried", private_root=root)
    assert refused.value.hint.endswith(f"--trust {digest}")
    assert EngineSet.open(tmp_path / "carried", trust=digest).digest == digest
    with pytest.raises(TrustError, match=f"digest {digest}, not {'0' * 64}"):
        EngineSet.open(tmp_path / "carried", trust="0" * 64)


def test_a_link_out_of_the_private_folder_does_not_lend_trust(tmp_path: Path, root: Path) -> None:
    make_set(tmp_path / "carried")
    (root / "set").symlink_to(tmp_path / "carried")
    with pytest.raises(TrustError, match="neither in the store"):
        EngineSet.open(root / "set", private_root=root)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "kind", "message"),
    [
        (lambda s: flip(s / BLOB), TrustError, "does not match its digest"),
        (lambda s: flip(s / "tokenizer/tokenizer.json"), TrustError, "does not match its digest"),
        (lambda s: (s / BLOB).write_bytes(b"engine" * 49), TrustError, "has 294 bytes; its manifest says 300"),
        (lambda s: (s / BLOB).write_bytes(b""), TrustError, "has 0 bytes"),
        (lambda s: (s / BLOB).write_bytes(b"renamed" * 50), TrustError, "has 350 bytes"),
        (lambda s: (s / BLOB).unlink(), EngineError, "model.blob is missing"),
        (lambda s: shutil.move(s / BLOB, s / "moved") and (s / BLOB).symlink_to(s / "moved"), TrustError, "is a link"),
        (lambda s: os.link(s / BLOB, s / "second name"), TrustError, "is a hard link"),
        (lambda s: (s / "manifest.json").unlink(), EngineError, "cannot read"),
        (lambda s: (s / "manifest.json").write_bytes(b"[]"), EngineError, "not a JSON object"),
        (lambda s: shutil.rmtree(s), EngineError, "cannot read"),
    ],
)
def test_a_spoiled_set_is_refused_and_let_go(
    sound: Path, root: Path, spoil: Callable[[Path], object], kind: type[SdrtError], message: str
) -> None:
    spoil(sound)
    with pytest.raises(kind, match=message):
        EngineSet.open(sound, private_root=root)
    if sound.exists():
        with try_exclusive(sound) as unused:
            assert unused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema version 2; this sdrt reads up to 1"),
        ({"backend": "pickle"}, "backend"),
        ({"key": "short"}, "key"),
        ({"surprise": 1}, "surprise"),
        ({"files": {}}, "has no digest"),
    ],
)
def test_a_manifest_out_of_schema_is_refused(sound: Path, root: Path, change: dict[str, object], message: str) -> None:
    manifest = json.loads((sound / "manifest.json").read_bytes())
    (sound / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(EngineError, match=message):
        EngineSet.open(sound, private_root=root)


def test_a_newer_set_asks_for_an_upgrade(sound: Path, root: Path) -> None:
    (sound / "manifest.json").write_text('{"schema_version": 9}')
    with pytest.raises(EngineError) as refused:
        EngineSet.open(sound, private_root=root)
    assert refused.value.hint == "upgrade sdrt"


def test_a_path_that_leaves_the_folder_is_refused(root: Path) -> None:
    (root / "secret").write_bytes(b"x")
    make_set(root / "set")
    manifest = json.loads((root / "set/manifest.json").read_bytes())
    manifest["files"]["../secret"] = FileRecord(size_bytes=1, sha256="0" * 64).model_dump()
    (root / "set/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(TrustError, match="not a path inside"):
        EngineSet.open(root / "set", private_root=root)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_store_that_others_can_write_to_lends_no_trust(sound: Path, root: Path, mode: int) -> None:
    root.chmod(mode)
    with pytest.raises(TrustError, match="others can write") as refused:
        EngineSet.open(sound, private_root=root)
    assert f"chmod go-w {root}" in refused.value.hint


def test_a_set_folder_that_others_can_write_to_lends_no_trust(sound: Path, root: Path) -> None:
    sound.chmod(0o720)
    with pytest.raises(TrustError, match="others can write"):
        EngineSet.open(sound, private_root=root)


def test_a_digest_does_not_help_where_everybody_can_write(tmp_path: Path) -> None:
    digest = make_set(tmp_path / "carried")
    (tmp_path / "carried").chmod(0o777)
    with pytest.raises(TrustError, match="everybody can write"):
        EngineSet.open(tmp_path / "carried", trust=digest)


def test_a_store_of_somebody_else_is_refused(sound: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(ResourceError, match=f"{root} belongs to user {owner}") as refused:
        EngineSet.open(sound, private_root=root)
    assert "--store" in refused.value.hint


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """List the hashed files in order, whichever function hashes them."""
    seen: list[str] = []

    def watched(work: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def watching(path: Path) -> Any:
            seen.append(path.name)
            return work(path)

        return watching

    monkeypatch.setattr("sdrt.artefacts.manifest.sha256_file", watched(sha256_file))
    monkeypatch.setattr("sdrt.artefacts.engine_set.sha256_file", watched(sha256_file))
    monkeypatch.setattr("sdrt.artefacts.engine_set.read_with_sha256", watched(read_with_sha256))
    return seen


def test_a_run_hashes_what_it_opens_and_each_file_once(sound: Path, root: Path, hashed: list[str]) -> None:
    opened = EngineSet.open(sound, private_root=root, verify=False)
    assert sorted(hashed) == ["scheduler_config.json", "tokenizer.json"]
    hashed.clear()
    opened.check("unet")
    opened.check("unet")
    assert hashed == ["model.blob"]
    assert opened.read(BLOB) == (sound / BLOB).read_bytes()
    assert hashed == ["model.blob"] * 2, "what is read is held to its digest each time: other bytes may lie there now"
    hashed.clear()
    EngineSet.open(sound, private_root=root).check("unet")
    assert sorted(hashed) == ["model.blob", "scheduler_config.json", "tokenizer.json"]


@pytest.mark.parametrize("name", ["tokenizer/tokenizer.json", "scheduler/scheduler_config.json"])
def test_what_every_run_reads_is_hashed_as_it_is_opened(sound: Path, root: Path, name: str) -> None:
    flip(sound / name)
    with pytest.raises(TrustError, match="does not match its digest"):
        EngineSet.open(sound, private_root=root, verify=False)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_an_engine_that_changed_is_refused_when_it_is_opened(sound: Path, root: Path, elsewhere: bool) -> None:
    digest = sha256_file(sound / "manifest.json")
    opened = EngineSet.open(sound, trust=digest if elsewhere else None, private_root=root, verify=False)
    flip(sound / BLOB)
    for opening in (lambda: opened.check("unet"), lambda: opened.read(BLOB)):
        with pytest.raises(TrustError, match=r"model\.blob does not match its digest in manifest\.json"):
            opening()


@pytest.mark.parametrize("change", [lambda data: data + b"x", lambda data: data[:-1], lambda data: b""])
def test_a_file_that_has_another_length_by_now_is_refused(
    sound: Path, root: Path, change: Callable[[bytes], bytes]
) -> None:
    opened = EngineSet.open(sound, private_root=root, verify=False)
    (sound / BLOB).write_bytes(change((sound / BLOB).read_bytes()))
    with pytest.raises(TrustError, match="does not match its digest"):
        opened.read(BLOB)


def test_a_component_that_is_not_held_is_named(sound: Path, root: Path) -> None:
    with pytest.raises(EngineError, match="holds no vae_decoder, only unet"):
        EngineSet.open(sound, private_root=root).component("vae_decoder")


@pytest.mark.parametrize("limits", [(0, 1, 1), (2, 1, 3), (1, 4, 3)])
def test_a_batch_range_rises(limits: tuple[int, int, int]) -> None:
    with pytest.raises(ValidationError):
        BatchRange(min=limits[0], opt=limits[1], max=limits[2])
