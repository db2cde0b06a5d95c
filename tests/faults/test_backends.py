"""Rows 65 to 72 of the fault matrix: missing libraries and drivers, memory, signals, processors."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import EngineSet
from sdrt.artefacts.store import Store
from sdrt.engines import build_processes
from sdrt.engines.build import build
from sdrt.engines.request import BuildRequest
from sdrt.errors import BackendUnavailableError, ResourceError
from sdrt.install_lines import extra_line
from sdrt.progress import silent
from sdrt.runtime.backends import registry
from sdrt.runtime.backends.opening import open_engine
from tests.command_line import CommandLine, Ended
from tests.doubles.cuda_double.plans import double_set
from tests.doubles.cuda_double.rig import Rig
from tests.doubles.cuda_double.runtime import CudaDouble
from tests.doubles.nvidia_driver import Driver
from tests.faults.killer import Killer, no_children, tree
from tests.models.tiny_bundle import LATENTS, feeds
from tests.models.tiny_bundle import tiny_bundle as hand_made_bundle

#: Packages that an installation without extras lacks.
LIBRARIES = (
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "cuda",
    "torch",
    "diffusers",
    "transformers",
    "onnx",
)
EXTRAS = {"onnxruntime": "cpu", "openvino": "cpu", "tensorrt": "trt", "tensorrt-rtx": "rtx"}


@pytest.fixture
def draw(sdrt: CommandLine, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Return a function that runs ``sdrt denoise`` on hand-written graphs, without building."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: sdrt("denoise", "--bundle", bundle.path, "--store", "store", "--prompt", "a", *words)


@pytest.mark.parametrize("backend", EXTRAS)
def test_row_65_a_backend_that_is_not_installed_names_its_extra(
    draw: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("sdrt.machine.packages.version", missing)
    monkeypatch.setattr(registry, "_check_nvidia_driver", lambda _: None)
    monkeypatch.setattr(registry, "_check_rtx_gpu", lambda: None)
    ended = draw("--backend", backend)
    assert ended.code == 4
    assert f"{backend} is not installed ({extra_line(EXTRAS[backend])})" in ended.complaint
    assert not (tmp_path / "store").exists()
    automatic = draw()
    assert (automatic.code, "no backend can run here" in automatic.complaint) == (4, True)


def test_row_65_the_help_needs_no_backend() -> None:
    blocker = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {LIBRARIES!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
from sdrt.cli import main
main(sys.argv[1:])
"""
    for words in (["--help"], ["denoise", "--help"], ["build", "--help"], ["store", "list", "--store", "absent"]):
        ended = subprocess.run([sys.executable, "-c", blocker, *words], capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stderr) == (0, "")


# CUDA_ERROR_NO_DEVICE, CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, CUDA_ERROR_INSUFFICIENT_DRIVER, and none of them.
@pytest.mark.parametrize("status", [None, 100, 803, 35, 0])
@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_row_66_a_driver_that_is_absent_or_too_old(
    draw: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, status: int | None
) -> None:
    load = ctypes.CDLL

    def driver(name: str | None, *words: Any, **named: Any) -> Any:
        if name is None or "cuda" not in str(name):
            return load(name, *words, **named)
        if status is None:
            raise OSError(f"{name}: cannot open shared object file")
        return Driver(status, 0)

    monkeypatch.setattr(ctypes, "CDLL", driver)
    with pytest.raises(BackendUnavailableError, match=f"{backend} needs an NVIDIA (driver|GPU)") as refused:
        registry.available(backend)
    assert (refused.value.exit_code, "install NVIDIA's driver" in refused.value.hint) == (4, True)
    # Before anything is exported or built, which TensorRT-RTX could do without a GPU.
    ended = draw("--backend", backend)
    assert (ended.code, f"{backend} needs an NVIDIA" in ended.complaint) == (4, True)
    assert not (tmp_path / "store").exists()
    # Only auto continues without it, with a note.
    chosen, reason = registry.choose_backend()
    assert chosen in ("openvino", "onnxruntime")
    assert f"{backend} needs an NVIDIA" in reason


