"""The process that reads graphs: its limits apply, its end is reported, and its findings come back as sdrt's errors."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from sdrt.artefacts.bundle import Bundle
from sdrt.errors import BundleError, ResourceError, TrustError
from sdrt.graphs import child, validate
from sdrt.graphs.structure import HINT
from sdrt.graphs.validate import Limits, validate_bundle, validate_graph, validate_once
from tests.graphs.models import external, write
from tests.models.tiny_bundle import tiny_bundle

#: Stand-ins for the process: each shows one way in which a parser may end it.
ENDS = {
    "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)": "died of signal 11",
    "import os; os._exit(7)": "ended with code 7; its last output: nothing",
    "raise RuntimeError('the parser broke')": "its last output: RuntimeError: the parser broke",
    "raise MemoryError": "it needs more than 256 MiB of memory",
    "while True: pass": "it took more than 1 s of processor time",
    "bytearray(1 << 30)": "it needs more than 256 MiB of memory",
    "pass": "ended with code 0",
    "print('null', flush=True); raise SystemExit(3)": "ended with code 3",
    "import time; time.sleep(600)": "it took more than 0.5 s",
}
STAND_IN = """
import json, sys
from sdrt.graphs.child import limit
job = json.loads(sys.stdin.buffer.read())
limit(job["memory_bytes"], job["cpu_s"])
{code}
"""


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path / "bundle")


@pytest.mark.parametrize(("code", "told"), ENDS.items(), ids=lambda value: value[:24])
def test_however_it_ends_the_graph_is_refused(
    code: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stand_in.py").write_text(STAND_IN.format(code=code))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(validate, "MODULE", "stand_in")
    path = write(tmp_path / "graph")
    wall_s = 0.5 if "sleep" in code else 120
    with pytest.raises(BundleError) as caught:
        validate_graph(path, Limits(memory_bytes=256 << 20, cpu_s=1, wall_s=wall_s))
    assert told in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("answer", ["{}", "nonsense", "[1]", '{"kind": "SdrtError", "message": "", "hint": ""}'])
def test_an_answer_that_is_none_is_a_refusal(answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stand_in.py").write_text(f"print({answer!r})")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(validate, "MODULE", "stand_in")
    with pytest.raises(BundleError, match="gave a malformed answer"):
        validate_graph(write(tmp_path / "graph"))


def test_where_nothing_can_be_answered_the_disk_is_blamed_not_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "graph")
    with Path("/dev/full").open("w+b", buffering=0) as full:
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda: full)
        with pytest.raises(ResourceError, match="the disk is full") as caught:
            validate_graph(path)
    assert "TMPDIR" in caught.value.hint


def test_sound_graphs_pass_and_what_the_child_finds_comes_back(tmp_path: Path) -> None:
    validate_graph(write(tmp_path / "sound"))
    with pytest.raises(TrustError, match="is not a path inside"):
        validate_graph(write(tmp_path / "leaves", external(location="../model.onnx.data")))
    with pytest.raises(BundleError, match="is missing"):
        validate_graph(tmp_path / "absent.onnx")


def test_a_bundle_is_validated_once(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[list[str]] = []
    real = subprocess.run

    def counted(words: list[str], **options: object) -> object:
        runs.append(words)
        return real(words, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", counted)
    for component in bundle.manifest.components:
        assert bundle.graph(component).is_file()
    assert len(runs) == 1
    validate_once(bundle)
    assert len(runs) == 1
    validate_bundle(bundle)
    assert len(runs) == 2


def test_so_many_validated_bundles_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(validate, "_validated", set())
    monkeypatch.setattr(validate, "REMEMBERED_BUNDLES", 2)
    monkeypatch.setattr(validate, "validate_bundle", lambda bundle: seen.append(bundle.digest))
    for digest in ("a", "a", "b", "c", "c", "a"):
        validate_once(SimpleNamespace(path=tmp_path, digest=digest))  # type: ignore[arg-type]
        assert len(validate._validated) <= 2
    assert seen == ["a", "b", "c", "a"]


def test_every_graph_of_a_bundle_is_held_against_its_manifest(bundle: Bundle) -> None:
    # The bundle was opened before, so the child sees the changed file.
    graphs = [bundle.path / component.graph for component in bundle.manifest.components.values()]
    data = graphs[-1].read_bytes()
    graphs[-1].write_bytes(graphs[0].read_bytes())
    with pytest.raises(BundleError) as caught:
        validate_bundle(bundle)
    assert str(graphs[-1]) in caught.value.message
    graphs[-1].write_bytes(data)
    validate_bundle(bundle)


def test_weights_in_another_folder_are_refused(bundle: Bundle) -> None:
    moved = bundle.manifest.components["unet"].model_copy(update={"weights": "vae_decoder/model.onnx.data"})
    manifest = bundle.manifest.model_copy(update={"components": {"unet": moved}})
    with pytest.raises(BundleError, match="in another folder"):
        validate_bundle(Bundle(bundle.path, manifest, bundle.digest))


def test_the_child_limits_itself_within_what_it_was_given() -> None:
    code = (
        "import resource; from sdrt.graphs.child import limit\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (5, 50)); limit(1 << 30, 60)\n"
        "print(resource.getrlimit(resource.RLIMIT_AS)[0], *resource.getrlimit(resource.RLIMIT_CPU))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == [str(1 << 30), "50", "50"]


def test_the_child_answers_in_lines(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "good"), write(tmp_path / "bad", external(length="63"))
    job = {
        "graphs": [{"path": str(path), "expected": None} for path in (good, bad, good)],
        "memory_bytes": 2 << 30,
        "cpu_s": 60,
    }
    words = [sys.executable, "-m", validate.MODULE]
    ended = subprocess.run(words, input=json.dumps(job), capture_output=True, text=True, check=True)
    first, second = map(json.loads, ended.stdout.splitlines())
    assert first is None
    assert (second["kind"], second["hint"]) == ("BundleError", HINT)
    assert "63 bytes where its shape takes 64" in second["message"]


def test_without_onnx_our_own_checks_remain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert child.answer_for(write(tmp_path / "good"), None) is None
    answer = child.answer_for(write(tmp_path / "bad", external(location="/etc/passwd")), None)
    assert answer is not None
    assert answer["kind"] == "TrustError"


def test_this_process_keeps_its_own_limits(tmp_path: Path) -> None:
    before = [resource.getrlimit(what) for what in (resource.RLIMIT_AS, resource.RLIMIT_CPU)]
    validate_graph(write(tmp_path))
    assert [resource.getrlimit(what) for what in (resource.RLIMIT_AS, resource.RLIMIT_CPU)] == before
