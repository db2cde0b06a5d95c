"""Training goes on from a saved state as if it had never stopped, and never sees what is held out."""

from __future__ import annotations

import random
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from demo import make, train_text_encoder, train_unet
from demo.evaluate import CHECKPOINT
from demo.scenes import held_out
from demo.training import Run
from sdrt.compare.scene_grammar import Scene


def new_run(path: Path) -> Run:
    torch.manual_seed(0)
    return Run(path, budget_s=1e9, modules={"model": torch.nn.Linear(4, 2)}, learning_rate=0.1)


def train(run: Run, steps: int) -> None:
    """A few steps that use both generators, as the training scripts do."""
    model = run.modules["model"]
    for _ in range(steps):
        loss = (model(torch.randn(8, 4)) - run.rng.random()).square().mean()
        run.descend(loss, 0.25)


def weights(run: Run) -> list[torch.Tensor]:
    return [p.detach().clone() for part in (run.modules, run.average) for p in part["model"].parameters()]


def test_a_resumed_run_takes_the_same_steps(tmp_path: Path) -> None:
    straight = new_run(tmp_path / "a.pt")
    train(straight, 3)
    straight.save()
    train(straight, 2)
    torch.manual_seed(1)
    resumed = Run(tmp_path / "a.pt", 1e9, {"model": torch.nn.Linear(4, 2)}, learning_rate=0.1)
    assert resumed.step == 3
    train(resumed, 2)
    assert all(torch.equal(a, b) for a, b in zip(weights(straight), weights(resumed), strict=True))
    assert resumed.loss == straight.loss
    train(resumed, 1)
    assert not all(torch.equal(a, b) for a, b in zip(weights(straight), weights(resumed), strict=True))


def test_a_run_ends_when_it_is_finished_and_stays_so(tmp_path: Path) -> None:
    run = new_run(tmp_path / "a.pt")
    for k, _ in enumerate(run.steps()):
        if k == 2:
            run.finish()
    assert k == 2
    assert list(new_run(tmp_path / "a.pt").steps()) == []
    assert (tmp_path / "a.log.jsonl").read_text().count("\n") == 2


def test_scenes_for_training_are_not_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = train_unet.training_scenes(300, random.Random(0))
    assert len(scenes) == 300
    assert not any(map(held_out, scenes))
    seen: list[Scene] = []

    def listen(rng: random.Random, scene: Scene) -> str:
        seen.append(scene)
        return ""

    monkeypatch.setattr(train_text_encoder, "caption", listen)
    monkeypatch.setattr(train_text_encoder, "token_ids", lambda tokenizer, captions: None)
    train_text_encoder.sample_batch(cast("CLIPTokenizer", None), random.Random(0), 200)
    assert len(seen) == 200
    assert not any(map(held_out, seen))


def test_a_warm_start_takes_the_committed_weights_in_fp32(tmp_path: Path) -> None:
    make.warm_start(tmp_path, CHECKPOINT)
    parts = train_unet.modules(tmp_path, 64)
    assert {p.dtype for part in parts.values() for p in part.parameters()} == {torch.float32}
    fresh = train_unet.new_unet().state_dict()
    started = parts["unet"].state_dict()
    assert started.keys() == fresh.keys()
    committed = load_file(CHECKPOINT / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(started[name], value.float()) for name, value in committed.items())
