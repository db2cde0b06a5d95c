from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import BackendName, BatchRange, EngineSet
from sdrt.artefacts.manifest import ComponentName
from sdrt.artefacts.store import Store
from sdrt.engines import build_processes
from sdrt.engines.build import build, build_to, find
from sdrt.engines.request import BuildRequest
from sdrt.errors import BundleError, EngineError, TrustError, UsageError
from sdrt.machine import nvidia
from sdrt.progress import silent
from sdrt.runtime.backends.opening import open_engine
from tests.doubles.progress import Notes
from tests.models.tiny_bundle import feeds, tiny_bundle

DECODER = BuildRequest("onnxruntime", components=("vae_decoder",))


def in_store(store: Store, place: str) -> list[Path]:
    return sorted(store.root.glob(place))


def test_what_was_built_is_found_again(hand_made: Bundle, own_store: Store, compiled: list[ComponentName]) -> None:
    assert find(hand_made, DECODER, own_store) is None
    assert not own_store.root.exists()
    first = build(hand_made, DECODER, own_store, silent)
    second = build(hand_made, DECODER, own_store, silent)
    found = find(hand_made, DECODER, own_store)
    assert found is not None
    assert first.digest == second.digest == found.digest
    assert compiled == ["vae_decoder"]


def test_the_manifest_says_what_was_built_from_what(
    hand_made: Bundle, own_store: Store, compiled: list[ComponentName]
) -> None:
    engines = build(hand_made, BuildRequest("onnxruntime"), own_store, silent)
    manifest = engines.manifest
    assert engines.path == own_store.engines_path("onnxruntime", manifest.key)
    assert manifest.bundle_digest == hand_made.digest
    assert manifest.checkpoint == hand_made.manifest.checkpoint
    assert manifest.model == hand_made.manifest.model
    assert set(manifest.components) == {"text_encoder", "unet", "vae_encoder", "vae_decoder"}
    assert manifest.components["unet"].inputs == hand_made.manifest.components["unet"].inputs
    assert all(component.size_bytes > 0 for component in manifest.components.values())
    assert engines.tokenizer.read_bytes() == (hand_made.path / "tokenizer/tokenizer.json").read_bytes()
    assert engines.scheduler.read_bytes() == (hand_made.path / "scheduler/scheduler_config.json").read_bytes()


