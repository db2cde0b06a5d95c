from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sdrt.artefacts.engine_set import EngineSet
from sdrt.artefacts.locks import Lease, try_exclusive
from sdrt.artefacts.store import PARTS, Store
from sdrt.errors import EngineError, ResourceError, SdrtError, TimeLimitError, TrustError
from sdrt.unfinished import is_abandoned, owner_name
from tests.doubles.engine_sets import KEY, make_set
from tests.doubles.progress import Notes
from tests.models.tiny_bundle import tiny_bundle

DAY_S = 86400.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", lock_timeout_s=0.05)


@pytest.fixture
def stored(store: Store) -> Path:
    """Put a sound set into the store."""
    target = store.engines_path("openvino", KEY)
    with store.staged(target) as part:
        make_set(part)
    return target


def age(path: Path, seconds: float) -> None:
    """Set the time of last use to ``seconds`` ago."""
    then = time.time() - seconds
    os.utime(path / "manifest.json", (then, then))


@contextmanager
def other_process(store: Store, code: str) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that has run code with ``store`` and ``Path`` defined and reported ready; kill it at the end."""
    head = (
        "import sys; from pathlib import Path; from sdrt.artefacts.store import Store; store = Store(Path(sys.argv[1]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", f"{head}\n{code}", str(store.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


STAY = "print('ready', flush=True); sys.stdin.read()"


def test_the_store_is_private_and_made_when_first_written_to(store: Store, stored: Path) -> None:
    for folder in (store.root, *(store.root / part for part in PARTS), stored):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_looking_into_a_store_that_is_not_there_makes_nothing(store: Store) -> None:
    assert store.entries() == ()
    assert store.gc(unused_for_s=0) == ()
    assert store.verify() == {}
    assert not store.root.exists()


def test_what_is_staged_appears_whole_and_nothing_stays_behind(store: Store) -> None:
    target = store.engines_path("openvino", KEY)
    with store.staged(target) as part:
        make_set(part)
        assert not target.exists()
    assert store.open_engines(target).manifest.key == KEY
    assert list((store.root / "staging").iterdir()) == []


def interrupt(part: Path) -> None:
    make_set(part)
    raise KeyboardInterrupt


def test_what_fails_half_way_leaves_nothing(store: Store) -> None:
    target = store.engines_path("openvino", KEY)
    with pytest.raises(KeyboardInterrupt), store.staged(target) as part:
        interrupt(part)
    assert not target.exists()
    assert list((store.root / "staging").iterdir()) == []


def test_who_publishes_second_keeps_what_the_first_published(store: Store) -> None:
    # Simulates a file system whose locks do not lock: both build the same set at the same time.
    target = store.engines_path("openvino", KEY)
    with store.staged(target) as first:
        digest = make_set(first)
        with store.staged(target) as second:
            make_set(second, bundle_digest="0" * 64)
            assert first != second
        published = store.open_engines(target)
    assert published.digest != digest
    assert store.open_engines(target).digest == published.digest
    assert list((store.root / "staging").iterdir()) == []


def test_what_a_killed_process_left_is_swept_and_its_lock_is_free(store: Store) -> None:
    path = store.engines_path("openvino", KEY)
    code = f"""
target = Path({str(path)!r})
with store.locked(target), store.staged(target) as part:
    part.mkdir()
    (part / "half").write_text("half")
    {STAY}
