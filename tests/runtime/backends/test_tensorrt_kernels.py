"""TensorRT-RTX's compiled kernels on the doubles: stored beside their plan, sealed, and not needed for the numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdrt.artefacts.engine_set import EngineSet
from sdrt.artefacts.locks import exclusive
from sdrt.artefacts.sealed import DIGEST_BYTES, SealedFile
from sdrt.artefacts.store import Store
from sdrt.errors import BackendUnavailableError, EngineError, TrustError
from sdrt.progress import silent
from sdrt.runtime.backends import tensorrt_kernels
from sdrt.runtime.backends.tensorrt_kernels import FOLDER
from tests.doubles.cuda_double.memory import Misuse
from tests.doubles.cuda_double.rig import Rig, forget
from tests.doubles.cuda_double.runtime import CudaDouble
from tests.doubles.cuda_double.trt import DynamicShapesKernelSpecializationStrategy, RtxRuntimeConfig
from tests.helpers.latents import conditioning, noise, sd_v1_schedule
from tests.models.tiny_bundle import feeds

MakePlans = Callable[..., EngineSet]
OTHER_GPU = "NVIDIA GeForce RTX 4090"


@pytest.fixture
def stored(make_plans: MakePlans, tmp_path: Path) -> EngineSet:
    """Put a TensorRT-RTX set into this test's own store."""
    carried = make_plans(backend="tensorrt-rtx")
    return Store(tmp_path / "store").import_engines(carried.path, trust=carried.digest)


def decode(rig: Rig, batch: int = 1) -> Any:
    return rig.session.engine("vae_decoder").run(**feeds("vae_decoder", batch))["sample"]


def run_once(engines: EngineSet, *batches: int, **options: Any) -> Rig:
    """Open, run each batch, close; return the rig with its compilations and notes."""
    with Rig(engines, rtx=True, **options) as rig:
        for batch in batches or (1,):
            decode(rig, batch)
    return rig


def kept(engines: EngineSet) -> list[Path]:
    return sorted((engines.path / FOLDER).glob("*.cache"))


def test_kernels_are_compiled_once_and_then_read(stored: EngineSet) -> None:
    first = run_once(stored, 1, 2, 1)
    assert len(first.trt.compiled) == 2
    again = run_once(stored, 1, 2)
    assert again.trt.compiled == []
    more = run_once(stored, 1, 3)
    assert len(more.trt.compiled) == 1
    assert run_once(stored, 1, 2, 3).trt.compiled == []
    assert [*first.notes, *again.notes, *more.notes] == []
    (path,) = kept(stored)
    assert path.name == "vae_decoder-tensorrt-rtx-1.7.1-sm86-NVIDIA_GeForce_RTX_3090.cache"
    # The set's content is unchanged since it was sealed.
    assert set(Store(stored.path.parents[2]).verify().values()) == {None}


def test_the_numbers_are_the_same_with_kernels_read_and_compiled(stored: EngineSet) -> None:
    outputs = []
    for _ in range(2):
        with Rig(stored, rtx=True) as rig:
            outputs.append(decode(rig, 2))
    assert np.array_equal(*outputs)


