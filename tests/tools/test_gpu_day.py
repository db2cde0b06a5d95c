"""Each part of a GPU day on the doubles of CUDA and TensorRT, and with a planted fault; the day around them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import AttentionLayer, BackendName, EngineSet, LayerList
from sdrt.artefacts.store import Store
from sdrt.errors import BackendUnavailableError
from sdrt.libraries.cuda import Cuda
from sdrt.libraries.tensorrt_log import Messages, listen
from sdrt.machine import nvidia
from tests.doubles.cuda_double.plans import COMPONENTS, double_set
from tests.doubles.cuda_double.trt import TensorRtDouble
from tests.models.tiny_bundle import tiny_bundle as write_bundle
from tools.gpu_day import __main__ as command
from tools.gpu_day import day, part_plans, torch_graph
from tools.gpu_day.findings import Findings, Report, Skipped, read_report
from tools.gpu_day.half_double import DoubleDevice
from tools.gpu_day.stopwatch import Stopwatch
from tools.gpu_day.workbench import Workbench

GPU = nvidia.Gpu("NVIDIA GeForce RTX 3090", "sm86", 24 << 30)

#: Memory of the device; more takes time to fill.
MEMORY_BYTES = 32 << 20
SMALL_UNET = {"sample_size": 8, "in_channels": 4, "cross_attention_dim": 8}


class SmallUnet(torch.nn.Module):
    """Stands in for diffusers' UNet, which takes seconds to import and longer to run in fp16 on a CPU."""

    def __init__(self, config: dict[str, int]) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(config["in_channels"], config["in_channels"], 3)

    @classmethod
    def from_config(cls, config: dict[str, int]) -> SmallUnet:
        return cls(config)

    def forward(self, sample: torch.Tensor, timestep: Any, states: torch.Tensor, *, return_dict: bool) -> Any:
        assert sample.dtype == states.dtype == torch.float16
        return (self.layer(sample),)


class SlipperyDevice(DoubleDevice):
    """Launches graphs without their last piece of work."""

    def cudaGraphLaunch(self, graphExec: int, stream: Any) -> Any:
        work = self._execs[graphExec]
        self._execs[graphExec] = work[:-1]
        try:
            return super().cudaGraphLaunch(graphExec, stream)
        finally:
            self._execs[graphExec] = work


@dataclass(frozen=True)
class DoubleBench(Workbench):
    """A workbench on the doubles, with bundles and plans of hand-written graphs."""

    made: Bundle | None = None
    plans: EngineSet | None = None
    api: DoubleDevice = field(default_factory=lambda: DoubleDevice(MEMORY_BYTES))
    watch: Stopwatch = field(default=Stopwatch("cpu", repeats=1, warm_up=1))

    def device(self, cuda: Cuda) -> Any:
        return cuda.api

    def break_device(self, cuda: Cuda) -> str:
        self.api.break_device("cudaErrorIllegalAddress")
        return "an illegal address"

    def backend(self) -> BackendName:
        return "tensorrt"

    def library(self, backend: BackendName) -> Any:
        return TensorRtDouble(self.api)

    def bundle(self, checkpoint: str | None = None) -> Bundle:
        assert self.made is not None
        return self.made

    def engines(self, backend: BackendName, recipe: str = "", checkpoint: str | None = None) -> EngineSet:
        assert self.plans is not None
        return self.plans

    def stopwatch(self) -> Stopwatch:
        return self.watch


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Write the UNet and its step in fp16."""
    folder = tmp_path_factory.mktemp("day") / "bundle"
    made = write_bundle(folder, precision="fp16", components=("text_encoder", "unet", "denoise_step"))
    # Enough work that it cannot take no time.
    components = {name: part.model_copy(update={"flops": 1000}) for name, part in made.manifest.components.items()}
    return replace(made, manifest=made.manifest.model_copy(update={"components": components}))


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> EngineSet:
    """Write the double's plans of every component."""
    folder = tmp_path_factory.mktemp("plans")
    return double_set(write_bundle(folder / "bundle"), folder / "set", components=COMPONENTS)


