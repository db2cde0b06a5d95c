"""The whole command on small engines: separate processes, in turn, and their report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.store import Store
from sdrt.bench.bench import bench
from sdrt.bench.plan import PEERS, BenchRequest, Peer
from sdrt.bench.schema import Bench, BenchSettings
from sdrt.commands.bench import BenchOptions, command_line
from sdrt.errors import EngineError, UsageError
from sdrt.prepare.source import Source
from tests.command_line import CommandLine

SETTINGS = BenchSettings(
    steps=2, guidance_scale=7.5, threads=1, batches=(1, 2), rounds=2, cold_rounds=1, prompt="a red circle"
)


@pytest.fixture(scope="module")
def measured(hand_bundle: Bundle, hand_store: Path, built_here: None) -> Bench:
    """Benchmark sdrt's engines and plain ONNX Runtime, with a peer that cannot run the bundle."""
    asked = BenchRequest(
        Source(bundle=hand_bundle.path),
        ("onnxruntime",),
        peers=("onnxruntime", "stable-diffusion-cpp"),
        store=hand_store,
    )
    return bench(asked, SETTINGS)


def test_every_contender_is_measured_as_often_as_asked(measured: Bench) -> None:
    ours, plain, absent = measured.contenders
    assert (ours.name, plain.name) == ("sdrt onnxruntime fp32", "onnxruntime")
    for each in (ours, plain):
        assert each.problem == ""
        assert [warm.batch for warm in each.warm] == [1, 2]
        for warm in each.warm:
            assert len(warm.total.values) == SETTINGS.rounds
            assert warm.unet is not None
            assert warm.vae_decoder is not None
            assert 0 < warm.unet_step.p50 * SETTINGS.steps == pytest.approx(warm.unet.p50)
            assert warm.unet.p50 + warm.vae_decoder.p50 < 1.01 * warm.total.p90
            assert warm.peak_memory_bytes is None or warm.peak_memory_bytes > 10 << 20
        assert each.cold is not None
        cold = each.cold
        assert cold.first_step is not None
        assert 0 < cold.imported.p50 < cold.loaded.p50 < cold.first_step.p50 < cold.picture.p50
    assert absent.problem
    assert absent.remedy
    assert absent.warm == ()


def test_both_drew_the_same_picture(measured: Bench) -> None:
    plain = measured.contenders[1]
    # Sessions with other optimisations round differently; another picture would be some 10 dB away.
    assert plain.equal_picture or (plain.psnr_db or 0) > 45


def test_ratios_are_of_the_rounds(measured: Bench) -> None:
    ours, plain, _ = measured.contenders
    found = {(ratio.figure, ratio.batch): ratio for ratio in measured.ratios}
    assert set(found) == {
        *((figure, batch) for figure in ("total", "unet_step") for batch in (1, 2)),
        ("cold_picture", 1),
        ("cold_first_step", 1),
    }
    total = found["total", 2]
    assert (total.of, total.peer, total.equal_precision) == (ours.name, plain.name, True)
    pairs = zip(plain.warm[1].total.values, ours.warm[1].total.values, strict=True)
    assert total.sample.values == tuple(above / below for above, below in pairs)


def test_the_ceiling_stands_beside_every_round(measured: Bench) -> None:
    (ceiling,) = measured.ceilings
    assert ceiling.precision == "fp32"
    assert len(ceiling.gflops.values) == SETTINGS.rounds * len(SETTINGS.batches)
    assert {(point.component, point.batch) for point in measured.points} == {
        ("unet", 1),
        ("vae_decoder", 1),
        ("text_encoder", 1),
        ("unet", 2),
        ("vae_decoder", 2),
    }
    assert all(point.share is not None and point.share.p50 > 0 for point in measured.points)


