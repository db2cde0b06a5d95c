"""``sdrt inspect`` on a checkpoint, with a benchmark, and its files. For bundles and engines see test_machine.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sdrt.artefacts.engine_set import EngineManifest
from sdrt.bench.schema import Bench, BenchSettings, ContenderResult, Sample, Warm
from sdrt.checkpoint import open_checkpoint
from tests.command_line import CommandLine
from tests.doubles.engine_sets import make_set
from tests.models.tiny_bundle import tiny_bundle


def steady(seconds: float) -> Sample:
    return Sample(values=(seconds,), min=seconds, p50=seconds, p90=seconds)


def a_run(name: str, batch: int, **changes: Any) -> ContenderResult:
    warm = Warm(
        batch=batch,
        total=steady(2.0 * batch),
        unet_step=steady(0.1),
        text_encoder=steady(0.5),
        unet=steady(1.0),
        vae_decoder=steady(0.5 * batch),
        pictures_a_minute=30,
        peak_memory_bytes=None,
        device_bytes=None,
    )
    facts = {"name": name, "ours": True, "backend": "openvino", "precision": "bf16", "threads": 1, "scheduler": "LMS"}
    return ContenderResult.model_validate({**facts, "how": "", "warm": (warm,), **changes})


def a_benchmark(path: Path, digest: str, *runs: ContenderResult) -> Path:
    """Build a benchmark's JSON of the given runs."""
    settings = BenchSettings(
        steps=10, guidance_scale=7.5, threads=1, batches=(1,), rounds=1, cold_rounds=0, prompt="a red circle"
    )
    bench = Bench(
        schema_version=1,
        sdrt="0",
        created="2026-11-22T00:00:00+00:00",
        checkpoint="tiny",
        checkpoint_digest=digest,
        bundle_digest="cd" * 32,
        settings=settings,
        machine={},
        versions={},
        contenders=runs,
        ratios=(),
        ceilings=(),
        copy_bytes_a_second=None,
        points=(),
    )
    path.write_text(bench.model_dump_json())
    return path


def test_the_demo_as_json(sdrt: CommandLine) -> None:
    ended = sdrt("inspect", "demo", "--json")
    assert (ended.code, ended.err) == (0, "")
    found = ended.json
    assert found["kind"] == "checkpoint"
    assert found["wrote"] == []
    unet = found["components"]["unet"]["tree"]
    joined = [block["joined"] for part in unet["children"] for block in part["children"] if block["joined"]]
    assert len(joined) == 10
    assert unet["parameters"] == sum(part["parameters"] for part in unet["children"])
    assert found["components"]["unet"]["tree"]["children"][2]["children"][0]["children"][0]["name"].endswith("norm1")


@pytest.mark.parametrize(("depth", "shown"), [(0, []), (1, ["down_blocks.1"]), (2, ["down_blocks.1", "resnets.0"])])
def test_depth_limits_what_is_shown(depth: int, shown: list[str], tiny_path: Path, sdrt: CommandLine) -> None:
    ended = sdrt("inspect", tiny_path, "--component", "unet", "--depth", depth)
    assert ended.code == 0
    words = ended.out.split()
    assert [name for name in ("down_blocks.1", "resnets.0", "conv1") if name in words] == shown
    found = sdrt("inspect", tiny_path, "--component", "unet", "--depth", depth, "--json").json
    levels, blocks = -1, [found["components"]["unet"]["tree"]]
    while blocks:
        levels, blocks = levels + 1, [child for block in blocks for child in block["children"]]
    assert levels == depth


def test_the_terminal_shows_what_is_concatenated(tiny_path: Path, sdrt: CommandLine) -> None:
    ended = sdrt("inspect", tiny_path)
    assert "64+32 -> 96x32x32" in ended.out
    assert "wrote" not in ended.err
    assert "vae_decoder: Decoder, 40.94 k parameters" in ended.out


def test_what_it_writes_it_names(tiny_path: Path, tmp_path: Path, sdrt: CommandLine) -> None:
    drawing, page = tmp_path / "u.svg", tmp_path / "page.html"
    ended = sdrt("inspect", tiny_path, "--drawing", drawing, "--html", page)
    assert ended.code == 0
    assert ended.err.splitlines() == [f"wrote {drawing}", f"wrote {page}"]
    assert drawing.read_text().startswith("<svg xmlns=")
    assert drawing.read_text().split("<style>")[0] in page.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "u.svg"]
    ended = sdrt("inspect", tiny_path, "--drawing", drawing, "--json")
    assert ended.json["wrote"] == [str(drawing)]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--drawing", "u.png"), "u.png"),
        (("--component", "vae_decoder", "--drawing", "u.svg"), "unet"),
        (("--component", "denoise_step"), "denoise_step"),
        (("--component", "vae"), "vae"),
        (("--depth", "-1"), "-1"),
        (("--revision", "main"), "--revision"),
    ],
)
def test_wrong_options_are_usage_errors(words: tuple[str, ...], named: str, sdrt: CommandLine) -> None:
    ended = sdrt("inspect", "demo", *words)
    assert ended.code == 2
    assert named in ended.complaint
    assert not Path("u.png").exists()