@pytest.fixture
def bench(tmp_path: Path, halved: Bundle, carried: EngineSet, monkeypatch: pytest.MonkeyPatch) -> DoubleBench:
    monkeypatch.setattr(nvidia, "driver", lambda: nvidia.Driver("580.65.06", "13.0", (GPU,)))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/model_index.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "diffusers", SimpleNamespace(UNet2DConditionModel=SmallUnet))
    (tmp_path / "unet.json").write_text(json.dumps(SMALL_UNET))
    made = DoubleBench(
        out=tmp_path,
        store=Store(tmp_path / "store"),
        made=halved,
        plans=carried,
        kernels_on="cpu",
        full_size=tmp_path / "full",
        steps=3,
        calls=20,
        pictures=(1, 3),
        matrix=256,
        copied_bytes=1 << 16,
        unet_config=tmp_path / "unet.json",
        tests=(sys.executable, "-c", "print('3 passed, 1 skipped in 0.01s')"),
    )
    return on(made, made.api, monkeypatch)


def on(bench: DoubleBench, api: DoubleDevice, monkeypatch: pytest.MonkeyPatch) -> DoubleBench:
    """Return the bench with another device, which pipelines open too."""
    monkeypatch.setattr("sdrt.runtime.backends.tensorrt.libraries", lambda _: (TensorRtDouble(api), Cuda(api)))
    monkeypatch.setattr("sdrt.runtime.backends.opening.check_host", lambda _: None)
    return replace(bench, api=api, open_cuda=lambda: Cuda(api))


class Maker:
    """A builder that logs a line and returns plans with attentions, fused or not."""

    fused = True

    def recipe(self, requested: Any, pictures: Any) -> Any:
        return requested

    def components(self, held: frozenset[str]) -> list[str]:
        return sorted(held)

    def component_precision(self, *given: Any) -> str:
        return "fp16"

    def options(self, name: str) -> dict[str, str]:
        return {}

    def build(self, job: Any) -> Any:
        library: Any = TensorRtDouble
        listen(library, Messages()).log(
            library.ILogger.Severity.VERBOSE, f"Skipping tactic: insufficient memory: {job.component}"
        )
        shape = {"heads": 2, "queries": 16, "keys": 16, "head_size": 8}
        attention = AttentionLayer(name="attn", precision="fp16", fused=self.fused, **shape)
        layers = LayerList(kinds={}, attentions=(attention,))
        return SimpleNamespace(seconds=1.0, size_bytes=10, layers=layers)


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> Maker:
    made = Maker()
    monkeypatch.setattr(part_plans, "builder", lambda backend: made)
    return made


@pytest.fixture
def plans_run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make plans run here, except for the part that checks whether they do."""
    if "inventory" not in request.node.name:
        monkeypatch.setattr("sdrt.runtime.backends.opening.available", lambda _: None)


def run(name: str, bench: Workbench) -> Report:
    """Return a part's report, including raised errors."""
    try:
        return day.run_here(day.part_named(name), bench)
    except Exception:
        report = read_report(bench.out, name)
        assert report is not None
        return report


@pytest.mark.usefixtures("plans_run")
@pytest.mark.parametrize("part", day.PARTS, ids=lambda part: part.name)
def test_a_part_runs_on_the_doubles(part: day.Part, bench: DoubleBench, maker: Maker) -> None:
    report = run(part.name, bench)
    wrong = [check for check in report.checks if not check.good]
    assert (report.state, report.reason, wrong) == ("done", "", [])
    assert report.facts
    told = read_report(bench.out, part.name)
    assert told is not None
    assert told.model_dump(mode="json") == report.model_dump(mode="json")


class _Slow(Stopwatch):
    """Takes no time for captured work, as if the capture held nothing."""

    def captured_ms(self, work: Callable[[], object]) -> float:
        return 1e-9


def _another_gpu(bench: DoubleBench, monkeypatch: pytest.MonkeyPatch) -> DoubleBench:
    other = nvidia.Driver("580.65.06", "13.0", (replace(GPU, architecture="sm90"),))
    monkeypatch.setattr(nvidia, "driver", lambda: other)
    return bench


