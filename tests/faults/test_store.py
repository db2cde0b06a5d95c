"""Rows 31 and 34 to 41 of the fault matrix: concurrent processes, full disks, read-only folders, locks, time."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sdrt.artefacts import locks
from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.store import PARTS, Store
from sdrt.engines.build import build, build_key
from sdrt.engines.request import BuildRequest
from sdrt.progress import silent
from tests.command_line import CommandLine
from tests.faults.killer import Ended, Killer, tree
from tests.makefile import make

DECODER = ("--backend", "onnxruntime", "--components", "vae_decoder", "--store", "store")


@pytest.fixture
def denoise(bundle: Bundle) -> list[str]:
    """Return words that draw a picture with the engines in the folder's store."""
    words = ["denoise", "--bundle", str(bundle.path), "--backend", "onnxruntime", "--store", "store", "--prompt", "a"]
    return [*words, "--steps", "2", "--seed", "1", "--out", "p.png", "--save-latents", "p.npy"]


def complaint(ended: Ended) -> str:
    """Return the one line of the error."""
    (line,) = [line for line in ended.err.splitlines() if line.startswith("sdrt: ")]
    assert "Traceback" not in ended.err
    return line


def writable(folder: Path) -> None:
    """Restore write permission, so that read-only files can be removed."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o700)


def built_at_once(killer: Killer, bundle: Bundle, folder: Path, call: str, count: int) -> int:
    """Build one set by many simultaneous processes; return how many of them compiled."""
    words = ["build", str(bundle.path), *DECODER]
    assert killer(f"tests.faults.actions:{call}", count, words, folder=folder).code == 0
    said = [(folder / f"said-{number}").read_text() for number in range(count)]
    assert len({text.splitlines()[-1] for text in said}) == 1
    store = Store(folder / "store")
    assert list(store.verify().values()) == [None]
    assert list((store.root / "staging").iterdir()) == list((store.root / "quarantine").iterdir()) == []
    assert list((store.root / "locks").glob("*.holder")) == []
    return sum("onnxruntime vae_decoder fp32 ..." in text for text in said)


def test_row_31_eight_at_once_build_once(killer: Killer, bundle: Bundle, tmp_path: Path) -> None:
    assert built_at_once(killer, bundle, tmp_path, "at_once", 8) == 1


def test_row_38_locks_that_always_succeed_do_no_harm(killer: Killer, bundle: Bundle, tmp_path: Path) -> None:
    """Check that no process sees a part, though all may compile, and that one set remains."""
    assert built_at_once(killer, bundle, tmp_path, "at_once_without_locks", 3) >= 1


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP])
def test_row_38_a_file_system_without_locks_is_named(
    sdrt: CommandLine, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fcntl.flock", refuse)
    ended = sdrt("build", bundle.path, *DECODER)
    assert (ended.code, "the file system " in ended.complaint, "--store" in ended.complaint) == (6, True, True)
    assert Store(tmp_path / "store").entries() == ()


@pytest.mark.long
def test_row_31_eight_make_engines_export_and_build_once(tiny_path: Path, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    variables = [f"CHECKPOINT={tiny_path}", f"STORE={tmp_path / 'store'}", "BACKENDS=onnxruntime"]
    with ThreadPoolExecutor(8) as pool:
        ended = list(pool.map(lambda _: make("engines", "ready-to-build", *variables), range(8)))
    assert [process.returncode for process in ended] == [0] * 8, [process.stderr for process in ended]
    told = "\n".join(process.stderr for process in ended)
    for stage in ("export unet ...", "export vae_decoder ...", "onnxruntime unet fp32 ...", "checking the bundle ..."):
        assert told.count(stage) == 1, stage
    assert sorted(entry.kind for entry in Store(tmp_path / "store").entries()) == ["bundle", "engines"]
    assert set(Store(tmp_path / "store").verify().values()) == {None}


def sizes(folder: Path) -> list[int]:
    return sorted({path.stat().st_size for path in folder.rglob("*") if path.is_file()})


def test_row_34_a_full_disk_while_building(killer: Killer, bundle: Bundle, tmp_path: Path) -> None:
    """Limit files to a byte less than each file of a built store, so that each kind of file fails to be written."""
    words = ["build", str(bundle.path), *DECODER]
    built = tmp_path / "built"
    built.mkdir()
    assert killer.sdrt(*words, folder=built).code == 0
    found = sizes(built / "store")
    assert len(found) >= 5
    for limit in (0, *(size - 1 for size in found if size > 1)):
        folder = tmp_path / str(limit)
        folder.mkdir()
        ended = killer("tests.faults.actions:limited", limit, words, folder=folder)
        assert ended.code == 6, (limit, ended.err)
        assert "size limit" in complaint(ended)
        assert Store(folder / "store").entries() == ()
        for part in ("staging", "quarantine"):
            assert list((folder / "store" / part).iterdir()) == []
        assert list((folder / "tmp").iterdir()) == []
    # The same folder works once there is space.
    assert killer.sdrt(*words, folder=folder).code == 0


def test_row_34_a_full_disk_while_denoising(killer: Killer, ready: Path, denoise: list[str], tmp_path: Path) -> None:
    shutil.copytree(ready, tmp_path / "store")
    before = tree(tmp_path / "store")
    (tmp_path / "p.png").write_bytes(b"old")
    for limit in (0, 100):
        ended = killer("tests.faults.actions:limited", limit, denoise, folder=tmp_path)
        assert ended.code == 6, ended.err
        assert "p.png: the file would exceed the size limit" in complaint(ended)
        assert (tmp_path / "p.png").read_bytes() == b"old"
        assert tree(tmp_path) == sorted(["store", "tmp", "p.png", *(f"store/{name}" for name in before)])
    assert killer.sdrt(*denoise, folder=tmp_path).code == 0


@pytest.mark.long
def test_row_34_a_full_disk_while_exporting(exporter: Killer, tiny_path: Path, tmp_path: Path) -> None:
    words = ["export", "--checkpoint", str(tiny_path), "--components", "vae_encoder", "--out", "out", "--force"]
    assert exporter.sdrt(*words, folder=tmp_path).code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    for limit in (0, *(size - 1 for size in sizes(tmp_path / "out"))):
        ended = exporter("tests.faults.actions:limited", limit, words, folder=tmp_path)
        assert ended.code == 6, (limit, ended.err)
        assert "size limit" in complaint(ended)
        assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tmp"]


def test_row_35_a_store_that_is_a_file(
    sdrt: CommandLine, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store").write_text("")
    named = sdrt("build", bundle.path, *DECODER)
    assert (named.code, "'--store': Directory 'store' is a file" in named.complaint) == (2, True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "sdrt").write_text("")
    default = sdrt("build", bundle.path, *DECODER[:-2])
    assert default.code == 6
    assert f"cannot write {tmp_path / 'sdrt'}: a part of the path is a file, not a folder" in default.complaint
    assert "--store" in default.complaint


def test_row_35_a_read_only_store_still_serves(
    killer: Killer, bundle: Bundle, ready: Path, denoise: list[str], tmp_path: Path
) -> None:
    shutil.copytree(ready, tmp_path / "store")
    before = tree(tmp_path / "store")
    for path in (tmp_path / "store", *(tmp_path / "store").rglob("*")):
        path.chmod(0o500 if path.is_dir() else 0o400)
    try:
        drawn = killer("tests.faults.actions:unprivileged", denoise, folder=tmp_path)
        assert drawn.code == 0, drawn.err
        words = ["build", str(bundle.path), *DECODER]
        refused = killer("tests.faults.actions:unprivileged", words, folder=tmp_path)
        assert refused.code == 6, refused.err
        assert "no permission" in complaint(refused)
        assert str(Path("store")) in complaint(refused)
        assert "--store" in complaint(refused)
        assert tree(tmp_path / "store") == before
    finally:
        writable(tmp_path / "store")


def test_row_35_a_place_where_no_store_can_be_made(killer: Killer, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "sealed").mkdir()
    (tmp_path / "sealed").chmod(0o500)
    words = ["build", str(bundle.path), *DECODER[:-1], "sealed/store"]
    ended = killer("tests.faults.actions:unprivileged", words, folder=tmp_path)
    assert ended.code == 6, ended.err
    assert "cannot write sealed/store: no permission" in complaint(ended)
    # Control: with the permission it is created there.
    (tmp_path / "sealed").chmod(0o700)
    assert killer("tests.faults.actions:unprivileged", words, folder=tmp_path).code == 0


def test_row_35_somebody_elses_store(
    sdrt: CommandLine, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    ended = sdrt("build", bundle.path, *DECODER)
    assert (ended.code, f"store belongs to user {owner}" in ended.complaint) == (6, True)
    assert "--store" in ended.complaint


@pytest.mark.parametrize("part", ["", *PARTS, "engines/onnxruntime"])
def test_row_36_a_store_that_others_can_write_to_is_not_opened(
    sdrt: CommandLine, ready: Path, denoise: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ready, tmp_path / "store")
    (tmp_path / "store" / part).chmod(0o777)
    opened: list[Any] = []
    monkeypatch.setattr("onnxruntime.InferenceSession.__init__", lambda *args, **_: opened.append(args))
    ended = sdrt(*denoise)
    assert (ended.code, "others can write to" in ended.complaint, "chmod go-w" in ended.complaint) == (8, True, True)
    assert opened == []
    assert not (tmp_path / "p.png").exists()


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a process that holds every lock of the store in the given folder."""
    code = """
import sys
from pathlib import Path
from sdrt.artefacts.store import Store
store = Store(Path(sys.argv[1]))
with store.locked(Path(sys.stdin.readline().strip())):
    print("held", flush=True)
    sys.stdin.read()
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    words = [sys.executable, "-c", code, str(tmp_path / "store")]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
    ) as process:
        yield process
        process.kill()


def test_row_37_a_lock_that_never_frees_names_its_holder(
    sdrt: CommandLine,
    bundle: Bundle,
    holder: subprocess.Popen[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = build_key(bundle, BuildRequest("onnxruntime", components=("vae_decoder",)))
    target = Store(tmp_path / "store").engines_path("onnxruntime", key.digest)
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdin.write(f"{target}\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "held\n"
    real = locks.exclusive
    monkeypatch.setattr(
        "sdrt.artefacts.store.exclusive", lambda path, what, _, progress: real(path, what, 0.05, progress)
    )
    words: list[str | Path] = ["build", bundle.path, *DECODER[:-1], tmp_path / "store"]
    ended = sdrt(*words)
    assert ended.code == 7
    assert f"process {holder.pid} has held the lock on {target} for 0.05 s" in ended.complaint
    assert f"waiting for process {holder.pid}" in ended.err
    # The lock is released when its holder ends, however it ends.
    holder.kill()
    holder.wait()
    assert sdrt(*words).code == 0


def test_row_39_clocks_that_jump_change_no_key(
    killer: Killer, bundle: Bundle, ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = BuildRequest("onnxruntime")
    key = build_key(bundle, request).digest
    store = Store(tmp_path / "store")
    shutil.copytree(ready, store.root)
    for then in (0.0, time.time() + 10 * 365 * 86400):
        for path in (store.root, *store.root.rglob("*")):
            os.utime(path, (then, then))
        for now in (0.0, 1e10):
            monkeypatch.setattr(time, "time", lambda now=now: now)
            assert build_key(bundle, request).digest == key
            # It is found, so nothing is compiled, which would leave a lock file.
            found = build(bundle, request, store, silent)
            assert found.path == store.engines_path("onnxruntime", key)
    assert tree(store.root) == tree(ready)


def test_row_41_gc_keeps_what_a_process_uses(
    sdrt: CommandLine, bundle: Bundle, ready: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdrt import Pipeline

    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "store")
    shutil.copytree(ready, store.root)
    with Pipeline.load(bundle=bundle.path, backend="onnxruntime", store=store.root, build=False) as pipe:
        ended = sdrt("store", "gc", "--unused-days", 0, "--store", "store")
        assert (ended.code, ended.out) == (0, "")
        assert "is in use and stays" in ended.err
        assert len(pipe("a", num_inference_steps=1, seed=0).images) == 1
        path = pipe.engines.path
        pipe.engines.lease.release()
    # Control: once unused, it is removed.
    assert sdrt("store", "gc", "--unused-days", 0, "--store", "store").out == f"{path.relative_to(tmp_path)}\n"
    assert store.entries() == ()
