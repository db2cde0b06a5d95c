"""What the three training scripts share: a time budget, resumable state, moving averages, a log."""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image


def pixels_of(pictures: list[Image.Image]) -> torch.Tensor:
    """Pictures as a float tensor [n,3,height,width] in -1..1."""
    array = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1


@dataclass
class Run:
    """One training run that can be stopped at any time and goes on from its last saved state.

    Args:
        path: The state file; a run starts from it where it is there.
        budget_s: Seconds of training in all, over every restart.
        modules: What is trained, by name.
        learning_rate: The highest; it rises over 100 steps and falls along a cosine to a fiftieth.
        decay: Of the moving average of the weights, once it has warmed up.
        save_every_s: Seconds between two saved states.
    """

    path: Path
    budget_s: float
    modules: dict[str, torch.nn.Module]
    learning_rate: float
    decay: float = 0.999
    save_every_s: float = 60.0
    step: int = 0
    elapsed_s: float = 0.0
    loss: float = 0.0
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    average: dict[str, torch.nn.Module] = field(init=False)

    def __post_init__(self) -> None:
        self.average = {name: copy.deepcopy(module).eval() for name, module in self.modules.items()}
        self.optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.learning_rate, betas=(0.9, 0.98), weight_decay=1e-3
        )
        if self.path.exists():
            self._resume(torch.load(self.path, weights_only=False))

    def parameters(self) -> list[torch.nn.Parameter]:
        """Every trained parameter."""
        return [p for module in self.modules.values() for p in module.parameters() if p.requires_grad]

    def _resume(self, state: dict[str, Any]) -> None:
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
            self.average[name].load_state_dict(state["average"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.elapsed_s, self.loss = state["step"], state["elapsed_s"], state["loss"]
        self.rng.setstate(state["rng"])
        torch.set_rng_state(state["torch_rng"])

    def save(self) -> None:
        """Write the state, replacing the one before in one step."""
        state = {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "average": {name: module.state_dict() for name, module in self.average.items()},
            "optimizer": self.optimizer.state_dict(),
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
        """Yield the share of the budget spent, once a step, until it is spent; saves and logs on the way."""
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
        """End the run before its budget is spent: it is good enough."""
        self.elapsed_s = self.budget_s

    def log(self) -> None:
        """Print one JSON line and add it to the log beside the state file."""
        entry = {"step": self.step, "elapsed_s": round(self.elapsed_s), "loss": round(self.loss, 5)}
        line = json.dumps({"stage": self.path.stem, **entry})
        print(line, flush=True)
        with self.path.with_suffix(".log.jsonl").open("a") as log:
            log.write(line + "\n")

    def descend(self, loss: torch.Tensor, spent: float) -> None:
        """One optimiser step on the loss; ``spent`` is the share of the budget behind us."""
        rate = self.learning_rate * min(1.0, (self.step + 1) / 100)
        rate *= 0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * spent))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        keep = min(self.decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, module in self.modules.items():
                for mean, value in zip(self.average[name].parameters(), module.parameters(), strict=True):
                    if value.requires_grad:
                        mean.lerp_(value, 1 - keep)
        self.loss = loss.item() if self.step == 1 else 0.99 * self.loss + 0.01 * loss.item()
