"""Changes to a checkpoint's files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sdrt.checkpoint.weights import find_weights

#: The `edit` fixture: changes values of one of the copy's JSON files.
Edit = Callable[[str, dict[str, Any]], None]
Tensors = dict[str, torch.Tensor]


def rewrite(folder: Path, component: str, change: Callable[[Tensors], Tensors]) -> None:
    """Change the tensors of a component's file."""
    path = find_weights(folder, component)
    save_file({name: t.contiguous() for name, t in change(dict(load_file(path))).items()}, path)
