from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from sdrt import install_lines
from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.tuned import Trial, TuneRecord, machine_key, write_record
from sdrt.bench import plan
from sdrt.bench.contender import Job
from sdrt.bench.peers.preparation import prepare_peer
from sdrt.bench.plan import PEERS, BenchRequest, expand_peers, find_checkpoint, make_plan
from sdrt.bench.worker import KINDS
from sdrt.errors import BackendUnavailableError, CheckpointError
from sdrt.install_lines import extra_line, package_line
from sdrt.prepare.source import Source
from sdrt.progress import silent
from tests.command_line import CommandLine
from tests.doubles.progress import Notes


def asked(bundle: Bundle, store: Path, **changes: Any) -> BenchRequest:
    fields: dict[str, Any] = {"backends": ("onnxruntime",), "store": store}
    return BenchRequest(Source(bundle=bundle.path), **(fields | changes))


def tune_to(store: Path, bundle: Bundle, **changes: Any) -> None:
    """Keep a record in a store that names onnxruntime on one thread, without denoise_step, as fastest."""
    way = {"backend": "onnxruntime", "precision": "fp32", "batch": 1, "threads": 1, "loop": "plain", "kept": True}
    record = TuneRecord(
        schema_version=1,
        sdrt="0",
        created="2026-11-22T10:00:00+00:00",
        machine=machine_key(),
        checkpoint="tiny",
        bundle_digest=bundle.digest,
        pictures=1,
        steps=10,
        trials=(Trial.model_validate(way | {"why": "1.000 s a request at best"} | changes),),
    )
    store.mkdir(mode=0o700, exist_ok=True)
    write_record(store, record)


@pytest.fixture
def everything_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pretend that every peer's packages, a processor with bf16 and the checkpoint are present."""
    monkeypatch.setattr(plan, "_installed", lambda _: True)
    monkeypatch.setattr(plan, "supports_bf16", lambda: True)
    monkeypatch.setattr(plan, "_checkpoint_folder", lambda *_: tmp_path)
    monkeypatch.setattr("sdrt.bench.peers.preparation.prepare_peer", lambda job, *_: (job, None))


def test_peers_have_processes_that_serve_them() -> None:
    assert {peer.kind for peer in PEERS.values()} == KINDS.keys() - {"sdrt"}


def test_all_is_every_peer_and_names_stand_once() -> None:
    assert expand_peers(("all",)) == tuple(PEERS)
    assert expand_peers(("onnxruntime", "onnxruntime")) == ("onnxruntime",)


def test_every_peer_gets_what_it_needs(
    hand_bundle: Bundle, hand_store: Path, built_here: None, everything_installed: None, tmp_path: Path
) -> None:
    found = make_plan(asked(hand_bundle, hand_store, peers=tuple(PEERS)), 3, tmp_path, silent)
    ours, *peers = found.entries
    assert ours.result.build is not None
    assert {part.component for part in ours.result.build.components} >= {"text_encoder", "unet", "vae_decoder"}
    assert [entry.result.problem for entry in peers] == [""] * len(PEERS)
    for entry in peers:
        assert entry.job is not None
        assert (entry.job.checkpoint, entry.job.bundle) == (str(tmp_path), str(hand_bundle.path))
        assert (entry.job.threads, entry.job.device) == (3, "cpu")
    precisions = {entry.result.name: entry.result.precision for entry in peers}
    assert (precisions["torch-compile"], precisions["openvino-genai"], precisions["diffusers-fp32"]) == (
        "bf16",
        "bf16",
        "fp32",
    )


def test_without_bf16_of_its_own_a_processor_is_not_asked_for_it(
    hand_bundle: Bundle,
    hand_store: Path,
    built_here: None,
    everything_installed: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "supports_bf16", lambda: False)
    found = make_plan(asked(hand_bundle, hand_store, peers=tuple(PEERS)), 1, tmp_path, silent)
    results = {entry.result.name: entry.result for entry in found.entries}
    assert results["diffusers-bf16"].problem == "this processor has no native bf16"
    assert results["torch-compile"].precision == "fp32"