"""
    with other_process(store, code):
        store.prepare()
        assert len(list((store.root / "staging").iterdir())) == 1
        with pytest.raises(TimeLimitError), store.locked(path):
            pytest.fail("two processes had one lock")
    with store.locked(path):
        assert list((store.root / "staging").iterdir()) == []
    assert not path.exists()


def test_a_process_number_in_use_again_is_not_the_process_that_died() -> None:
    assert not is_abandoned(owner_name() + "x")
    assert is_abandoned(f"{os.getpid()}-1-x")
    assert not is_abandoned("somebody's folder")


def test_a_lock_that_does_not_become_free_names_its_holder(store: Store) -> None:
    path = store.engines_path("openvino", KEY)
    code = f"with store.locked(Path({str(path)!r})):\n    {STAY}"
    notes = Notes()
    with other_process(store, code) as holder:
        message = f"process {holder.pid} has held the lock on {path} for 0.05 s"
        with pytest.raises(TimeLimitError, match=message) as refused, store.locked(path, notes):
            pytest.fail("two processes had one lock")
        assert refused.value.exit_code == 7
        assert notes.notes == [f"waiting for process {holder.pid}, which has locked {path}"]
        with store.locked(store.engines_path("openvino", "another")):
            pass


def test_locks_that_always_succeed_do_no_harm(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    target = store.engines_path("openvino", KEY)
    together = threading.Barrier(2)
    errors: list[BaseException] = []

    def publish() -> None:
        try:
            with store.staged(target) as part:
                together.wait(10)
                make_set(part)
                together.wait(10)
            store.open_engines(target)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=publish) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.verify() == {target: None}
    assert list((store.root / "staging").iterdir()) == []


def test_a_root_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=f"cannot write {tmp_path / 'file'}: a part of the path") as refused:
        Store(tmp_path / "file").prepare()
    assert "--store" in refused.value.hint


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_root_that_cannot_be_written_is_named(store: Store, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Uses a double, since permissions do not stop tests that run as root.
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(ResourceError, match=f"cannot write {store.root}") as refused:
        store.prepare()
    assert "--store" in refused.value.hint


def test_a_store_that_cannot_be_written_still_serves(
    store: Store, stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("mkdir", "utime", "rename"):
        monkeypatch.setattr(os, name, refuse)
    assert store.open_engines(stored).manifest.key == KEY


def test_a_store_that_others_can_write_to_is_refused(store: Store, stored: Path) -> None:
    store.root.chmod(0o777)
    for use in (store.prepare, store.check, lambda: store.open_engines(stored)):
        with pytest.raises(TrustError, match="others can write"):
            use()


def test_a_full_disk_is_named_and_leaves_what_was_there(store: Store, stored: Path, tmp_path: Path) -> None:
    digest = make_set(tmp_path / "carried", key="12" * 32)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(ResourceError, match="size limit"):
            store.import_engines(tmp_path / "carried", trust=digest)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert store.verify() == {stored: None}
    assert list((store.root / "staging").iterdir()) == []


def test_quarantine_moves_and_says_so(store: Store, stored: Path) -> None:
    notes = Notes()
    aside = store.quarantine(stored, TrustError("flipped", hint=""), notes)
    assert not stored.exists()
    assert aside is not None
    assert (aside / "unet/model.blob").read_bytes() == b"engine" * 50
    assert notes.notes == [f"flipped; moved to {aside}"]
    assert [entry.kind for entry in store.entries()] == ["quarantine"]


def test_what_another_process_has_quarantined_is_not_there(store: Store, stored: Path) -> None:
    # Simulates a file system whose locks do not lock: both found it broken.
    notes = Notes()
    broken = TrustError("flipped", hint="")
    assert store.quarantine(stored, broken, notes) is not None
    assert store.quarantine(stored, broken, notes) is None
    assert len(notes.notes) == len(list((store.root / "quarantine").iterdir())) == 1


def test_what_goes_while_it_is_listed_is_not_there(store: Store, stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = store.engines_path("openvino", "other")
    with store.staged(other) as part:
        make_set(part)

    def gone_when_looked_at(path: Path) -> bool:
        if path.is_relative_to(other):
            path.unlink()
        return False

    monkeypatch.setattr(Path, "is_symlink", gone_when_looked_at)
    assert [entry.path for entry in store.entries()] == [stored]


def test_entries_tell_what_is_there(store: Store, stored: Path) -> None:
    bundle = store.bundle_path("tiny-bundle")
    with store.staged(bundle) as part:
        tiny_bundle(part, components=("text_encoder",))
    broken = store.engines_path("openvino", "broken")
    broken.mkdir()
    by_key = {entry.key: entry for entry in store.entries()}
    assert by_key[KEY].kind == "engines"
    assert by_key[KEY].digest == EngineSet.open(stored, private_root=store.root).digest
    assert (by_key[KEY].backend, by_key[KEY].precision, by_key[KEY].checkpoint) == ("openvino", "fp32", "tiny")
    assert by_key[KEY].size_bytes == sum(path.stat().st_size for path in stored.rglob("*") if path.is_file())
    assert (by_key["tiny-bundle"].kind, by_key["tiny-bundle"].backend) == ("bundle", None)
    assert (by_key["broken"].digest, by_key["broken"].checkpoint) == (None, None)


def test_opening_counts_as_use(store: Store, stored: Path) -> None:
    age(stored, 10 * DAY_S)
    before = store.entries()[0].last_used_s
    store.open_engines(stored)
    assert store.entries()[0].last_used_s > before + 9 * DAY_S


def test_verify_finds_a_flipped_byte(store: Store, stored: Path) -> None:
    bundle = store.bundle_path("tiny-bundle")
    with store.staged(bundle) as part:
        tiny_bundle(part, components=("text_encoder",))
    assert store.verify() == {bundle: None, stored: None}
    (stored / "unet/model.blob").write_bytes(b"Engine" * 50)
    weights = bundle / "text_encoder/model.onnx.data"
    weights.write_bytes(b"\0" * weights.stat().st_size)
    problems = store.verify()
    assert all(isinstance(problems[path], TrustError) for path in (bundle, stored))


def test_import_takes_a_copy(store: Store, tmp_path: Path) -> None:
    carried = tmp_path / "carried"
    digest = make_set(carried)
    imported = store.import_engines(carried, trust=digest)
    assert imported.path == store.engines_path("openvino", KEY)
    assert imported.digest == digest
    assert store.import_engines(carried, trust=digest).path == imported.path
    (carried / "unet/model.blob").write_bytes(b"Engine" * 50)
    assert store.verify() == {imported.path: None}


@pytest.mark.parametrize("spoil", ["digest", "file"])
def test_import_refuses_what_is_not_vouched_for(store: Store, tmp_path: Path, spoil: str) -> None:
    digest = make_set(tmp_path / "carried")
    if spoil == "file":
        (tmp_path / "carried/unet/model.blob").write_bytes(b"Engine" * 50)
    with pytest.raises(TrustError):
        store.import_engines(tmp_path / "carried", trust=digest if spoil == "file" else "0" * 64)
    assert store.entries() == ()


def test_gc_removes_what_was_not_used(store: Store, stored: Path) -> None:
    assert store.gc(unused_for_s=DAY_S) == ()
    age(stored, 2 * DAY_S)
    assert [entry.path for entry in store.gc(unused_for_s=DAY_S)] == [stored]
    assert store.entries() == ()
    assert list((store.root / "staging").iterdir()) == []


def test_gc_keeps_what_is_in_use(store: Store, stored: Path) -> None:
    opened = store.open_engines(stored)
    age(stored, 2 * DAY_S)
    notes = Notes()
    assert store.gc(unused_for_s=DAY_S, progress=notes) == ()
    assert notes.notes == [f"{stored} is in use and stays"]
    opened.lease.release()
    assert len(store.gc(unused_for_s=DAY_S)) == 1


def test_gc_keeps_what_another_process_uses(store: Store, stored: Path) -> None:
    code = f"used = store.open_engines(Path({str(stored)!r}))\n{STAY}"
    with other_process(store, code):
        age(stored, 2 * DAY_S)
        assert store.gc(unused_for_s=DAY_S) == ()
    assert len(store.gc(unused_for_s=DAY_S)) == 1


def test_gc_keeps_quarantine_and_what_seems_to_come_from_the_future(store: Store, stored: Path) -> None:
    age(stored, -10 * DAY_S)
    assert store.gc(unused_for_s=0) == ()
    store.quarantine(stored, EngineError("broken", hint=""), Notes())
    assert store.gc(unused_for_s=0) == ()
    assert len(store.entries()) == 1


def test_a_dropped_lease_ends(stored: Path) -> None:
    lease = Lease(stored)
    with try_exclusive(stored) as unused:
        assert not unused
    del lease
    with try_exclusive(stored) as unused:
        assert unused


def test_a_lease_on_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot read"):
        Lease(tmp_path / "nothing")
    with try_exclusive(tmp_path / "nothing") as unused:
        assert not unused


def test_every_error_of_the_store_tells_what_to_do(store: Store, stored: Path) -> None:
    (stored / "unet/model.blob").unlink()
    with pytest.raises(SdrtError) as refused:
        store.open_engines(stored)
    assert refused.value.hint
