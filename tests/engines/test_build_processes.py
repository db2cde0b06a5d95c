from __future__ import annotations

import os
import selectors
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import ComponentName
from sdrt.engines import build_processes
from sdrt.engines.build_worker import Failure, do
from sdrt.engines.builders import ComponentJob
from sdrt.errors import EngineError, ResourceError
from sdrt.progress import silent
from tests.doubles.progress import Notes
from tests.helpers.jobs import job, without_weights

ALL: tuple[ComponentName, ...] = ("vae_decoder", "vae_encoder", "unet", "text_encoder")


@pytest.fixture
def shadow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that shadows the worker's onnxruntime by a module that runs the given code."""

    def put(code: str) -> None:
        (tmp_path / "shadow").mkdir()
        (tmp_path / "shadow/onnxruntime.py").write_text(code)
        monkeypatch.setattr(sys, "path", [str(tmp_path / "shadow"), *sys.path])

    return put


def test_components_come_back_in_the_order_asked_for(hand_made: Bundle, tmp_path: Path) -> None:
    notes = Notes()
    jobs = [job(hand_made, name, tmp_path) for name in ALL]
    built = build_processes.build_all(jobs, notes, None, 2)
    assert tuple(built) == ALL
    assert all((tmp_path / component.file).exists() for component in built.values())
    assert sorted(notes.stages) == sorted(f"onnxruntime {name} fp32" for name in ALL)


def test_two_at_a_time(hand_made: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_processes, "SMALL_BYTES", 0)
    jobs = [job(hand_made, name, tmp_path) for name in ALL]
    assert set(build_processes.build_all(jobs, silent, None, 2)) == set(ALL)


def test_a_graph_that_does_not_compile_is_named(hand_made: Bundle, tmp_path: Path) -> None:
    (tmp_path / "noise.onnx").write_bytes(bytes(range(256)))
    noise = job(hand_made, "unet", tmp_path, graph=tmp_path / "noise.onnx", spec=without_weights(hand_made, "unet"))
    with pytest.raises(EngineError, match=r"onnxruntime cannot compile .*noise\.onnx") as refused:
        build_processes.build_all([noise], silent, None, 1)
    assert refused.value.hint


def test_a_compiler_that_is_killed_wanted_memory(
    hand_made: Bundle, tmp_path: Path, shadow: Callable[[str], None]
) -> None:
    shadow("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(ResourceError, match="the process that compiled unet was killed"):
        build_processes.build_all([job(hand_made, "unet", tmp_path)], silent, None, 1)


def test_a_compiler_that_crashes_is_quoted(hand_made: Bundle, tmp_path: Path, shadow: Callable[[str], None]) -> None:
    shadow("import os, sys; print('mind the gap'); sys.stdout.flush(); os.abort()")
    with pytest.raises(EngineError, match="unet died of signal 6; its last output: mind the gap"):
        build_processes.build_all([job(hand_made, "unet", tmp_path)], silent, None, 1)


def test_a_compiler_that_dies_is_missed_though_a_child_keeps_its_pipe(
    hand_made: Bundle, tmp_path: Path, shadow: Callable[[str], None]
) -> None:
    shadow("import os, time\nif os.fork() == 0:\n    time.sleep(60)\nos._exit(3)")
    with pytest.raises(EngineError, match="unet ended with code 3"):
        build_processes.build_all([job(hand_made, "unet", tmp_path)], silent, None, 1)


def test_an_interrupted_build_ends_its_compilers(
    hand_made: Bundle, tmp_path: Path, shadow: Callable[[str], None]
) -> None:
    shadow(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "print('compiling', flush=True)\ntime.sleep(60)"
    )

    class InterruptedSelector(selectors.DefaultSelector):
        def select(self, timeout: float | None = None) -> Any:
            while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
                pass
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selectors, "DefaultSelector", InterruptedSelector)
        with pytest.raises(KeyboardInterrupt):
            build_processes.build_all([job(hand_made, "unet", tmp_path)], silent, None, 1)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


class FakeLane:
    """A lane that only records its job."""

    def __init__(self) -> None:
        self.job: ComponentJob | None = None

    def give(self, job: ComponentJob, progress: object) -> None:
        self.job = job


def hand_out(jobs: list[ComponentJob], memory_bytes: int | None) -> list[ComponentName | None]:
    """Return the component given to each of two lanes."""
    two: list[Any] = [FakeLane(), FakeLane()]
    build_processes._hand_out(sorted(jobs, key=build_processes.memory_needed, reverse=True), two, silent, memory_bytes)
    return [lane.job.component if lane.job else None for lane in two]


def test_memory_bounds_what_is_compiled_at_once(hand_made: Bundle, tmp_path: Path) -> None:
    jobs = [job(hand_made, name, tmp_path) for name in ALL]
    needed = sorted(map(build_processes.memory_needed, jobs), reverse=True)
    enough = int((needed[0] + needed[1]) / build_processes.MEMORY_SHARE) + 1
    large, second = sorted(jobs, key=build_processes.memory_needed, reverse=True)[:2]
    assert hand_out(jobs, None) == [large.component, second.component]
    assert hand_out(jobs, enough) == [large.component, second.component]
    # Memory for one only: the second lane waits. Memory for none: one is tried nevertheless.
    assert hand_out(jobs, needed[0] + 1) == [large.component, None]
    assert hand_out(jobs, 1) == [large.component, None]


def test_a_worker_answers_with_our_errors(hand_made: Bundle, tmp_path: Path) -> None:
    (tmp_path / "noise.onnx").write_bytes(b"noise")
    noise = job(hand_made, "unet", tmp_path, graph=tmp_path / "noise.onnx", spec=without_weights(hand_made, "unet"))
    answer = do(noise)
    assert isinstance(answer, Failure)
    assert answer.kind == "EngineError"