def test_who_is_missing_is_named_with_the_line_that_brings_it(
    hand_bundle: Bundle, hand_store: Path, built_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_installed", lambda package: package != "openvino-genai")
    found = make_plan(asked(hand_bundle, hand_store, peers=("openvino-genai", "diffusers-fp32")), 1, tmp_path, silent)
    _, genai, diffusers = (entry.result for entry in found.entries)
    line = package_line(f"openvino-genai=={version('openvino')}.*")
    assert (genai.problem, genai.remedy) == ("openvino-genai is not installed", line)
    # The bundle's checkpoint does not exist here.
    assert diffusers.problem == "the checkpoint is not here"
    assert [entry.job for entry in found.entries[1:]] == [None, None]


def test_a_precision_that_a_backend_lacks_is_an_entry_beside_others_and_an_error_alone(
    hand_bundle: Bundle, hand_store: Path, built_here: None, tmp_path: Path
) -> None:
    found = make_plan(asked(hand_bundle, hand_store, precisions=("fp32", "bf16")), 1, tmp_path, silent)
    assert [bool(entry.result.problem) for entry in found.entries] == [False, True]
    with pytest.raises(BackendUnavailableError, match="bf16"):
        make_plan(asked(hand_bundle, hand_store, precisions=("bf16",)), 1, tmp_path, silent)
    with pytest.raises(BackendUnavailableError, match="bf16"):
        make_plan(asked(hand_bundle, hand_store, precisions=("bf16", "fp16")), 1, tmp_path, silent)


def test_a_bundle_whose_checkpoint_is_gone_says_so(hand_bundle: Bundle) -> None:
    with pytest.raises(CheckpointError, match="'tiny' that the bundle was exported from is not here"):
        find_checkpoint(Source(bundle=hand_bundle.path), hand_bundle)


@pytest.mark.parametrize(("channels", "fits"), [([320, 640, 1280, 1280], True), ([32, 64], False)])
def test_stable_diffusion_cpp_takes_the_full_size_only(tmp_path: Path, channels: list[int], fits: bool) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/config.json").write_text(json.dumps({"block_out_channels": channels}))
    job = Job("stable-diffusion-cpp", "fp16", 1, checkpoint=str(tmp_path))
    if fits:
        assert prepare_peer(job, tmp_path, silent) == (job, None)
    else:
        with pytest.raises(BackendUnavailableError, match=r"this one has \[32, 64\]"):
            prepare_peer(job, tmp_path, silent)


def test_loops_are_contenders_and_the_fused_one_has_its_step_built(
    step_bundle: Bundle, hand_store: Path, built_here: None, tmp_path: Path
) -> None:
    found = make_plan(asked(step_bundle, hand_store, loops=("plain", "fused")), 1, tmp_path, silent)
    assert [entry.result.name for entry in found.entries] == [
        "sdrt onnxruntime fp32 plain loop",
        "sdrt onnxruntime fp32 fused loop",
    ]
    plain, fused = (entry.engines for entry in found.entries)
    assert plain is not None
    assert fused is not None
    assert "denoise_step" not in plain.manifest.components
    assert "denoise_step" in fused.manifest.components
    assert [entry.job.loop for entry in found.entries if entry.job] == ["plain", "auto"]


def test_auto_is_measured_as_tuned_and_says_so(step_bundle: Bundle, built_here: None, tmp_path: Path) -> None:
    store, notes = tmp_path / "store", Notes()
    tune_to(store, step_bundle)
    backends = ("auto", "onnxruntime")
    found = make_plan(asked(step_bundle, store, backends=backends), 3, tmp_path, notes)
    assert notes.notes[1] == "as tuned: onnxruntime fp32, plain loop, batch 1, 1 threads"
    tuned, plain = (entry.result for entry in found.entries)
    assert (tuned.name, tuned.threads) == ("sdrt onnxruntime fp32 tuned plain loop", 1)
    assert tuned.how.endswith("; sdrt tune found onnxruntime fp32, plain loop, batch 1, 1 threads")
    assert (plain.name, plain.threads) == ("sdrt onnxruntime fp32", 3)
    jobs = [entry.job for entry in found.entries if entry.job is not None]
    assert [(job.loop, job.threads) for job in jobs] == [("plain", 1), ("auto", 3)]
    batches = [entry.engines.manifest.components["vae_decoder"].batch for entry in found.entries if entry.engines]
    assert [batch and batch.max for batch in batches] == [1, None]
    # The user's threads and loop override the record.
    own = asked(step_bundle, store, backends=("auto",), loops=("fused",), threads=2)
    (entry,) = make_plan(own, 2, tmp_path, silent).entries
    assert (entry.result.name, entry.result.threads) == ("sdrt onnxruntime fp32 tuned fused loop", 2)
    assert entry.engines is not None
    assert "denoise_step" in entry.engines.manifest.components


def test_engines_for_exactly_several_pictures_are_not_measured(
    hand_bundle: Bundle, built_here: None, tmp_path: Path
) -> None:
    store, notes = tmp_path / "store", Notes()
    tune_to(store, hand_bundle, batch=2)
    (entry,) = make_plan(asked(hand_bundle, store, backends=("auto",)), 1, tmp_path, notes).entries
    assert "a cold start draws one picture: measuring engines for any batch, not for 2" in notes.notes
    assert entry.engines is not None
    assert entry.engines.manifest.components["vae_decoder"].batch is None


def test_without_openvino_it_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "package_version", lambda _: None)
    assert plan._install_line(PEERS["openvino-genai"]) == extra_line("cpu")
    assert plan._install_line(PEERS["diffusers-fp32"]) == extra_line("export", "compare")


def test_the_page_tells_what_brings_each_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(plan.__file__).parents[2].joinpath("docs/how-to-bench.md").read_text()
    rows = {
        cells[1].strip(): cells[3].strip()
        for cells in (line.split("|") for line in page.splitlines())
        if len(cells) == 5
    }
    monkeypatch.setattr(plan, "package_version", lambda _: "2026.4.1")
    clone = install_lines.clone_root()
    assert clone is not None
    monkeypatch.chdir(clone)
    monkeypatch.setattr(sys, "executable", str(clone / ".venv/bin/python"))
    said = {name: plan._install_line(peer) for name, peer in PEERS.items()}
    shorter = {
        name: "`" + line.replace("python -m pip", "pip").replace("--editable", "-e") + "`"
        for name, line in said.items()
    }
    assert {name: cell for name, cell in rows.items() if name in PEERS} == shorter


def test_the_help_names_every_peer(sdrt: CommandLine) -> None:
    said = "".join(sdrt("bench", "--help").out.split())
    assert [name for name in PEERS if name not in said] == []