def test_kernels_that_are_swapped_in_the_middle_would_show(stored: EngineSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile lazily: kernels replace fallbacks at some later step, and the same seed gives another picture."""
    schedule = sd_v1_schedule(7)

    def latents() -> Any:
        with Rig(stored, rtx=True) as rig:
            return rig.loop().denoise(schedule, noise(schedule, 2), conditioning(2), None, forget)

    eager = latents()
    assert np.array_equal(latents(), eager)
    for path in kept(stored):
        path.unlink()
    lazy = property(lambda config: DynamicShapesKernelSpecializationStrategy.LAZY, lambda config, value: None)
    monkeypatch.setattr(RtxRuntimeConfig, "dynamic_shapes_kernel_specialization_strategy", lazy, raising=False)
    assert not np.array_equal(latents(), eager)


def test_an_unsealed_file_never_reaches_the_parser(stored: EngineSet) -> None:
    run_once(stored)
    (path,) = kept(stored)
    sealed = path.read_bytes()
    flipped = bytearray(sealed)
    flipped[-2] ^= 1
    for content in (b"", b"garbage" * 30, bytes(flipped), sealed[:-1], sealed[DIGEST_BYTES:]):
        path.write_bytes(content)
        rig = run_once(stored)
        (note,) = rig.notes
        assert "does not match its digest; it is created again" in note
        assert len(rig.trt.compiled) == 1
        assert path.read_bytes() == sealed


def test_what_was_sealed_for_another_component_or_set_is_not_this_ones(stored: EngineSet, tmp_path: Path) -> None:
    run_once(stored)
    (path,) = kept(stored)
    path.rename(path.with_name(path.name.replace("vae_decoder", "unet")))
    with Rig(stored, rtx=True) as rig:
        rig.session.engine("unet").run(**feeds("unet", 1))
    assert ["does not match its digest" in note for note in rig.notes] == [True]


def test_the_double_catches_bytes_that_nobody_sealed(stored: EngineSet, monkeypatch: pytest.MonkeyPatch) -> None:
    run_once(stored)
    monkeypatch.setattr(SealedFile, "read", lambda file: b"garbage")
    with pytest.raises(Misuse, match="did not write"):
        Rig(stored, rtx=True).session.engine("vae_decoder")


def test_another_gpu_has_a_file_of_its_own(stored: EngineSet) -> None:
    run_once(stored)
    other = run_once(stored, cuda=CudaDouble(name=OTHER_GPU))
    assert len(other.trt.compiled) == 1
    assert len(kept(stored)) == 2
    assert run_once(stored).trt.compiled == []


def test_what_tensorrt_rtx_refuses_is_compiled_anew(stored: EngineSet, monkeypatch: pytest.MonkeyPatch) -> None:
    run_once(stored)
    # Simulates an update of the driver, which is not in the file's name.
    read = SealedFile.read
    monkeypatch.setattr(SealedFile, "read", lambda file: read(file).replace(b"RTX 3090", b"RTX 3080"))
    rig = run_once(stored)
    (note,) = rig.notes
    assert "of another TensorRT-RTX, GPU or driver" in note
    assert len(rig.trt.compiled) == 1


def test_only_a_set_in_a_private_store_has_kernels(make_plans: MakePlans) -> None:
    carried = make_plans(backend="tensorrt-rtx")
    before = sorted(carried.path.rglob("*"))
    assert not carried.in_private_store
    assert len(run_once(carried).trt.compiled) == len(run_once(carried).trt.compiled) == 1
    assert sorted(carried.path.rglob("*")) == before


def test_tensorrt_keeps_none(stored: EngineSet) -> None:
    with Rig(stored) as rig:
        decode(rig)
    assert kept(stored) == []


def test_a_folder_that_others_can_write_to_is_refused(stored: EngineSet) -> None:
    run_once(stored)
    (stored.path / FOLDER).chmod(0o777)
    with Rig(stored, rtx=True) as rig, pytest.raises(TrustError, match="others can write to") as caught:
        decode(rig)
    assert "chmod go-w" in caught.value.hint


def test_a_folder_opened_to_others_meanwhile_keeps_nothing(stored: EngineSet) -> None:
    run_once(stored)
    (path,) = kept(stored)
    sealed = path.read_bytes()
    with Rig(stored, rtx=True) as rig:
        decode(rig, 2)
        (stored.path / FOLDER).chmod(0o777)
    (note,) = rig.notes
    assert note.startswith("kernels are not kept: others can write to")
    assert path.read_bytes() == sealed


def test_a_store_that_cannot_be_written_runs_all_the_same(stored: EngineSet) -> None:
    # A file in place of the folder: permissions do not stop tests that run as root.
    (stored.path / FOLDER).write_text("")
    rig = run_once(stored)
    assert [note.split(":")[0] for note in rig.notes] == ["kernels are compiled anew", "kernels are not kept"]
    assert all("a part of the path is a file, not a folder" in note for note in rig.notes)


def test_a_lock_that_does_not_become_free_costs_time_only(stored: EngineSet, monkeypatch: pytest.MonkeyPatch) -> None:
    run_once(stored)
    (path,) = kept(stored)
    monkeypatch.setattr(tensorrt_kernels, "LOCK_TIMEOUT_S", 0.01)
    with exclusive(path.with_suffix(".lock"), "kernels", 1, silent):
        rig = run_once(stored, 2)
    assert [note.split(":")[0] for note in rig.notes] == ["kernels are compiled anew", "kernels are not kept"]
    assert len(rig.trt.compiled) == 1


def test_a_lost_device_leaves_the_file_as_it_is(stored: EngineSet) -> None:
    run_once(stored)
    (path,) = kept(stored)
    sealed = path.read_bytes()
    rig = Rig(stored, rtx=True)
    decode(rig, 1)
    waits = rig.cuda.calls.count("cudaStreamSynchronize")
    rig.cuda._fails["cudaStreamSynchronize", waits + 1] = "cudaErrorLaunchFailure"
    with pytest.raises(BackendUnavailableError, match="the GPU failed"):
        decode(rig, 2)
    rig.session.close()
    assert path.read_bytes() == sealed


def test_a_context_must_not_outlive_its_kernels(stored: EngineSet, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(stored, rtx=True)
    decode(rig)
    rig.session.engine("vae_decoder")._kernels._cache = None  # type: ignore[attr-defined]
    with pytest.raises(Misuse, match="outlives the cache"):
        decode(rig)


def test_a_library_that_takes_no_cache_is_said_so(stored: EngineSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RtxRuntimeConfig, "set_runtime_cache", lambda config, cache: False)
    rig = run_once(stored)
    (note,) = rig.notes
    assert "accepts no cache of kernels" in note
    assert kept(stored) == []


def test_graphs_that_tensorrt_rtx_does_not_take_are_an_error(
    stored: EngineSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = property(lambda config: None, lambda config, value: None)
    monkeypatch.setattr(RtxRuntimeConfig, "cuda_graph_strategy", never, raising=False)
    with Rig(stored, rtx=True) as rig, pytest.raises(EngineError, match="cannot be replayed") as caught:
        rig.session.engine("denoise_step")
    assert "--no-cuda-graphs" in caught.value.hint