@pytest.mark.parametrize(("backend", "at_once"), [("tensorrt", 1), ("tensorrt-rtx", 7), ("onnxruntime", 7)])
def test_nothing_is_built_beside_what_is_timed_on_the_gpu(
    hand_made: Bundle, own_store: Store, monkeypatch: pytest.MonkeyPatch, backend: BackendName, at_once: int
) -> None:
    here = nvidia.Driver("580.65.06", "13.0", (nvidia.Gpu("RTX 4090", "sm89", 24 << 30),))
    monkeypatch.setattr(nvidia, "driver", lambda: here)
    monkeypatch.setattr("sdrt.engines.builders.tensorrt.installed_version", lambda _: "10.16.0")
    monkeypatch.setattr("sdrt.engines.build.usable_cpus", lambda: 7)
    asked: list[int] = []

    def build_all(jobs: object, progress: object, memory_bytes: int | None, at_once: int) -> NoReturn:
        asked.append(at_once)
        raise EngineError("enough", hint="none")

    monkeypatch.setattr(build_processes, "build_all", build_all)
    with pytest.raises(EngineError, match="enough"):
        build(hand_made, BuildRequest(backend), own_store, silent)
    assert asked == [at_once]


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove", "swap"])
def test_a_spoiled_set_is_quarantined_and_built_once_more(
    hand_made: Bundle,
    own_store: Store,
    compiled: list[ComponentName],
    damage: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = build(hand_made, DECODER, own_store, silent)
    graph = built.path / built.component("vae_decoder").file
    whole = graph.read_bytes()
    spoiled = {"flip": whole[:-1] + bytes([whole[-1] ^ 1]), "truncate": whole[:-1], "empty": b"", "swap": b"\x08" * 99}
    graph.unlink()
    if damage in spoiled:
        graph.write_bytes(spoiled[damage])
    opened: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr("onnxruntime.InferenceSession.__init__", lambda *args, **_: opened.append(args[1]))
        assert find(hand_made, DECODER, own_store) is None
    assert opened == []
    notes = Notes()
    rebuilt = build(hand_made, DECODER, own_store, notes)
    assert (rebuilt.path / rebuilt.component("vae_decoder").file).read_bytes() == whole
    assert compiled == ["vae_decoder"] * 2
    [aside] = in_store(own_store, "quarantine/*/*")
    assert [note for note in notes.notes if f"moved to {aside}" in note and str(graph) in note]
    assert (aside / "manifest.json").exists()


def test_a_build_that_fails_leaves_nothing(
    hand_made: Bundle, own_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (KeyboardInterrupt(), EngineError("no", hint="")):

        def fail(*_: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(build_processes, "build_all", fail)
        with pytest.raises(type(error)):
            build(hand_made, DECODER, own_store, silent)
        assert in_store(own_store, "engines/*/*") == in_store(own_store, "staging/*") == []
        with pytest.raises(type(error)):
            build_to(hand_made, DECODER, own_store.root.parent / "out", silent)
        assert sorted(own_store.root.parent.iterdir()) == [own_store.root]


def test_weights_that_are_not_the_bundles_are_never_compiled(
    tmp_path: Path, own_store: Store, compiled: list[ComponentName]
) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    weights = bundle.path / "vae_decoder/model.onnx.data"
    weights.write_bytes(b"\1" * weights.stat().st_size)
    with pytest.raises(TrustError, match=r"model\.onnx\.data does not match its digest"):
        build(bundle, DECODER, own_store, silent)
    assert compiled == []
    assert in_store(own_store, "engines/*/*") == []


def test_a_bundle_without_a_tokenizer_is_refused(
    tmp_path: Path, own_store: Store, compiled: list[ComponentName]
) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    bundle.manifest.files.pop("tokenizer/tokenizer.json")
    with pytest.raises(BundleError, match=r"holds no tokenizer/tokenizer\.json"):
        build(bundle, DECODER, own_store, silent)


def test_a_carried_set_runs_without_its_bundle_when_vouched_for(tmp_path: Path, compiled: list[ComponentName]) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    digest = build_to(bundle, DECODER, tmp_path / "out", silent).digest
    (tmp_path / "out").rename(tmp_path / "carried")
    shutil.rmtree(bundle.path)
    with pytest.raises(TrustError, match="trusted by its digest"):
        EngineSet.open(tmp_path / "carried")
    with open_engine(EngineSet.open(tmp_path / "carried", trust=digest), "vae_decoder") as decoder:
        assert np.isfinite(decoder.run(**feeds("vae_decoder", 2))["sample"]).all()


def test_an_engine_keeps_to_the_pictures_it_was_built_for(
    hand_made: Bundle, own_store: Store, compiled: list[ComponentName]
) -> None:
    request = BuildRequest("onnxruntime", components=("unet",), batch=BatchRange(min=1, opt=1, max=2))
    with open_engine(build(hand_made, request, own_store, silent), "unet") as unet:
        assert unet.run(**feeds("unet", 4))["out_sample"].shape == (4, 4, 8, 8)
        with pytest.raises(UsageError, match="unet was built for batches of 1 to 4; got 5"):
            unet.run(**feeds("unet", 5))


def test_locks_that_always_succeed_do_not_corrupt(
    hand_made: Bundle, own_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    together = threading.Barrier(2)
    real = build_processes.build_all
    errors: list[BaseException] = []

    def side_by_side(*args: object) -> object:
        together.wait(20)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(build_processes, "build_all", side_by_side)

    def build_one() -> None:
        try:
            build(hand_made, DECODER, own_store, silent)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=build_one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert list(own_store.verify().values()) == [None]


BUILD_SCRIPT = """
import sys
from pathlib import Path
from sdrt.artefacts.bundle import Bundle
from sdrt.engines.build import build
from sdrt.engines.request import BuildRequest
from sdrt.artefacts.store import Store
from sdrt.progress import Lines
print("ready", flush=True)
sys.stdin.readline()
request = BuildRequest("onnxruntime", components=("vae_decoder",))
print(build(Bundle.open(Path(sys.argv[1])), request, Store(Path(sys.argv[2])), Lines()).digest)
"""


def start_building(bundle: Bundle, store: Store) -> subprocess.Popen[str]:
    """Start a process that builds once a line is written to it."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD_SCRIPT, str(bundle.path), str(store.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("count", [3, pytest.param(8, marks=pytest.mark.long)])
def test_processes_that_want_one_set_build_it_once(hand_made: Bundle, own_store: Store, count: int) -> None:
    processes = [start_building(hand_made, own_store) for _ in range(count)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * count
    assert len({out for out, _ in told}) == 1
    assert sum("onnxruntime vae_decoder" in err for _, err in told) == 1
    assert len(in_store(own_store, "engines/*/*")) == 1
    assert in_store(own_store, "staging/*") == in_store(own_store, "quarantine/*") == []


def test_after_a_kill_the_next_build_is_right_and_clean(hand_made: Bundle, own_store: Store) -> None:
    process = start_building(hand_made, own_store)
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    while "onnxruntime vae_decoder" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert in_store(own_store, "engines/*/*") == []
    assert len(in_store(own_store, "staging/*")) == 1
    build(hand_made, DECODER, own_store, silent)
    assert list(own_store.verify().values()) == [None]
    assert in_store(own_store, "staging/*") == in_store(own_store, "locks/*.holder") == []