def _slippery(bench: DoubleBench, monkeypatch: pytest.MonkeyPatch) -> DoubleBench:
    return on(bench, SlipperyDevice(MEMORY_BYTES), monkeypatch)


def _unfused(bench: DoubleBench, monkeypatch: pytest.MonkeyPatch) -> DoubleBench:
    monkeypatch.setattr(Maker, "fused", False)
    return bench


def _overflowing(bench: DoubleBench, monkeypatch: pytest.MonkeyPatch) -> DoubleBench:
    conv = torch_graph.OPERATORS["Conv"]
    monkeypatch.setitem(torch_graph.OPERATORS, "Conv", lambda node, given: conv(node, given) * 3e4)
    return bench


def _failing_tests(bench: DoubleBench, monkeypatch: pytest.MonkeyPatch) -> DoubleBench:
    return replace(bench, tests=(sys.executable, "-c", "print('1 failed in 0.01s'); raise SystemExit(1)"))


def _lost(bench: DoubleBench, monkeypatch: pytest.MonkeyPatch) -> DoubleBench:
    return on(bench, DoubleDevice(MEMORY_BYTES, fails={("cudaGraphLaunch", 2): "cudaErrorLaunchFailure"}), monkeypatch)


def _too_fast(bench: DoubleBench, monkeypatch: pytest.MonkeyPatch) -> DoubleBench:
    return replace(bench, watch=_Slow("cpu", repeats=1, warm_up=1))


def _unbroken(bench: DoubleBench, monkeypatch: pytest.MonkeyPatch) -> DoubleBench:
    monkeypatch.setattr(DoubleBench, "break_device", lambda self, cuda: "nothing")
    return bench


FAULTS: dict[str, tuple[Any, str]] = {
    "inventory": (_another_gpu, "doctor's first GPU is CUDA's"),
    "cuda": (_slippery, "a graph does what was captured"),
    "plans": (_unfused, "unet: its attentions are fused"),
    "pictures": (_slippery, "graphs change nothing"),
    "loop": (_slippery, "1 pictures: graphs change nothing"),
    "tests": (_failing_tests, "no test fails"),
    "numbers": (_overflowing, "unet out_sample, batch 1: relative L2"),
    "full-size": (_lost, "BackendUnavailableError"),
    "speed": (_too_fast, "unet, 1 pictures: within the ceiling"),
    "lost": (_unbroken, "a lost device is reported as one"),
}


