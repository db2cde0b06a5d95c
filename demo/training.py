"""Common parts of the training scripts: a time budget, resumable state, moving averages, a log."""

from __future__ import annotations

import copy
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image


def pixels_of(pictures: list[Image.Image]) -> torch.Tensor:
    """Return pictures as a float32 tensor [n,3,height,width] in -1..1."""
    array = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1


def object_weights(clean: torch.Tensor, differs: float = 0.2, weight: float = 4.0) -> torch.Tensor:
    """Return loss weights [n,1,side,side], higher on objects, which cover a tenth of most pictures.

    Args:
        clean: Pictures or latents [n,channels,side,side].
        differs: Mean difference from the upper left corner from which on a place belongs to an object.
        weight: Additional weight of such a place.
    """
    corner = clean[:, :, 1:3, 1:3].mean((2, 3), keepdim=True)
    return 1 + weight * ((clean - corner).abs().mean(1, keepdim=True) > differs).float()


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """Return the matrices [n,rows,columns] with singular values near 1, by five Newton-Schulz iterations.

    Source: Jordan et al., Muon (2024), https://kellerjordan.github.io/posts/muon/, with its coefficients.
    """
    x = matrices.bfloat16()
    if wide := x.shape[1] > x.shape[2]:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * (gram @ gram)) @ x
    result: torch.Tensor = (x.mT if wide else x).float()
    return result


class Muon(torch.optim.Optimizer):
    """Momentum whose update for each matrix or convolution is orthogonalised; sized as AdamW's (arXiv 2502.16982)."""

    def __init__(self, parameters: list[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters once; those of one shape are orthogonalised together."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                updates = []
                for parameter in parameters:
                    gradient = cast("torch.Tensor", parameter.grad)
                    mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                    mean.lerp_(gradient, 1 - group["momentum"])
                    updates.append(gradient.lerp(mean, group["momentum"]).reshape(shape[0], -1))
                flat = orthogonalised(torch.stack(updates))
                flat *= 0.2 * max(flat.shape[1:]) ** 0.5 * group["lr"]
                for parameter, update in zip(parameters, flat, strict=True):
                    parameter.mul_(1 - 1e-3 * group["lr"]).sub_(update.view(shape))


@dataclass
class Run:
    """One training run that can be stopped at any time and resumes from its last saved state.

    Args:
        path: State file; a run resumes from it if it exists.
        budget_s: Seconds of training in total, over all restarts.
        modules: Modules to train, by name.
        learning_rate: Highest learning rate of AdamW; rates rise over 100 steps and fall along a cosine to a fiftieth.
        muon_rate: Highest learning rate of Muon, for matrices and convolutions except the first and last; None trains
            all with AdamW.
        decay: Decay of the moving average of the weights, after its warm-up.
        save_every_s: Seconds between saved states.
    """

    path: Path
    budget_s: float
    modules: dict[str, torch.nn.Module]
    learning_rate: float
    muon_rate: float | None = None
    decay: float = 0.999
    save_every_s: float = 60.0
    step: int = 0
    elapsed_s: float = 0.0
    loss: float = 0.0
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    average: dict[str, torch.nn.Module] = field(init=False)
    optimized: list[torch.nn.Parameter] = field(init=False)
    optimizers: list[torch.optim.Optimizer] = field(init=False)

    def __post_init__(self) -> None:
        self.average = {name: copy.deepcopy(module).eval() for name, module in self.modules.items()}
        self.optimized = self.parameters()
        self.optimizers = self._new_optimizers()
        if self.path.exists():
            self._resume(torch.load(self.path, weights_only=False))

    def parameters(self) -> list[torch.nn.Parameter]:
        """Return all trained parameters."""
        return [p for module in self.modules.values() for p in module.parameters() if p.requires_grad]

    def _new_optimizers(self) -> list[torch.optim.Optimizer]:
        inner = (
            set()
            if self.muon_rate is None
            else {
                id(parameter)
                for module in self.modules.values()
                for name, parameter in module.named_parameters()
                if parameter.ndim >= 2 and not any(part in name for part in ("conv_in", "conv_out", "embedding"))
            }
        )
        rest = [parameter for parameter in self.optimized if id(parameter) not in inner]
        adam = torch.optim.AdamW(rest, lr=self.learning_rate, betas=(0.9, 0.98), weight_decay=1e-3)
        if self.muon_rate is None:
            return [adam]
        return [adam, Muon([p for p in self.optimized if id(p) in inner], lr=self.muon_rate)]

    def _resume(self, state: dict[str, Any]) -> None:
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
            self.average[name].load_state_dict(state["average"][name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.elapsed_s, self.loss = state["step"], state["elapsed_s"], state["loss"]
        self.rng.setstate(state["rng"])
        torch.set_rng_state(state["torch_rng"])

    def save(self) -> None:
        """Write the state, replacing the previous one atomically."""
        state = {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "average": {name: module.state_dict() for name, module in self.average.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "loss": self.loss,
            "rng": self.rng.getstate(),
            "torch_rng": torch.get_rng_state(),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, self.path.with_suffix(".part"))
        self.path.with_suffix(".part").replace(self.path)

    def steps(self) -> Iterator[float]:
        """Yield the share of the budget spent, once a step, until it is spent; save and log at intervals."""
        saved = last = time.monotonic()
        while self.elapsed_s < self.budget_s:
            yield self.elapsed_s / self.budget_s
            now = time.monotonic()
            self.elapsed_s += now - last
            last = now
            if now - saved > self.save_every_s:
                self.save()
                self.log()
                saved = now
        self.save()
        self.log()

    def finish(self) -> None:
        """End the run before its budget is spent."""
        self.elapsed_s = self.budget_s

    def log(self) -> None:
        """Print one JSON line and append it to the log beside the state file."""
        entry = {"step": self.step, "elapsed_s": round(self.elapsed_s), "loss": round(self.loss, 5)}
        line = json.dumps({"stage": self.path.stem, **entry})
        print(line, flush=True)
        with self.path.with_suffix(".log.jsonl").open("a") as log:
            log.write(line + "\n")

    def descend(self, loss: torch.Tensor, spent: float) -> None:
        """Take one optimiser step on the loss; ``spent`` is the share of the budget spent so far."""
        share = min(1.0, (self.step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * spent)))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * share
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        keep = min(self.decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, module in self.modules.items():
                for mean, value in zip(self.average[name].parameters(), module.parameters(), strict=True):
                    if value.requires_grad:
                        mean.lerp_(value, 1 - keep)
        self.loss = loss.item() if self.step == 1 else 0.99 * self.loss + 0.01 * loss.item()