def test_what_is_not_there_is_a_usage_error(tmp_path: Path, sdrt: CommandLine) -> None:
    ended = sdrt("inspect", tmp_path / "nothing")
    assert ended.code == 2
    assert "nothing" in ended.complaint


def test_a_place_that_cannot_be_written(tiny_path: Path, tmp_path: Path, sdrt: CommandLine) -> None:
    (tmp_path / "page.html").mkdir()
    ended = sdrt("inspect", tiny_path, "--html", tmp_path / "page.html")
    assert ended.code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_benchmark_gives_shares_of_time(tiny_path: Path, tmp_path: Path, sdrt: CommandLine) -> None:
    digest = open_checkpoint(str(tiny_path), cache=tmp_path).digest
    theirs = a_run("diffusers", 1, ours=False, backend="torch")
    failed = a_run("failed", 1, warm=(), problem="not installed")
    file = a_benchmark(tmp_path / "bench.json", digest, theirs, failed, a_run("ours", 2), a_run("later", 1))
    found = sdrt("inspect", tiny_path, "--benchmark", file, "--json").json
    assert found["benchmark"]["run"] == "ours"
    assert found["components"]["unet"]["time"] == {"seconds": 1.0, "share": 0.25}
    assert found["components"]["vae_decoder"]["time"]["share"] == 0.25
    assert "time" not in found["components"]["vae_encoder"]
    ended = sdrt("inspect", tiny_path, "--benchmark", file, "--depth", 0)
    assert "times: ours (openvino bf16, 1 threads), 4 s for 2 of 10 steps" in ended.out
    assert "1 s, 25.0% of the time" in ended.out


def test_engines_take_the_times_of_their_own_kind(tmp_path: Path, sdrt: CommandLine) -> None:
    make_set(tmp_path / "set")
    manifest = EngineManifest.of(tmp_path / "set")
    same = {"backend": manifest.backend, "precision": manifest.precision}
    digest = manifest.checkpoint.digest
    file = a_benchmark(tmp_path / "bench.json", digest, a_run("other", 1, backend="torch"), a_run("same", 1, **same))
    found = sdrt("inspect", tmp_path / "set", "--benchmark", file, "--json").json
    assert found["benchmark"]["run"] == "same"
    file = a_benchmark(tmp_path / "other.json", digest, a_run("other", 1, backend="torch"))
    ended = sdrt("inspect", tmp_path / "set", "--benchmark", file)
    assert ended.code == 2
    assert "has no run of sdrt's on these engines" in ended.complaint


@pytest.mark.parametrize(
    ("text", "code"),
    [("{}", 3), ("[", 3), (json.dumps({"schema_version": 99}), 3), (None, 3), ("another checkpoint", 2)],
)
def test_a_benchmark_that_is_none(
    text: str | None, code: int, tiny_path: Path, tmp_path: Path, sdrt: CommandLine
) -> None:
    file = tmp_path / "bench.json"
    if text == "another checkpoint":
        a_benchmark(file, "ef" * 32, a_run("ours", 1))
    elif text is not None:
        file.write_text(text)
    ended = sdrt("inspect", tiny_path, "--benchmark", file)
    assert ended.code == code
    assert "bench.json" in ended.complaint


def test_a_checkpoint_of_pickles_is_not_opened(tiny_path: Path, tmp_path: Path, sdrt: CommandLine) -> None:
    folder = Path(shutil.copytree(tiny_path, tmp_path / "pickled"))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    assert sdrt("inspect", folder).code == 8


def test_a_bundle_is_measured(tmp_path: Path, sdrt: CommandLine) -> None:
    tiny_bundle(tmp_path / "bundle")
    words = ("inspect", tmp_path / "bundle", "--component", "vae_decoder", "--measure", 2)
    found = sdrt(*words, "--json").json
    assert found["components"]["vae_decoder"]["tree"]["seconds"] > 0
    assert "ms by ONNX Runtime" in sdrt(*words).out
    assert "by ONNX Runtime" not in sdrt(*words[:-2]).out


def test_a_checkpoint_is_not_measured(tiny_path: Path, sdrt: CommandLine) -> None:
    ended = sdrt("inspect", tiny_path, "--measure", 1)
    assert ended.code == 2
    assert "--measure" in ended.complaint