def test_engines_that_do_not_run_are_an_error(
    hand_bundle: Bundle, hand_store: Path, built_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdrt.bench.process.ENVIRONMENT", {"PYTHONHOME": "/nowhere"})
    with pytest.raises(EngineError, match="sdrt fp32 ended with code 1"):
        bench(BenchRequest(Source(bundle=hand_bundle.path), ("onnxruntime",), store=hand_store), SETTINGS)


def test_a_peer_that_fails_is_reported_and_the_others_are_measured(
    hand_bundle: Bundle, hand_store: Path, built_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PEERS, "nobody", Peer("nobody", (), "", ("fp32",), "by nobody"))
    monkeypatch.setattr("sdrt.bench.plan._checkpoint_folder", lambda *_: hand_bundle.path)
    settings = SETTINGS.model_copy(update={"batches": (1,), "rounds": 1, "cold_rounds": 0})
    asked = BenchRequest(Source(bundle=hand_bundle.path), ("onnxruntime",), peers=("nobody",), store=hand_store)
    ours, peer = bench(asked, settings).contenders
    assert peer.problem == "nobody fp32 ended with code 1: KeyError: 'nobody'"
    assert peer.warm == ()
    assert ours.warm


def test_an_unknown_peer_lists_the_known(hand_bundle: Bundle, hand_store: Path, built_here: None) -> None:
    with pytest.raises(UsageError, match="there is no peer 'nobody'") as refused:
        bench(BenchRequest(Source(bundle=hand_bundle.path), peers=("nobody",), store=hand_store), SETTINGS)
    assert all(name in refused.value.hint for name in PEERS)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--batch", "1,x"], "--batch is '1,x'"),
        (["--batch", "0"], "--batch is '0'; it must be numbers from 1 to 64"),
        (["--backend", "openvino,cuda"], "--backend: unknown name 'cuda'"),
        (["--precision", "fp8"], "--precision: unknown name 'fp8'"),
        (["--peers", "me"], "--peers: unknown name 'me'"),
        (["--guidance-scale", "1"], "--guidance-scale"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(sdrt: CommandLine, words: list[str], complaint: str) -> None:
    ended = sdrt("bench", *words)
    assert ended.code == 2
    assert complaint in ended.complaint


def test_a_result_names_the_command_that_repeats_it() -> None:
    options = BenchOptions(
        checkpoint=None, revision=None, variant=None, bundle=None, backend="auto", precision="fp32,bf16", steps=5,
        guidance_scale=7.5, batch="1,2", rounds=3, cold_rounds=0, peers="", prompt="a circle", loop="auto",
        build_times=True, against=None, report=Path("report"), store=Path("store"), threads=2, as_json=False,
    )  # fmt: skip
    assert command_line(options) == (
        "sdrt bench --backend auto --precision fp32,bf16 --steps 5 --guidance-scale 7.5 --batch 1,2 --rounds 3 "
        "--cold-rounds 0 --prompt 'a circle' --loop auto --build-times --threads 2"
    )


def test_an_earlier_benchmark_is_read_before_anything_is_measured(sdrt: CommandLine, tmp_path: Path) -> None:
    ended = sdrt("bench", "--against", tmp_path / "old.json")
    assert ended.code == 3
    assert "cannot read" in ended.complaint


@pytest.mark.long
def test_diffusers_draws_the_same_picture(tiny_path: Path, tiny_engines: Callable[..., object], store: Store) -> None:
    tiny_engines("onnxruntime")
    settings = SETTINGS.model_copy(update={"batches": (2,), "rounds": 1, "cold_rounds": 1})
    asked = BenchRequest(Source(str(tiny_path)), ("onnxruntime",), peers=("diffusers-fp32",), store=store.root)
    ours, peer = bench(asked, settings).contenders
    assert (peer.problem, peer.precision, peer.scheduler) == ("", ours.precision, "LMS")
    # Two implementations in fp32 from the same noise: rounding shows in single levels.
    assert peer.equal_picture or (peer.psnr_db or 0) > 45
    (warm,) = peer.warm
    assert warm.text_encoder is not None
    assert warm.vae_decoder is not None
    assert warm.unet is not None
    # The rest is noise and packing, which no stage counts.
    assert 0 < warm.text_encoder.p50 + warm.unet.p50 + warm.vae_decoder.p50 <= warm.total.p50
    assert peer.cold is not None
    assert peer.cold.first_step is not None