def test_row_66_auto_is_announced(draw: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdrt.prepare.choice.choose_backend", lambda *_, **__: ("onnxruntime", "the only one here"))
    ended = draw("--no-build")
    assert "backend onnxruntime: the only one here" in ended.err


def opened_in(store: Path) -> EngineSet:
    (folder,) = (store / "engines" / "onnxruntime").iterdir()
    return EngineSet.open(folder, private_root=store)


def test_row_66_another_provider_than_asked_for_is_found(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """See tests/runtime/backends/test_onnxruntime_provider.py for GPU providers, over the same check."""
    engines = opened_in(ready)
    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda _: ["AzureExecutionProvider"])
    with pytest.raises(BackendUnavailableError, match="unet would run on AzureExecutionProvider, not CPU") as refused:
        open_engine(engines, "unet")
    assert refused.value.exit_code == 4


SPARE_MIB = (0, 16, 64, 96, 160, 256, 320)
#: OpenVINO allocates more, so that memory runs out in the UNet only with these.
MORE_MIB: dict[str, tuple[int, ...]] = {"onnxruntime": (), "openvino": (400, 480)}


@pytest.mark.long
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_row_67_want_of_memory_at_any_moment(
    killer: Killer, tiny_engines: Callable[..., EngineSet], store: Store, tmp_path: Path, backend: str
) -> None:
    """Run out of memory in the tokenizer, at loading and opening, in the UNet and in the decoder of 512x512."""
    engines = tiny_engines(backend, "fp32")
    words = ["denoise", "--engines", str(engines.path), "--store", str(store.root), "--prompt", "a", "--steps", "1"]
    words += ["--seed", "1", "--out", "p.png", "--threads", "1"]
    said = []
    for spare in SPARE_MIB + MORE_MIB[backend]:
        ended = killer("tests.faults.actions:starved", spare << 20, words, folder=tmp_path)
        assert (ended.code, "Traceback" in ended.err) == (6, False), (spare, ended.err)
        said.append(ended.err.splitlines()[-1])
        assert "memory" in said[-1]
        assert tree(tmp_path) == ["tmp"]
    assert len(set(said)) >= 3
    assert killer("tests.faults.actions:starved", 4 << 30, words, folder=tmp_path).code == 0


def test_row_67_want_of_memory_before_the_work(killer: Killer, bundle: Bundle, ready: Path, tmp_path: Path) -> None:
    words = ["denoise", "--bundle", str(bundle.path), "--backend", "onnxruntime", "--store", str(ready)]
    words += ["--prompt", "a", "--steps", "1", "--seed", "1", "--out", "p.png", "--no-build"]
    for spare in (0, 16):
        ended = killer("tests.faults.actions:starved", spare << 20, words, folder=tmp_path)
        assert (ended.code, "Traceback" in ended.err) == (6, False), ended.err
        assert "memory" in ended.err.splitlines()[-1]
        assert tree(tmp_path) == ["tmp"]
    assert killer("tests.faults.actions:starved", 4 << 30, words, folder=tmp_path).code == 0


def test_row_68_out_of_gpu_memory_is_an_error_and_a_smaller_batch_runs(tmp_path: Path) -> None:
    """Use the doubles of CUDA and TensorRT."""
    engines = double_set(hand_made_bundle(tmp_path / "bundle"), tmp_path / "double")
    with Rig(engines, CudaDouble(memory_bytes=12000)) as rig:
        with pytest.raises(ResourceError, match=r"\d+ bytes are needed, \d+ of \d+ are free") as refused:
            rig.session.engine("unet").run(**feeds("unet", 4))
        assert (refused.value.exit_code, "fewer pictures" in refused.value.hint) == (6, True)
        assert rig.session.engine("unet").run(**feeds("unet", 1))["out_sample"].shape == (1, *LATENTS)


def test_row_69_a_compiler_that_hangs_ends_with_its_build(killer: Killer, bundle: Bundle, tmp_path: Path) -> None:
    """Interrupt the build: it has no deadline, and Ctrl-C ends it whatever its compiler does."""
    words = ["build", str(bundle.path), "--backend", "onnxruntime", "--components", "vae_decoder", "--store", "store"]
    ended = killer("tests.faults.actions:hung", words, folder=tmp_path, note=2, number=signal.SIGINT)
    assert (ended.code, ended.err.splitlines()[-1]) == (130, "sdrt: interrupted")
    assert "onnxruntime vae_decoder fp32 ..." in ended.err
    assert no_children(tmp_path)
    assert Store(tmp_path / "store").entries() == ()
    assert list((tmp_path / "store" / "staging").iterdir()) == []


def test_row_70_a_compiler_that_dies_is_missed_and_the_next_build_is_right(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill a compiler, sdrt's only kind of worker process."""
    store, request = Store(tmp_path / "store"), BuildRequest("onnxruntime", components=("vae_decoder",))
    (tmp_path / "shadow").mkdir()
    (tmp_path / "shadow" / "onnxruntime.py").write_text("import os; os.kill(os.getpid(), 9)")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [str(tmp_path / "shadow"), *sys.path])
        with pytest.raises(ResourceError, match="the process that compiled vae_decoder was killed"):
            build(bundle, request, store, silent)
    assert store.entries() == ()
    assert list((store.root / "staging").iterdir()) == []
    assert build(bundle, request, store, silent).component("vae_decoder").size_bytes > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_row_71_a_signal_at_any_file_operation_of_a_denoise(
    killer: Killer, bundle: Bundle, ready: Path, tmp_path: Path, number: signal.Signals
) -> None:
    words: list[str | Path] = ["denoise", "--bundle", bundle.path, "--backend", "onnxruntime", "--store", ready]
    words += ["--no-build", "--prompt", "a", "--steps", "2", "--seed", "1", "--out", "p.png", "--save-latents", "p.npy"]
    whole = killer.sdrt(*words, folder=tmp_path)
    assert whole.code == 0, whole.err
    made = {name: (tmp_path / name).read_bytes() for name in ("p.png", "p.npy")}
    codes = set()
    for operation in range(len(whole.operations)):
        folder = tmp_path / str(operation)
        folder.mkdir()
        ended = killer.sdrt(*words, folder=folder, operation=operation, number=number)
        codes.add(ended.code)
        assert ended.code == 130, (whole.operations[operation], ended.err)
        assert ended.err.splitlines()[-1] == "sdrt: interrupted"
        assert "Traceback" not in ended.err
        # Complete or absent, both now and after leftovers are removed.
        left = set(tree(folder)) - {"tmp"}
        assert left <= made.keys(), whole.operations[operation]
        assert all((folder / name).read_bytes() == made[name] for name in left)
    assert codes == {130}


@pytest.mark.parametrize("stage", ["checking the bundle ...", "onnxruntime vae_decoder fp32 ..."])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_row_71_a_signal_while_building(
    killer: Killer, bundle: Bundle, tmp_path: Path, number: signal.Signals, stage: str
) -> None:
    words = ("build", bundle.path, "--backend", "onnxruntime", "--components", "vae_decoder", "--store", "store")
    said = ["checking the bundle ...", "checking the bundle: ", "onnxruntime vae_decoder fp32 ..."]
    ended = killer.sdrt(*words, folder=tmp_path, note=said.index(stage), number=number)
    assert (ended.code, ended.err.splitlines()[-1]) == (130, "sdrt: interrupted")
    assert stage in ended.err
    store = Store(tmp_path / "store")
    assert store.entries() == ()
    assert list((store.root / "staging").iterdir()) == list((store.root / "locks").glob("*.holder")) == []
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.fixture
def one_processor() -> Iterator[None]:
    """Restrict this process to one processor."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.usefixtures("one_processor")
def test_row_72_no_more_threads_than_processors(
    ready: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    session = onnxruntime.InferenceSession

    def spy(path: Any, options: Any, **named: Any) -> Any:
        asked.append(options.intra_op_num_threads)
        return session(path, options, **named)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    with open_engine(opened_in(ready), "vae_decoder"):
        assert asked == [1]
    with open_engine(opened_in(ready), "vae_decoder", threads=3):
        assert asked == [1, 3]
    jobs: list[int] = []

    def build_all(given: Any, *_: Any) -> Any:
        jobs.extend(job.threads for job in given)
        raise KeyboardInterrupt

    monkeypatch.setattr(build_processes, "build_all", build_all)
    with contextlib.suppress(KeyboardInterrupt):
        build(bundle, BuildRequest("onnxruntime"), Store(tmp_path / "store"), silent)
    assert set(jobs) == {1}