@pytest.mark.usefixtures("plans_run")
@pytest.mark.parametrize("name", FAULTS)
def test_a_part_finds_a_planted_fault(
    name: str, bench: DoubleBench, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, found = FAULTS[name]
    report = run(name, plant(bench, monkeypatch))
    assert report.state == "failed"
    assert found in [*(check.name for check in report.checks if not check.good), report.reason.partition(":")[0]]


def test_every_part_has_a_planted_fault() -> None:
    assert [part.name for part in day.PARTS] == [*FAULTS]


def test_the_verbose_log_is_kept_and_the_logger_is_as_before(bench: DoubleBench, maker: Maker) -> None:
    kind: Any = type(listen(TensorRtDouble, Messages()))
    before = kind.log
    report = run("plans", bench)
    assert "Skipping tactic: insufficient memory: unet" in (bench.out / part_plans.VERBOSE_LOG).read_text()
    assert report.facts["log: insufficient memory"][0] == len(bench.bundle().manifest.components)
    assert kind.log is before


def test_what_is_not_installed_is_skipped_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise BackendUnavailableError("it is not installed", hint="install it")

    monkeypatch.setattr("tools.gpu_day.workbench.available", missing)
    bench = Workbench(out=tmp_path, store=Store(tmp_path / "store"), open_cuda=missing)  # type: ignore[arg-type]
    for name in ("plans", "pictures", "tests", "full-size"):
        report = run(name, bench)
        assert (report.state, report.reason) == (
            "skipped",
            "tensorrt: it is not installed; tensorrt-rtx: it is not installed",
        )
    assert run("cuda", bench).reason == "it is not installed; install it"
    with pytest.raises(Skipped, match="make sd-v1-random"):
        replace(bench, full_size=tmp_path / "none").full_size_bundle()


def part(name: str, limit_s: float = 60) -> day.Part:
    return day.Part(name, ("", ""), limit_s, f"whether {name} <works>")


#: A part's process, without the time that imports take.
SCRIPT = """
import json, os, sys, time
name = sys.argv[1]
check = {{"name": "it holds", "good": name != "wrong", "detail": "<detail>"}}
report = {{"part": name, "state": "running", "facts": {{"seen <b>": name}}, "checks": [check]}}
def write():
    with open({out!r} + "/" + name + ".json", "w") as file: json.dump(report, file)
write()
if name == "dies": os.abort()
if name == "hangs": time.sleep(600)
report["state"] = "done" if check["good"] else "failed"
write()
"""


def test_the_day_goes_on_after_each_end_and_shows_all(tmp_path: Path) -> None:
    parts = [part("good"), part("wrong"), part("dies"), part("hangs", limit_s=2), part("last")]
    command = [sys.executable, "-S", "-c", SCRIPT.format(out=str(tmp_path))]
    reports = day.run_day(parts, tmp_path, command)
    states = {report.part: report.state for report in reports}
    assert states == {"good": "done", "wrong": "failed", "dies": "died", "hangs": "timed out", "last": "done"}
    assert all(report.facts == {"seen <b>": report.part} for report in reports)
    told = json.loads((tmp_path / day.SUMMARY).read_text())
    assert [entry["state"] for entry in told["parts"]] == [*states.values()]
    assert told["ahead"] == []
    page = (tmp_path / day.PAGE).read_text()
    assert all(text in page for text in (*states.values(), "whether last &lt;works&gt;", "&lt;detail&gt;"))
    assert "<b>" not in page


def test_the_page_is_there_after_the_first_part(tmp_path: Path) -> None:
    Findings(tmp_path, "one").close()
    report = read_report(tmp_path, "one")
    assert report is not None
    day.show([part("one"), part("two")], [report], tmp_path)
    assert json.loads((tmp_path / day.SUMMARY).read_text())["ahead"] == ["two"]
    assert "ahead" in (tmp_path / day.PAGE).read_text()


def test_without_a_gpu_the_command_says_what_it_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvidia, "DRIVER_LIBRARY", "libcuda-of-nobody.so.1")
    assert command.main(["--out", str(tmp_path / "out")]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert "gpu-day needs an NVIDIA GPU and its driver" in line
    assert "libcuda-of-nobody.so.1 is missing" in line
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(nvidia, "driver", lambda: nvidia.Driver("580.65.06", "13.0", ()))
    assert command.main([]) == 4
    assert "finds no GPU" in capsys.readouterr().err


def test_the_command_runs_the_parts_that_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def run_day(parts: Any, out: Path, command: Any) -> list[Report]:
        asked.append(([part.name for part in parts], command[1:3]))
        return [Report(part="loop", state="failed")]

    monkeypatch.setattr(nvidia, "driver", lambda: nvidia.Driver("580.65.06", "13.0", (GPU,)))
    monkeypatch.setattr(command, "run_day", run_day)
    assert command.main(["loop", "cuda", "--out", str(tmp_path)]) == 5
    assert asked == [(["loop", "cuda"], ["-m", "tools.gpu_day.day"])]
    with pytest.raises(SystemExit, match="2"):
        command.main(["lop"])


def test_a_part_runs_by_its_own_command(tmp_path: Path) -> None:
    """Run it without a GPU: the part reports why it is skipped, and its process ends with success."""
    words = [sys.executable, "-m", "tools.gpu_day.day", str(tmp_path), str(tmp_path / "store"), "demo", "none"]
    report = day.run_apart(day.part_named("cuda"), tmp_path, words)
    assert report.state in ("skipped", "done")
