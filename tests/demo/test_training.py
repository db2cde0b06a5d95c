"""Training resumes from a saved state as if it had never stopped, and never sees held-out scenes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from demo import make, train_text_encoder, train_unet
from demo.assemble import averaged
from demo.evaluate import CHECKPOINT
from demo.scenes import held_out
from demo.training import Run, orthogonalised
from sdrt.compare.scene_grammar import Scene


def new_run(path: Path, muon_rate: float | None = None) -> Run:
    torch.manual_seed(0)
    return Run(path, 1e9, {"model": torch.nn.Linear(4, 2)}, learning_rate=0.1, muon_rate=muon_rate)


def train(run: Run, steps: int) -> None:
    """Train a few steps that use both generators, as the training scripts do."""
    model = run.modules["model"]
    for _ in range(steps):
        loss = (model(torch.randn(8, 4)) - run.rng.random()).square().mean()
        run.descend(loss, 0.25)


def weights(run: Run) -> list[torch.Tensor]:
    return [p.detach().clone() for part in (run.modules, run.average) for p in part["model"].parameters()]


@pytest.mark.parametrize("muon_rate", [None, 0.1])
def test_a_resumed_run_takes_the_same_steps(tmp_path: Path, muon_rate: float | None) -> None:
    straight = new_run(tmp_path / "a.pt", muon_rate)
    train(straight, 3)
    straight.save()
    train(straight, 2)
    torch.manual_seed(1)
    resumed = Run(tmp_path / "a.pt", 1e9, {"model": torch.nn.Linear(4, 2)}, 0.1, muon_rate)
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


# diffusers' LMS scheduler passes tensors to NumPy, and its pipeline wants a steps_offset, unused by linspace.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning")
def test_a_warm_start_takes_the_committed_weights_in_fp32(tmp_path: Path) -> None:
    make.warm_start(tmp_path, CHECKPOINT)
    parts = train_unet.start(tmp_path, train_unet.STAGES["full"])
    assert {p.dtype for part in parts.values() for p in part.parameters()} == {torch.float32}
    started = parts["unet"].state_dict()
    committed = load_file(CHECKPOINT / "unet" / "diffusion_pytorch_model.safetensors")
    assert started.keys() == committed.keys()
    assert all(torch.equal(started[name], value.float()) for name, value in committed.items())
    Run(train_unet.state_file(tmp_path, "full"), 0, parts, 1e-3).save()
    pipeline = averaged(tmp_path)
    assert all(torch.equal(pipeline.unet.state_dict()[name], value.float()) for name, value in committed.items())


def inner_features(unet: torch.nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """Return the output of the inner levels' last resnet, [n,32,32,32]."""
    found: list[torch.Tensor] = []
    last = unet.up_blocks[3].resnets[1]  # type: ignore[union-attr, index]
    handle = last.register_forward_hook(lambda module, inputs, output: found.append(output))
    with torch.no_grad():
        unet(latents, torch.tensor([10, 900]), torch.randn(2, 77, 128, generator=torch.Generator().manual_seed(1)))
    handle.remove()
    return found[0]


def test_a_grown_unet_hands_its_inner_levels_what_they_were_trained_on() -> None:
    torch.manual_seed(0)
    inner = train_unet.new_inner_unet().eval()
    latents = torch.randn(2, 4, 64, 64)
    wanted = inner_features(inner, torch.nn.functional.avg_pool2d(latents, 2))
    grown = train_unet.grown(inner).eval()
    # float32 sums in another order
    torch.testing.assert_close(inner_features(grown, latents), wanted, rtol=0, atol=1e-4)
    grown.down_blocks[0].downsamplers[0].conv.weight.data *= 1.1
    assert (inner_features(grown, latents) - wanted).abs().max() > 1e-2


def test_the_inner_unet_keeps_its_first_convolution_to_one_place() -> None:
    torch.manual_seed(0)
    unet = train_unet.new_inner_unet()
    unet(torch.randn(1, 4, 32, 32), 5, torch.randn(1, 77, 128)).sample.square().mean().backward()
    gradient = unet.conv_in.weight.grad
    for taps in (gradient, unet.conv_in.weight.detach()):
        assert taps is not None
        assert taps[..., 1, 1].abs().min() > 0
        assert int((taps != 0).sum()) == taps[..., 1, 1].numel()


def test_orthogonalised_brings_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((2, 8, 30), (2, 30, 8)):
        values = torch.linalg.svdvals(orthogonalised(torch.randn(shape)))
        # the coefficients trade accuracy for speed: Jordan et al. give 0.7 to 1.2, bfloat16 adds a little
        assert 0.6 < float(values.min()) <= float(values.max()) < 1.3


def test_muon_takes_matrices_and_adamw_the_rest(tmp_path: Path) -> None:
    unet = train_unet.new_inner_unet()
    run = Run(tmp_path / "a.pt", 1e9, {"unet": unet}, 1e-3, muon_rate=2e-3)
    adam, muon = ([p for group in optimizer.param_groups for p in group["params"]] for optimizer in run.optimizers)
    assert len(adam) + len(muon) == len(list(unet.parameters()))
    assert all(parameter.ndim >= 2 for parameter in muon)
    assert any(parameter is unet.conv_in.weight for parameter in adam)
    assert any(parameter is unet.mid_block.resnets[0].conv1.weight for parameter in muon)
